"""From a run's settings to the models on its devices: mesh, policy, frozen ones, their tokenizers and prompts."""

import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Sequence

import jax

from cgrpo_jax import sharding
from cgrpo_jax.critiques import texts
from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import weights as weights_lib
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.hf.tokenizer import Tokenizer, load_tokenizer
from cgrpo_jax.runs import model_source
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.sections import template_arguments
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import local_copies, watchdog
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training.checkpoint import SavedWeights


@dataclasses.dataclass(frozen=True)
class Model:
    """One model with everything but weights that is needed to write with it.

    Attributes:
      config: its shape.
      mesh: where it lies as it is trained and scores; policy, reference, critic and refiner share one.
      generation_mesh: the same devices, where it writes.
      dtype: what it computes in.
      prompts: its tokenizer and chat template, with the run's templates and limits.
      critic_prompts: likewise, of the model as a critic, where its chat template is given other arguments.
      engine: what samples its texts.
      source: the Hugging Face folder that describes it; None for one that the configuration describes.
      tokenizer_source: the folder, or SentencePiece file, of its tokenizer.
    """

    config: params_lib.ModelConfig
    mesh: jax.sharding.Mesh
    generation_mesh: jax.sharding.Mesh
    dtype: str
    prompts: Prompts
    critic_prompts: Prompts
    engine: Engine
    source: pathlib.Path | None
    tokenizer_source: pathlib.Path

    @property
    def tokenizer(self) -> Tokenizer:
        return self.prompts.tokenizer

    def placed(self, shapes: dict, layout: Sequence[str] = sharding.TRAINING) -> dict:
        """Returns shapes of weights, or of adapters, that say where each lies."""
        return sharding.placed(params_lib.axes_like(self.config, shapes), shapes, self.mesh, layout=layout)

    def to_generate(self, params: dict, base: lora.Base | None = None) -> dict:
        """Returns weights, or adapters merged into their base, as generation reads them."""
        return self._laid_out(params, base, self.generation_mesh, weights_lib.splits(self.mesh))

    def to_score(self, params: dict) -> dict:
        """Returns weights as a frozen model that scores has them: in the layout of generation, stacked."""
        return self._laid_out(params, None, self.mesh, False)

    def _laid_out(self, params: dict, base: lora.Base | None, target: jax.sharding.Mesh, split: bool) -> dict:
        return weights_lib.to_generation(
            params, base, config=self.config, mesh=self.mesh, target=target, dtype=self.dtype, split=split
        )


def make_mesh(config: Config) -> jax.sharding.Mesh:
    """Returns the mesh that policy, reference and frozen models share, over all devices of all processes."""
    m = config.mesh
    return sharding.make_mesh(replica=m.replica, fsdp=m.fsdp, tensor=m.tensor)


def check_offload(mesh: jax.sharding.Mesh, *, offload: bool) -> None:
    """Raises a `UserError` where the optimiser's state is to lie in host memory that the devices can't reach."""
    kinds = [memory.kind for memory in mesh.local_devices[0].addressable_memories()]
    if offload and optimizer_lib.HOST not in kinds:
        raise UserError(
            f"optimizer.offload needs devices with {optimizer_lib.HOST} memory, these have {', '.join(kinds)}; set it "
            "to False."
        )


def load_policy(config: Config, settings: RunSettings, *, now: datetime.datetime | None = None) -> Model:
    """Makes the policy, without its weights; that they are there, whole and of this model is checked.

    Args:
      config: the configuration.
      settings: of the run.
      now: what a chat template that prints the date prints; the current time by default.

    Raises:
      UserError: the configuration names no model that can run, or a file is missing, damaged or of another model.
    """
    source = model_source.of_policy(config)
    if source.tokenizer is None:
        raise UserError(
            f"model.architecture {source.architecture!r} is enough to plan a run, not to start one: it has no weights; "
            "set model.folder to the model's Hugging Face folder, too."
        )
    tokenizer = _tokenizer(source.tokenizer, config.prompts.template_arguments, now=now)
    prompts = critic_prompts = _prompts(config, tokenizer)
    criticises = settings.stages.critic in ("policy", "adapter") and settings.stages.critique.num_texts > 0
    if criticises and config.critic.template_arguments:
        own = _tokenizer(source.tokenizer, config.critic.template_arguments, now=now)
        critic_prompts = _prompts(config, own)
    if source.description:
        load.check_vocab(tokenizer, settings.policy)
    if source.init:
        with SavedWeights(source.init) as saved:
            saved.check(params_lib.param_shapes(settings.policy))
    elif source.weights:
        load.check_weights(local_copies.local(source.weights, suffixes=local_copies.MODEL), settings.policy)
    engine = make_engine(settings, "policy", eos_ids=tokenizer.eos_ids, decode=tokenizer.decode)
    return Model(
        settings.policy,
        settings.mesh,
        settings.generation_mesh,
        settings.dtype,
        prompts,
        critic_prompts,
        engine,
        source.description,
        source.tokenizer,
    )


Frozen = tuple[Model, dict]  # a model whose weights stay as they are, and these as generation reads them


