"""What a program costs on a TPU, from the real compiler: memory, FLOPs, bytes, collectives, the time they bound.

    compiled = costs.compile_for(step, (shapes,), donate_argnums=0)
    compiled.needed_bytes                          # of HBM, per device
    costs.seconds_bound(compiled.cost, chip).limit  # "flops", "bytes" or "collectives"

The compiler counts a loop's body once and a Pallas kernel as nothing. So costs come from shallow programs with their
loops unrolled, extrapolated (`extrapolate`, `extrapolate_decode`), and a kernel's cost from a formula. Bytes of
programs that read much again and again, as decoding does, are counted in the program itself (`Compiled.moved_bytes`).
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from cgrpo_jax.models.kernels import cost as cost_lib
from cgrpo_jax.planning import hbm_traffic, hlo
from cgrpo_jax.runtime.chips import Chip

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of HBM on one device while a program runs, as XLA:TPU's `memory_analysis()` gives them.

    Attributes:
      argument: of the arguments that are used, in the layout that the compiler chose; `jit` drops unused ones.
      output: of the results, those that take a donated argument's place included.
      alias: of the results that do take one's place.
      temporary: of the heap that everything else lies in, with the holes that packing leaves; buffers in on-chip memory
        are not in it.
      code: of the program itself, which lies in HBM too.
      peak: what the compiler holds against the chip's limit (its RESOURCE_EXHAUSTED message gives this number): all
        that is alive at the worst moment. It has no holes, but counts buffers in on-chip memory, which shows in tiny
        programs only.
    """

    argument: int
    output: int
    alias: int
    temporary: int
    code: int
    peak: int

    @property
    def needed(self) -> int:
        """What must be free: the compiler's peak, or what is laid out one beside the other if that is more.

        The two agree but for holes in the heap, which the compiler does not hold against the limit and which are
        allocated all the same.
        """
        return max(self.peak, self.argument + self.output - self.alias + self.temporary + self.code)


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs, bytes moved to and from HBM, and bytes sent over the network by kind of collective; all of one device.

    `operations` are those that run one after another (hlo.py), 0 where they are not counted; `dcn` bytes sent to other
    slices.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    operations: float = 0.0
    dcn: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        kinds = sorted({*self.collectives, *other.collectives})
        sent = {kind: self.collectives.get(kind, 0.0) + other.collectives.get(kind, 0.0) for kind in kinds}
        operations = self.operations + other.operations
        return Cost(self.flops + other.flops, self.bytes + other.bytes, sent, operations, self.dcn + other.dcn)

    def __mul__(self, times: float) -> "Cost":
        sent = {kind: times * sent for kind, sent in self.collectives.items()}
        return Cost(times * self.flops, times * self.bytes, sent, times * self.operations, times * self.dcn)

    __rmul__ = __mul__

    def __sub__(self, other: "Cost") -> "Cost":
        return self + -1.0 * other


