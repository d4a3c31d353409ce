"""What an export reads: which model of a run it is of, the policy or a critic that was trained, and that one's weights.

with contextlib.ExitStack() as held:
    source = open_source(pathlib.Path("runs/mine"), held, of="critic", step=None)
    read = reader(source, held, base=None)          # a parameter by its path, with its adapter merged
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import folder as folder_lib
from cgrpo_jax.models.hf import load
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import local_copies, places, processes
from cgrpo_jax.runtime.json_files import read_json_object
from cgrpo_jax.training import checkpoint, checkpoint_steps
from cgrpo_jax.training.checkpoint import SavedWeights
from cgrpo_jax.training.checkpoint_steps import Step
from cgrpo_jax.training.critic_rows import WEIGHTS

MODELS = ("policy", "critic")
RESTORE = "restore it from a copy"
# Reads the parameter at a path into a given sharding.
_Read = Callable[[tuple[str, ...], jax.sharding.Sharding], jax.Array]


@dataclasses.dataclass(frozen=True)
class ExportSource:
    """A model in a checkpoint.

    Attributes:
      run: the folder of the run, or of a converted checkpoint.
      is_critic: whether it is a critic.
      kind: whose weights these are, a name of `critic_rows.WEIGHTS`: the policy's own, or a critic's alone.
      folder: describes it: `config.json` and tokenizer.
      config: its shape.
      weights: of the checkpoint: all of its, or adapters.
      adapters: their settings; None where the weights are whole.
      policy: the policy's whole weights, where adapters of a critic belong to them.
    """

    run: RunDir
    is_critic: bool
    kind: str
    folder: pathlib.Path
    config: params_lib.ModelConfig
    weights: SavedWeights
    adapters: lora.LoraSettings | None
    policy: SavedWeights | None

    @property
    def shares(self) -> bool:
        """Whether it is a critic that writes with the policy's own weights."""
        return self.is_critic and self.kind == "policy"


def open_source(path: pathlib.Path, held: contextlib.ExitStack, *, of: str, step: Step) -> ExportSource:
    """Finds a model of a run, or the one of a converted checkpoint. The process reads by itself.

    Args:
      path: the folder, or its `checkpoints`.
      held: closes what is opened.
      of: a name of `MODELS`.
      step: which checkpoint, as for `checkpoint_steps.find`.

    Raises:
      UserError: there is none such, or a file is missing or damaged.
    """
    if of not in MODELS:
        raise UserError(f"a run has no model {of!r} to export; use one of {', '.join(MODELS)}.")
    run = _run(path)
    kind = _critic_weights(run) if of == "critic" else "policy"
    folder = _description(run.critic_model if kind == "model" else run.model)
    item = "params" if kind == "policy" else "critic"
    weights = held.enter_context(SavedWeights(run.path, step=step, item=item))
    adapters, policy = None, None
    if kind == "adapter":
        adapters = _critic_adapter(run)
        policy = held.enter_context(SavedWeights(run.path, step=weights.step))
    elif "embed" not in weights.shapes:
        adapters = _adapters(run).settings
    return ExportSource(run, of == "critic", kind, folder, hf_config.read_config(folder), weights, adapters, policy)


def reader(
    source: ExportSource, held: contextlib.ExitStack, *, base: str | None
) -> Callable[[tuple[str, ...]], jax.Array]:
    """Returns what reads a parameter onto all devices, its adapter merged if it has one.

    All processes must read together; where one can't, all raise a `UserError`.

    Args:
      source: the model.
      held: closes what is opened.
      base: folder of the weights that adapters belong to; None: where the run says that it took them from.
    """
    config, weights, settings = source.config, source.weights, source.adapters
    shardings = spread(config)
    whole = jax.sharding.NamedSharding(sharding.make_mesh(), jax.sharding.PartitionSpec())
    if settings is None:
        if base:
            raise UserError(f"{source.run.path} holds whole weights, no adapters; leave --base out.")
        read = _saved(weights, config)
    else:
        weights.check(lora.adapter_shapes(config, settings))
        read = _base(source, held, base=base)

    def read_together(path: tuple[str, ...]) -> jax.Array:
        name, adapter = ".".join(path), None
        with processes.agree(f"reading {source.run.path}"):
            weight = read(path, load.at(shardings, path))
            if settings is not None and f"{name}_lora_a" in weights.shapes:
                halves = [weights.read(f"{name}_lora_{half}", whole) for half in "ab"]
                adapter = (*halves, settings.scale)
        # Not within: devices may have to exchange for it, and those of a process that failed would not come.
        return weight if adapter is None else lora.merge_one(weight, *adapter)

    return read_together


