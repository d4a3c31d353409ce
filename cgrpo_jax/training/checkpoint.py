"""Checkpoints: a train state and the run's position, saved by Orbax in the background and restored bitwise.

A step's folder holds three items: `params`, `rest` (step and optimiser state) and `extra` (JSON: how far the run
is, `runs.initial_state.Progress`); where a critic of its own is trained, its weights are a fourth, `critic`. Each array
is saved under its path in the tree, such as `layers.q`; weights are an item of their own so that an evaluation reads
nothing else. Orbax writes into a temporary folder, gets the digests of its files there (`checkpoint_seal`), and renames
it when all is there, in a bucket marks it. What is read is compared.
"""

import json
import logging
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import TrainState
from cgrpo_jax.runtime import files, places, processes, watchdog
from cgrpo_jax.runtime.digests import Damaged
from cgrpo_jax.training import checkpoint_items, checkpoint_seal, checkpoint_steps, orbax_faults
from cgrpo_jax.training.checkpoint_steps import Step
from cgrpo_jax.training.named_arrays import by_path, check_same, unflatten

_log = logging.getLogger(__name__)
# In which a checkpoint is on disk, its digests included, which process 0 computes alone. Orbax's own 20 minutes are few
# for the largest ones; what hangs, the watchdog ends.
_SAVE_SECONDS = 4 * 3600


