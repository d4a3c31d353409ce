"""The programs that a run compiles, with the shapes that it calls them with: none of it runs here.

They are asked of what makes those of a real run: its engines, its learner, what lays its weights out for generation.
Here is what a plan adds: what lies on the devices meanwhile, how often each program runs, how often its loops.
Sizes are the largest that can come: prompts, responses, critiques and refinements at their full lengths, all questions
failed by all responses, so that each is critiqued once and refined, and no row dropped before the update.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from jax.sharding import Mesh

from cgrpo_jax import sharding
from cgrpo_jax.inference import weights as weights_lib
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.planning.calls import Buffer as Buffer
from cgrpo_jax.planning.calls import Call as Call
from cgrpo_jax.planning.calls import num_batches
from cgrpo_jax.planning.shaped_critic import ShapedCritic
from cgrpo_jax.planning.shaped_engine import ShapedEngine
from cgrpo_jax.records import Stage
from cgrpo_jax.runs.build_model import make_engine
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import console
from cgrpo_jax.training import packing, train_step
from cgrpo_jax.training.learner import Learner, state_shapes

PHASES = ("prefill", "decode", "critique", "refinement", "reference", "reshard", "update")
GENERATING = PHASES[:4]
_EOS_IDS = (0, 1)  # any two: a comparison with each


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run compiles, what lies on its devices, the tokens that an iteration samples, the policy's slots."""

    calls: tuple[Call, ...]
    buffers: Mapping[str, Buffer]
    sampled_tokens: int
    num_slots: int


def of(settings: RunSettings) -> Programs:
    """Returns the programs of a run, on the real or described devices that its settings are of."""
    run = _ShapedRun(settings)
    engines = [run.policy_engine(), *run.frozen_engines().values()]
    calls = [
        *(call for engine in engines for call in (*engine.prefills(), *engine.shares(), engine.decode())),
        *engines[0].evaluate(),
        *run.score(),
        *run.reshard(),
        *run.update(),
        *(run.critic.calls() if run.critic else ()),
    ]
    sampled = sum(one.num_tokens for one in settings.stages.all if one.by != "endpoint")
    return Programs(tuple(map(run.with_beside, calls)), run.buffers, sampled, settings.slots.num_slots)


def engines(settings: RunSettings) -> dict[str, ShapedEngine]:
    """Returns the engines that generate in an iteration, by who writes: policy, folder (a critic's), refiner."""
    run = _ShapedRun(settings)
    return {"policy": run.policy_engine()} | run.frozen_engines()


def shallow(config: ModelConfig, depth: int) -> ModelConfig:
    """Returns the model with fewer layers, of both kinds still if it has local ones."""
    local = (True,) + (False,) * (depth - 1) if any(config.local_layers) else ()
    return dataclasses.replace(config, num_layers=depth, local_layers=local)