def load_frozen(config: Config, settings: RunSettings, *, now: datetime.datetime | None = None) -> dict[str, Frozen]:
    """Loads the frozen models that the run asks, by what they are: `critic`, `refiner`."""
    trained = {"critic"} if settings.trains_own_critic else set()
    return {
        whose: _load_frozen(_model_of(config, settings, whose, folder, now=now))
        for whose, folder in settings.frozen_folders.items()
        if whose not in trained
    }


def load_own_critic(
    config: Config, settings: RunSettings, policy: Model, *, now: datetime.datetime | None = None
) -> Model | None:
    """Makes a critic that is trained and has weights of its own, without these; None where there is none.

    Args:
      config: the configuration.
      settings: of the run.
      policy: which an adapter is on.
      now: the date that chat templates print.
    """
    if not settings.trains_own_critic:
        return None
    if folder := settings.stages.critic_folder:
        model = _model_of(config, settings, "critic", folder, now=now)
        assert model.source
        load.check_weights(model.source, model.config)
        return model
    tokenizer = policy.critic_prompts.tokenizer
    engine = make_engine(settings, "critic", eos_ids=tokenizer.eos_ids, decode=tokenizer.decode)
    return dataclasses.replace(policy, prompts=policy.critic_prompts, engine=engine)


def _model_of(config: Config, settings: RunSettings, whose: str, name: str, *, now: datetime.datetime | None) -> Model:
    """Makes the model of a folder, without its weights: the `critic` or the `refiner`."""
    arguments = {"critic": config.critic.template_arguments, "refiner": config.refiner.template_arguments}
    shape = {"critic": settings.critic, "refiner": settings.refiner}[whose]
    assert shape, "its folder is among those of the settings"
    folder = local_copies.local(name, suffixes=local_copies.MODEL)
    tokenizer = _tokenizer(folder, arguments[whose], now=now)
    load.check_vocab(tokenizer, shape)
    engine = make_engine(settings, whose, eos_ids=tokenizer.eos_ids, decode=tokenizer.decode)
    prompts = _prompts(config, tokenizer)
    meshes = settings.mesh, settings.generation_mesh
    return Model(shape, *meshes, settings.dtype, prompts, prompts, engine, folder, folder)


def _load_frozen(model: Model) -> Frozen:
    mesh = model.generation_mesh
    template = weights_lib.generation_shapes(
        params_lib.param_shapes(model.config), config=model.config, mesh=mesh, dtype=model.dtype, split=False
    )
    params = load_weights(model, template, dtype=model.dtype)
    return model, weights_lib.split_if_needed(params, config=model.config, mesh=mesh)


def load_weights(model: Model, template: dict, *, dtype: str = "float32") -> dict:
    """Returns the weights of a model's folder, where the shapes of `template` say."""
    assert model.source, "it is of a folder"
    shardings = sharding.shardings_of(template)
    return load.load_params(
        model.source, model.config, dtype=dtype, shardings=shardings, progress=lambda *_: watchdog.alive()
    )


def make_engine(
    settings: RunSettings,
    whose: str,
    *,
    eos_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str] | None,
) -> Engine:
    """Makes what samples the texts of a run's policy or of a frozen model. It holds no weight, nothing on a device.

    Args:
      settings: of the run.
      whose: `policy`, `critic` or `refiner`.
      eos_ids: tokens that end a text.
      decode: token ids to text; None where no text is read, as in a plan.
    """
    shape, slots = {
        "policy": (settings.policy, settings.slots),
        "critic": (settings.critic, settings.critic_slots),
        "refiner": (settings.refiner, settings.refiner_slots),
    }[whose]
    assert shape and slots, "only a run with such a frozen model has an engine for it"
    return Engine(
        shape,
        eos_ids=eos_ids,
        num_slots=slots.num_slots,
        length=slots.length,
        longest_prompt=slots.longest_prompt,
        prompt_bucket=settings.prompt_bucket,
        chunk=settings.decode_chunk,
        cache_dtype=settings.cache_dtype,
        stop=settings.stop if decode else (),
        decode=decode,
        mesh=settings.generation_mesh,
        pages=slots.pages,
        overlap=settings.overlap,
    )


def _tokenizer(path: pathlib.Path, arguments: str, *, now: datetime.datetime | None) -> Tokenizer:
    return load_tokenizer(path, template_variables=template_arguments(arguments), now=now)


def _prompts(config: Config, tokenizer: Tokenizer) -> Prompts:
    return Prompts(
        tokenizer,
        max_prompt_length=config.max_prompt_length,
        max_critique_prompt_length=config.critic.max_prompt_length,
        max_refinement_prompt_length=config.refine.max_prompt_length,
        system=config.prompts.system,
        question=config.prompts.question,
        critique=config.prompts.critique or texts.CRITIQUE_PROMPT,
        critique_with_answer=config.prompts.critique_with_answer or texts.CRITIQUE_PROMPT_WITH_ANSWER,
        critique_with_solution=config.prompts.critique_with_solution or texts.CRITIQUE_PROMPT_WITH_SOLUTION,
        hint=config.prompts.hint or texts.HINT_PROMPT,
        refine_with_hint=config.prompts.refine_with_hint or texts.REFINE_PROMPT_WITH_HINT,
        refine=config.prompts.refine or texts.REFINE_PROMPT,
        teacher=config.prompts.teacher,
        refine_without_critique=config.prompts.refine_without_critique or texts.REFINE_PROMPT_WITHOUT_CRITIQUE,
    )
