"""From a configuration to the parts of a run: model, prompts, problems, grader, critic. Entry points share it.

Below this module nothing knows the configuration.
"""

import dataclasses
import datetime
import importlib.resources
import pathlib
from collections.abc import Sequence

import jax
import optax

from cgrpo_jax import sharding
from cgrpo_jax.critiques import texts
from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import weights as weights_lib
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.hf.tokenizer import Tokenizer, load_tokenizer
from cgrpo_jax.runs import build_inference
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training.checkpoint import SavedWeights, read_extra, restore_params
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.train_step import LossSettings

_NO_MODEL = (
    "no model: set model.folder, or model.init to a converted checkpoint, or model.tokenizer and the shape "
    "(model.num_layers, ...); to plan a run, model.architecture is enough."
)
_ARCHITECTURES = pathlib.Path(__file__).resolve().parents[2] / "configs" / "architectures"


@dataclasses.dataclass(frozen=True)
class Model:
    """One model with everything but weights that is needed to write with it.

    Attributes:
      mesh: where it lies; policy, reference and critic share one.
      dtype: what it computes in.
      source: the Hugging Face folder that describes it; None for one that the configuration describes.
      tokenizer_source: the folder, or SentencePiece file, of its tokenizer.
    """

    config: params_lib.ModelConfig
    mesh: jax.sharding.Mesh
    dtype: str
    prompts: Prompts
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
        return self._laid_out(params, base, weights_lib.splits(self.mesh))

    def to_score(self, params: dict) -> dict:
        """Returns weights as a frozen model that scores has them: in the layout of generation, stacked."""
        return self._laid_out(params, None, False)

    def _laid_out(self, params: dict, base: lora.Base | None, split: bool) -> dict:
        return weights_lib.to_generation(
            params, base, config=self.config, mesh=self.mesh, dtype=self.dtype, split=split
        )


def tokenizer_folder(name: str) -> pathlib.Path:
    """Returns the folder of a tokenizer: "arithmetic" and "snippets" are inside the package, all else is a path."""
    if name in ("arithmetic", "snippets"):
        return pathlib.Path(str(importlib.resources.files("cgrpo_jax") / "assets" / name))
    return pathlib.Path(name)


def make_mesh(config) -> jax.sharding.Mesh:
    """Returns the mesh that policy, reference and critic share, over all devices of all processes."""
    m = config.mesh
    return sharding.make_mesh(replica=m.replica, fsdp=m.fsdp, tensor=m.tensor)


def check_offload(config, mesh: jax.sharding.Mesh) -> None:
    """Raises a `UserError` where the optimiser's state is to lie in host memory that the devices can't reach."""
    kinds = [memory.kind for memory in mesh.local_devices[0].addressable_memories()]
    if config.offload_optimizer and optimizer_lib.HOST not in kinds:
        raise UserError(
            f"offload_optimizer needs devices with {optimizer_lib.HOST} memory, these have {', '.join(kinds)}; set it "
            "to False."
        )


def compute_dtype(config, mesh: jax.sharding.Mesh) -> str:
    """Returns what generation, forward and backward pass compute in."""
    return config.compute_dtype or ("float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16")


def load_model(config, mesh: jax.sharding.Mesh, *, now: datetime.datetime | None = None) -> Model:
    """Makes the policy, without its weights; that they are there, whole and of this model is checked.

    Args:
      config: the configuration.
      mesh: from `make_mesh`.
      now: what a chat template that prints the date prints; the current time by default.

    Raises:
      UserError: the configuration names no model, or a file is missing, damaged or of another model.
    """
    m = config.model
    if m.init:
        _check_init(pathlib.Path(m.init))
    source = _description(m)
    if source:
        shape = hf_config.read_config(source)
        tokenizer_source = tokenizer_folder(m.tokenizer) if m.tokenizer else source
        tokenizer = load_tokenizer(tokenizer_source, now=now)
        load.check_vocab(tokenizer, shape)
    elif m.tokenizer and m.num_layers:
        tokenizer_source = tokenizer_folder(m.tokenizer)
        tokenizer = load_tokenizer(tokenizer_source, now=now)
        shape = _drawn(m, tokenizer.vocab_size)
    elif m.architecture:
        raise UserError(
            f"model.architecture {m.architecture!r} is enough to plan a run, not to start one: it has no weights; "
            "set model.folder to the model's Hugging Face folder, too."
        )
    else:
        raise UserError(_NO_MODEL)
    build_inference.check_lengths(config, build_inference.policy_stages(config), "the model", shape.max_context)
    if m.init:
        with SavedWeights(m.init) as weights:
            weights.check(params_lib.param_shapes(shape))
    elif m.folder:
        load.check_weights(m.folder, shape)
    return _model(
        config,
        shape,
        mesh,
        tokenizer,
        build_inference.policy_stages(config),
        source=source,
        tokenizer_source=tokenizer_source,
    )