def peft_base(source: ExportSource, base: str | None) -> pathlib.Path:
    """Returns the Hugging Face folder that adapters belong to, absolute.

    Args:
      source: the model.
      base: that folder, if it is not where the run says; of a critic's adapter the policy's own, exported.

    Raises:
      UserError: there are no adapters, or their base is no folder that peft could load.
    """
    run = source.run
    if source.adapters is None:
        raise UserError(f"{run.path} trained all weights, so it has no adapters; export it with --to_hf.")
    if source.policy is None:
        trained = _adapters(run)
        if trained.keeps_base or trained.init:
            raise UserError(f"the base of {run.path} is in no Hugging Face folder; export it merged, with --to_hf.")
        return _base_folder(base or trained.folder)
    step = source.weights.step
    if not base:
        raise UserError(
            f"the critic's adapter belongs to the policy of the same checkpoint: export that with --from={run.path} "
            f"--step={step} --to_hf=DIR, and name DIR with --base."
        )
    folder = _base_folder(base)
    _check_is_policy(folder, source.policy, source)
    return folder


def spread(config: params_lib.ModelConfig) -> dict:
    """Returns shardings that spread every parameter over all devices."""
    mesh = sharding.make_mesh()
    return sharding.param_shardings(params_lib.logical_axes(config), params_lib.param_shapes(config), mesh)


def _check_is_policy(folder: pathlib.Path, policy: SavedWeights, source: ExportSource) -> None:
    """Raises a `UserError` unless an exported folder has the policy's weights: of the projection that is smallest."""
    assert source.adapters
    name = min((f"layers.{target}" for target in source.adapters.targets), key=lambda one: np.prod(policy.shapes[one]))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    copy = local_copies.local(folder, suffixes=local_copies.MODEL)
    theirs = load.Weights(copy, source.config).read(tuple(name.split(".")), sharding=here)
    ours = policy.read(name, here).astype(folder_lib.stored_dtype(copy)).astype(theirs.dtype)
    if not np.array_equal(ours, theirs):
        raise UserError(
            f"--base {folder} is not the policy of {source.run.path} at step {source.weights.step}, which the critic's "
            "adapter belongs to; export that one with --to_hf, and name its folder."
        )


# --- what a run says of itself ------------------------------------------------------------------------------------


def _run(path: pathlib.Path) -> RunDir:
    """Returns the run, or converted checkpoint, that a path means; its `checkpoints` folder means it too."""
    run = RunDir(path)
    if not run.checkpoints.is_dir() and run.path.resolve().name == "checkpoints":
        run = RunDir(run.path.resolve().parent)
    if not run.checkpoints.is_dir():
        raise UserError(f"{path} holds no checkpoints; give the --workdir of a run, or a converted checkpoint.")
    return run


def _description(folder: pathlib.Path) -> pathlib.Path:
    """Returns a folder that describes a model of a run, on this machine's disk."""
    if not folder.is_dir():
        raise UserError(
            f"{folder.parent} has no folder {folder.name}, which says what model its checkpoints are of; restore it."
        )
    for name in ("config.json", "generation_config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, which says what model it is; {RESTORE}.")
    return local_copies.local(folder)


def _critic_weights(run: RunDir) -> str:
    """Returns whose weights the critic of a run is trained with, a name of `critic_rows.WEIGHTS`.

    Raises:
      UserError: the run trains no critic.
    """
    critic = _config(run).get("critic")
    if isinstance(critic, dict) and critic.get("train") is True and isinstance(critic.get("training"), dict):
        if (weights := critic["training"].get("weights")) in WEIGHTS:
            return weights
    raise UserError(f"{run.path} trains no critic (critic.train); leave --of out, which exports its policy.")