KernelCost = Callable[[cost_lib.KernelCall], Cost]  # of one run of a Pallas kernel


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler reports of a program.

    Attributes:
      needed_bytes: of HBM on one device, `Memory.needed`; from the compiler's message if it does not fit.
      limit_bytes: the HBM that the compiler's message says there is; None if the program fits.
      memory, cost: None if it does not fit.
      collectives, kernels: those in it; empty if it does not fit.
      seconds: how long compiling took.
      message: the compiler's, if it does not fit.
      moved_bytes: to and from HBM, all loops multiplied out (hbm_traffic.py); None if it does not fit, if it was not
        asked for, or if how often a loop runs is neither in the program nor was given.
    """

    needed_bytes: int
    limit_bytes: int | None
    memory: Memory | None
    cost: Cost | None
    collectives: tuple[hlo.Collective, ...]
    kernels: tuple[cost_lib.KernelCall, ...]
    seconds: float
    message: str
    moved_bytes: int | None = None

    @property
    def fits(self) -> bool:
        return self.memory is not None


def compile_for(
    function: Callable,
    args: Sequence,
    keywords: Mapping | None = None,
    *,
    kernel_cost: KernelCost | None = None,
    unknown_trips: Sequence[int] = (),
    count_moved: bool = False,
    **jit_options: Any,
) -> Compiled:
    """Compiles a function for the devices that its arguments' shardings name; returns what the compiler reports of it.

    Its cost is only true of a program without loops: `cost_analysis()` counts a body once. Collectives and kernels in
    loops are multiplied out, where the trip count is known or given, and counted once elsewhere.

    Args:
      function: to compile; jitted already or not.
      args, keywords: its arguments; each array leaf a `jax.ShapeDtypeStruct` with a sharding on a topology's mesh.
      kernel_cost: the cost of one run of a Pallas kernel on one device, from its operands' and results' shapes.
      unknown_trips: as for `hlo.collectives`: how often loops run that end on data, the outermost first.
      count_moved: whether to count what it moves to and from HBM.
      jit_options: for `jax.jit`, as donate_argnums and static_argnames; none if the function is jitted.

    Raises:
      ValueError: an argument does not say where it lies, or there is a Pallas kernel and no formula for its cost.
      jax.errors.JaxRuntimeError: the compiler failed for another reason than HBM.

    Example:
      compile_for(jnp.dot, (a, b)).cost.flops == 2 * m * k * n   # of one device's share
    """
    keywords = dict(keywords or {})
    check_placed((args, keywords))
    if not isinstance(function, jax.stages.Wrapped) or jit_options:
        function = jax.jit(function, **jit_options)
    lowered = function.lower(*args, **keywords)
    start = time.monotonic()
    try:
        with nothing_cached():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        figures = out_of_memory(str(error))
        if figures is None:
            raise
        message = str(error).strip().splitlines()[0]
        return Compiled(*figures, None, None, (), (), time.monotonic() - start, message)
    seconds = time.monotonic() - start
    text = compiled.as_text()
    assert text is not None, "XLA gives a program of any TPU as text"
    found = tuple(hlo.collectives(text, unknown_trips=unknown_trips))
    between = tuple(hlo.transfers_between_slices(text, unknown_trips=unknown_trips))
    kernels = tuple(hlo.kernel_calls(text, unknown_trips=unknown_trips))
    memory, kernel_costs = _memory(compiled.memory_analysis()), _kernel_costs(kernels, kernel_cost)
    cost = _cost(compiled.cost_analysis() or {}, found, between, kernels, kernel_costs)
    moved = hbm_traffic.hbm_bytes(text, unknown_trips=unknown_trips) if count_moved else None
    if moved is not None:  # a kernel may read an operand more than once
        more = (
            (call.times or 1) * (one.bytes - _bytes_once(call)) for call, one in zip(kernels, kernel_costs, strict=True)
        )
        moved += round(sum(more))
    return Compiled(memory.needed, None, memory, cost, found, kernels, seconds, "", moved)


def out_of_memory(message: str) -> tuple[int, int] | None:
    """Returns the bytes of HBM that a compiler's error says are needed and there; None if it is no such error.

    Args:
      message: of XLA:TPU, whose G are 2**30; on-chip memory that runs out is another matter.

    Example:
      out_of_memory("RESOURCE_EXHAUSTED: ... Used 18.00G of 15.75G hbm ...") == (18 * 2**30, 63 * 2**28)
    """
    size = r"(\d+(?:\.\d+)?)([KMGT]?)"
    forms = (rf"\({size}\) exceeds available HBM \({size}\)", rf"Used {size}i?B? of {size}i?B? hbm")
    for form in forms:
        found = re.search(form, message)
        if found and "RESOURCE_EXHAUSTED" in message:
            needed, its_unit, limit, limit_unit = found.groups()
            return round(float(needed) * _UNITS[its_unit]), round(float(limit) * _UNITS[limit_unit])
    return None


def extrapolate(costs: Mapping[int, Cost], layers: int) -> Cost:
    """Returns the cost at a depth from those at two, since a layer costs what every layer costs.

    c(L) = c(a) + (L - a) (c(b) - c(a)) / (b - a)

    Args:
      costs: {depth: cost} at two depths, of programs with their layers unrolled. Not 1: the first and the last layer
        fuse with what is around them, so that one layer is less typical than the difference of 2 and 3.
      layers: the depth asked for.

    Example:
      extrapolate({2: Cost(flops=7.0), 3: Cost(flops=10.0)}, 36).flops == 109.0
    """
    (a, low), (b, high) = sorted(costs.items())
    return low + (layers - a) / (b - a) * (high - low)


def extrapolate_decode(costs: Mapping[tuple[int, int], Cost], layers: int, tokens: int) -> Cost:
    """Returns the cost of generating tokens at a depth from four programs: it is linear in each, so bilinear in both.

    True of FLOPs; of bytes where a layer's weights don't fit on-chip memory beside others', else see
    `Compiled.moved_bytes`. Not of collectives that give the same at every token, as gathering a weight: unrolled, the
    compiler does them once for all tokens; in the loop that runs, at each. Take those from the program itself, whose
    loops are multiplied out: `dataclasses.replace(extrapolated, collectives=program.cost.collectives)`.

    Args:
      costs: {(depth, tokens): cost} at two depths and two numbers of tokens, all unrolled, caches of one size.
      layers, tokens: those asked for.
    """
    lengths = sorted({length for _, length in costs})
    by_length = {
        length: extrapolate({depth: cost for (depth, at), cost in costs.items() if at == length}, layers)
        for length in lengths
    }
    return extrapolate(by_length, tokens)


@dataclasses.dataclass(frozen=True)
class Bound:
    """The least time that a program can take: `seconds`, by its `limit`, the largest of the three in `seconds_by`."""

    seconds: float
    limit: str
    seconds_by: Mapping[str, float]


def seconds_bound(cost: Cost, chip: Chip) -> Bound:
    """Returns the least time that a chip needs for a cost: everything at its published peak, all of it overlapped.

    max(flops / peak, bytes / HBM bandwidth, bytes sent / ICI bandwidth); peak is bfloat16's.

    Args:
      cost: of one device.
      chip: the device.
    """
    seconds_by = {
        "flops": cost.flops / chip.flops,
        "bytes": cost.bytes / chip.hbm_bandwidth,
        "collectives": sum(cost.collectives.values()) / chip.ici_bandwidth,
    }
    limit = max(seconds_by, key=lambda name: seconds_by[name])
    return Bound(seconds_by[limit], limit, seconds_by)


@contextmanager
def nothing_cached() -> Iterator[None]:
    """Keeps JAX from writing to its cache what only a TPU could read: read here, it would warn and compile anyway."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def check_placed(arguments) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        # Numbers, strings and meshes may be static arguments; what has a dtype is data, and must lie somewhere.
        if hasattr(leaf, "dtype") and getattr(leaf, "sharding", None) is None:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"argument {where} has no sharding, so would be compiled for this machine; give it one.")


