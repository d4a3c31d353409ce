"""The programs that a run of a configuration compiles, with the shapes that it calls them with: none of it runs here.

Sizes are the largest that can come: prompts, responses, critiques and refinements at their full lengths, all questions
failed by all responses, so that each is critiqued once and refined, and no row dropped before the update.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.inference import kv_cache, slot_scheduler, slots
from cgrpo_jax.inference import weights as weights_lib
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import Stage, TrainRow
from cgrpo_jax.runs.settings import RunSettings, SlotBudget
from cgrpo_jax.runtime.program import Program
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import packing, scoring, train_step

PHASES = ("prefill", "decode", "critique", "reference", "reshard", "update")
_EOS_IDS = (0, 1)  # any two: a comparison with each


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Arrays that stay on the devices from one program to the next.

    Attributes:
      kind: weights, optimizer, kv_cache, or temporaries (gradients).
      shapes: pytree of `jax.ShapeDtypeStruct`s with shardings.
    """

    kind: str
    shapes: Any

    @property
    def bytes(self) -> int:
        """Bytes on one device."""
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(self.shapes)
        )


@dataclasses.dataclass(frozen=True)
class Call:
    """One program, as training calls it.

    Attributes:
      name: what it is reported as; calls of one name are parts of one program.
      phase: one of `PHASES`.
      function: jitted.
      args, keywords: its arguments, shapes in the place of arrays.
      own: names of the buffers that are among its arguments and results.
      beside: names of those that are on the devices meanwhile, and are not.
      times: how often it runs in one run of what it is reported as.
      per_iteration: how often that runs in an iteration; 0 if in evaluations only, or if the prompts decide it.
      trips: how often the loops run that end on data, where the bytes it moves are counted in the program itself:
        prompts written; tokens and, within that, blocks of the cache that are read; packed batches. Empty for others.
      repeated: how often a run does what one trip of its outermost loop computes.
      counted: of a program that decodes, further keywords that leave it one loop that ends on data.
      unused_end: whether nothing uses what the last layer makes of its keys and values, which is computed all the same.
    """

    name: str
    phase: str
    function: Callable
    args: tuple
    keywords: Mapping[str, Any]
    own: tuple[str, ...]
    beside: tuple[str, ...]
    times: int = 1
    per_iteration: int = 1
    trips: tuple[int, ...] = ()
    repeated: int = 1
    counted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unused_end: bool = False


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run compiles, what lies on its devices, the tokens that an iteration samples, the policy's slots."""

    calls: tuple[Call, ...]
    buffers: Mapping[str, Buffer]
    sampled_tokens: int
    num_slots: int


def of(settings: RunSettings) -> Programs:
    """Returns the programs of a run, on the real or described devices that its settings are of."""
    parts = _Parts(settings)
    calls = [*parts.generating(), *parts.evaluating(), *parts.scoring(), *parts.resharding(), *parts.updating()]
    caches = [name for name, buffer in parts.buffers.items() if buffer.kind == "kv_cache"]
    for i, call in enumerate(calls):
        if call.phase in ("prefill", "decode", "critique"):  # both engines have theirs while either works
            others = tuple(name for name in caches if name not in call.own)
            calls[i] = dataclasses.replace(call, beside=call.beside + others)
    return Programs(tuple(calls), parts.buffers, parts.sampled_tokens, settings.slots.num_slots)


def shallow(config: ModelConfig, depth: int) -> ModelConfig:
    """Returns the model with fewer layers, of both kinds still if it has local ones."""
    local = (True,) + (False,) * (depth - 1) if any(config.local_layers) else ()
    return dataclasses.replace(config, num_layers=depth, local_layers=local)


