import json
import sys
import types

import iteration_cases
import numpy as np
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base, trackers, validate
from cgrpo_jax.runs import config as config_lib


def rows(steps, offset=0.0):
    return [(iteration_cases.make(step), {"step": step, "reward": step / 4 + offset, "kl": None}) for step in steps]


def log(made, steps, offset=0.0):
    with trackers.Trackers(made) as tracked:
        for done, row in rows(steps, offset):
            tracked.log(done, row)
    return tracked


def board(folder):
    return {"tensorboard": trackers.TensorBoard(folder, config={"seed": 0, "prompts.question": "# {question}"})}


@pytest.fixture
def read():
    """Reads event files as TensorBoard does."""
    found = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def events(folder):
        accumulator = found.EventAccumulator(str(folder), purge_orphaned_data=True)
        accumulator.Reload()
        return accumulator

    return events


def test_tensorboard_reads_metrics_texts_and_histograms(tmp_path, read):
    assert log(board(tmp_path), range(3)).faults == {"tensorboard": 0}
    found = read(tmp_path)
    assert found.Tags()["scalars"] == ["reward"]  # kl has no number
    assert [(event.step, event.value) for event in found.Scalars("reward")] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert {"lengths/responses", "ratios/refinements"} <= set(found.Tags()["histograms"])
    text = found.Tensors("sample/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    question: a" in text and "refinement (reward 1)" in text
    assert "# {question}" in found.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()


def test_a_run_that_was_killed_and_resumed_has_each_step_once(tmp_path, read):
    log(board(tmp_path), range(4))
    log(board(tmp_path), range(2, 6), offset=10.0)  # its newest checkpoint was of step 2
    values = [(event.step, event.value) for event in read(tmp_path).Scalars("reward")]
    assert values == [(0, 0.0), (1, 0.25), (2, 10.5), (3, 10.75), (4, 11.0), (5, 11.25)]


def test_a_tracker_that_fails_ends_nothing_and_is_said_once(capsys):
    class Broken:
        def log(self, *_):
            raise OSError("disk\x1b full")

        def close(self):
            raise RuntimeError("again")

    tracked = log({"broken": Broken()}, range(3))
    assert tracked.faults == {"broken": 4}
    said = capsys.readouterr().err
    assert said.count("tracker broken failed (OSError: disk\\x1b full); the run goes on") == 1
    assert "tracker broken failed 4 times" in said


@pytest.fixture
def hosted(monkeypatch):
    """A stand-in for W&B, which keeps what it was told."""
    module = types.ModuleType("wandb")
    told = {"init": [], "log": [], "finish": 0}
    module.init = lambda **kw: told["init"].append(kw)
    module.log = lambda values, step: told["log"].append((step, values))
    module.finish = lambda: None
    module.Histogram = lambda values: ("histogram", len(values))
    module.Html = lambda text: ("html", text)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_a_hosted_run_goes_on_under_its_name_without_steps_that_it_has(tmp_path, hosted):
    def made():
        kw = {"config": {"seed": 0}, "project": "p", "group": "study"}
        return {"wandb": trackers.HostedRun("wandb", tmp_path, **kw)}

    log(made(), range(3))
    log(made(), range(1, 5))
    first, second = hosted["init"]
    assert first == second and (first["project"], first["group"], first["resume"]) == ("p", "study", "allow")
    assert first["id"].startswith(f"{tmp_path.name}-") and first["config"] == {"seed": 0}
    assert [step for step, _ in hosted["log"]] == [0, 1, 2, 3, 4]
    _, values = hosted["log"][0]
    assert values["reward"] == 0.0 and values["lengths/responses"][0] == "histogram"
    assert json.loads((tmp_path / "wandb_run").read_text())["step"] == 4


def test_texts_are_escaped_where_they_become_html(tmp_path, hosted):
    tracker = trackers.HostedRun("wandb", tmp_path, config={}, project="p", group="")
    tracker.log(0, {}, {}, "<script>&")
    assert hosted["log"][0][1]["sample"] == ("html", "<pre>&lt;script>&amp;</pre>") and "group" not in hosted["init"][0]


def test_a_package_that_is_missing_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.PACKAGES, "trackio", "no_such_package")
    with pytest.raises(UserError, match=r"trackers 'trackio' needs the package no_such_package; pip install it"):
        trackers.make(("trackio",), tmp_path, config={}, project="p", group="")
    assert trackers.make((), tmp_path, config={}, project="p", group="") == {}


def test_nothing_is_written_before_the_first_iteration(tmp_path):
    with trackers.Trackers(trackers.make(("tensorboard",), tmp_path, config={}, project="p", group="")):
        pass
    assert not list(tmp_path.iterdir())


def test_ratios_are_those_of_trainer_and_sampler():
    found = trackers.histograms(iteration_cases.make())
    assert np.allclose(found["ratios/responses"], np.exp(-1)) and found["ratios/responses"].size > 0
    assert "ratios/responses" not in trackers.histograms(iteration_cases.make(scored=False))


@pytest.mark.parametrize("value", [("tensorbord",), ("wandb", "wandb")])
def test_names_of_trackers_are_checked(value):
    config = base.get_config()
    config.trackers = value
    found = list(validate.violations(config_lib.freeze(config), trains=False))
    assert any("trackers" in one and "use some of tensorboard, wandb, trackio, each once" in one for one in found)
