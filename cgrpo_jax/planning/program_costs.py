"""What the programs of an engine cost on one device, from the compiler: each is compiled when it is first priced."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import kv_cache, slot_writes, slots
from cgrpo_jax.inference.paged import ragged_attention
from cgrpo_jax.inference.paged import slots as paged_slots
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.models.kernels import cost as cost_lib
from cgrpo_jax.planning import costs, hbm_traffic, hlo, traced_flops
from cgrpo_jax.planning.costs import Cost, KernelCost
from cgrpo_jax.planning.pricing import DecodeCosts
from cgrpo_jax.planning.programs import Buffer, ShapedEngine
from cgrpo_jax.runtime import chips
from cgrpo_jax.runtime.program import Program


class CountedProgram:
    """A compiled program in which bytes, collectives, operations and FLOPs are counted, loops multiplied out.

    Args:
      function, args, keywords: jitted; as for `costs.compile_for`.
      kernel_cost: likewise.

    Raises:
      UserError: it does not fit the chip.
    """

    def __init__(self, function: jax.stages.Wrapped, args: tuple, keywords: Mapping[str, Any], kernel_cost: KernelCost):
        costs.check_placed((args, dict(keywords)))
        traced = function.trace(*args, **keywords)
        self._jaxpr, self._kernel_cost = traced.jaxpr.jaxpr, kernel_cost
        try:
            with costs.nothing_cached():
                compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if (figures := costs.out_of_memory(str(error))) is None:
                raise
            needed, there = (size / chips.GIB for size in figures)
            raise UserError(f"it needs {needed:.2f} GiB of HBM, there are {there:.2f}; see `cgrpo plan`.") from error
        self.text = compiled.as_text() or ""

    def layer_operations(self, layers: int) -> int | None:
        """Returns the operations in the body of its loop over the layers (`hlo.body_operations`)."""
        return hlo.body_operations(self.text, layers)

    def cost(self, *unknown_trips: int) -> Cost:
        """Returns the cost of one run of it.

        Args:
          unknown_trips: how often loops run that end on data, the outermost first.
        """
        moved = hbm_traffic.hbm_bytes(self.text, unknown_trips=unknown_trips)
        run = hlo.operations(self.text, unknown_trips=unknown_trips)
        assert moved is not None and run is not None, "all loops of an engine's programs are given"
        sent: dict[str, float] = {}
        for one in hlo.collectives(self.text, unknown_trips=unknown_trips):
            sent[one.kind] = sent.get(one.kind, 0.0) + (one.times or 1) * one.wire_bytes
        flops = traced_flops.flops(self._jaxpr, unknown_trips=unknown_trips)
        total = Cost(flops, float(moved), sent, float(run))
        for call in hlo.kernel_calls(self.text, unknown_trips=unknown_trips):
            more = self._kernel_cost(call)
            once = sum(cost_lib.num_bytes(*array) for array in call.operands + call.results)
            total += (call.times or 1) * Cost(more.flops, more.bytes - once)
        return total


class CompiledCosts:
    """What an engine's programs cost (`pricing.Costs`).

    Args:
      engine: with shapes in the place of arrays.
      kernel_cost: of one run of a Pallas kernel.
      say: is called with a line before each program that is compiled.
    """

    def __init__(self, engine: ShapedEngine, kernel_cost: KernelCost, say: Callable[[str], None] = lambda text: None):
        self.engine, self.kernel_cost, self.say = engine, kernel_cost, say
        self._prefills: dict[tuple[int, int, bool], Cost] = {}
        self._decode: DecodeCosts | None = None
        self._over_pages: dict[tuple[int, int], DecodeCosts] = {}

    @property
    def decode(self) -> DecodeCosts:
        """Costs of decoding with a contiguous cache: from its loops, over steps and the cache, run once and twice."""
        if self._decode is None:
            program = next(one for one in self.engine.programs if one.function is slots.tick)
            counted, settings = self._counted(program), self.engine.settings
            (one, two), (longer, _) = ([counted.cost(steps, blocks) for blocks in (1, 2)] for steps in (1, 2))
            step, position = longer - one, Cost()  # a step that reads one block
            call = one - step
            if blocks_are_read(settings):
                step -= two - one
                per_block = settings.num_slots * kv_cache.read_at_once(split=settings.split)
                position = 1 / per_block * (two - one)
            self._decode = DecodeCosts(call, step, position)
        return self._decode

    def over_pages(self, tokens: int, rows: int) -> DecodeCosts:
        """Costs of a step of a cache with pages that computes so many slots, and takes so many tokens of prompts."""
        if (tokens, rows) not in self._over_pages:
            self._over_pages[tokens, rows] = self._compiled_over_pages(tokens, rows)
        return self._over_pages[tokens, rows]

    def _compiled_over_pages(self, tokens: int, rows: int) -> DecodeCosts:
        settings, pages = self.engine.settings, self.engine.settings.pages
        assert pages
        program = next(
            one
            for one in self.engine.programs
            if one.function is paged_slots.tick
            and (entering(one), one.keywords["rows"]) == (settings.num_groups * tokens, rows)
        )
        counted = self._counted(program)
        if tokens:
            call, step = Cost(), counted.cost(1)
        else:
            once, twice = counted.cost(1), counted.cost(2)
            call, step = once - (twice - once), twice - once
        return DecodeCosts(call, step, self._position(pages, tokens))

    def _position(self, pages: Pages, tokens: int) -> Cost:
        """Returns what a position of the pages costs: its bytes, and two products with all queries of a block."""
        settings, pool = self.engine.settings, Buffer("kv_cache", self.engine.slots.cache)
        tensor = settings.mesh.shape[sharding.TENSOR]
        heads = settings.config.num_heads // (tensor if settings.config.num_heads % tensor == 0 else 1)
        queries = ragged_attention.queries_at_once(tokens)
        width = ragged_attention.head_size(settings.config.head_dim, kernel=pages.kernel)
        flops = 4.0 * queries * heads * width * settings.config.num_layers
        return Cost(flops, pool.bytes / (pages.number * pages.size))

    def prefill(self, call: slot_writes.Prefill) -> Cost:
        key = call.rows, call.width, call.continued
        if key not in self._prefills:
            rows = call.rows * self.engine.settings.num_groups
            program = next(
                one
                for one in self.engine.programs
                if one.function is slots.prefill
                and (one.inputs[0].shape, one.keywords["continued"]) == ((rows, call.width), call.continued)
            )
            self._prefills[key] = self._counted(program).cost(call.rows)
        return self._prefills[key]

    def copy(self, call: slot_writes.Copy) -> Cost:
        """By what is copied: not compiled. Each copy reads and writes each array of the cache."""
        leaves, settings = jax.tree.leaves(self.engine.slots.cache), self.engine.settings
        positions = settings.num_slots * kv_cache.cache_length(settings.length, split=settings.split)
        position = Buffer("kv_cache", self.engine.slots.cache).bytes / positions
        number = max(map(len, call.groups))
        return Cost(0.0, 2.0 * number * call.width * position, {}, 2.0 * number * len(leaves))

    def _counted(self, program: Program) -> CountedProgram:
        self.say(f"compiling {program.name}")
        weights = () if program.function is slots.share else (self.engine.weights,)
        args = (*weights, self.engine.slots, *program.inputs)
        return CountedProgram(program.function, args, program.keywords, self.kernel_cost)


def entering(program: Program) -> int:
    """Returns how many tokens of prompts a program over pages takes, of all data groups."""
    chunks = program.inputs[1]
    return chunks.token_N.size if chunks else 0


def blocks_are_read(settings: slots.EngineSettings) -> bool:
    """Returns whether decoding reads the cache block by block, or all of it at each step."""
    read = kv_cache.read_at_once(split=settings.split)
    return kv_cache.cache_length(settings.length, split=settings.split) > read
