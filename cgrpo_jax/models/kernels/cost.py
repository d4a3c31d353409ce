"""A Pallas kernel's call, as a compiled program's text gives it: what its cost is computed from."""

import dataclasses
import math
import re

_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0}


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A Pallas kernel's call on one device: name, (dtype, shape) of operands and results, times as in `Collective`."""

    name: str
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    results: tuple[tuple[str, tuple[int, ...]], ...]
    times: int | None


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Returns the bytes of an array, padding of its layout not counted. Example: num_bytes("bf16", (2, 3)) == 12."""
    bits = _BITS[dtype] if dtype in _BITS else int(re.findall(r"\d+", dtype)[0])
    return -(-math.prod(shape) * bits // 8)
