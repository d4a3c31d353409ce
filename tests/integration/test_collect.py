"""`collect` on a run's folder: which rows it writes, on any mesh, killed and resumed, from rows that are there."""

import json
import pathlib
import re
import shutil
import signal

import numpy as np
import pytest
import tiny_run
from bucket_fixtures import bucket  # noqa: F401 - a fixture
from entry_points import call, refused

from cgrpo_jax import collect, convert
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.records import Author, Stage
from cgrpo_jax.runs import log
from cgrpo_jax.training import updates_seen

# Two files; critiques that a model writes, which may say anything.
CHANGES = {
    "critique.kind": "cot",
    "collect.num_questions": 6,
    "collect.questions_per_file": 4,
    "collect.num_responses": 3,
    "collect.num_critiques": 2,
}
NAMES = ["step_00000000.parquet", "step_00000001.parquet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tiny_run.run(tmp_path_factory.mktemp("trained"), {"data.num_eval": 0}, num_iterations=1)


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """What a collection that nothing disturbs has written."""
    folder = tmp_path_factory.mktemp("whole")
    run(trained, folder)
    return folder


def run(workdir, out, changes=None, /, *flags):
    """Collects from a run's folder, or with a file's configuration from a folder that holds none."""
    argv = [f"--config.{key}={value}" for key, value in (CHANGES | (changes or {})).items()]
    call(collect.main, collect.FLAGS, f"--workdir={workdir}", f"--out={out}", *argv, *flags)


def files(folder):
    return sorted(path.name for path in pathlib.Path(folder).glob(rollouts.NAMES))


def rows(folder):
    return [row.rollout for name in files(folder) for row in rollouts.read(pathlib.Path(folder) / name)]


def of(stage, texts):
    return [row for row in texts if row.stage == stage]


def assert_same(folder, other):
    assert files(folder) == files(other) == NAMES
    for name in NAMES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (folder, other))
    weights = ours.pop("weights"), theirs.pop("weights")  # named by their way from the folder
    assert ours == theirs and all(name.endswith("checkpoints, step 1") for name in weights)


def test_every_text_is_there_with_what_it_achieved(trained, whole):
    assert files(whole) == NAMES
    found = rows(whole)
    responses, critiques, refinements = (of(stage, found) for stage in Stage)
    assert (len(responses), len(critiques), len(refinements)) == (18, 36, 36)
    assert sorted({row.index.question for row in found}) == list(range(6))
    assert updates_seen.read(trained) == 1  # a minibatch of the one iteration
    assert {row.weights_step for row in found} == {updates_seen.read(trained)}
    for row in found:
        assert row.author == Author.POLICY and len(row.logp) == len(row.token_ids) and len(row.prompt_ids)
    for row in refinements:
        worth = dict(row.rewards)["utility"]
        assert worth == (1 + row.reward - row.parent.parent.reward) / 2
    summary = json.loads((whole / "summary.json").read_text())
    assert [summary[name] for name in ("questions", "responses", "critiques", "refinements")] == [6, 18, 36, 36]
    assert summary["pass@1"]["value"] == np.mean([row.reward for row in responses])
    right = [row.verdict is (row.parent.reward == 1) for row in critiques]
    assert summary["verdict_accuracy"]["value"] == pytest.approx(np.mean(right))
    worth = [dict(row.rewards)["utility"] for row in refinements]
    assert summary["utility"]["value"] == pytest.approx(np.mean(worth))  # each critique has one refinement
    assert summary["weights"].endswith("checkpoints, step 1") and summary["task"].startswith("chains")


