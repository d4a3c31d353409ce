"""All that a run is made with, decided from its configuration and a mesh: shapes, not arrays; no weight is read.

A real run is built from it (`open_run`, `train`), and a plan of a run on a slice that you do not have.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax

from cgrpo_jax import groups, rollout, sharding
from cgrpo_jax.batches import Batch
from cgrpo_jax.datasets.problems import MADE_UP
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import LossKind
from cgrpo_jax.runs import build_training, collection_settings, lengths, model_source, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import stages as stages_lib
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.refinement_sections import Critic, Refiner
from cgrpo_jax.runs.slot_budget import SlotBudget, overlaps, slot_budget
from cgrpo_jax.runs.stages import Stages, StageSpec
from cgrpo_jax.runtime import console
from cgrpo_jax.training.critic_learner import CriticSettings
from cgrpo_jax.training.learner import LearnerSettings


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How held-out questions are answered.

    Attributes:
      every: iterations between two times in training; 0: before and after only.
      keep_best: by which number of them the best checkpoint is kept (`best_checkpoint`); empty: none is.
      num_samples, temperature, top_p: of the samples of a question.
      ks: of pass@k.
      oracle: whether `evaluate --refine` also refines what the verifier calls wrong.
      texts_per_slot: as for `resumable_results.part_size`.
    """

    every: int
    keep_best: str
    num_samples: int
    temperature: float
    top_p: float
    ks: tuple[int, ...]
    oracle: bool
    texts_per_slot: int


@dataclasses.dataclass(frozen=True)
class DiagnosisSettings:
    """How training questions are diagnosed: responses to each, and kinds of critique."""

    num_responses: int
    kinds: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class KeptSettings:
    """What a training run keeps: iterations between checkpoints and between files of rollouts (0: none), traces.

    Its metrics go to `trackers` too, in a project and a group (empty: in none).
    """

    checkpoint_every: int
    rollouts_every: int
    profile_steps: tuple[int, ...]
    trackers: tuple[str, ...]
    project: str
    group: str


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """All that a run is made with.

    Attributes:
      seed: of all that is random.
      num_iterations, questions_per_iteration: how long it is.
      batch: what an iteration trains on.
      grader: kind of grader of the problems that name none.
      mesh: what policy and reference lie on, and all that is trained.
      generation_mesh: the same devices as models that write lie on them.
      dtype: what generation, forward and backward pass compute in.
      policy, critic, refiner: shapes of the models; no critic and no refiner unless it has weights of its own.
      stages: what is generated, and who generates it.
      slots, critic_slots, refiner_slots: of the engines of each.
      prompt_bucket, decode_chunk, overlap, cache_dtype, stop: of the engines, as for `Engine`.
      sampling: of an iteration's texts.
      refiner_sampling: of what a frozen refiner writes.
      critic_sampling, greedy_critic_sampling: of critiques, in training and where the policy is greedy.
      evaluation_sampling: of an evaluation's, in their order; empty without held-out questions.
      method: what is done with a question, steps 1 to 3.
      grouping: how its rows become a group that trains, steps 4 to 6.
      learner: how the policy is trained, steps 7 and 8.
      critic_learning: how the critic is trained beside it; None where it is not.
      evaluation, diagnosis, collection, kept: of what a run, or a command on it, does besides the algorithm.
    """

    seed: int
    num_iterations: int
    questions_per_iteration: int
    batch: Batch
    grader: str
    mesh: jax.sharding.Mesh
    generation_mesh: jax.sharding.Mesh
    dtype: str
    policy: ModelConfig
    critic: ModelConfig | None
    refiner: ModelConfig | None
    stages: Stages
    slots: SlotBudget
    critic_slots: SlotBudget | None
    refiner_slots: SlotBudget | None
    prompt_bucket: int
    decode_chunk: int
    overlap: bool
    cache_dtype: str
    stop: tuple[str, ...]
    sampling: Sampling
    refiner_sampling: Sampling
    critic_sampling: Sampling
    greedy_critic_sampling: Sampling
    evaluation_sampling: tuple[Sampling, ...]
    method: rollout.Method
    grouping: groups.Grouping
    learner: LearnerSettings
    critic_learning: CriticSettings | None
    evaluation: EvaluationSettings
    diagnosis: DiagnosisSettings
    collection: collection_settings.CollectionSettings
    kept: KeptSettings

    @property
    def policy_samplings(self) -> tuple[Sampling | tuple[Sampling, ...], ...]:
        """All that the policy's engine is compiled for: an iteration's first, then an evaluation's.

        An iteration has several where the policy criticises itself in another way than it answers.
        """
        if not self.stages.samples:
            return self.evaluation_sampling
        criticises = self.stages.critic == "policy" and self.stages.critique.num_texts > 0
        apart = criticises and self.critic_sampling != self.sampling
        return ((self.sampling, self.critic_sampling) if apart else self.sampling, *self.evaluation_sampling)

    @property
    def frozen_samplings(self) -> Mapping[str, tuple[Sampling, ...]]:
        """All that the engines of a frozen critic and refiner are compiled for."""
        return {"critic": (self.critic_sampling,), "refiner": (self.refiner_sampling,)}

    @property
    def frozen_folders(self) -> Mapping[str, str]:
        """Folders of the models that are asked beside the policy, by what they are: `critic`, `refiner`."""
        both = ("critic", self.critic, self.stages.critic_folder), ("refiner", self.refiner, self.stages.refiner_folder)
        return {whose: folder for whose, shape, folder in both if shape and folder}

    @property
    def trains_own_critic(self) -> bool:
        """Whether a critic is asked whose weights are trained, and are not the policy's."""
        learning = self.critic_learning
        return self.critic is not None and learning is not None and learning.training.weights != "policy"


