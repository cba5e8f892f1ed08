"""The C++ kernels for decode and prefill on a CPU, built on first use and cached."""

from llamahome.native.build import NativeUnavailableError, load_native

__all__ = ["NativeUnavailableError", "load_native"]