def _memory(reported: Any) -> Memory:
    return Memory(
        argument=reported.argument_size_in_bytes,
        output=reported.output_size_in_bytes,
        alias=reported.alias_size_in_bytes,
        temporary=reported.temp_size_in_bytes,
        code=reported.generated_code_size_in_bytes,
        # Of which XLA:TPU counts arguments in the hosts' memory a part.
        peak=reported.peak_memory_in_bytes - reported.host_argument_size_in_bytes,
    )


def _bytes_once(call: cost_lib.KernelCall) -> int:
    return sum(cost_lib.num_bytes(*array) for array in call.operands + call.results)


def _kernel_costs(kernels: Sequence[cost_lib.KernelCall], kernel_cost: KernelCost | None) -> list[Cost]:
    """Returns what one run of each kernel costs."""
    if not kernels:
        return []
    if kernel_cost is None:
        names = ", ".join(sorted({kernel.name for kernel in kernels}))
        raise ValueError(f"the compiler counts Pallas kernels ({names}) as nothing; give kernel_cost.")
    return [kernel_cost(kernel) for kernel in kernels]


def _cost(
    reported: Mapping[str, float],
    found: Sequence[hlo.Collective],
    between: Sequence[hlo.Collective],
    kernels: Sequence[cost_lib.KernelCall],
    kernel_costs: Sequence[Cost],
) -> Cost:
    sent: dict[str, float] = {}
    for collective in found:
        sent[collective.kind] = sent.get(collective.kind, 0.0) + (collective.times or 1) * collective.wire_bytes
    # What is 0 the compiler leaves out, as the FLOPs of moving an array.
    dcn = sum((one.times or 1) * one.wire_bytes for one in between)
    cost = Cost(reported.get("flops", 0.0), reported.get("bytes accessed", 0.0), sent, dcn=dcn)
    for kernel, one in zip(kernels, kernel_costs, strict=True):
        cost += (kernel.times or 1) * one
    return cost