def with_lengths(config: Config, *, trains: bool = True, finetunes: bool = False) -> Config:
    """Returns the configuration with all lengths, and says which of them the models' contexts gave (`lengths`).

    Args:
      config: the configuration, checked.
      trains, finetunes: whether it is to train, or to learn from rows, as for `validate.check`.

    Raises:
      UserError: with these lengths no run can have it, or the model's shape can't be read.
    """
    if all(config_lib.value(config, key) for key in lengths.KEYS):
        return config
    context = model_source.read_shape(config, model_source.of_policy(config)).max_context
    stages = stages_lib.of_training(config)
    critic: int | None = context if stages.critic in ("policy", "adapter") else None
    if stages.critic == "folder":
        critic = model_source.read_shape(config, model_source.of_frozen(stages.critic_folder)).max_context
    refiner: int | None = None
    if stages.refiner_folder:
        refiner = model_source.read_shape(config, model_source.of_frozen(stages.refiner_folder)).max_context
        refiner = min(refiner, context) if config.distil.kind != "none" else refiner  # a teacher has that prompt too
    config, said = lengths.filled(config, context=context, critic_context=critic, refiner_context=refiner)
    validate.check(config, trains=trains, finetunes=finetunes)
    console.say(said)
    return config


def run_settings(
    config: Config,
    mesh: jax.sharding.Mesh,
    *,
    stages: Stages | None = None,
    num_slots: int | None = None,
    policy: ModelConfig | None = None,
    critic: ModelConfig | None = None,
    refiner: ModelConfig | None = None,
) -> RunSettings:
    """Decides all that a run is made with.

    Args:
      config: the configuration, checked, with all lengths (`with_lengths`).
      mesh: of real or of described devices.
      stages: what is generated; by default what training generates.
      num_slots: of a data group, in the place of what the configuration asks for.
      policy, critic, refiner: shapes in the place of those that the configuration names, such as of fewer layers.

    Raises:
      UserError: the configuration names no model, a file is missing or damaged, a stage exceeds a model's context, or
        the memory for keys and values does not hold one slot.
    """
    stages = stages or stages_lib.of_training(config)
    policy = policy or model_source.read_shape(config, model_source.of_policy(config))
    stages_lib.check_lengths(stages.by("policy"), "the model", policy.max_context)
    critic = _critic_shape(config, stages, policy, critic)
    refiner = _frozen_shape(config, stages, "refiner", stages.refiner_folder, refiner)
    _check_teacher(config, stages, policy)
    dtype, writes_on = compute_dtype(config, mesh), sharding.generation_mesh(mesh, config.mesh.gen_tensor)
    sampling = Sampling(config.sampling.temperature, config.sampling.top_p, config.sampling.top_k)

    def slots(model: ModelConfig, specs: Sequence[StageSpec]) -> SlotBudget:
        samples = stages.samples
        return slot_budget(config, model, specs, mesh=writes_on, dtype=dtype, num_slots=num_slots, samples=samples)

    return RunSettings(
        seed=config.seed,
        num_iterations=config.num_iterations,
        questions_per_iteration=config.questions_per_iteration,
        batch=Batch(config.questions_per_iteration, config.num_verdicts, config.max_extra_questions),
        grader=config.gate_kind,
        mesh=mesh,
        generation_mesh=writes_on,
        dtype=dtype,
        policy=policy,
        critic=critic,
        refiner=refiner,
        stages=stages,
        slots=slots(policy, stages.by("policy")),
        critic_slots=slots(critic, stages.by("folder")) if critic else None,
        refiner_slots=slots(refiner, stages.by("refiner")) if refiner else None,
        prompt_bucket=config.engine.prompt_bucket,
        decode_chunk=config.engine.decode_chunk,
        overlap=overlaps(config, writes_on),
        cache_dtype=config.cache.dtype,
        stop=tuple(config.sampling.stop),
        sampling=sampling,
        refiner_sampling=_frozen_sampling(config.refiner, sampling),
        critic_sampling=_frozen_sampling(config.critic, sampling),
        greedy_critic_sampling=_frozen_sampling(config.critic, Sampling(0.0)),
        evaluation_sampling=_evaluation_sampling(config),
        method=_method(config, stages),
        grouping=grouping(config),
        learner=build_training.learner_settings(config),
        critic_learning=build_training.critic_settings(config),
        evaluation=_evaluation(config),
        diagnosis=DiagnosisSettings(config.diagnosis.num_responses, tuple(config.diagnosis.kinds)),
        collection=collection_settings.of_config(config),
        kept=_kept(config),
    )


