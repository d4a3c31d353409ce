"""Whole runs, in miniature: their files, their resumption, their randomness."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import slow_grading
import tiny_run
from interrupted_runs import KILLED, LENGTH, WARM, Crash, assert_same_run, crash, interrupt
from tiny_run import metrics, run, samples

from cgrpo_jax import train
from cgrpo_jax.datasets.problems import task_of
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.orchestrator import Status
from cgrpo_jax.records import Stage
from cgrpo_jax.rewards import grader, mathematics
from cgrpo_jax.runs import cli, log, model_source
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.metrics import METRICS
from cgrpo_jax.runtime import console, processes
from cgrpo_jax.training.checkpoint import restore_params

# Appear only where the configuration, or what was sampled, gives them a meaning.
SOMETIMES = ("kl", "judge/", "critic/", "refined/", "eval/", "tokens_per_second/", "time/", "update/mfu", "rollouts/")
SOMETIMES += ("rewards/", "sampling/sampling_logp_difference/max", "sampling/importance_sampling_ratio/")
SOMETIMES += ("sampling/effective_sample_size", "sampling/frac_capped", "batch/", "verdicts/")
SOMETIMES += ("distil/", "refine/success", "refine/questions_rescued", "refine/mean_length", "refine/mentions_critique")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Three iterations of the quickstart's own method."""
    return run(tmp_path_factory.mktemp("plain"), num_iterations=3)


# --- files --------------------------------------------------------------------------------------------------------


def documented(key):
    stage = re.sub(r"^(time|tokens_per_second)/.*", r"\1/STAGE", key)
    return re.sub(r"^eval/.*", "eval/NAME", stage) in METRICS


def test_every_metric_is_documented_and_every_documented_metric_is_written(plain):
    rows = metrics(plain)
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert [key for key in row if key != "step" and not documented(key)] == []
        assert [key for key in METRICS if key not in row and not key.startswith(SOMETIMES)] == []
        assert {f"time/{stage}" for stage in ("reshard", "rollout", "grade", "update")} <= row.keys()
        assert all(isinstance(value, int | float) for value in row.values())
    assert {key for row in rows for key in row if key.startswith("refined/")} == {
        key for key in METRICS if key.startswith("refined/")
    }
    assert all(rows[i]["num_tokens"] < rows[i + 1]["num_tokens"] for i in (0, 1))
    assert ["rollouts/bytes" in row for row in rows] == [False, True, True]  # of the iteration before


def test_the_folder_of_a_run(plain):
    assert {path.name for path in plain.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "rollouts",
        "summary.json",
        "date",
        "starts.jsonl",
        "model",
        "checkpoints",
    }
    assert {path.name for path in (plain / "checkpoints").iterdir()} == {"2", "3"}
    cfg = tiny_run.config({"model.init": tiny_run.start()}, num_iterations=3)
    assert json.loads((plain / "config.json").read_text()) == config_lib.to_json(cfg)
    step, arrays = tiny_run.state(plain, cfg)
    assert step == 3 and all(np.isfinite(array).all() for array in arrays)


def test_the_summary(plain):
    summary, rows = json.loads((plain / "summary.json").read_text()), metrics(plain)
    for when in ("eval_before", "eval_after"):
        assert 0 <= summary[when]["pass@1"] <= 1
        assert 0 <= summary[when]["mean@8"] <= summary[when]["pass@8"] <= 1
    assert summary["updates"] == summary["iterations"] == 3
    assert summary["all_failed_start"] == rows[0]["frac_all_wrong"]
    assert summary["num_tokens"] == rows[-1]["num_tokens"]
    assert summary["seconds"] > sum(row["step_time"] for row in rows)  # evaluations included
    assert summary["task"] == task_of("chains")
    assert summary["unsolved_before"] == round((1 - summary["eval_before"]["pass@8"]) * 8)