def policy_shape(config) -> params_lib.ModelConfig:
    """Returns the policy's shape, from the same places as `load_model`, or from its architecture file alone.

    Raises:
      UserError: the configuration names no model, a file is missing or damaged, or a stage exceeds the context.
    """
    m = config.model
    source = _description(m)
    if source:
        shape = hf_config.read_config(source)
    elif m.architecture:
        shape = hf_config.read_architecture(_architecture_file(m.architecture))
    elif m.tokenizer and m.num_layers:
        shape = _drawn(m, load_tokenizer(tokenizer_folder(m.tokenizer)).vocab_size)
    else:
        raise UserError(_NO_MODEL)
    build_inference.check_lengths(config, build_inference.policy_stages(config), "the model", shape.max_context)
    return shape


def critic_shape(config) -> params_lib.ModelConfig | None:
    """Returns the shape of the frozen critic, if the configuration names one.

    Raises:
      UserError: its `config.json` is missing or damaged, or critiques exceed its context.
    """
    if not config.critic_folder:
        return None
    shape = hf_config.read_config(config.critic_folder)
    build_inference.check_lengths(
        config, build_inference.CRITIC_STAGES, f"the critic {config.critic_folder}", shape.max_context
    )
    return shape


def _architecture_file(name: str) -> pathlib.Path:
    file = _ARCHITECTURES / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in _ARCHITECTURES.glob("*.json")))
        raise UserError(f"model.architecture {name!r} is unknown; use one of {known}, or set model.folder.")
    return file


def _drawn(m, vocab_size: int) -> params_lib.ModelConfig:
    """Returns the shape of a model that the configuration describes itself, to be drawn at random."""
    for key in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "mlp_dim", "max_context"):
        if getattr(m, key) < 1:
            raise UserError(f"model.{key} {getattr(m, key)} is no size; a model without a folder needs all of them.")
    if m.embed_dim % m.num_heads:
        raise UserError(f"model.num_heads {m.num_heads} does not divide model.embed_dim {m.embed_dim}.")
    return params_lib.ModelConfig(
        vocab_size=vocab_size,
        num_layers=m.num_layers,
        embed_dim=m.embed_dim,
        num_heads=m.num_heads,
        num_kv_heads=m.num_kv_heads,
        head_dim=m.embed_dim // m.num_heads,
        mlp_dim=m.mlp_dim,
        max_context=m.max_context,
    )


def _check_init(folder: pathlib.Path) -> None:
    if not folder.is_dir():
        raise UserError(f"model.init {folder} does not exist; give the folder of a run or of a converted checkpoint.")
    if (
        (folder / "config.json").is_file()
        and not (folder / "checkpoints").is_dir()
        and any(folder.glob("*.safetensors"))
    ):
        raise UserError(
            f"model.init {folder} is a Hugging Face folder; give it as model.folder, or convert it to a checkpoint."
        )


def _description(m) -> pathlib.Path | None:
    """Returns the folder with the `config.json` of the model; that of a checkpoint where no other is given."""
    if m.folder:
        return pathlib.Path(m.folder)
    of_checkpoint = pathlib.Path(m.init) / "model"
    return of_checkpoint if m.init and not m.num_layers and of_checkpoint.is_dir() else None


def initial_params(config, model: Model, *, step: int | None = None) -> dict:
    """Returns the weights that a run starts from; `step` names one of several in `model.init`, else the newest."""
    m, template = config.model, model.placed(params_lib.param_shapes(model.config))
    if m.init:
        return restore_params(m.init, template, step=step)
    shardings = sharding.shardings_of(template)
    if m.folder:
        return load.load_params(m.folder, model.config, shardings=shardings)
    return params_lib.init_params(model.config, seed=config.seed, shardings=shardings)


def initial_adapters(config, model: Model) -> dict:
    """Returns the adapters that a run starts from."""
    settings = lora_settings(config)
    shardings = sharding.shardings_of(model.placed(lora.adapter_shapes(model.config, settings)))
    return jax.device_put(lora.init_adapters(model.config, settings, seed=config.seed), shardings)


def lora_settings(config) -> lora.LoraSettings | None:
    """Returns what adapters are trained; None where all weights are."""
    c = config.lora
    return lora.LoraSettings(rank=c.rank, alpha=c.alpha, targets=tuple(c.targets)) if c.rank else None


def keeps_base(config) -> bool:
    """Returns whether a run that trains adapters keeps what they belong to: weights that no other folder has."""
    return bool(config.warm_start.num_updates or not (config.model.init or config.model.folder))


def base_step(config) -> int | None:
    """Returns the step in `model.init` that a new run's adapters will belong to; None where it is of no folder.

    Kept with the run: the folder's newest step may be another one when the run is resumed or evaluated.
    """
    if not config.lora.rank or keeps_base(config) or not config.model.init:
        return None
    with SavedWeights(config.model.init) as weights:
        return weights.step


