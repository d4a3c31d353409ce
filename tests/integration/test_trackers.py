"""What TensorBoard reads of a whole run that was stopped and resumed is what its metrics say."""

import pytest
import tiny_run

from cgrpo_jax.datasets import rollouts


def test_tensorboard_has_each_step_of_a_resumed_run_once_as_the_metrics_have_it(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tiny_run.run(tmp_path, {"trackers": ("tensorboard",)}, num_iterations=2)
    # The second iteration is lost, as where a run is killed before its checkpoint.
    (newest,) = [path for path in (tmp_path / "checkpoints").iterdir() if path.name == "2"]
    newest.rename(tmp_path / "lost")
    tiny_run.run(tmp_path, {"trackers": ("tensorboard",)}, num_iterations=3)
    found = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    rows = tiny_run.metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    names = {name for row in rows for name, value in row.items() if value is not None} - {"step"}
    assert set(found.Tags()["scalars"]) == names
    for name in ("reward", "loss", "entropy", "num_tokens"):
        expected = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]
        assert [(event.step, event.value) for event in found.Scalars(name)] == expected
    assert len(list((tmp_path / "rollouts").glob(rollouts.NAMES))) == 3
