"""Whether a run fits a TPU slice that you do not have, what it costs on it, and what to change where it does not fit.

    plan = planner.Planner(Variants(config), "v5p:2x2x4").plan()
    plan.fits, plan.phases["update"], plan.seconds

A phase needs what its largest program needs, and every buffer beside it that is no argument of it, counted once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.paged import heads, ragged_attention
from cgrpo_jax.models.kernels import cost as cost_lib
from cgrpo_jax.models.kernels import logprobs_pallas, splash_attention
from cgrpo_jax.planning import costs, programs, tpu_topology
from cgrpo_jax.planning.costs import Compiled, Cost
from cgrpo_jax.planning.unroll import unroll
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runs.variants import Changes, Variants
from cgrpo_jax.runtime import chips

KINDS = ("weights", "optimizer", "kv_cache", "temporaries")
# Two depths that show what a layer costs, and two numbers of tokens; see `costs.extrapolate`.
_DEPTHS, _TOKENS = (2, 3), (1, 2)
_TRAINING = ("reference", "update")


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
    """One program of a plan, for one run of it on one device.

    Attributes:
      hbm_bytes: bytes on the device while it runs, by `KINDS`; what lies beside it included. Temporaries are all that
        is neither weights, optimiser nor cache: activations, gradients, batches, the program itself.
      cost: None where even a model of three layers does not fit, or where it was not counted.
      seconds_bound: the least that the chip's published limits allow.
      limit: which of them: flops, bytes or collectives.
      per_iteration: as in `programs.Call`; what has 0 has its costs not counted.
    """

    name: str
    hbm_bytes: Mapping[str, int]
    cost: Cost | None
    seconds_bound: float | None
    limit: str
    per_iteration: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a slice is asked for by a run.

    Attributes:
      phases: bytes that each needs at its peak on one device.
      suggestion: flags that make it fit; None if it fits, or if none were found.
      sampled_tokens: tokens that an iteration samples at full lengths.
    """

    topology: str
    hbm_limit_bytes: int
    phases: Mapping[str, int]
    programs: tuple[PlannedProgram, ...]
    suggestion: str | None
    sampled_tokens: int

    @property
    def fits(self) -> bool:
        return max(self.phases.values()) <= self.hbm_limit_bytes

    @property
    def seconds(self) -> float | None:
        """The least time of an iteration: its programs one after another."""
        total = 0.0
        for program in self.programs:
            if program.per_iteration:
                if program.seconds_bound is None:
                    return None
                total += program.per_iteration * program.seconds_bound
        return total