def test_eight_devices_write_what_one_writes(trained, whole, tmp_path):
    """The same keys give the same texts; a sum in another order may tip one that is nearly undecided."""
    run(trained, tmp_path, {"mesh.fsdp": 4, "mesh.tensor": 2, "engine.num_slots": 1})
    ours, theirs = rows(whole), rows(tmp_path)
    assert [row.index for row in ours] == [row.index for row in theirs]
    same = [row.text == other.text for row, other in zip(ours, theirs, strict=True)]
    responses = [is_same for row, is_same in zip(ours, same, strict=True) if row.stage == Stage.RESPONSE]
    assert sum(responses) >= len(responses) - 1 and sum(same) >= 0.9 * len(same)
    for row, other in zip(ours, theirs, strict=True):
        if row.text == other.text and np.array_equal(row.prompt_ids, other.prompt_ids):
            np.testing.assert_allclose(row.logp, other.logp, atol=1e-4)


class Killed(BaseException):
    pass


def ticks(monkeypatch, action=None, *, at=None):
    """Lets the next collection act at its tick of that number; returns a list of the ticks there were."""
    ticked = []

    def show(bar, progress):
        ticked.append(progress.done)
        if len(ticked) == at:
            action()

    monkeypatch.setattr(log, "show", show)
    return ticked


def kill():
    raise Killed


def test_killed_it_resumes_to_the_same_bytes(trained, whole, tmp_path, monkeypatch, capsys):
    ticked = ticks(monkeypatch)
    run(trained, tmp_path / "again")
    assert_same(tmp_path / "again", whole)
    for at in (3, len(ticked) - 1):  # in the first file, and in the second
        out = tmp_path / str(at)
        ticks(monkeypatch, kill, at=at)
        with pytest.raises(Killed):
            run(trained, out)
        assert files(out) == NAMES[: at > 3] and not (out / "summary.json").exists()
        ticks(monkeypatch)
        run(trained, out)
        assert_same(out, whole)
    out = capsys.readouterr().out
    assert re.search(r"^pass@1 +0\.\d+ \(0\.\d+ to [01]\.\d+\)  +of the responses, right ones$", out, re.MULTILINE)


def test_a_signal_ends_it_and_it_says_what_is_kept(trained, whole, tmp_path, monkeypatch, capsys):
    ticked = ticks(monkeypatch)
    run(trained, tmp_path / "again")
    ticks(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM), at=len(ticked) - 1)
    monkeypatch.setenv("CGRPO_STOPPED_STATUS", "75")
    with pytest.raises(SystemExit) as caught:
        run(trained, tmp_path / "out")
    assert caught.value.code == 75 and files(tmp_path / "out") == NAMES[:1]
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"stopped by SIGTERM; {tmp_path / 'out'} keeps 4 of 6 questions in step_*.parquet; the same command resumes it"
    )
    ticks(monkeypatch)
    run(trained, tmp_path / "out")
    assert_same(tmp_path / "out", whole)


def test_rows_are_collected_again(trained, whole, tmp_path):
    """Other critics on the same responses, then another actor after these critiques, from a Hugging Face folder."""
    convert.export_hf(pathlib.Path(tiny_run.start()), tmp_path / "model")
    given = {"collect.rows": str(whole), "collect.num_responses": 0, "collect.num_questions": 0}
    critic = {"critic.kind": "folder", "critic.folder": str(tmp_path / "model"), "collect.num_refinements": 0}
    run(trained, tmp_path / "critiques", given | critic | {"collect.which": "failed"})
    found = rows(tmp_path / "critiques")
    assert files(tmp_path / "critiques") == NAMES
    before = {row.index: row for row in rows(whole)}
    for row in of(Stage.RESPONSE, found):
        assert row.text == before[row.index].text and row.reward == before[row.index].reward
        np.testing.assert_array_equal(row.logp, before[row.index].logp)
    failed = [row for row in of(Stage.RESPONSE, found) if row.reward == 0]
    critiques = of(Stage.CRITIQUE, found)
    assert {row.author for row in critiques} == {Author.CRITIC} and len(critiques) == 2 * len(failed) > 0
    assert not of(Stage.REFINEMENT, found)

    actor = {"collect.rows": str(tmp_path / "critiques"), "collect.num_critiques": 0, "collect.num_refinements": 2}
    model = {f"model.{key}": 0 for key in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "mlp_dim")}
    model |= {"model.max_context": 0, "model.tokenizer": "", "model.folder": str(tmp_path / "model")}
    run(
        tmp_path / "nowhere",
        tmp_path / "refinements",
        given | actor | model,
        f"--config={tiny_run.file()}",
    )
    refined = rows(tmp_path / "refinements")
    assert [row.text for row in of(Stage.CRITIQUE, refined)] == [row.text for row in critiques]
    assert len(of(Stage.REFINEMENT, refined)) == 2 * len(critiques)
    assert {row.weights_step for row in of(Stage.REFINEMENT, refined)} == {0}
    assert not (tmp_path / "nowhere").exists()