def test_the_samples_show_all_three_stages(plain):
    rows = samples(plain)
    assert [row["step"] for row in rows] == [0] * 4 + [1] * 4 + [2] * 4
    refined = [row for row in rows if row["refinement"] is not None]
    assert refined and refined != rows
    for row in refined:
        assert max(row["rewards"]) == 0 and row["reward"] == 0
        assert row["critique"].endswith("Conclusion: wrong [END]")
        assert row["refinement_reward"] == float(row["refinement"].endswith(f"Answer: {row['answer']}"))
    assert any(row["refinement_reward"] for row in refined)


def test_group_reward_counts_kept_refinements(plain):
    for row in metrics(plain):
        kept = round(row["frac_all_wrong"] * 4)
        rescued = row["refine/questions_rescued"] * kept if kept else 0
        assert row["group_reward"] == pytest.approx((row["reward"] * 16 + rescued) / (16 + kept))


def test_evaluation_every_other_iteration(tmp_path, plain):
    rows = metrics(run(tmp_path, {"eval.every": 2}, num_iterations=3))
    assert ["eval/pass@1" in row for row in rows] == [False, True, False]
    assert {"eval/pass@8", "eval/mean@8"} <= rows[1].keys()
    assert rows[2]["reward"] == metrics(plain)[2]["reward"]  # evaluating changes nothing
    for ours, theirs in zip(rows, metrics(plain), strict=True):  # nor is it counted as an iteration's
        assert {k: v for k, v in ours.items() if "engine/" in k} == {k: v for k, v in theirs.items() if "engine/" in k}


CRITIQUED = {
    "critique.kind": "cot",
    "critique.num_per_response": 2,
    "critique.when": "all",
    "critique.max_retries": 1,
    "refine.max_pass": 0.5,
}


def test_progress_is_shown_seldom_and_by_process_0_alone(monkeypatch, capsys):
    ticks = [Status(1, 4, 3, 8, {0: 5, 2: 1}, 10 * i, 2.0) for i in range(1, 4)]
    with console.progress_bar(total=2) as bar:
        for one in ticks:
            log.show(bar, one)
    told = capsys.readouterr().err
    assert "1/4 questions, 3/8 slots, 5+0+1 waiting, 5 tok/s" in told and "10 tok/s" not in told
    monkeypatch.setattr(processes, "is_first", lambda: False)
    with console.progress_bar(total=2) as bar:
        log.show(bar, ticks[0])
        bar.update()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("changes", [{}, CRITIQUED], ids=["quickstart", "self-critique"])
def test_nothing_is_compiled_after_the_second_iteration(tmp_path, changes):
    """Whatever the number of texts of each stage, and their lengths."""
    rows = metrics(run(tmp_path, {"data.num_train": 16, "data.num_eval": 4} | changes, num_iterations=8))
    assert len({row["refine/attempted"] for row in rows}) > 2  # the iterations differ
    assert {row["num_compilations"] for row in rows[1:]} == {rows[1]["num_compilations"]}


def test_a_grade_that_hangs_costs_its_row_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(mathematics, "grade", slow_grading.grade)
    submit, hung = grader.Grader.submit, []

    def spoil(self, response, answer, **rest):
        """The first response that is right never comes back."""
        if not hung and response.endswith(f" {answer}"):
            hung.append(response)
            response = "hang"
        return submit(self, response, answer, **rest)

    changes = {"data.num_eval": 0, "grader.kind": "math", "grader.timeout": 1.0, "refine.kind": "none"}
    run(tmp_path / "good", changes)
    monkeypatch.setattr(grader.Grader, "submit", spoil)
    run(tmp_path / "hung", changes)
    good, spoiled = metrics(tmp_path / "good"), metrics(tmp_path / "hung")
    assert [row["grade/timeouts"] for row in good] == [0, 0] and hung
    assert [row["grade/timeouts"] for row in spoiled] == [1, 0]
    assert spoiled[0]["reward"] == pytest.approx(good[0]["reward"] - 1 / 16)
    assert 0.5 < spoiled[0]["time/grade"] <= spoiled[0]["time/rollout"]