class _Parts:
    """A run's shapes, and what they make together."""

    def __init__(self, settings: RunSettings):
        self.settings, learner = settings, settings.learner
        self.mesh, self.policy, self.critic = mesh, policy, critic = settings.mesh, settings.policy, settings.critic
        self.dtype = settings.dtype
        self.groups = sharding.num_groups(mesh)
        self.optimizer, self.adapters = learner.optimizer, learner.adapters
        self.sampled_tokens = sum(one.num_tokens for one in settings.stages.all if one.by != "endpoint")
        full = params_lib.param_shapes(policy)
        self.weights = self.placed(policy, full)
        trained = self.placed(policy, lora.adapter_shapes(policy, self.adapters)) if self.adapters else self.weights
        self.state = optimizer_lib.state_shapes(trained, self.optimizer, offload=learner.offload_optimizer)
        self.base = lora.Base(self.weights, self.adapters.scale) if self.adapters else None
        self.buffers = {
            "trained": Buffer("weights", (self.state.params, self.state.step)),
            "optimizer": Buffer("optimizer", self.state.opt_state),
        }
        if learner.offload_optimizer:  # it is on the devices within a step alone, among that program's temporaries
            del self.buffers["optimizer"]
        if self.base:
            self.buffers["base"] = Buffer("weights", self.weights)
        self.split = weights_lib.splits(mesh)
        self.generation, self.sampler = self.placed(policy, full, generating=True), "generation"
        if not self.base and weights_lib.reads_alike(self.weights, mesh=mesh, dtype=self.dtype, split=self.split):
            self.generation, self.sampler = self.weights, "trained"
        else:
            self.buffers["generation"] = Buffer("weights", self.generation)
        if learner.has_reference and not self.base:  # adapters start at 0: their base is the reference
            self.buffers["reference"] = Buffer("weights", self.placed(policy, full, generating=True, split=False))
        if critic:
            shapes = self.placed(critic, params_lib.param_shapes(critic), generating=True)
            self.buffers["critic"] = Buffer("weights", shapes)
        self.kept = tuple(self.buffers)  # through the whole of an iteration

    def placed(self, model: ModelConfig, shapes: dict, *, generating: bool = False, split: bool | None = None) -> dict:
        """Returns weights as training has them, or as generation reads them (or scoring: not split)."""
        if generating:
            split = self.split if split is None else split
            return weights_lib.generation_shapes(shapes, config=model, mesh=self.mesh, dtype=self.dtype, split=split)
        return sharding.placed(params_lib.axes_like(model, shapes), shapes, self.mesh, layout=sharding.TRAINING)

    def call(self, name: str, phase: str, program: Program, on_devices: tuple, *, own: tuple[str, ...], **more) -> Call:
        """Returns a program with the shapes of what lies on the devices in the place of arrays."""
        function, args, keywords = program.function, (*on_devices, *program.inputs), program.keywords
        # Training lets go of the weights that generate before it scores and updates.
        kept = [n for n in self.kept if n != "generation" or phase not in ("reference", "update")]
        return Call(name, phase, function, args, keywords, own, tuple(n for n in kept if n not in own), **more)

    # --- generation ---------------------------------------------------------------------------------------------

    def generating(self) -> list[Call]:
        """Returns the programs of the engines: prefill of each stage's prompts, sharing, and the tick of all stages."""
        stages = self.settings.stages
        names = {Stage.RESPONSE: "prefill", Stage.CRITIQUE: "critique_prefill", Stage.REFINEMENT: "refine_prefill"}
        specs = sorted((one for one in stages.all if one.by == "policy"), key=lambda one: one.stage)
        prompts = [(names[one.stage], one.max_prompt_length, one.num_prompts) for one in specs]
        calls = self.engine("", prompts, sum(one.num_tokens for one in specs))
        critiques = stages.critique
        if critiques.num_texts and critiques.by == "folder":
            judging = ("critic_prefill", critiques.max_prompt_length, critiques.num_prompts)
            calls += self.engine("critic_", [judging], critiques.num_tokens)
        return calls

    def engine(self, prefix: str, prompts: Sequence[tuple[str, int, int]], tokens: int) -> list[Call]:
        """Returns the programs of one engine.

        Args:
          prefix: of its names; that of a critic's is not empty.
          prompts: name, length and number of the prompts of each stage.
          tokens: that it samples in an iteration.
        """
        own, (weights, state), settings = self.slots(prefix)
        widths = slot_scheduler.widths_up_to(self.room(prefix).longest_prompt, self.settings.prompt_bucket)
        phase, calls = "critique" if prefix else "prefill", []

        def prefill(name: str, width: int, rows: int, number: int, *, continued: bool) -> None:
            program = slots.prefill_program(settings, rows=rows, width=width, continued=continued)
            times = -(-number // (self.groups * rows))
            calls.append(
                self.call(
                    name, phase, program, (weights, state), own=own, per_iteration=times, trips=(rows,), unused_end=True
                )
            )

        for name, length, number in prompts:
            width = next(width for width in widths if width >= max(1, length - 1))
            prefill(name, width, slot_scheduler.rows_at_once(width), number, continued=False)
        if len(widths) > 1:  # what comes after a shared beginning; how much does, the prompts decide
            prefill(f"{prefix}continue", widths[-2], 1, 0, continued=True)
        sharing = slots.share_program(settings, width=widths[-1])
        calls.append(self.call(f"{prefix}share", phase, sharing, (state,), own=own[1:], per_iteration=0))
        at_once = self.groups * settings.num_slots * self.settings.decode_chunk
        sampling = self.settings.sampling
        calls.append(self.tick(f"{prefix}decode", own, (weights, state), settings, sampling, -(-tokens // at_once)))
        return calls

    def slots(self, prefix: str) -> tuple[tuple[str, ...], tuple, slots.EngineSettings]:
        """Returns the names of an engine's buffers, their shapes, and what it is compiled for."""
        name, room = f"{prefix}slots", self.room(prefix)
        model, weights = (self.critic, self.buffers["critic"].shapes) if prefix else (self.policy, self.generation)
        settings = slots.EngineSettings(
            model, self.mesh, _EOS_IDS, room.num_slots, room.length, self.settings.decode_chunk, room.dtype, self.split
        )
        state = slots.slots_shapes(settings)
        self.buffers[name] = Buffer("kv_cache", state.cache)
        return ("critic" if prefix else self.sampler, name), (weights, state), settings

    def room(self, prefix: str) -> SlotBudget:
        """Returns the slots of the policy's engine, or of the critic's."""
        slots = self.settings.critic_slots if prefix else self.settings.slots
        assert slots
        return slots

    def tick(self, name: str, own, on_devices, settings, sampling, per_iteration: int) -> Call:
        blocks = -(-settings.length // kv_cache.read_at_once(split=settings.split))
        return self.call(
            name, "critique" if name.startswith("critic_") else "decode", slots.tick_program(settings, sampling),
            on_devices, own=own, trips=(settings.chunk, blocks), per_iteration=per_iteration,
            counted={"blocks": blocks},
        )  # fmt: skip

    def evaluating(self) -> list[Call]:
        """Returns the programs that an evaluation has beside those of an iteration: its own ways to sample."""
        own, on_devices, settings = self.slots("")
        ways = zip(("eval_decode", "eval_sample_decode"), self.settings.evaluation_sampling, strict=False)
        return [self.tick(name, own, on_devices, settings, sampling, 0) for name, sampling in ways]

    # --- scoring, resharding, updating ----------------------------------------------------------------------------

    def rows_a_question(self) -> int:
        """Rows that a question of an iteration leaves to learn from."""
        m = self.settings.method
        found = {"none": 0, "solution": 1}.get(m.refine, m.num_responses * m.num_critiques * m.refinements_per_critique)
        return m.num_responses + min(m.num_kept, found)

    def batches(self, num_questions: int) -> int:
        """Packed batches that the rows of so many questions take, all at full length."""
        response, shape = self.settings.stages.response, self.settings.learner.shape
        prompts = [np.full(response.max_prompt_length, q, np.int32) for q in range(num_questions)]
        target = np.zeros(response.max_length, np.int32)
        groups = [[TrainRow(prompt, target, target, 1.0)] * self.rows_a_question() for prompt in prompts]
        token_rows = packing.assign(
            groups, num_token_rows=shape.num_token_rows, pack_length=shape.pack_length, num_slots=shape.num_slots
        )
        return -(-len(token_rows) // (shape.num_token_rows * self.groups))

    def scoring(self) -> list[Call]:
        learner = self.settings.learner
        times, calls = self.batches(self.settings.questions_per_iteration), []
        if learner.rescore:
            own = ("trained", "base") if self.base else ("trained",)
            calls.append(self.scored("old_logp", "update", self.state.params, self.base, own, times))
        if learner.has_reference and self.base:
            calls.append(self.scored("reference", "reference", self.weights, None, ("base",), times))
        elif learner.has_reference:
            weights, own = self.buffers["reference"].shapes, ("reference",)
            calls.append(self.scored("reference", "reference", weights, None, own, times, layout=sharding.GENERATION))
        return calls

    def scored(self, name, phase, params, base, own, times, layout=sharding.TRAINING) -> Call:
        learner = self.settings.learner
        program = scoring.score_program(
            learner.shape, max_length=learner.loss.max_length, config=self.policy, temperature=learner.loss.temperature,
            dtype=self.dtype, mesh=self.mesh, layout=layout,
        )  # fmt: skip
        return self.call(name, phase, program, (params, base), own=own, per_iteration=times)

    def resharding(self) -> list[Call]:
        if self.sampler == "trained":  # nothing to do
            return []
        program = weights_lib.generation_program(config=self.policy, mesh=self.mesh, dtype=self.dtype, split=self.split)
        own = ("trained", "base", "generation") if self.base else ("trained", "generation")
        return [self.call("reshard", "reshard", program, (self.state.params, self.base), own=own)]

    def updating(self) -> list[Call]:
        learner, params = self.settings.learner, self.state.params
        self.buffers["gradients"] = Buffer("temporaries", params)
        adding = train_step.accumulate_program(
            learner.shape, config=self.policy, settings=learner.loss, remat=learner.remat,
            dtype=self.dtype, mesh=self.mesh,
        )  # fmt: skip
        batches = self.batches(self.settings.questions_per_iteration // learner.updates_per_batch)
        runs = -(-batches // train_step.AT_ONCE)
        at_once = -(-batches // runs)  # as many in each run
        own = ("trained", "gradients", "base") if self.base else ("trained", "gradients")
        return [
            self.call(
                "update", "update", adding, (params, self.base, params), own=own, times=runs,
                per_iteration=learner.updates_per_batch, trips=(at_once,), repeated=at_once,
            ),
            self.call(
                "update", "update", optimizer_lib.apply_program(self.optimizer), (self.state, params),
                own=tuple(name for name in ("trained", "optimizer", "gradients") if name in self.buffers),
                per_iteration=learner.updates_per_batch,
            ),
        ]  # fmt: skip
