"""python -m llamahome.native: build the CPU kernels now instead of at the first use."""

from __future__ import annotations

import torch

from llamahome.logs import configure_logging
from llamahome.native.build import NativeUnavailableError, load_native


def main() -> None:
    configure_logging()
    try:
        load_native()
    except NativeUnavailableError as error:
        print(f"{error}\nLlamaHome runs without them, slower.")
        return
    isa = torch.classes.llamahome.Model(64, 4, 2, 16, 1e-5, 0.25, 1, "auto").isa()
    print(f"CPU kernels: ready, {isa}")


if __name__ == "__main__":
    main()