def test_the_learning_rate_is_that_of_the_update(tmp_path):
    folder = run(tmp_path, {"data.num_eval": 0, "optimizer.warmup_updates": 4}, num_iterations=3)
    assert [row["learning_rate"] for row in metrics(folder)] == pytest.approx([0.0, 0.5e-4, 1e-4])
    start = restore_params(tiny_run.start(), tiny_run.template(), step=0)
    first = restore_params(folder, tiny_run.template(), step=2)
    assert not np.array_equal(first["embed"], start["embed"])
    assert json.loads((folder / "summary.json").read_text())["eval_after"] is None


def test_prompts_print_the_date_of_the_runs_start(tmp_path, monkeypatch):
    """A template may write the date into every prompt: a run resumed on another day goes on with its own."""
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(model_source.tokenizer_folder("arithmetic"), tokenizer)
    template = tokenizer / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ strftime_now('%Y') }}")
    changes = {"model.tokenizer": str(tokenizer), "data.num_eval": 0, "max_prompt_length": 24, "refine.kind": "none"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "date").write_text("1999-12-31T23:59:59\n")
    seen = tiny_run.watch(monkeypatch)
    run(tmp_path / "run", changes, num_iterations=1)
    assert {prompt[-4:] for prompt in seen.asked(Stage.RESPONSE)} == {"1999"}


# --- resumption ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), WARM, num_iterations=LENGTH)


def test_a_longer_second_run_goes_on_as_if_it_had_been_one(tmp_path, uninterrupted, capsys):
    run(tmp_path, WARM, num_iterations=1)
    first = metrics(tmp_path)
    run(tmp_path, WARM, num_iterations=LENGTH)
    assert "resuming after iteration 1" in capsys.readouterr().err
    assert metrics(tmp_path)[0] == first[0]  # the first iteration was not run again
    assert_same_run(tmp_path, uninterrupted)


def test_a_crash_within_an_iteration(tmp_path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        interrupt(patch, "update", 4, crash)  # iteration 2 is logged, and its checkpoint is that of iteration 1
        run(tmp_path, WARM, num_iterations=LENGTH)
    assert len(metrics(tmp_path)) == 3
    run(tmp_path, WARM, num_iterations=LENGTH)
    assert_same_run(tmp_path, uninterrupted)


def test_a_crash_before_the_first_checkpoint(tmp_path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        interrupt(patch, "_keep", 1, crash)  # the reference is saved, the state is not
        run(tmp_path, WARM, num_iterations=LENGTH)
    assert (tmp_path / "reference").is_dir() and not any((tmp_path / "checkpoints").iterdir())
    run(tmp_path, WARM, num_iterations=LENGTH)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    "every, evaluation, iterations", [(1, 1, 0), (1, 2, 1), (0, 2, 2)], ids=["first", "periodic", "final"]
)
def test_sigterm_within_an_evaluation(tmp_path, monkeypatch, capsys, every, evaluation, iterations):
    """What was done is saved; a periodic evaluation is left out, the final one is made by the run that resumes."""
    evaluations, show = [], log.show
    changes = WARM | {"checkpoints.every": 100, "eval.every": every, "model.init": ""}

    def shown(bar, progress):
        if bar.desc == "evaluating" and not any(bar is one for one in evaluations):
            evaluations.append(bar)
            if len(evaluations) == evaluation:
                os.kill(os.getpid(), signal.SIGTERM)
        show(bar, progress)

    with monkeypatch.context() as patch:
        patch.setattr(log, "show", shown)
        run(tmp_path, changes, num_iterations=2)
    told = capsys.readouterr().err
    assert len(evaluations) == evaluation and not (tmp_path / "summary.json").exists()
    assert (
        f"stopped by SIGTERM {f'after iteration {iterations}' if iterations else 'before the first iteration'};" in told
    )


def test_a_run_may_go_on_with_other_slots(tmp_path):
    run(tmp_path, WARM, num_iterations=1)
    others = {"diagnosis.num_responses": 9, "eval.texts_per_slot": 1, "eval.oracle": True}  # nothing that it reads
    run(
        tmp_path,
        WARM | {"engine.num_slots": 5, "engine.decode_chunk": 7, "engine.prompt_bucket": 16} | others,
        num_iterations=2,
    )
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1]
    assert json.loads((tmp_path / "config.json").read_text())["engine"]["num_slots"] == 5
    with pytest.raises(
        UserError, match=r"another config \(grader.timeout: 5.0 -> 6.0; judge.endpoint.model: '' -> 'x'\)"
    ):
        run(
            tmp_path,
            WARM | {"engine.num_slots": 5, "grader.timeout": 6.0, "judge.endpoint.model": "x"},
            num_iterations=2,
        )


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_exits_130_and_the_run_resumes(times, tmp_path, uninterrupted, monkeypatch, capsys):
    argv = tiny_run.arguments(tmp_path, WARM | {"model.init": tiny_run.start()}, num_iterations=LENGTH)

    def in_the_second_iteration():  # while its texts are sampled
        if (tmp_path / "metrics.jsonl").exists():
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    old = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        interrupt(patch, "_tick", None, in_the_second_iteration)
        cli.run(train.main, require=("config", "workdir"), argv=argv)
    signal.signal(signal.SIGINT, old)
    assert caught.value.code == 130
    # The first saves what is done, the second ends it at once.
    said = {
        1: "stopped by SIGINT after iteration 1; the same command resumes it\n",
        2: "interrupted; the same command starts again, or resumes from what was written\n",
    }
    assert capsys.readouterr().err.endswith(said[times])
    cli.run(train.main, require=("config", "workdir"), argv=argv)
    assert_same_run(tmp_path, uninterrupted)


