"""An engine with shapes in the place of arrays: which of its programs a plan compiles, and how often each runs."""

from collections.abc import Callable, Iterator, Sequence

from cgrpo_jax.inference import kv_cache, slot_scheduler, slots
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.paged import slots as paged_slots
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.planning.calls import Buffer, Call
from cgrpo_jax.planning.costs import Cost
from cgrpo_jax.runs.stages import StageSpec
from cgrpo_jax.runtime.program import Program


class ShapedEngine:
    """An engine with shapes in the place of weights and slots. Of its programs the largest of each kind are planned.

    Args:
      prefix: of the names of its programs; that of a frozen model's is not empty.
      engine: the run's own.
      weights: in the layout of generation.
      samplings: all that it samples with, an iteration's first.
      stages: that it generates, each with the name of its prefill.
      own: names of the buffers of its weights and its slots.
      phases: of its prefills, and of its decoding.

    Attributes:
      settings: what its programs are compiled for.
      slots: their shapes.
      programs: all that it can call.
    """

    def __init__(
        self,
        prefix: str,
        engine: Engine,
        weights: dict,
        *,
        samplings: Sequence[Sampling | Sequence[Sampling]],
        stages: Sequence[tuple[str, StageSpec]],
        own: tuple[str, str],
        phases: tuple[str, str] = ("prefill", "decode"),
    ):
        self.prefix, self.engine, self.weights, self.stages, self.own = prefix, engine, weights, stages, own
        self.settings = engine.settings(weights)
        self.slots = slots.slots_shapes(self.settings)
        self.programs = engine.programs(weights, samplings)
        self.prefilling, self.decoding = phases

    def prefills(self) -> Iterator[Call]:
        """Yields what writes the prompts of each stage, and what comes after a beginning that another slot holds."""
        if self.settings.pages:
            yield from self._paged_prefills()
            return
        for name, one in self.stages:
            width = slot_scheduler.width_of(max(1, one.max_prompt_length - 1), self.engine.widths)
            yield self._prefill(name, width, one.num_prompts, continued=False)
        if len(self.engine.widths) > 1:  # how much comes after a shared beginning, the prompts decide
            yield self._prefill(f"{self.prefix}continue", self.engine.widths[-2], 0, continued=True)

    def _prefill(self, name: str, width: int, num_prompts: int, *, continued: bool) -> Call:
        """Returns the prefill of one width that takes the most prompts at once."""
        found = [
            one
            for one in self._of(slots.prefill)
            if one.keywords["continued"] == continued and one.inputs[0].shape[1] == width
        ]
        program = max(found, key=lambda one: one.inputs[0].shape[0])
        rows = program.inputs[0].shape[0]
        return Call(
            name, self.prefilling, program, (self.weights, self.slots), self.own,
            per_iteration=-(-num_prompts // rows), trips=(rows // self.settings.num_groups,), unused_end=True,
        )  # fmt: skip

    def _paged_prefills(self) -> Iterator[Call]:
        """Yields what takes the most tokens of prompts beside the texts, as often as the prompts of a stage fill it."""
        pages = self.settings.pages
        assert pages
        program = max(self._of_all_slots(), key=lambda one: one.inputs[1].token_N.size if one.inputs[1] else 0)
        for name, one in self.stages:
            tokens = one.num_prompts * (one.max_prompt_length - 1)
            yield Call(
                name, self.prefilling, program, (self.weights, self.slots), self.own, trips=(1,),
                per_iteration=-(-tokens // (self.settings.num_groups * pages.tokens)), pages=self._read(1),
            )  # fmt: skip

    def _read(self, steps: int) -> Cost:
        """Returns what as many steps read of pages, if texts fill them all and share none."""
        cache = Buffer("kv_cache", self.slots.cache)
        return Cost(0.0, float(steps * cache.bytes))

    def shares(self) -> Iterator[Call]:
        """Yields what copies the longest prompt between slots; pages are copied by the program that decodes."""
        if self.settings.pages:
            return
        program = max(self._of(slots.share), key=lambda one: one.keywords["width"])
        yield Call(f"{self.prefix}share", self.prefilling, program, (self.slots,), self.own[1:], per_iteration=0)

    def decode(self) -> Call:
        """Returns what decodes in an iteration, for as many tokens as all its texts have."""
        at_once = self.settings.num_groups * self.settings.num_slots * self.settings.chunk
        tokens = sum(one.num_tokens for _, one in self.stages)
        return self._tick(f"{self.prefix}decode", self._ticks()[0], -(-tokens // at_once))

    def evaluate(self) -> list[Call]:
        """Returns what an evaluation has besides the programs of an iteration: its own sampling."""
        names = ("eval_decode", "eval_sample_decode")
        return [self._tick(name, one, 0) for name, one in zip(names, self._ticks()[1:], strict=False)]

    def _ticks(self) -> list[Program]:
        """Returns what decodes, by the sampling."""
        if self.settings.pages:
            return [one for one in self._of_all_slots() if one.inputs[1] is None]
        return self._of(slots.tick)

    def _of_all_slots(self) -> list[Program]:
        """Returns those over pages that compute all slots."""
        return [one for one in self._of(paged_slots.tick) if one.keywords["rows"] == self.settings.num_slots]

    def _tick(self, name: str, program: Program, per_iteration: int) -> Call:
        if self.settings.pages:
            return Call(
                name, self.decoding, program, (self.weights, self.slots), self.own, per_iteration=per_iteration,
                trips=(self.settings.chunk,), decodes=True, pages=self._read(self.settings.chunk),
            )  # fmt: skip
        blocks = -(-self.settings.length // kv_cache.read_at_once(split=self.settings.split))
        return Call(
            name, self.decoding, program, (self.weights, self.slots), self.own, per_iteration=per_iteration,
            trips=(self.settings.chunk, blocks), decodes=True, counted={"blocks": blocks},
        )  # fmt: skip

    def _of(self, function: Callable) -> list[Program]:
        return [one for one in self.programs if one.function is function]