def frozen_params(config, model: Model, run: RunDir, *, step: int | None) -> dict:
    """Returns the weights that the adapters of a run belong to: those it has kept, or those it started from.

    Args:
      config, model, run: of the run.
      step: what `base_step` returned when the run started.

    Raises:
      UserError: they are missing or damaged.
    """
    if not keeps_base(config):  # whatever lies in the run's folder
        return initial_params(config, model, step=step)
    if not run.base.is_dir():  # else a model drawn at random would take its place
        raise UserError(
            f"{run.base} is missing, the weights that the adapters in {run.checkpoints} belong to; restore it from a "
            "copy, or start again in another --workdir."
        )
    return restore_params(run.base, model.placed(params_lib.param_shapes(model.config)))


def trained_params(config, model: Model, workdir: str) -> tuple[dict, str]:
    """Returns the newest weights of a run, adapters merged, as generation reads them, and where they come from.

    A folder without checkpoints gives the weights that the configuration starts from.

    Raises:
      UserError: there are neither.
    """
    run, settings = RunDir(workdir), lora_settings(config)
    if not run.checkpoints.exists():
        if not (config.model.folder or config.model.init):
            raise UserError(f"{workdir} has no checkpoints and the configuration names no weights; train first.")
        return model.to_generate(initial_params(config, model)), config.model.init or config.model.folder
    if settings is None:
        params = restore_params(run.checkpoints, model.placed(params_lib.param_shapes(model.config)))
        return model.to_generate(params), str(run.checkpoints)
    adapters = restore_params(run.checkpoints, model.placed(lora.adapter_shapes(model.config, settings)))
    step = read_extra(run.checkpoints).get("base_step")
    base = lora.Base(frozen_params(config, model, run, step=step), settings.scale)
    return model.to_generate(adapters, base), str(run.checkpoints)


def load_critic(config, mesh: jax.sharding.Mesh, *, now: datetime.datetime | None = None) -> tuple[Model, dict] | None:
    """Loads the frozen critic, if the configuration names one, and its weights as generation reads them."""
    if not config.critic_folder:
        return None
    source = pathlib.Path(config.critic_folder)
    shape = hf_config.read_config(source)
    tokenizer = load_tokenizer(source, now=now)
    load.check_vocab(tokenizer, shape)
    build_inference.check_lengths(config, build_inference.CRITIC_STAGES, f"the critic {source}", shape.max_context)
    model = _model(
        config, shape, mesh, tokenizer, build_inference.CRITIC_STAGES, source=source, tokenizer_source=source
    )
    template = model.placed(params_lib.param_shapes(shape), sharding.GENERATION)
    params = load.load_params(source, shape, dtype=model.dtype, shardings=sharding.shardings_of(template))
    return model, weights_lib.split_if_needed(params, config=shape, mesh=mesh)


def _model(config, shape, mesh, tokenizer, stages, *, source, tokenizer_source) -> Model:
    prompts = Prompts(
        tokenizer,
        max_prompt_length=config.max_prompt_length,
        max_critique_prompt_length=config.max_critique_prompt_length,
        max_refinement_prompt_length=config.max_refinement_prompt_length,
        system=config.system_prompt,
        question=config.question_prompt,
        critique=config.critique_prompt or texts.CRITIQUE_PROMPT,
        critique_with_answer=config.critique_prompt_with_answer or texts.CRITIQUE_PROMPT_WITH_ANSWER,
        refine=config.refine_prompt or texts.REFINE_PROMPT,
        refine_without_critique=config.refine_prompt_without_critique or texts.REFINE_PROMPT_WITHOUT_CRITIQUE,
    )
    dtype = compute_dtype(config, mesh)
    engine = build_inference.make_engine(config, shape, stages, tokenizer, mesh=mesh, dtype=dtype)
    return Model(shape, mesh, dtype, prompts, engine, source, tokenizer_source)


def optimizer(config) -> optax.GradientTransformation:
    """Returns what trains the policy."""
    return optimizer_lib.make_optimizer(
        config.optimizer,
        learning_rate=learning_rate(config),
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        b1=config.adam_b1,
        b2=config.adam_b2,
        mu_dtype=config.adam_mu_dtype or None,
    )


def learning_rate(config) -> optax.Schedule:
    """Returns the rate that the policy is trained with, as a function of the number of updates before."""
    return optimizer_lib.make_schedule(
        config.schedule,
        peak=config.learning_rate,
        warmup_steps=config.warmup_updates,
        num_steps=config.num_iterations * config.updates_per_batch,
        final_share=config.final_learning_rate_share,
    )


def loss_settings(config) -> LossSettings:
    """Returns the arguments of the loss."""
    return LossSettings(
        max_length=config.max_response_length,
        aggregate=config.aggregate,
        gamma=config.gamma,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        clip_initial=config.clip_initial,
        clip_refined=config.clip_refined,
        kl_coef=config.kl_coef,
        entropy_coef=config.entropy_coef,
        temperature=config.temperature,
        num_responses=config.num_responses,
        num_refinements=config.num_refinements,
    )


def pack_shape(config) -> PackShape:
    """Returns the static shape of a packed batch."""
    return PackShape(
        num_token_rows=config.pack_rows,
        pack_length=config.pack_length or config.max_prompt_length + config.max_response_length,
        num_slots=config.pack_slots or 64 * config.pack_rows,
    )