def test_sigkill(tmp_path, uninterrupted):
    """No handler runs: the third iteration is in the metrics and half a file of its rollouts is there."""
    argv = tiny_run.arguments(tmp_path, WARM | {"model.init": tiny_run.start()}, num_iterations=LENGTH)
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *argv], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(metrics(tmp_path)) == 3 and not (tmp_path / "summary.json").exists()
    left = {path.name for path in (tmp_path / "rollouts").iterdir()}
    assert left == {"step_00000000.parquet", "step_00000001.parquet", ".step_00000002.parquet.tmp"}
    run(tmp_path, WARM, num_iterations=LENGTH)
    assert_same_run(tmp_path, uninterrupted)


def test_a_finished_run_is_left_as_it_is(tmp_path, plain):
    folder = shutil.copytree(plain, tmp_path / "copy")
    run(folder, num_iterations=3)
    assert metrics(folder) == metrics(plain)
    assert_same_run(folder, plain, length=3, changes={})


# --- randomness ---------------------------------------------------------------------------------------------------


def test_the_seed_decides_what_is_sampled(tmp_path, plain):
    again = run(tmp_path / "again", num_iterations=3)
    assert_same_run(again, plain, length=3, changes={})
    other = run(tmp_path / "other", num_iterations=1, seed=3)
    assert samples(other) != samples(plain)[:4]


def test_every_iteration_and_every_place_in_the_batch_has_noise_of_its_own(tmp_path, monkeypatch):
    """One question, four times a batch, and weights that never change: only the noise can differ."""
    seen = tiny_run.watch(monkeypatch)
    run(tmp_path, {"data.num_train": 1, "data.num_eval": 0, "optimizer.learning_rate": 0.0, "refine.kind": "none"})
    logps = [tuple(row.logp) for row in seen.of(Stage.RESPONSE)]
    texts = [row.text for row in seen.of(Stage.RESPONSE)]
    assert len({row.prompt_ids.tobytes() for row in seen.of(Stage.RESPONSE)}) == 1
    first, second = texts[:16], texts[16:]
    assert len(texts) == len(logps) == 32 and first != second
    places = [first[i : i + 4] for i in range(0, 16, 4)]
    assert all(places[i] != places[j] for i in range(4) for j in range(i))