def _critic_shape(config: Config, stages: Stages, policy: ModelConfig, given: ModelConfig | None) -> ModelConfig | None:
    """Returns the shape of a critic with weights of its own, if it is asked: of an adapter's, the policy's."""
    if stages.critic != "adapter":
        return _frozen_shape(config, stages, "critic", stages.critic_folder, given)
    if not stages.asks_critic:
        return None
    stages_lib.check_lengths(stages.by("folder"), "the model", policy.max_context)
    return policy


def _frozen_shape(
    config: Config, stages: Stages, whose: str, folder: str, shape: ModelConfig | None
) -> ModelConfig | None:
    """Returns the shape of a critic or refiner of a folder, if it is asked; `shape` in the place of its folder's."""
    asked = stages.asks_critic if whose == "critic" else stages.asks_refiner
    if not folder or not asked:
        return None
    shape = shape or model_source.read_shape(config, model_source.of_frozen(folder))
    specs = stages.by({"critic": "folder"}.get(whose, whose))
    stages_lib.check_lengths(specs, f"the {whose} {folder}", shape.max_context)
    return shape


def _check_teacher(config: Config, stages: Stages, policy: ModelConfig) -> None:
    """Raises a `UserError` where a teacher can't score a response after its feedback, or compare so many tokens."""
    if config.distil.kind == "none" or not stages.teaches:
        return
    stages_lib.check_lengths((stages.refinement,), "the model", policy.max_context)
    if config.distil.top_tokens >= policy.vocab_size:
        raise UserError(
            f"distil.top_tokens {config.distil.top_tokens} leaves no other of the model's {policy.vocab_size} tokens; "
            "use fewer."
        )


