"""Kernels of the hot paths: one door each, behind it a plain version in torch and one in Triton.

Which of the two runs is the caller's argument. Triton is imported when it is first asked for.
"""

from llamahome.attention.kernels.append import append
from llamahome.attention.kernels.chunk import chunk_attend
from llamahome.attention.kernels.compact import compact
from llamahome.attention.kernels.decode import decode_attend
from llamahome.attention.kernels.implementation import Implementation, fastest
from llamahome.attention.kernels.record import KVRecord

__all__ = [
    "Implementation",
    "KVRecord",
    "append",
    "chunk_attend",
    "compact",
    "decode_attend",
    "fastest",
]