class Checkpoints:
    """The checkpoints of one run.

    Example:
      with Checkpoints(workdir / "checkpoints", max_to_keep=2) as checkpoints:
          restored = checkpoints.restore_latest(state)
          checkpoints.save(int(state.step), state, {"epoch": 0, "position": 128})
    """

    def __init__(self, directory: str | pathlib.Path, *, max_to_keep: int | None = 2):
        """Opens a folder, creating it if needed; removes what a killed run left half-written.

        Args:
          directory: folder of the checkpoints of one run, one subfolder a step.
          max_to_keep: number of newest checkpoints that stay; None keeps all.
        """
        orbax_faults.ignore_closed_loops()
        self._directory = places.place(directory).absolute()
        self._max_to_keep = max_to_keep
        self._best = checkpoint_steps.Kept()
        self._writing = (-1, "", ())  # the step that is being written, which save that is, and its items
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(max_to_keep), self._best]
            ),
            create=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(timeout_secs=_SAVE_SECONDS, post_finalization_callback=self._seal),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=_handlers())

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def latest_step(self) -> int | None:
        """The newest saved step, also while it is still being written; None if there is none."""
        return self._manager.latest_step()

    def keep(self, step: int | None) -> bool:
        """Lets the checkpoint of a step, there or saved next, stay beside the newest ones, and no other one any more.

        Returns:
          Whether it is there.
        """
        self._best.step = step
        return step in self._manager.all_steps()

    def amend(self, step: int, extra: Mapping[str, Any]) -> None:
        """Replaces the JSON values of a checkpoint that is whole. Every process must take part."""
        path = self._directory / str(step) / "extra" / checkpoint_seal.EXTRA
        with processes.agree(f"writing {path}"):
            if jax.process_index() == 0:
                files.write_atomically(path, json.dumps(checkpoint_seal.amended(path.parents[1], extra)))

    def save(self, step: int, state: TrainState, extra: Mapping[str, Any]) -> None:
        """Copies `state` and writes it in the background; the arrays may be donated at once.

        Args:
          step: number of the checkpoint, above every earlier one.
          state: arrays of any sharding; `opt_state` may be None.
          extra: JSON values that a resumed run needs.

        Raises:
          ValueError: `step` is not above the newest checkpoint.
          TypeError: `extra` is not JSON.
        """
        if self.latest_step is not None and step <= self.latest_step:
            raise ValueError(f"step {step} is not above the newest checkpoint, {self.latest_step}")
        json.dumps(extra)  # fails here, before anything is written
        self.wait()  # until then the step before is the one that is sealed
        arrays = checkpoint_items.of_state(state)
        self._writing = step, uuid.uuid4().hex, tuple(arrays)
        items = ocp.args.Composite(
            extra=ocp.args.JsonSave(checkpoint_seal.sealed(extra, step=step, save=self._writing[1])),
            **{name: ocp.args.StandardSave(checkpoint_items.to_save(tree)) for name, tree in arrays.items()},
        )
        with watchdog.stage("saving a checkpoint"), orbax_faults.one_line(self._directory):
            self._manager.save(step, args=items)

    def _seal(self) -> None:
        """Writes the digests of the step that is being written, on process 0, before it takes its name."""
        step, save, items = self._writing
        folder = checkpoint_steps.being_written(self._directory, step)
        checkpoint_seal.write(folder, items, step=step, save=save)

    def wait(self) -> None:
        """Blocks until everything saved is on disk.

        Raises:
          UserError: something could not be written; the checkpoints before are whole.
        """
        with watchdog.stage("waiting for a checkpoint"), orbax_faults.one_line(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, then frees the background threads."""
        with orbax_faults.one_line(self._directory):
            self._manager.close()

    def tidy(self) -> None:
        """Removes checkpoints that are no longer kept: a killed run may have begun to. Every process must take part."""
        self.wait()
        steps = sorted(self._manager.all_steps())
        kept = steps if self._max_to_keep is None else [*steps[-self._max_to_keep :], self._best.step]
        for step in steps:
            if step not in kept:
                self._manager.delete(step)

    def restore_latest(
        self,
        template: TrainState,
        *,
        check: Callable[[int, dict[str, Any]], None] = lambda step, extra: None,
        on_skip: Callable[[int, str], None] | None = None,
    ) -> tuple[int, TrainState, dict[str, Any]] | None:
        """Restores the newest checkpoint that can be read, bitwise.

        A newer one that can't be read is set aside as `unreadable-STEP`, so that the run can save that step again.

        Args:
          template: arrays or `jax.ShapeDtypeStruct`s; a leaf's sharding says where the restored array goes.
          check: called with step and `extra`; raises `digests.Damaged` where these can't be used.
          on_skip: called with step and reason for each checkpoint that could not be read; a warning is logged too.

        Returns:
          Step, state and `extra`; None if there is no checkpoint.

        Raises:
          UserError: no checkpoint can be read, or an array's name, shape or dtype is not the template's.
        """
        self.wait()  # a checkpoint that is still being written would look damaged
        skipped = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                extra = self._checked(step, check, tuple(checkpoint_items.of_state(template)))
                state = self._restore(step, template)
            except UserError:
                raise
            except Exception as error:  # noqa: BLE001  Orbax raises a bare Exception for a truncated array
                checkpoint_steps.check_service(self._directory, error)
                skipped.append((step, checkpoint_steps.first_line(error)))
                continue
            for bad_step, reason in skipped:
                _log.warning("checkpoint %d can't be read (%s); resuming from step %d", bad_step, reason, step)
                self._set_aside(bad_step)
                if on_skip is not None:
                    on_skip(bad_step, reason)
            return step, state, extra
        if skipped:
            raise UserError(
                f"none of the checkpoints {[step for step, _ in skipped]} in {self._directory} can be read "
                f"({skipped[0][1]}); restore the folder from a copy, or start again in another --workdir"
            )
        return None

    def _checked(self, step: int, check: Callable[[int, dict[str, Any]], None], items: Sequence[str]) -> dict[str, Any]:
        """Returns `extra` of a checkpoint whose files are those that were written; each process reads its part."""
        fault, extra, folder = None, {}, self._directory / str(step)
        try:
            extra = checkpoint_seal.extra(folder)
            check(step, extra)
            checkpoint_seal.check(folder, items, divided=True)
        except (Damaged, OSError) as error:
            fault = [checkpoint_steps.first_line(error), checkpoint_steps.is_of_service(folder, error)]
        if faults := [one for one in processes.share(fault) if one]:
            raise (OSError if any(of_service for _, of_service in faults) else Damaged)(faults[0][0])
        return extra

    def _restore(self, step: int, template: TrainState) -> TrainState:
        wanted, where = checkpoint_items.of_state(template), self._directory / str(step)
        metadata = self._manager.item_metadata(step)
        for name, tree in wanted.items():
            check_same(metadata[name].tree, tree, where, same_dtype=True)
        items = {name: ocp.args.StandardRestore(checkpoint_items.to_restore(tree)) for name, tree in wanted.items()}
        with watchdog.stage("reading a checkpoint"):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return checkpoint_items.state_of({name: unflatten(restored[name], tree) for name, tree in wanted.items()})

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            target = self._directory / f"unreadable-{step}"
            for attempt in range(2, 1000):
                if not target.exists():
                    break
                target = self._directory / f"unreadable-{step}-{attempt}"
            (self._directory / str(step)).rename(target)
        multihost_utils.sync_global_devices(f"set aside checkpoint {step}")
        self._manager.reload()


def save_params(directory: str | pathlib.Path, params: Any) -> None:
    """Saves weights alone, as the checkpoint of step 0 in a folder that holds none; `restore_params` reads them.

    Every process must take part, and see the folder. It takes the name of a checkpoint, in a bucket its mark, when
    all of it is there.

    Raises:
      UserError: on every process, where one can't write.
    """
    folder = places.place(directory).absolute()
    step, in_bucket = folder / "0", places.is_bucket(folder)
    partial = step if in_bucket else folder / "partial-0"
    writes = jax.process_index() == 0
    # Few bytes are on their way to the disk at a time: a copy of all weights might not fit the host.
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1, save_device_host_concurrent_gb=1)
    try:
        # Without Orbax's manager, whose processes would wait for minutes for one that can't write.
        with orbax_faults.together(folder):
            if writes:
                files.remove_folder(partial)
                # With the folder in it that Orbax's other processes would wait 10 minutes for if process 0 failed.
                (partial / "params" / "array_metadatas").mkdir(parents=True)
        with orbax_faults.together(folder):
            if not (in_bucket or (partial / "params").is_dir()):
                raise UserError(
                    f"process {jax.process_index()} does not see {folder}, which process 0 has made; "
                    "give a folder that all processes share."
                )
            with watchdog.stage("saving weights"), orbax_faults.quiet():
                handler.save(epath.Path(partial / "params"), args=ocp.args.PyTreeSave(by_path(params)))
        with orbax_faults.together(folder):
            if writes:
                with orbax_faults.quiet():
                    handler.finalize(epath.Path(partial / "params"))
                save = uuid.uuid4().hex
                (partial / "extra").mkdir()
                extra = json.dumps(checkpoint_seal.sealed({}, step=0, save=save))
                files.write_atomically(partial / "extra" / checkpoint_seal.EXTRA, extra)
                checkpoint_seal.write(partial, ("params",), step=0, save=save)
                if in_bucket:
                    checkpoint_steps.commit(step)
                else:
                    partial.rename(step)
    except BaseException:
        if writes:
            files.remove(partial)
        raise
    finally:
        handler.close()


def restore_params(directory: str | pathlib.Path, template: Any, *, step: Step = None, item: str = "params") -> Any:
    """Restores only the weights of a checkpoint: to evaluate, to sample, or to start from.

    Args:
      directory: folder of checkpoints, or the run's folder that holds it as `checkpoints`.
      template: pytree of arrays or `jax.ShapeDtypeStruct`s; a leaf's sharding says where the restored array goes.
        Weights saved in another dtype are cast to its dtype.
      step: which checkpoint, as for `checkpoint_steps.find`; the newest by default.
      item: whose: `params`, or those of the `critic`.

    Raises:
      UserError: no such checkpoint, it can't be read, or a weight's name or shape is not the template's.
    """
    folder, step, others = checkpoint_steps.find(directory, step)
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(folder, options=options, item_handlers=_handlers()) as manager:
        with processes.agree(f"reading {folder / str(step)}"), checkpoint_steps.readable(folder / str(step), others):
            if item == "critic" and not (folder / str(step) / item).exists():
                raise UserError(f"checkpoint {folder / str(step)} has no critic: leave critic.train as the run had it.")
            checkpoint_seal.check(folder / str(step), (item,), divided=True)
        with checkpoint_steps.readable(folder / str(step), others):
            check_same(manager.item_metadata(step)[item].tree, template, folder / str(step), same_dtype=False)
            args = ocp.args.Composite(**{item: ocp.args.StandardRestore(checkpoint_items.to_restore(template))})
            with watchdog.stage("reading a checkpoint"):
                restored = manager.restore(step, args=args)[item]
            return unflatten(restored, template)


def read_extra(directory: str | pathlib.Path, *, step: Step = None) -> dict[str, Any]:
    """Returns the JSON values of a checkpoint, besides its arrays; arguments and errors as in `restore_params`."""
    folder, number, others = checkpoint_steps.find(directory, step)
    return checkpoint_steps.extra(folder, number, others)


class SavedWeights:
    """The weights of one checkpoint, read one array at a time: to convert, where the whole would not fit the host.

    The process reads by itself: others need not take part.

    Attributes:
      step: the checkpoint's step.
      item: whose they are: `params`, or those of the `critic`.
      shapes: shape of each array by its dotted name, such as `"layers.q"`.
      has_critic: whether weights of a critic lie beside them.

    Example:
      with SavedWeights("runs/a") as weights:
          embed = weights.read("embed")
    """

    def __init__(self, directory: str | pathlib.Path, *, step: Step = None, item: str = "params"):
        """Finds the checkpoint; arguments and errors as in `restore_params`."""
        folder, self.step, self._others = checkpoint_steps.find(directory, step)
        self.item, self._path = item, folder / str(self.step) / item
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._reader = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        self._checked = False
        with checkpoint_steps.readable(self._path.parent, self._others):
            checkpoint_seal.check(self._path.parent, (item,), heads=True)
            self._tree = self._reader.metadata(epath.Path(self._path)).tree
        self.has_critic = (self._path.parent / "critic").exists()
        self.shapes = {name: tuple(leaf.shape) for name, leaf in self._tree.items()}

    def __enter__(self) -> "SavedWeights":
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.close()

    def check(self, template: Any) -> None:
        """Raises a `UserError` unless the checkpoint holds the arrays of `template`, by name and shape."""
        check_same(self._tree, template, self._path.parent, same_dtype=False)

    def read(self, name: str, sharding: jax.sharding.Sharding) -> jax.Array:
        """Returns one array, of `shapes`, in the dtype that it was saved in.

        Args:
          name: one of `shapes`.
          sharding: where it goes; a process reads what its own devices hold.

        Raises:
          UserError: the checkpoint is damaged.
        """
        args = ocp.args.PyTreeRestore(
            item={name: 0}, restore_args={name: ocp.ArrayRestoreArgs(sharding=sharding)}, partial_restore=True
        )
        with checkpoint_steps.readable(self._path.parent, self._others):
            if not self._checked:  # once, not for each array
                checkpoint_seal.check(self._path.parent, (self.item,))
                self._checked = True
            return self._reader.restore(epath.Path(self._path), args=args)[name]


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    # Named outright: without them Orbax does not know an item's shapes before it has restored it once.
    standard = ocp.StandardCheckpointHandler
    return {
        "params": standard(),
        "rest": standard(),
        "critic": standard(),
        "extra": ocp.JsonCheckpointHandler(filename=checkpoint_seal.EXTRA),
    }
