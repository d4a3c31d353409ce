"""Reads in a compiled program's text (optimised HLO) collectives, Pallas calls and operations, loops multiplied out.

for found in hlo.collectives(compiled.as_text()):
    ...  # Collective(kind="all-gather", results=(("bf16", (256, 512)),), group_size=4, times=36)
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from cgrpo_jax.models.kernels.cost import KernelCall, num_bytes

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# Named in the attributes of an instruction that runs other computations.
_CALLED = re.compile(r"\b(?:calls|body|true_computation|false_computation)=%?([\w.\-]+)")
# What runs nothing itself: other names for what is there already.
_FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "opt-barrier", "add-dependency",
    "partition-id", "replica-id", "domain",
}  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: `name = types opcode(operands), attributes`."""

    name: str
    types: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation, as one device sees it.

    Attributes:
      kind: one of `COLLECTIVES`.
      results: (dtype, shape) of each of its results on one device.
      group_size: devices that take part together.
      times: how often it runs in one run of the program; None where a loop's trip count is not known.
    """

    kind: str
    results: tuple[tuple[str, tuple[int, ...]], ...]
    group_size: int
    times: int | None

    @property
    def wire_bytes(self) -> float:
        """Bytes that one device sends in one run of it, by the ring algorithm, which sends the least.

        With R the bytes of the results and g the group's size: all-gather and all-to-all R (g-1)/g, reduce-scatter
        R (g-1), all-reduce 2 R (g-1)/g, collective-permute and broadcast R.
        """
        share = (self.group_size - 1) / self.group_size
        factor = {
            "all-gather": share,
            "all-to-all": share,
            "all-reduce": 2 * share,
            "reduce-scatter": self.group_size - 1,
        }.get(self.kind, 1.0)
        return factor * sum(num_bytes(dtype, shape) for dtype, shape in self.results)


def collectives(text: str, *, unknown_trips: Sequence[int] = ()) -> list[Collective]:
    """Returns every collective of a program, once per place it is called from.

    On TPU an asynchronous collective appears in the fusion that starts it, in those that do other work meanwhile and in
    the one that ends it: it is counted where it starts.

    Args:
      text: `compiled.as_text()`.
      unknown_trips: how often loops run whose trip count is not in the program, as those that end on data: one of
        these that is in none of these, one within that, and so on.
    """
    program = computations(text)
    everyone = _num_devices(text)
    found = []
    for computation, instruction, times in _walk(program, unknown_trips):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES or _continues_elsewhere(instruction, program[computation]):
            continue
        results = _shapes(instruction.types)
        if instruction.opcode in ("all-gather-start", "collective-permute-start"):
            results = results[1:2] if len(instruction.operands) == 1 else results[len(instruction.operands) :]
        group_size = _group_size(instruction.attributes, everyone)
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            # A reduce-scatter that the compiler wrote as a fusion of an all-reduce and the slice that is kept.
            kind, results = "reduce-scatter", [(t, (math.prod(shape) // group_size,)) for t, shape in results]
        found.append(Collective(kind, tuple(results), group_size, times))
    return found


def transfers_between_slices(text: str, *, unknown_trips: Sequence[int] = ()) -> list[Collective]:
    """Returns what goes over the data centre's network (DCN) where a program runs on several slices.

    The compiler splits a collective that spans slices: within each it is one of `collectives`, and each device sends
    its share of the result to the others through its host.

    Args:
      text, unknown_trips: as for `collectives`.
    """
    found = []
    for _, instruction, times in _walk(computations(text), unknown_trips):
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
        if instruction.opcode == "send" and kind:
            slices = first_match(r'_xla_megascale_target="\{([\d,]+)\}', instruction.attributes).count(",") + 1
            name = kind[1].lower().replace("_", "-")
            found.append(Collective(name, tuple(_shapes(instruction.types)[:1]), slices, times))
    return found


def kernel_calls(text: str, *, unknown_trips: Sequence[int] = ()) -> list[KernelCall]:
    """Returns every call of a Pallas kernel in a program, once per place it is called from.

    Args:
      text, unknown_trips: as for `collectives`.
    """
    program = computations(text)
    found = []
    for computation, instruction, times in _walk(program, unknown_trips):
        if instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes:
            types = {other.name: other.types for other in program[computation]}
            operands = [shape for name in instruction.operands for shape in _shapes(types[name])]
            op_name = re.search(r'op_name="([^"]*)"', instruction.attributes)
            path = op_name[1].removesuffix("/pallas_call") if op_name else instruction.name
            found.append(KernelCall(path.split("/")[-1], tuple(operands), tuple(_shapes(instruction.types)), times))
    return found


def is_free(instruction: Instruction) -> bool:
    """Returns whether an instruction runs nothing: another name for what is there, or the end of what was started."""
    if instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update")):
        return True
    return instruction.opcode == "custom-call" and any(
        f'custom_call_target="{name}"' in instruction.attributes for name in _FREE_CALLS
    )


def operations(text: str, *, unknown_trips: Sequence[int] = ()) -> int | None:
    """Returns how many operations a program runs one after another, all loops multiplied out.

    A fusion is one operation, whatever is in it; a loop, a conditional and a call are those within. Of a conditional
    the branch counts that has the most.

    Args:
      text, unknown_trips: as for `collectives`.

    Returns:
      None if how often a loop runs is neither in the program nor given.
    """
    program = computations(text)

    def visit(name: str, given: tuple[int, ...]) -> int | None:
        total = 0
        for one in program[name]:
            if one.opcode not in ("while", "conditional", "call"):
                total += not is_free(one)
                continue
            trips, inside = trip_count(program, name, one) if one.opcode == "while" else 1, given
            if trips is None:
                trips, inside = given[0] if given else None, given[1:]
            found = [visit(callee, inside) for callee in called(program, one)]
            known = [number for number in found if number is not None]
            if trips is None or len(known) < len(found):
                return None
            total += trips * max(known, default=0)
        return total

    return visit("", tuple(unknown_trips))


def body_operations(text: str, trips: int) -> int | None:
    """Returns how many operations the body of the loop that runs so many times has, those of loops in it left out.

    Args:
      text: as for `collectives`.
      trips: how often it runs, such as the model's layers.

    Returns:
      the most, where several loops run as often; None where none does.
    """
    program, found = computations(text), []
    for name in program:
        for loop in program[name]:
            if loop.opcode == "while" and trip_count(program, name, loop) == trips:
                body = program[first_match(r"\bbody=%?([\w.\-]+)", loop.attributes)]
                found.append(sum(one.opcode != "while" and not is_free(one) for one in body))
    return max(found, default=None)


def computations(text: str) -> dict[str, list[Instruction]]:
    """Returns the instructions of every computation by its name, the entry's also under "".

    Args:
      text: `compiled.as_text()`.
    """
    program: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    # What describes a Pallas kernel, as splash attention does, may run over several lines of one instruction.
    for line in re.sub(r'\n(?="|\}\})', "", text).splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = program[header[2]] = []
            if header[1]:
                program[""] = current
        elif line.startswith("}"):
            current = None
        elif current is not None and (parsed := _instruction(line)):
            current.append(parsed)
    return program


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    types, rest = rest[:end], rest[end:].lstrip()
    opcode = first_match(r"([\w\-]+)", rest)
    end = _closing(rest, len(opcode))
    # A constant's "operand" is its value: kept, it is where trip counts are read.
    inside = re.sub(r"/\*.*?\*/", "", rest[len(opcode) + 1 : end])
    operands = tuple(part.split()[-1].lstrip("%") for part in inside.split(", ") if part.strip())
    return Instruction(head[2], types, opcode, operands, rest[end + 1 :], bool(head[1]))


def first_match(pattern: str, text: str) -> str:
    """Returns the group of a pattern where it first matches.

    Raises:
      ValueError: it matches nowhere, so that this is no HLO as it is known here.
    """
    found = re.search(pattern, text)
    if not found:
        raise ValueError(f"no {pattern!r} in HLO: {text[:200]!r}")
    return found[1]


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]!r}")


def _shapes(types: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (dtype, tuple(map(int, filter(None, sizes.split(",")))))
        for dtype, sizes in re.findall(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]", types)
    ]


def _num_devices(text: str) -> int:
    header = text[: text.find("\n")]
    counts = [re.search(rf"\b{name}=(\d+)", header) for name in ("num_partitions", "replica_count")]
    return math.prod(int(count[1]) for count in counts if count)


def _group_size(attributes: str, everyone: int) -> int:
    """Reads how many devices take part together, in each of the forms in which the compiler writes groups.

    `{{0,2},{1,3}}`, `[groups,size]<=[8]`, `mesh['x'=2,'y'=4] {'y'}` with a part of an axis as `'y':(1)2`, and for all
    devices `{}` or nothing. A permutation's pairs count as 2.
    """
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", axes[1]))
        taken = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[name]) for name, part in taken)
    if "replica_groups=" in attributes and "replica_groups={}" not in attributes:
        raise ValueError(f"unknown form of groups in HLO: {attributes[:200]!r}")
    return 2 if "source_target_pairs=" in attributes else everyone


def _continues_elsewhere(instruction: Instruction, computation: list[Instruction]) -> bool:
    """Returns whether this is a later part of an asynchronous collective that another fusion starts."""
    starts = any('custom_call_target="AsyncCollectiveStart"' in other.attributes for other in computation)
    ends = any('custom_call_target="AsyncCollectiveDone"' in other.attributes for other in computation)
    return not starts and (ends or '"async_collective_fusion_config"' in instruction.attributes)


def _walk(
    program: dict[str, list[Instruction]], unknown_trips: Sequence[int]
) -> Iterator[tuple[str, Instruction, int | None]]:
    """Yields (computation, instruction, times it runs) for each place it is called from; all branches are taken."""

    def visit(name: str, times: int | None, given: tuple[int, ...]) -> Iterator[tuple[str, Instruction, int | None]]:
        for instruction in program[name]:
            yield name, instruction, times
            if instruction.opcode in ("async-update", "async-done"):
                continue  # they name the computation that their async-start has already run
            inner, inside = times, given
            if instruction.opcode == "while":
                trips = trip_count(program, name, instruction)
                if trips is None:
                    trips, inside = given[0] if given else None, given[1:]
                inner = None if times is None or trips is None else times * trips
            for callee in called(program, instruction):
                yield from visit(callee, inner, inside)

    yield from visit("", 1, tuple(unknown_trips))


def called(program: dict[str, list[Instruction]], instruction: Instruction) -> list[str]:
    """Returns the computations that an instruction runs: a fusion's, a loop's body, each branch of a conditional.

    Args:
      program: of `computations`.
      instruction: one of it.
    """
    names = _CALLED.findall(instruction.attributes)
    if instruction.opcode == "call":
        names += re.findall(r"\bto_apply=%?([\w.\-]+)", instruction.attributes)
    for listed in _BRANCHES.findall(instruction.attributes):
        names += [branch.strip().lstrip("%") for branch in listed.split(",")]
    return [name for name in names if name in program]


def trip_count(program: dict[str, list[Instruction]], computation: str, loop: Instruction) -> int | None:
    """Returns how often a while loop's body runs: known to the compiler, or counted from `i = a; while i < b; i += c`.

    Args:
      program: of `computations`.
      computation: where the loop is.
      loop: the `while` instruction.

    Returns:
      None if the loop is not such a counting one, as where it ends on data.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    outside = {other.name: other for other in program[computation]}
    condition = {o.name: o for o in program[first_match(r"\bcondition=%?([\w.\-]+)", loop.attributes)]}
    body = {o.name: o for o in program[first_match(r"\bbody=%?([\w.\-]+)", loop.attributes)]}
    start, ends = outside[loop.operands[0]], next(o for o in body.values() if o.root)
    test = next(o for o in condition.values() if o.root)
    if start.opcode != "tuple" or ends.opcode != "tuple" or test.opcode != "compare":
        return None

    def element(inside: dict[str, Instruction], name: str) -> int | None:
        """The index of the loop's state that a value is, or None."""
        found = _through_copies(inside, name)
        if not found or found.opcode != "get-tuple-element" or inside[found.operands[0]].opcode != "parameter":
            return None
        return int(first_match(r"\bindex=(\d+)", found.attributes))

    def value(inside: dict[str, Instruction], name: str) -> int | None:
        """The integer that a value is throughout the loop, or None."""
        number = _integer(inside, name)
        index = element(inside, name)
        if number is None and index is not None and element(body, ends.operands[index]) == index:
            number = _integer(outside, start.operands[index])
        return number

    counter, limit = element(condition, test.operands[0]), value(condition, test.operands[1])
    if counter is None or limit is None:
        return None
    first, step = _integer(outside, start.operands[counter]), _through_copies(body, ends.operands[counter])
    if first is None or step is None or step.opcode != "add":
        return None
    added = [value(body, name) for name in step.operands if element(body, name) != counter]
    if len(added) != 1 or added[0] is None or added[0] <= 0:
        return None
    if "direction=LE" in test.attributes:
        limit += 1
    elif "direction=LT" not in test.attributes:
        return None
    return max(0, -(-(limit - first) // added[0]))


def _through_copies(inside: dict[str, Instruction], name: str) -> Instruction | None:
    found = inside.get(name)
    while found and found.opcode in ("copy", "bitcast", "copy-start", "copy-done"):
        found = inside.get(found.operands[0])
    return found


def _integer(inside: dict[str, Instruction], name: str) -> int | None:
    found = _through_copies(inside, name)
    if found and found.opcode == "constant" and re.fullmatch(r"-?\d+", found.operands[0]):
        return int(found.operands[0])
    return None
