"""What is left of a warm start: it is gone on with only where it is whole, and of the same configuration
and task."""

import types

import jax.numpy as jnp
import pytest

from cgrpo_jax.datasets import fingerprints
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import TrainState
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import warm_start
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import files
from cgrpo_jax.training.checkpoint import Checkpoints


@pytest.mark.parametrize("what", ["whole", "arrays", "extra", "configuration", "task"])
def test_what_is_gone_on_with(tmp_path, capsys, what):
    run, config = RunDir(tmp_path), config_lib.to_json(config_lib.Config())
    with Checkpoints(run.warm_start, max_to_keep=1) as kept:
        state = TrainState(step=jnp.int32(3), params={"w": jnp.ones(4)}, opt_state=None)
        kept.save(3, state, {"config": config, "task": "chains 1"})
    folder = run.warm_start / "3"
    if what == "arrays":
        largest = max(
            (path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
        )
        largest.write_bytes(largest.read_bytes()[:-1])
    if what == "extra":
        (folder / "extra" / "metadata").write_text("{")
    now = config | {"seed": 1} if what == "configuration" else config
    task = "chains 2" if what == "task" else "chains 1"
    opened = types.SimpleNamespace(run=run, config_json=lambda: now, inputs={fingerprints.TASK: task})
    assert warm_start._remove_another(opened) == (what != "whole")
    assert run.warm_start.exists() == (what == "whole")
    assert ("the warm start begins again" in capsys.readouterr().err) == (what == "arrays")


def test_lessons_of_another_run_that_can_not_be_removed_are_not_gone_on_with(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    run.warm_start.mkdir()
    monkeypatch.setattr(files, "remove_folder", lambda folder: None)
    opened = types.SimpleNamespace(run=run, config_json=dict, inputs={})
    with pytest.raises(UserError, match="what another configuration has learned, and can't be removed"):
        warm_start._remove_another(opened)