class Planner:
    """Compiles a configuration's programs for one topology; what it has compiled it does not compile again.

    Args:
      variants: the run, and what may be changed where it does not fit.
      name: of the topology.
      say: is called with a line for each program that was compiled.

    Raises:
      UserError: no such topology, a mesh that it does not divide into, or a model that is not described.
    """

    def __init__(self, variants: Variants, name: str, *, say: Callable[[str], None] = lambda text: None):
        self.variants, self.name, self.say = variants, name, say
        self.chip, _ = tpu_topology.parse(name)
        self.settings = variants.settings(self._mesh)
        if (slices := tpu_topology.num_slices(name)) > 1:
            say(f"{name}: {slices} slices, mesh.replica={self.settings.mesh.shape[sharding.REPLICA]}")
        self.programs = programs.of(self.settings)
        self.compiled: dict[tuple, Compiled] = {}

    def plan(self, *, costs: bool = True) -> Plan:
        """Returns the plan; takes minutes for a large model, most of them for its costs."""
        phases = {name: 0 for name in programs.PHASES}
        for call in self.programs.calls:
            phases[call.phase] = max(phases[call.phase], self._peak(call, self.programs))
        phases = {name: peak for name, peak in phases.items() if peak}
        planned = tuple(self._planned_programs(costs))
        fits = max(phases.values()) <= self.chip.hbm_bytes
        suggestion = None if fits else self._suggestion()
        return Plan(self.name, self.chip.hbm_bytes, phases, planned, suggestion, self.programs.sampled_tokens)

    def _mesh(self, **sizes: int) -> jax.sharding.Mesh:
        return tpu_topology.mesh(self.name, **sizes)

    def _shallow(self, depth: int) -> RunSettings:
        """Returns the settings of a run of models with so many layers."""
        s = self.settings
        policy, *frozen = (one and programs.shallow(one, depth) for one in (s.policy, s.critic, s.refiner))
        return self.variants.settings(self._mesh, policy=policy, critic=frozen[0], refiner=frozen[1])

    # --- memory -------------------------------------------------------------------------------------------------

    def _compile(self, call: programs.Call) -> Compiled:
        leaves, structure = jax.tree.flatten(call.args)
        key = (call.function, structure, tuple(leaves), tuple(call.keywords.items()))
        if key not in self.compiled:
            program = costs.compile_for(
                call.function, call.args, call.keywords, kernel_cost=kernel_cost, unknown_trips=call.trips,
                count_moved=bool(call.trips),
            )  # fmt: skip
            function = getattr(call.function, "__name__", call.program.name)
            which = "" if call.name == function else f" ({function})"
            size = f"{program.needed_bytes / chips.GIB:.2f} GiB"
            self.say(f"{self.name}: {call.name}{which} needs {size} by itself; compiled in {program.seconds:.0f} s")
            self.compiled[key] = program
        return self.compiled[key]

    def _peak(self, call: programs.Call, of: programs.Programs) -> int:
        return self._compile(call).needed_bytes + sum(of.buffers[name].bytes for name in call.beside)

    def _fits(self, call: programs.Call, of: programs.Programs) -> bool:
        least = sum(of.buffers[name].bytes for name in (*call.own, *call.beside))
        return least <= self.chip.hbm_bytes and self._peak(call, of) <= self.chip.hbm_bytes

    # --- costs --------------------------------------------------------------------------------------------------

    def _planned_programs(self, costed: bool) -> Iterator[PlannedProgram]:
        shallow = {depth: programs.of(self._shallow(depth)).calls for depth in _DEPTHS}
        by_name: dict[str, list[tuple[programs.Call, Cost | None]]] = {}
        for i, call in enumerate(self.programs.calls):
            counted = costed and call.per_iteration
            cost = self._cost(call, {depth: calls[i] for depth, calls in shallow.items()}) if counted else None
            by_name.setdefault(call.name, []).append((call, cost))
        for name, both in by_name.items():
            largest = max((call for call, _ in both), key=lambda call: self._peak(call, self.programs))
            total, seconds, limit = None, None, ""
            known = [(call.times, cost) for call, cost in both if cost is not None]
            if len(known) == len(both):
                total = sum((times * cost for times, cost in known), Cost())
                bounds = [(times, costs.seconds_bound(cost, self.chip)) for times, cost in known]
                seconds = sum(times * bound.seconds for times, bound in bounds)
                limit = max(bounds, key=lambda one: one[0] * one[1].seconds)[1].limit
            yield PlannedProgram(name, self._by_kind(largest), total, seconds, limit, largest.per_iteration)

    def _by_kind(self, call: programs.Call) -> dict[str, int]:
        buffers = [self.programs.buffers[name] for name in (*call.own, *call.beside)]
        known = {kind: sum(one.bytes for one in buffers if one.kind == kind) for kind in KINDS[:-1]}
        return known | {"temporaries": max(0, self._peak(call, self.programs) - sum(known.values()))}

    def _cost(self, call: programs.Call, shallow: Mapping[int, programs.Call]) -> Cost | None:
        """Returns what one run costs.

        Collectives are the program's own, whose loops can be multiplied out; so are the bytes where it generates: the
        compiler keeps whole layers of a shallow program on the chip, so that two depths show nothing of one layer.
        """
        program = self._compile(call)
        if not unroll(call.function, call.args, call.keywords).loops:
            return program.cost
        decodes = call.decodes
        found: dict[tuple[int, int], Cost] = {}
        for depth, one in shallow.items():
            for tokens in _TOKENS if decodes else (1,):
                unrolled = unroll(one.function, one.args, {**one.keywords, **one.counted}, trips=tokens)
                compiled = costs.compile_for(
                    unrolled.function, unrolled.args, kernel_cost=kernel_cost, donate_argnums=unrolled.donated
                )
                if compiled.cost is None:
                    return None
                found[depth, tokens] = compiled.cost
                self.say(f"{self.name}: cost of {call.name}, {depth} layers; compiled in {compiled.seconds:.0f} s")
        frozen = {"critique": self.settings.critic, "refinement": self.settings.refiner}
        model = self.settings.critic if call.is_critics else frozen.get(call.phase, self.settings.policy)
        assert model, "only a run with such a frozen model has programs of that phase"
        layers = model.num_layers
        if decodes:
            cost = costs.extrapolate_decode(found, layers, call.trips[0])
        else:
            cost = costs.extrapolate({depth: cost for (depth, _), cost in found.items()}, layers)
        if call.unused_end and program.cost:
            # Written out, the last layer ends early. The program itself counts as one layer and what is around them.
            (low, fewer), (high, more) = sorted((depth, cost) for (depth, _), cost in found.items())
            cost = program.cost + (layers - 1) / (high - low) * (more - fewer)
        cost = call.repeated * cost
        if program.moved_bytes is not None:
            cost = dataclasses.replace(cost, bytes=program.moved_bytes)
        if program.cost and all(collective.times is not None for collective in program.collectives):
            cost = dataclasses.replace(cost, collectives=program.cost.collectives, dcn=program.cost.dcn)
        return cost + call.pages

    # --- what to change -----------------------------------------------------------------------------------------

    def _suggestion(self) -> str | None:
        """Returns the flags of the smallest change that fits: fewer rows at once, before larger tensor groups."""
        for mesh in self.variants.meshes(len(tpu_topology.devices(self.name))):
            changes = dict(mesh)
            fewer, smaller = self.variants.fewer_slots(self.settings.slots.num_slots), self.variants.smaller_batches()
            for phases, steps in ((programs.GENERATING, fewer), (_TRAINING, smaller)):
                step = next((step for step in steps if self._fit({**mesh, **step}, phases)), None)
                if step is None:
                    break
                changes |= step
            else:
                if self._fit(changes, ("reshard",)):
                    return " ".join(f"--config.{key}={value}" for key, value in changes.items())
        return None

    def _fit(self, changes: Changes, phases: tuple[str, ...]) -> bool:
        try:
            of = programs.of(self.variants.settings(self._mesh, changes))
        except UserError:
            return False
        return all(self._fits(call, of) for call in of.calls if call.phase in phases)


def kernel_cost(call: cost_lib.KernelCall) -> Cost:
    """Returns the cost of one run of a Pallas kernel, by its own formula; rows are taken to be full, pages not counted.

    Raises:
      ValueError: there is no formula for it.
    """
    kernels = {heads.NAME: heads, ragged_attention.NAME: ragged_attention}
    kernels |= dict.fromkeys(logprobs_pallas.KERNELS, logprobs_pallas)
    own = next((kernel for name, kernel in kernels.items() if name in call.name), splash_attention)
    flops, moved = own.flops_and_bytes(call)
    return Cost(flops, moved)
