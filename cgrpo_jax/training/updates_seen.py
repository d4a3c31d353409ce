"""How many updates the weights of a checkpoint have seen, without reading what was learnt."""

import pathlib

import jax
import orbax.checkpoint as ocp
from etils import epath

from cgrpo_jax.training import checkpoint_steps
from cgrpo_jax.training.checkpoint_steps import Step


def read(directory: str | pathlib.Path, *, step: Step = None) -> int:
    """Returns how many updates the weights of a checkpoint have seen; 0 of converted ones, which say nothing of it.

    The process reads by itself: others need not take part.

    Args:
      directory: folder of checkpoints, or the run's folder that holds it as `checkpoints`.
      step: which checkpoint, as for `checkpoint_steps.find`; the newest by default.

    Raises:
      UserError: no such checkpoint, or it can't be read.
    """
    folder, number, others = checkpoint_steps.find(directory, step)
    rest = folder / str(number) / "rest"
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    reader = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    args = ocp.args.PyTreeRestore(
        item={"step": 0}, restore_args={"step": ocp.ArrayRestoreArgs(sharding=first)}, partial_restore=True
    )
    try:
        with checkpoint_steps.readable(folder / str(number), others):
            return int(reader.restore(epath.Path(rest), args=args)["step"]) if rest.exists() else 0
    finally:
        reader.close()
