"""The gate of the private library, on rows that no model wrote."""

import json
import pathlib

import private_gate
import pytest
import rollout_cases

from cgrpo_jax.datasets import rollout_questions, rollouts
from cgrpo_jax.datasets.rollouts import Row
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.critic import said_of
from cgrpo_jax.records import Author, Problem, RowIndex, Stage


def written(folder, libraries, passed=(), right=()):
    """Writes a response, what its program raises, and a refinement after that, of one question a library."""
    rows = []
    for number, library in enumerate(libraries):
        problem = Problem(number, f"Use {library}, task {number}.", "{}", columns={"library": library})
        at = RowIndex(question=number, stage=Stage.RESPONSE)
        response = rollout_cases.rollout(at, reward=0.0)
        of, said = at.replace(stage=Stage.CRITIQUE), f"{library} raises {number}"
        critique = rollout_cases.rollout(of, said, Author.RULE, (), parent=response, verdict=number in right)
        refined = rollout_cases.rollout(
            at.replace(stage=Stage.REFINEMENT), parent=critique, reward=float(number in passed), prompt=(1, 9, 2)
        )
        rows += [Row(response, problem, "code"), Row(critique, problem), Row(refined, problem, "code")]
    folder.mkdir(parents=True)
    rollouts.write(folder / rollouts.file_name(0), rows, iteration=0, spell=lambda ids: json.dumps(ids.tolist()))
    return folder


def test_a_critique_is_shown_as_one_of_the_other_library(tmp_path):
    source = written(tmp_path / "first", ["kiln", "kiln", "bell", "kiln"])
    private_gate.shuffle(source, tmp_path / "rows")
    private_gate.shuffle(source, tmp_path / "again")
    (path,), (again,) = map(rollout_questions.files, (tmp_path / "rows", tmp_path / "again"))
    shown = {one.problem.columns["library"]: one.critiques[0] for one in rollout_questions.questions(path)}
    assert said_of(shown["kiln"]) == "bell raises 2" and shown["kiln"].text.startswith("kiln raises")
    assert said_of(shown["bell"]).startswith("kiln raises")
    assert rollouts.read_columns(path, ("shown",)) == rollouts.read_columns(again, ("shown",))
    with pytest.raises(UserError, match="no attempt at another library failed; give more --tasks."):
        private_gate.shuffle(written(tmp_path / "one", ["kiln"]), tmp_path / "none")


def test_what_was_said_of_a_right_attempt_is_not_shown(tmp_path):
    private_gate.shuffle(written(tmp_path / "first", ["kiln", "bell", "bell"], right=(1,)), tmp_path / "rows")
    (path,) = rollout_questions.files(tmp_path / "rows")
    shown = [said_of(one.critiques[0]) for one in rollout_questions.questions(path)]
    assert shown == ["bell raises 2", "kiln raises 0", "kiln raises 0"]


def test_libraries_are_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def killed(out):
        pathlib.Path(out).mkdir(exist_ok=True)
        (pathlib.Path(out) / "tune.jsonl").touch()
        raise KeyboardInterrupt

    whole = private_gate.MADE["main"]
    monkeypatch.setattr(private_gate.collect, "main", lambda *_, **__: None)
    monkeypatch.setattr(private_gate, "shuffle", lambda *_: written(_[1], ["kiln"]))
    monkeypatch.setattr(private_gate, "counts", lambda *_: {})
    monkeypatch.setitem(private_gate.MADE, "main", killed)
    trial = private_gate.Trial("m", tmp_path, 5, 1)
    with pytest.raises(KeyboardInterrupt):
        private_gate.run(trial)
    assert not (tmp_path / "data").exists()
    monkeypatch.setitem(private_gate.MADE, "main", whole)
    private_gate.run(trial)
    assert (tmp_path / "data" / "lib" / "kilnbook.py").exists() and not list(tmp_path.glob("*.part"))


def test_texts_are_counted_with_an_interval(tmp_path):
    folder = written(tmp_path / "first", ["kiln", "bell"] * 5, passed=(3,))
    found = private_gate.counts(folder, "refinement")
    assert (found["texts"], found["pass"], found["share"]) == (10, 1, 0.1)
    assert found["low"] == pytest.approx(0.0179, abs=1e-4) and found["high"] == pytest.approx(0.4042, abs=1e-4)
    assert private_gate.counts(folder, "response")["pass"] == 0


@pytest.mark.parametrize(
    ("true", "shuffled", "passed"), [(0.1, 0.05, True), (0.1, 0.06, False), (0.09, 0.0, False), (0.3, 0.0, True)]
)
def test_when_it_is_passed(true, shuffled, passed):
    assert private_gate.passes({"true_message": {"share": true}, "shuffled_message": {"share": shuffled}}) == passed


def test_a_trial_is_kept_with_what_was_changed(tmp_path, monkeypatch):
    numbers = {"true_message": {"share": 0.2}, "shuffled_message": {"share": 0.2}}
    monkeypatch.setattr(private_gate, "run", lambda trial: numbers | {"tasks": trial.tasks})
    command = ["--model=m/qwen", f"--workdir={tmp_path}", f"--json={tmp_path}/gate.json", "--tasks=3"]
    assert private_gate.main([*command, "--note=first"]) == 1
    numbers["shuffled_message"] = {"share": 0.1}
    assert private_gate.main([*command, "--note=request last", "--", "--config.seed=1"]) == 0
    kept = json.loads((tmp_path / "gate.json").read_text())
    assert [one["note"] for one in kept["trials"]] == ["first", "request last"] and kept["changed_before_the_last"] == 1
    assert kept["trials"][1]["keys"] == ["--config.seed=1"] and kept["trials"][1]["model"] == "qwen"


def test_the_configuration_is_of_the_gates_libraries_alone(tmp_path):
    config = private_gate.Trial("m", tmp_path, 5, 1, ("--config.sampling.temperature=0.5",)).config()
    assert [path.rpartition("/")[2] for path in config.code.modules] == ["kilnbook.py", "belltower.py"]
    assert config.data.train.endswith("tune.jsonl") and not config.data.eval and config.sampling.temperature == 0.5
    assert config.collect.which == "failed"