def test_a_runs_own_rollouts_are_collected_from(trained, tmp_path):
    """Their questions are numbered from 0 in each iteration, and have been refined already."""
    given = {"collect.rows": str(trained), "collect.num_responses": 0, "critique.kind": "execution"}
    run(trained, tmp_path, given | {"collect.num_critiques": 1, "collect.num_questions": 3})
    found = rows(tmp_path)
    assert {row.index.question for row in found} == {0, 1, 2} and len(of(Stage.RESPONSE, found)) == 12
    assert len(of(Stage.CRITIQUE, found)) == len(of(Stage.REFINEMENT, found)) == 12
    assert {row.author for row in of(Stage.CRITIQUE, found)} == {Author.RULE}


def test_what_can_not_be_collected_is_one_line(trained, whole, tmp_path, capsys):
    cases = {
        "holds results of something else (collect.num_critiques: 2 -> 1), which are not mixed": (
            whole,
            {"collect.num_critiques": 1},
        ),
        "would be the same text each time": (tmp_path / "a", {"critique.kind": "execution"}),
        f"{tmp_path} holds no rollouts": (tmp_path / "a", {"collect.rows": tmp_path, "collect.num_responses": 0}),
        "has step_00000000.parquet but no about.json": (trained / "rollouts", {}),
        'collect.questions "held_out" needs data.eval': (tmp_path / "a", {"collect.questions": "held_out"}),
    }
    for expected, (out, changes) in cases.items():
        _, err = refused(capsys, run, trained, out, changes)
        assert expected in err, err
    alone = tmp_path / "alone"
    run(trained, alone, {"collect.num_critiques": 0, "collect.num_refinements": 0, "collect.num_questions": 1})
    given = {"collect.rows": alone, "collect.num_responses": 0, "collect.num_critiques": 0}
    _, err = refused(capsys, run, trained, tmp_path / "a", given)
    assert f"collect.num_critiques 0 takes the critiques of collect.rows {alone}, which has none" in err
    assert not (tmp_path / "a").exists()


def test_in_a_bucket_it_is_the_same(bucket, trained, whole, tmp_path, monkeypatch):  # noqa: F811
    folder = shutil.copytree(trained, tmp_path / "run")
    bucket.load("mine", "run", folder)
    ticked = ticks(monkeypatch)
    run(trained, tmp_path / "again")
    ticks(monkeypatch, kill, at=len(ticked) - 1)
    with pytest.raises(Killed):
        run("gs://mine/run", "gs://mine/run/collected")
    ticks(monkeypatch)
    run("gs://mine/run", "gs://mine/run/collected")
    bucket.save("mine", "run/collected", tmp_path / "copy")
    for name in NAMES:
        assert (tmp_path / "copy" / name).read_bytes() == (whole / name).read_bytes()
    given = {"collect.rows": "gs://mine/run/collected", "collect.num_responses": 0, "collect.num_questions": 0}
    run("gs://mine/run", "gs://mine/again", given)  # the same policy says the same of them
    bucket.save("mine", "again", tmp_path / "other")
    for name in NAMES:
        assert (tmp_path / "other" / name).read_bytes() == (whole / name).read_bytes()
