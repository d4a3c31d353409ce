import dataclasses
import json
import sys
import types

import iteration_cases
import numpy as np
import pytest
from bucket_fixtures import bucket  # noqa: F401 - a fixture

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Author, Stage
from cgrpo_jax.runs import base, trackers, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import places
from cgrpo_jax.runtime import text as text_lib


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
    assert len(list(tmp_path.iterdir())) == 1
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


def test_tags_are_the_names_of_the_metrics(tmp_path, read):
    row = {"eval/pass@1": 0.5, "eval/pass_1": 0.75, "critic/http_failed/status 500": 1.0, "rewards/f(x)/mean": 2.0}
    trackers.TensorBoard(tmp_path, config={}).log(0, row, {}, "")
    found = read(tmp_path)
    assert {name: found.Scalars(name)[0].value for name in found.Tags()["scalars"]} == row


def test_an_iteration_is_on_the_disk_when_it_is_logged(tmp_path, read):
    tracker = trackers.TensorBoard(tmp_path, config={})
    for step in range(3):
        tracker.log(step, {f"m{number}": step / 2 for number in range(40)}, {"lengths": np.arange(9.0)}, "a text")
        found = read(tmp_path)  # as where the process is killed now
        assert len(found.Tags()["scalars"]) == 40 and len(found.Tensors("sample/text_summary")) == step + 1
        assert found.Scalars("m39")[-1].step == step and found.Histograms("lengths")[-1].step == step


def test_files_of_a_bucket_are_appended_to(bucket, tmp_path, read):  # noqa: F811
    told = []
    bucket.faults = lambda method, path, number: told.append(path)
    folder = places.place("gs://mine/run")
    with trackers.Trackers(board(folder)) as tracked:
        for done, row in rows(range(3)):
            tracked.log(done, row)
    assert tracked.faults == {"tensorboard": 0}
    assert sum("/compose" in path for path in told) == 2  # once an iteration, after the one that made the file
    (there,) = folder.iterdir()
    (tmp_path / there.name).write_bytes(there.read_bytes())
    assert [event.step for event in read(tmp_path).Scalars("reward")] == [0, 1, 2]


@pytest.mark.parametrize("error", [OSError("disk\x1b full"), SystemExit(1)])
def test_a_tracker_that_fails_ends_nothing_is_said_once_and_told_nothing_more(capsys, error):
    told = []

    class Broken:
        def log(self, step, *_):
            told.append(step)
            if step == 1:
                raise error

        def close(self):
            told.append("close")

    tracked = log({"broken": Broken()}, range(4))
    assert (tracked.faults, told) == ({"broken": 1}, [0, 1])
    said = capsys.readouterr().err
    what = text_lib.one_line(f"{type(error).__name__}: {error}")
    assert said.count(f"tracker broken failed ({what}); the run goes on without it") == 1


def test_what_can_not_be_shown_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "sample", lambda done: 1 / 0)
    assert log(board(tmp_path), range(2)).faults == {"tensorboard": 1}


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


@pytest.mark.parametrize("left", ["", "[1]", '{"name": "a"}', "\udcff"])
def test_a_file_of_the_name_that_can_not_be_read_is_as_none(tmp_path, hosted, left):
    (tmp_path / "wandb_run").write_text(left, errors="surrogateescape")
    tracked = log({"wandb": trackers.HostedRun("wandb", tmp_path, config={}, project="p", group="")}, range(2))
    assert tracked.faults == {"wandb": 0} and [step for step, _ in hosted["log"]] == [0, 1]


def test_a_hosted_run_that_can_not_begin_is_tried_once_in_a_run_under_one_name_in_all(tmp_path, hosted, monkeypatch):
    names, terminals = [], []

    def init(**kw):
        names.append(kw["name"])
        terminals.append(sys.stdin.isatty())
        raise TimeoutError("no network")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    stdin = types.SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    for _ in range(2):
        tracker = trackers.HostedRun("wandb", tmp_path, config={}, project="p", group="")
        assert log({"wandb": tracker}, range(3)).faults == {"wandb": 1}
    assert len(names) == 2 and len(set(names)) == 1
    assert terminals == [False, False] and sys.stdin is stdin  # nobody is asked for a key


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


@pytest.mark.parametrize("author", [Author.REFINER, Author.SOLUTION])
def test_what_the_policy_did_not_write_has_no_ratio(author):
    done = iteration_cases.make()
    assert trackers.histograms(done)["ratios/refinements"].size > 0
    groups = [
        dataclasses.replace(
            group, rows=[row.replace(author=author) if row.stage == Stage.REFINEMENT else row for row in group.rows]
        )
        for group in done.groups
    ]
    found = trackers.histograms(dataclasses.replace(done, groups=groups))
    assert "ratios/refinements" not in found and found["ratios/responses"].size > 0


@pytest.mark.parametrize("value", [("tensorbord",), ("wandb", "wandb")])
def test_names_of_trackers_are_checked(value):
    config = base.get_config()
    config.trackers = value
    found = list(validate.violations(config_lib.freeze(config), trains=False))
    assert any("trackers" in one and "use some of tensorboard, wandb, trackio, each once" in one for one in found)
