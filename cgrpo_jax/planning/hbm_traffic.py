"""Bytes that a program compiled for a TPU moves to and from HBM, counted in its text with all loops multiplied out.

    moved = hbm_traffic.hbm_bytes(compiled.as_text(), unknown_trips=(64,))

The compiler's own figure, `cost_analysis()["bytes accessed"]`, counts a loop's body once, and what lies in on-chip
memory as if it were read from HBM once more.
"""

import math
import re
from collections.abc import Mapping, Sequence

from cgrpo_jax.models.kernels import cost
from cgrpo_jax.planning import hlo
from cgrpo_jax.planning.hlo import Instruction

# An array: dtype, sizes and, in braces, its layout: axes from the fastest to the slowest, tiles, memory space.
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE, _SPACE = re.compile(r"T\(([\d,]+)\)"), re.compile(r"S\((\d+)\)")
_SLICES = ("dynamic-slice", "slice", "gather")
_MOVES = ("bitcast", "copy", "reshape", "transpose")  # in a fusion: a slice of the result is a slice of the operand

_Computation = Mapping[str, Instruction]


def hbm_bytes(text: str, *, unknown_trips: Sequence[int] = ()) -> int | None:
    """Returns the bytes that one run of a program reads from and writes to HBM on one device.

    Each instruction reads its operands and writes its results, once, where these lie in HBM, with the padding of their
    tiles. Of what is only sliced it reads the slice; of what is updated in place it reads and writes the update. What a
    fusion computes on the way stays in it. Of a conditional the branch counts that moves the most.

    Args:
      text: `compiled.as_text()` of a program for TPUs.
      unknown_trips: as for `hlo.collectives`.

    Returns:
      None if how often a loop runs is neither in the program nor given.

    Example:
      hbm_bytes(jax.jit(jnp.sin).lower(x).compile().as_text()) == 2 * x.nbytes  # where x fills its tiles
    """
    instructions = hlo.computations(text)
    program = {name: {one.name: one for one in found} for name, found in instructions.items()}

    def visit(name: str, given: tuple[int, ...]) -> int | None:
        total = 0
        for one in instructions[name]:
            if one.opcode not in ("while", "conditional", "call"):
                total += _moved(program, program[name], one, hlo.called(instructions, one))
                continue
            trips, inside = hlo.trip_count(instructions, name, one) if one.opcode == "while" else 1, given
            if trips is None:
                trips, inside = given[0] if given else None, given[1:]
            found = [visit(callee, inside) for callee in hlo.called(instructions, one)]
            moved = [size for size in found if size is not None]
            if trips is None or len(moved) < len(found):
                return None
            total += trips * max(moved, default=0)
        return total

    return visit("", tuple(unknown_trips))


def _moved(program: Mapping[str, _Computation], here: _Computation, one: Instruction, called: list[str]) -> int:
    """Returns the bytes that an instruction moves which is no loop, conditional or call."""
    if hlo.is_free(one):
        return 0
    if called and one.opcode in ("fusion", "async-start"):
        return _moved_by_fusion(program, here, one, program[called[0]])
    operands = {name: here[name].types for name in one.operands if name in here}
    results = _arrays(one.types)
    if one.opcode == "copy-start":  # its result, its source, a flag
        return _in_hbm(_arrays(next(iter(operands.values())))) + _in_hbm(results[:1])
    if one.opcode.endswith("-start") and one.opcode != "all-reduce-start":  # sources, results
        results = results[len(operands) : 2 * len(operands)]
    if one.opcode.removesuffix("-start") in _SLICES:
        source = _arrays(operands[one.operands[0]])[0]
        return _size(results) * source[1] + _in_hbm(results)
    if name := _update_of(one):
        update = _arrays(operands[name])
        return 2 * _size(update) * results[0][1] + _in_hbm(update)
    return sum(_in_hbm(_arrays(types)) for types in operands.values()) + _in_hbm(results)


def _update_of(one: Instruction) -> str | None:
    """Returns which operand is what updates one array in place; None where an instruction does no such thing."""
    if one.opcode == "dynamic-update-slice":
        return one.operands[1]
    return one.operands[2] if one.opcode == "scatter" and len(one.operands) == 3 else None


