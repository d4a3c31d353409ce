"""The rollouts of whole runs: every text is in them, and they train the same weights again."""

import re
import shutil

import jax
import numpy as np
import paths
import pytest
import tiny_run

from cgrpo_jax import sharding
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.datasets.rollouts import parquet
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Author, Stage
from cgrpo_jax.runs.settings import run_settings
from cgrpo_jax.runtime import console
from cgrpo_jax.training.learner import Learner

# Attempts at critiques are rejected, questions refined of which some responses pass, and rows scored by the trainer.
CHANGES = {
    "critique.kind": "cot",
    "critique.max_retries": 1,
    "refine.max_pass": 0.8,
    "refine.num_kept": 2,
    "objective.old_logp": "trainer",
    "optimizer.updates_per_batch": 2,
    "checkpoints.keep": 3,
    "data.num_eval": 0,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two iterations, and all that passed through it."""
    with pytest.MonkeyPatch.context() as patch:
        seen = tiny_run.watch(patch)
        return tiny_run.run(tmp_path_factory.mktemp("run"), CHANGES, num_iterations=2), seen


def test_every_text_that_was_sampled_is_there_with_what_it_was_asked(trained):
    folder, seen = trained
    rows = [row.rollout for file in tiny_run.rollouts(folder) for row in file]
    sampled = [row for row in rows if row.author == Author.POLICY]

    def of(row):
        arrays = (row.prompt_ids, row.token_ids, row.logp)
        return str(row.index), row.weights_step, row.text, *(array.tobytes() for array in arrays)

    assert sorted(map(of, sampled)) == sorted(map(of, seen.rollouts))
    critiques = [row for row in rows if row.stage == Stage.CRITIQUE]
    replaced = [row for row in critiques if row.author == Author.RULE]
    assert replaced and all(len(row.rejected) == row.index.attempt == 2 for row in replaced)
    assert any(len(row.rejected) == 1 for row in critiques) and any(not row.rejected for row in critiques)


def test_rows_that_are_read_back_give_the_same_update_bitwise(trained, tmp_path):
    """From the weights after one iteration, by the rows of the second one's file alone."""
    folder, seen = trained
    config = tiny_run.config({"model.init": tiny_run.start()} | CHANGES, num_iterations=2)
    shutil.copytree(folder / "checkpoints" / "1", tmp_path / "checkpoints" / "1")
    step, state = tiny_run.restore(tmp_path, config)
    assert step == 1
    settings = run_settings(config, sharding.one_device())
    learner = Learner(
        settings.policy,
        mesh=settings.mesh,
        dtype=settings.dtype,
        settings=settings.learner,
        clock=console.Clock(),
    )
    rows = rollouts.read(folder / "rollouts" / "step_00000001.parquet")
    groups = rollouts.train_groups(rows)
    state, updates = learner.update(jax.tree.map(jax.numpy.asarray, state), groups)
    _, expected = tiny_run.state(folder, config)
    for ours, theirs in zip(jax.tree.leaves(state), expected, strict=True):
        assert np.asarray(ours).tobytes() == theirs.tobytes()
    # The file also has what the trainer said of the rows, and which of them moved the weights.
    placed = sorted((row for row in rows if row.place is not None), key=lambda row: _at(row))
    logps = [logp for group in updates.trainer_logps for logp in group]
    for row, logp in zip(placed, logps, strict=True):
        assert row.trainer_logp.tobytes() == logp.tobytes()
    assert any(row.trainer_logp.tobytes() != row.train_row.old_logp.tobytes() for row in placed)
    assert [not row.dropped for row in placed] == [one for group in updates.trained for one in group]
    assert sum(not row.dropped for row in placed) == tiny_run.metrics(folder)[1]["rows_trained"] > 0
    assert {row.dropped for row in rows} >= {"", "zero_advantage", "not_selected"}


def _at(row):
    return row.rollout.index.question, row.place


def test_the_size_of_a_file_is_a_metric_of_the_next_iteration(trained):
    folder, _ = trained
    first, second = tiny_run.metrics(folder)
    assert "rollouts/bytes" not in first
    assert second["rollouts/bytes"] == (folder / "rollouts" / "step_00000000.parquet").stat().st_size


def test_what_the_readme_prints_of_a_rescued_question(trained, tmp_path, monkeypatch, capsys):
    folder, _ = trained
    (program,) = re.findall(r"^```python\n(import pandas.*?)^```", (paths.ROOT / "README.md").read_text(), re.M | re.S)
    shutil.copytree(folder / "rollouts", tmp_path / "runs" / "quickstart" / "rollouts")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.split() == ["stage", "text", "reward", "advantage", "dropped"]
    stages = [line.split()[1] for line in lines]
    assert stages.count("response") == 4 and {"critique", "refinement"} < set(stages)


def test_a_disk_that_is_full_ends_the_run_in_one_line_and_the_same_command_resumes_it(trained, tmp_path, monkeypatch):
    changes, folder = CHANGES | {"checkpoints.every": 100}, tmp_path / "run"

    def full(table, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "write_table", full)
        with pytest.raises(UserError, match=f"{folder / 'rollouts'} can't be written: the disk is full; free space"):
            tiny_run.run(folder, changes, num_iterations=2)
    assert [row["step"] for row in tiny_run.metrics(folder)] == [0]  # it ends once the next iteration is done
    assert not list((folder / "rollouts").iterdir())
    tiny_run.run(folder, changes, num_iterations=2)
    assert tiny_run.repeatable(folder) == tiny_run.repeatable(trained[0])
    for path in (trained[0] / "rollouts").iterdir():
        assert (folder / "rollouts" / path.name).read_bytes() == path.read_bytes()
