"""`cgrpo finetune` in miniature: what it learns, keeps and measures; stopped anywhere it is the same run."""

import json
import re

import numpy as np
import pytest
import tiny_run
from entry_points import evaluated, refused, run_evaluate
from finetune_cases import assert_same, call, changes, rows, run, write
from interrupted_runs import Crash, crash, interrupt

from cgrpo_jax import train
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import finetune_log
from cgrpo_jax.runs.metrics import METRICS

PATTERNS = ("time/update", "time/evaluate", "tokens_per_second/update")  # of which METRICS has the pattern
LORA = {"lora.rank": 4, "optimizer.learning_rate": 1e-2}
CASES = {"nll": ("nll", {}), "rco": ("rco", {}), "dpo": ("dpo", {}), "dpo with adapters": ("dpo", LORA)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs by the names of their cases, each made when it is asked for."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
            loss, more = CASES[name]
            given = changes(folder / "rows", loss, **more, **{"eval.every": 2, "eval.keep_best": "-loss"})
            made[name] = run(folder / "run", given), given
        return made[name]

    return make


@pytest.mark.parametrize("name", CASES)
def test_it_learns_its_rows_and_measures_others(whole, name):
    folder, _ = whole(name)
    lines, summary = tiny_run.metrics(folder), json.loads((folder / "summary.json").read_text())
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
    assert [line["epoch"] for line in lines] == pytest.approx([(n + 1) * lines[0]["epoch"] for n in range(len(lines))])
    measured = [line["eval/loss"] for line in lines if "eval/loss" in line]
    assert measured[-1] == summary["eval_after"]["loss"] < summary["eval_before"]["loss"]
    best = min([summary["eval_before"]["loss"], *measured])
    assert summary["best"]["value"] == best and summary["best"]["metric"] == "-loss"
    named = METRICS.keys() | finetune_log.METRICS.keys()
    assert {re.sub("^eval/.*", "eval/NAME", key) for key in lines[-1]} - {"step", *PATTERNS} <= named
    assert summary["num_tokens"] == sum(line["tokens_trained"] for line in lines)
    if name.startswith("dpo"):
        assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)  # it starts as the reference
        assert lines[-1]["rewards/accuracies"] == 1 and lines[-1]["rewards/margins"] > 0
    if name == "rco":
        assert lines[0]["rco/log_ratio"] == pytest.approx(0, abs=1e-4)
        assert lines[-1]["rco/residual"] < lines[0]["rco/residual"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("when", [1, 3, 6])
def test_a_crash_at_a_save_changes_nothing(whole, name, when, tmp_path, monkeypatch):
    folder, given = whole(name)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        interrupt(patch, "_keep", when, crash)
        run(tmp_path / "run", given)
    assert_same(run(tmp_path / "run", given), folder, given)


def test_all_commands_take_its_folder(tmp_path, capsys):
    """Graded on held-out questions while it trains, and again by `evaluate`; `train` refuses it."""
    given = changes(tmp_path / "rows", **{"data.num_eval": 8, "eval.k": (1,), "eval.every": 0})
    folder = run(tmp_path / "run", given)
    summary = json.loads((folder / "summary.json").read_text())
    assert {"pass@1", "loss"} <= summary["eval_before"].keys() & summary["eval_after"].keys()
    run_evaluate(folder, given, "--out", str(tmp_path / "evaluation"))
    assert evaluated(tmp_path / "evaluation")[0]["pass@1"] == summary["eval_after"]["pass@1"]
    with pytest.raises(UserError, match="is a run of cgrpo finetune; resume it with that"):
        train.main(tiny_run.config(given), str(folder))
    lines = (folder / "metrics.jsonl").read_text()
    run(folder, given)  # all of it is done
    assert (folder / "metrics.jsonl").read_text() == lines


def test_changed_rows_are_another_run(tmp_path):
    given = changes(tmp_path / "rows")
    run(tmp_path / "run", given | {"finetune.epochs": 1})
    write(given["finetune.rows"], rows("nll")[::-1])
    with pytest.raises(UserError, match=r"changed since .* began: the training rows; restore the files"):
        run(tmp_path / "run", given)


def test_mistakes_are_one_line(tmp_path, capsys):
    given = changes(tmp_path / "rows", **{"eval.every": 1})
    arguments = tiny_run.arguments(tmp_path / "run", given)
    for flag, message in {
        "--config.objective.gamma=0.5": "cgrpo finetune does not read it",
        "--config.finetune.rows=none.jsonl": "data file 'none.jsonl' does not exist",
        "--config.finetune.beta=0.5": "changes nothing while finetune.loss is 'nll'",
        "--config.eval.keep_best=-los": "is no number of the evaluation",
        "--config.optimizer.warmup_updates=5": "warmup_updates 5 leaves none of the run's 5 updates",
    }.items():
        _, err = refused(capsys, call, *arguments, flag)
        assert message in err, err
    without = tiny_run.arguments(tmp_path / "run", given | {"finetune.eval_rows": "", "eval.every": 1})
    _, err = refused(capsys, call, *without, "--config.eval.keep_best=-loss")
    assert "give it some in finetune.eval_rows" in err
    assert not (tmp_path / "run").exists()