def _critic_adapter(run: RunDir) -> lora.LoraSettings:
    training = _config(run)["critic"]["training"]
    rank, alpha = training.get("rank"), training.get("alpha")
    if not (isinstance(rank, int) and isinstance(alpha, int | float)):
        raise UserError(f"{run.config} does not say what adapter its critic has; {RESTORE}.")
    return lora.LoraSettings(rank, float(alpha), tuple(lora.TARGETS))


def _config(run: RunDir) -> dict[str, Any]:
    """Returns a run's `config.json`; a converted checkpoint has none."""
    return read_json_object(run.config, missing=RESTORE, broken=RESTORE) if run.config.is_file() else {}


@dataclasses.dataclass(frozen=True)
class _Adapters:
    """What the configuration of a run that trained adapters says of them.

    Attributes:
      settings: which projections have one, and how strong they are.
      folder, init: the Hugging Face folder, or the checkpoint, that the run started from; empty where there was none.
      warmed_up: the run had trained the weights that they belong to before it began with them.
    """

    settings: lora.LoraSettings
    folder: str
    init: str
    warmed_up: bool

    @property
    def keeps_base(self) -> bool:
        """Whether the run's own folder has the weights that they belong to; see `start_weights.keeps_base`."""
        return self.warmed_up or not (self.init or self.folder)


def _adapters(run: RunDir) -> _Adapters:
    """Reads what a run's `config.json` says of the adapters that it trained.

    Raises:
      UserError: the file is missing, damaged, or not that of such a run.
    """
    given = read_json_object(run.config, missing=RESTORE, broken=RESTORE)
    try:
        rank, alpha, targets = (given["lora"][key] for key in ("rank", "alpha", "targets"))
        folder, init, num_updates = given["model"]["folder"], given["model"]["init"], given["warm_start"]["num_updates"]
        whole = rank >= 1 and alpha > 0 and all(target in lora.TARGETS for target in targets)
        whole &= isinstance(folder, str) and isinstance(init, str) and isinstance(num_updates, int)
        if whole:
            return _Adapters(lora.LoraSettings(rank, alpha, tuple(targets)), folder, init, bool(num_updates))
    except (KeyError, TypeError, ValueError):  # a section or a key is missing, or another thing than it must be
        pass
    raise UserError(
        f"{run.config} is not the configuration of a run that trained the adapters in {run.checkpoints}; {RESTORE}."
    )


def _base(source: ExportSource, held: contextlib.ExitStack, *, base: str | None) -> _Read:
    """Returns what reads the weights that adapters belong to; `base` as for `reader`."""
    run, config = source.run, source.config
    if source.policy is not None:
        if base:
            raise UserError(
                "the critic's adapter belongs to the policy of the same checkpoint, which is read there; leave --base "
                "out."
            )
        return _saved(source.policy, config)
    trained = _adapters(run)
    step = checkpoint.read_extra(run.checkpoints, step=source.weights.step).get("base_step")
    folder = _base_folder(base or (run.base if trained.keeps_base else trained.init or trained.folder))
    if (folder / "config.json").is_file() and not (folder / "checkpoints").is_dir():
        weights = load.Weights(local_copies.local(folder, suffixes=local_copies.MODEL), config)
        return lambda path, placed: weights.read(path, sharding=placed)
    return _saved(held.enter_context(SavedWeights(folder, step=step)), config)


def _base_folder(path: str | pathlib.Path) -> pathlib.Path:
    """Returns the folder that adapters belong to, absolute, so that it is found from elsewhere too."""
    folder = places.place(path).absolute()
    if not folder.exists():
        raise UserError(f"the adapters' base {path} does not exist; name the folder that now holds it with --base.")
    if not folder.is_dir():
        raise UserError(f"the adapters' base {path} is not a folder; name the folder that holds it with --base.")
    steps = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if not (folder / "config.json").is_file() and not any(
        checkpoint_steps.is_step(one.name) for one in steps.iterdir()
    ):
        raise UserError(
            f"the adapters' base {path} is no Hugging Face folder and holds no checkpoint; name the folder that holds "
            "it with --base."
        )
    return folder


def _saved(weights: SavedWeights, config: params_lib.ModelConfig) -> _Read:
    """Returns what reads whole weights from a checkpoint."""
    weights.check(params_lib.param_shapes(config))
    return lambda path, placed: weights.read(".".join(path), placed)