class _ShapedRun:
    """A run with shapes in the place of arrays.

    Attributes:
      learner: the run's own.
      state: what it trains.
      generation: the weights that sample; those of the state where both layouts are one.
      buffers: what lies on the devices, by name.
    """

    def __init__(self, settings: RunSettings):
        self.settings = settings
        policy, mesh, training = settings.policy, settings.mesh, settings.learner
        self.learner = Learner(policy, mesh=mesh, dtype=settings.dtype, settings=training, clock=console.Clock())
        self.state = state_shapes(policy, mesh, training)
        weights = self.state.params
        self.buffers = {"trained": Buffer("weights", (self.state.params, self.state.step))}
        if not training.offload_optimizer:  # else on the devices within a step alone, among its temporaries
            self.buffers["optimizer"] = Buffer("optimizer", self.state.opt_state)
        if training.adapters:
            shapes = params_lib.param_shapes(policy)
            weights = sharding.placed(params_lib.axes_like(policy, shapes), shapes, mesh)
            self.learner.base = lora.Base(weights, training.adapters.scale)
            self.buffers["base"] = Buffer("weights", weights)
        self.split = weights_lib.splits(mesh)
        self.generation, base = self.state.params, self.learner.base
        writes_on = settings.generation_mesh
        if not weights_lib.reads_alike(self.generation, base, mesh=mesh, dtype=settings.dtype, split=self.split):
            self.generation = self._laid_out(policy, weights, writes_on, split=self.split)
            self.buffers["generation"] = Buffer("weights", self.generation)
        if training.has_reference and not training.adapters:  # these start at 0: their base is the reference
            self.buffers["reference"] = Buffer("weights", self._laid_out(policy, weights, mesh, split=False))
        for whose, frozen in (("critic", settings.critic), ("refiner", settings.refiner)):
            if frozen:
                shapes = params_lib.param_shapes(frozen)
                self.buffers[whose] = Buffer("weights", self._laid_out(frozen, shapes, writes_on, split=self.split))
        self.critic = ShapedCritic.of(settings, self.state, self.learner.base)
        if self.critic:
            self.buffers |= self.critic.buffers()
            if not self.critic.writes_apart:
                self.buffers.pop("critic", None)
        if training.average_rate:
            self.buffers["average"] = Buffer("weights", self.state.average)
        self.buffers["gradients"] = Buffer("temporaries", self.state.params)

    def _laid_out(self, model: ModelConfig, shapes: dict, mesh: Mesh, *, split: bool) -> dict:
        dtype = self.settings.dtype
        return weights_lib.generation_shapes(shapes, config=model, mesh=mesh, dtype=dtype, split=split)

    def with_beside(self, call: Call) -> Call:
        """Returns a call that names the buffers that lie beside it."""
        absent = {*call.own, "gradients", "critic_gradients"}  # which are made and used by an update alone
        if call.phase not in GENERATING:  # all engines have theirs while one works
            absent |= {"slots", "critic_slots", "refiner_slots"}
        if call.phase in ("reference", "update"):  # training lets go of the weights that generate before these
            absent |= {"generation"} | ({"critic"} if self.critic else set())
        return dataclasses.replace(call, beside=tuple(name for name in self.buffers if name not in absent))

    # --- generation ---------------------------------------------------------------------------------------------

    def policy_engine(self) -> ShapedEngine:
        """Returns the engine of the policy, and adds its slots to the buffers."""
        engine = make_engine(self.settings, "policy", eos_ids=_EOS_IDS, decode=None)
        names = {Stage.RESPONSE: "prefill", Stage.CRITIQUE: "critique_prefill", Stage.REFINEMENT: "refine_prefill"}
        specs = sorted((one for one in self.settings.stages.all if one.by == "policy"), key=lambda one: one.stage)
        made = ShapedEngine(
            "",
            engine,
            self.generation,
            samplings=self.settings.policy_samplings,
            stages=[(names[one.stage], one) for one in specs],
            own=("generation" if "generation" in self.buffers else "trained", "slots"),
        )
        self.buffers["slots"] = Buffer("kv_cache", made.slots.cache)
        return made

    def frozen_engines(self) -> dict[str, ShapedEngine]:
        """Returns the engines of a frozen critic and refiner that write, and adds their slots to the buffers."""
        made, stages = {}, self.settings.stages
        for whose, phase, stage, by in (
            ("critic", "critique", stages.critique, "folder"),
            ("refiner", "refinement", stages.refinement, "refiner"),
        ):
            if not stage.num_texts or stage.by != by:
                continue
            name = whose if whose in self.buffers else "critic_trained"  # what generates is what is trained
            weights = self.buffers[name].shapes
            made[by] = ShapedEngine(
                f"{whose}_",
                make_engine(self.settings, whose, eos_ids=_EOS_IDS, decode=None),
                weights if name == whose else weights[0],
                samplings=self.settings.frozen_samplings[whose],
                stages=[(f"{whose}_prefill", stage)],
                own=(name, f"{whose}_slots"),
                phases=(phase, phase),
            )
            self.buffers[f"{whose}_slots"] = Buffer("kv_cache", made[by].slots.cache)
        return made

    # --- scoring, resharding, updating ----------------------------------------------------------------------------

    def score(self) -> Iterator[Call]:
        """Yields what computes the log-probabilities that the loss needs besides the sampler's."""
        settings, base = self.settings.learner, self.learner.base
        times = self._num_batches(self.settings.questions_per_iteration)
        if settings.rescore:
            args, own = (self.state.params, base), ("trained", *self._base)
            yield Call("old_logp", "update", self.learner.score_program(), args, own, per_iteration=times)
        if settings.has_reference:
            name = "base" if base else "reference"
            args = (self.buffers[name].shapes, None)
            yield Call("reference", "reference", self.learner.reference_program(), args, (name,), per_iteration=times)
        if settings.distillation:
            choose, teach = self.learner.distillation_programs()
            args, own = (self.state.params, base), ("trained", *self._base)
            yield Call("top_tokens", "update", choose, args, own, per_iteration=times)
            teacher = "average" if settings.average_rate else "trained"
            args = (self.state.average if settings.average_rate else self.state.params, base)
            times = self._num_teacher_batches()
            yield Call("teacher", "update", teach, args, (teacher, *self._base), per_iteration=times)

    def reshard(self) -> Iterator[Call]:
        """Yields what lays the weights out for generation, where they have to be."""
        if "generation" not in self.buffers:
            return
        s = self.settings
        program = weights_lib.generation_program(
            config=s.policy, mesh=s.mesh, target=s.generation_mesh, dtype=s.dtype, split=self.split
        )
        args = (self.state.params, self.learner.base)
        yield Call("reshard", "reshard", program, args, ("trained", *self._base, "generation"))

    def update(self) -> Iterator[Call]:
        """Yields what makes an update: gradients, then a step along them."""
        accumulate, apply = self.learner.update_programs()
        params, times = self.state.params, self.settings.learner.updates_per_batch
        batches = self._num_batches(self.settings.questions_per_iteration // times)
        runs = -(-batches // train_step.AT_ONCE)
        at_once = -(-batches // runs)  # as many in each run
        yield Call(
            "update", "update", accumulate, (params, self.learner.base, params), ("trained", "gradients", *self._base),
            times=runs, per_iteration=times, trips=(at_once,), repeated=at_once,
        )  # fmt: skip
        own = tuple(name for name in ("trained", "optimizer", "average", "gradients") if name in self.buffers)
        yield Call("update", "update", apply, (self.state, params), own, per_iteration=times)

    @property
    def _base(self) -> tuple[str, ...]:
        return ("base",) if self.learner.base else ()

    def _num_batches(self, num_questions: int) -> int:
        """Packed batches that the rows of so many questions take, all at full length."""
        length = self.settings.stages.response.max_prompt_length
        return self._num_packed(num_questions, self._rows_a_question(), length, self.settings.learner.shape)

    def _num_teacher_batches(self) -> int:
        """Packed batches that an iteration's responses take, each after a feedback prompt of its own."""
        distillation, m = self.settings.learner.distillation, self.settings.method
        assert distillation
        length = self.settings.stages.refinement.max_prompt_length
        return self._num_packed(self.settings.questions_per_iteration * m.num_responses, 1, length, distillation.shape)

    def _num_packed(self, num_contexts: int, rows_each: int, length: int, shape: packing.PackShape) -> int:
        """Packed batches that so many contexts of a length take, with as many full responses to each."""
        target, mesh = self.settings.stages.response.max_length, self.settings.mesh
        return num_batches(num_contexts, rows_each, context=length, target=target, shape=shape, mesh=mesh)

    def _rows_a_question(self) -> int:
        """Rows that a question of an iteration leaves to learn from."""
        m = self.settings.method
        found = {"none": 0, "solution": 1}.get(m.refine, m.num_responses * m.num_critiques * m.refinements_per_critique)
        return self.settings.grouping.num_rows(found)