def _arrays(types: str) -> list[tuple[int, bool]]:
    """Returns the bytes of each array and whether it lies in HBM."""
    return [(_padded(*found), _space(found[2]) == 0) for found in _ARRAY.findall(types)]


def _space(layout: str) -> int:
    found = _SPACE.search(layout)
    return int(found[1]) if found else 0


def _padded(dtype: str, sizes: str, layout: str) -> int:
    """Returns the bytes of an array with its first tiles filled up."""
    shape = [int(size) for size in sizes.split(",") if size]
    order = [int(axis) for axis in layout.partition(":")[0].split(",") if axis] or range(len(shape))[::-1]
    fastest = [shape[axis] for axis in order]
    tile = _TILE.search(layout)
    for i, size in enumerate(reversed(tile[1].split(",")) if tile else ()):
        fastest[i : i + 1] = [-(-(fastest[i] if i < len(fastest) else 1) // int(size)) * int(size)]
    return cost.num_bytes(dtype, tuple(fastest)) if math.prod(shape) else 0


def _size(arrays: list[tuple[int, bool]]) -> int:
    return sum(size for size, _ in arrays)


def _in_hbm(arrays: list[tuple[int, bool]]) -> int:
    return sum(size for size, in_hbm in arrays if in_hbm)


# --- fusions ------------------------------------------------------------------------------------------------------


def _moved_by_fusion(
    program: Mapping[str, _Computation], here: _Computation, one: Instruction, inside: _Computation
) -> int:
    root = next(other for other in inside.values() if other.root)
    results = _arrays(one.types if one.opcode == "fusion" else root.types)
    # A root that is no tuple may still have several results: a reduction to a maximum and its place.
    made = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root] * len(results)
    total = sum(
        _written(program, inside, result, size) for result, (size, in_hbm) in zip(made, results, strict=True) if in_hbm
    )
    for name in set(one.operands):
        whole = _in_hbm(_arrays(here[name].types))
        if whole:
            places = [i for i, operand in enumerate(one.operands) if operand == name]
            total += min(whole, sum(_read_of_parameter(program, inside, i) for i in places))
    return total


def _written(program: Mapping[str, _Computation], inside: _Computation, result: Instruction, size: int) -> int:
    """Returns what a result of a fusion moves: all of it, or of an array that is updated in place, the update twice."""
    while result.opcode == "bitcast":
        result = inside[result.operands[0]]
    if name := _update_of(result):
        return 2 * _size(_arrays(inside[name].types))
    if result.opcode == "fusion" and result.types.count("[") == 1:
        nested = program[_callee(result)]
        return _written(program, nested, next(one for one in nested.values() if one.root), size)
    return size


def _callee(fusion: Instruction) -> str:
    return hlo.first_match(r"\bcalls=%?([\w.\-]+)", fusion.attributes)


def _read_of_parameter(program: Mapping[str, _Computation], inside: _Computation, number: int) -> int:
    parameter = next(one for one in inside.values() if one.opcode == "parameter" and one.operands == (str(number),))
    return _read(program, inside, parameter, _size(_arrays(parameter.types)))


def _read(
    program: Mapping[str, _Computation], inside: _Computation, value: Instruction, whole: int, updated: bool = False
) -> int:
    """Returns what a fusion reads of an array.

    Args:
      inside: the fusion's computation.
      value: the array, or what it has become on the way.
      whole: the bytes of all of it.
      updated: whether the value is the array with an update; as a result of the fusion that takes the array's place.
    """
    total = 0 if updated or not value.root else whole
    for user in inside.values():
        if value.name not in user.operands:
            continue
        first = user.operands[0] == value.name
        if user.opcode in _SLICES and first:
            total += _size(_arrays(user.types))
        elif _update_of(user) and first:
            total += _read(program, inside, user, whole, True)
        elif user.opcode in _MOVES:
            total += _read(program, inside, user, whole, updated)
        elif user.opcode == "fusion":
            nested = program[_callee(user)]
            places = [i for i, name in enumerate(user.operands) if name == value.name]
            total += sum(_read_of_parameter(program, nested, i) for i in places)
        elif not (updated and user.root and user.opcode == "tuple"):
            total += whole
    return min(total, whole)