def of_finetuning(config: Config, settings: RunSettings, *, num_rows: int) -> RunSettings:
    """Returns the settings of a run that learns from rows: an iteration is one update of `finetune.rows_per_update`.

    Args:
      config: the configuration.
      settings: of the run, as `run_settings` returns them.
      num_rows: rows, chats or pairs that there are.
    """
    c = config.finetune
    num_updates = -(-c.epochs * num_rows // c.rows_per_update) if c.epochs else config.num_iterations
    return dataclasses.replace(
        settings,
        num_iterations=num_updates,
        questions_per_iteration=c.rows_per_update,
        learner=build_training.of_finetuning(config, num_updates=num_updates),
        critic_learning=None,
        kept=dataclasses.replace(settings.kept, rollouts_every=0),
    )


def _evaluation(config: Config) -> EvaluationSettings:
    return EvaluationSettings(
        every=config.eval.every,
        keep_best=config.eval.keep_best,
        num_samples=config.eval.num_samples,
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        ks=tuple(config.eval.k),
        oracle=config.eval.oracle,
        texts_per_slot=config.eval.texts_per_slot,
    )


def _kept(config: Config) -> KeptSettings:
    return KeptSettings(
        checkpoint_every=config.checkpoints.every,
        rollouts_every=config.rollouts.every,
        profile_steps=tuple(config.profile.steps),
        trackers=tuple(config.trackers),
        project=config.tracking.project,
        group=config.tracking.group,
    )


def compute_dtype(config: Config, mesh: jax.sharding.Mesh) -> str:
    """Returns what generation, forward and backward pass compute in."""
    return config.compute.dtype or ("float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16")


def _method(config: Config, stages: Stages) -> rollout.Method:
    return rollout.Method(
        num_responses=config.num_responses,
        max_length=config.max_response_length,
        pass_threshold=config.pass_threshold,
        reward_source=config.reward_source,
        rewards=config.other_rewards,
        critique_when=stages.critique_when,
        num_critiques=config.critique.num_per_response,
        refine=stages.refine,
        refine_which=config.refine.which,
        refine_max_pass=config.refine.max_pass,
        refinements_per_critique=config.refine.per_critique,
        taught="none" if config.distil.kind == "none" else config.distil.which,
    )


def grouping(config: Config) -> groups.Grouping:
    """Returns how the rows of a question become a group that trains, steps 4 to 6 of the algorithm."""
    return groups.Grouping(
        num_responses=config.num_responses,
        num_kept=config.refine.num_kept,
        select=config.refine.select,
        join=config.refine.group,
        drop_mentions=config.refine.drop_critique_mentions,
        weights=config.weights,
        normalize_each=config.normalize_rewards,
        scale_by_std=config.objective.scale_by_std,
        baseline=config.objective.baseline,
        mask_truncated=config.objective.mask_truncated,
        length_penalty=config.objective.length_penalty,
        length_buffer=config.objective.length_penalty_share * config.max_response_length,
        max_length=config.max_response_length,
        loss=LossKind.DISTIL if config.distil.kind == "alone" else LossKind.POLICY,
    )


def _frozen_sampling(section: Critic | Refiner, sampling: Sampling) -> Sampling:
    """Returns how critiques, or refinements, are drawn: as their section says, else as another sampling."""
    temperature = sampling.temperature if section.temperature < 0 else section.temperature
    return dataclasses.replace(sampling, temperature=temperature, top_p=section.top_p or sampling.top_p)


def _evaluation_sampling(config: Config) -> tuple[Sampling, ...]:
    e = config.eval
    if not (config.data.eval or config.data.kind in MADE_UP and config.data.num_eval):
        return ()
    return (Sampling(0.0), *([Sampling(e.temperature, e.top_p)] if max(e.k) > 1 else []))
