"""`evaluate`, `diagnose` and `sample` on a run's folder: what they print, what they write, and what they refuse."""

import collections
import io
import json
import pathlib
import re
import shutil
import signal

import numpy as np
import pytest
import tiny_run
from entry_points import ONE_PART, STAGES, call, evaluated, refused, run_diagnose, run_evaluate, run_sample

from cgrpo_jax import convert, diagnose, evaluate, sample, train
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.generators import Generator
from cgrpo_jax.records import Author, Stage
from cgrpo_jax.report import measured, run_folder
from cgrpo_jax.runs import log
from cgrpo_jax.training.checkpoint import restore_params


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tiny_run.run(tmp_path_factory.mktemp("trained"), num_iterations=1)


# --- evaluate -----------------------------------------------------------------------------------------------------


def test_evaluate_gives_the_numbers_that_training_ended_with(trained, capsys):
    run_evaluate(trained, ONE_PART)
    after = json.loads((trained / "summary.json").read_text())["eval_after"]
    numbers, summary = evaluated(trained / "evaluation")
    assert numbers == after and summary["mean"]["questions"] == 8
    assert summary["weights"] == "../checkpoints, step 1"
    out = capsys.readouterr().out
    assert out.startswith(f"8 questions, weights from {trained / 'checkpoints'}\n")
    assert re.search(rf"^pass@1 +{after['pass@1']:.3f} \(0\.\d+ to [01]\.\d+\)$", out, re.MULTILINE)
    assert re.search(rf"^pass@8 +{after['pass@8']:.3f} ", out, re.MULTILINE)


def test_evaluate_writes_every_sample(trained):
    run_evaluate(trained)
    rows = tiny_run.lines(trained / "evaluation" / "samples.jsonl")
    after, summary = evaluated(trained / "evaluation")
    assert [row["problem"] for row in rows] == list(range(8))
    for row in rows:
        assert len(row["samples"]) == len(row["rewards"]) == 8
        for text, reward in zip([row["greedy"], *row["samples"]], [row["greedy_reward"], *row["rewards"]], strict=True):
            assert reward == float(text.endswith(f"Answer: {row['answer']}"))
    assert after["pass@1"] == sum(row["greedy_reward"] for row in rows) / 8
    assert after["pass@8"] == sum(max(row["rewards"]) for row in rows) / 8  # all 8 drawn: any that is right
    assert after["mean@8"] == pytest.approx(sum(sum(row["rewards"]) for row in rows) / 64)
    assert summary["mean"]["maj@8"]["value"] <= after["pass@8"]
    faults = []
    shown = measured.of_run(run_folder.read(trained), faults)["evaluation"]
    (curve,) = shown["curves"].values()
    assert faults == [] and curve["ks"] == [1, 2, 4, 8] and curve["value"][-1] == after["pass@8"]
    assert shown["behaviours"]["answers"] == sum(sum(row["rewards"]) for row in rows)


def test_a_judge_may_be_asked_of_behaviours_after_an_evaluation_that_knew_none(trained, capsys):
    samples = trained / "evaluation" / "samples.jsonl"
    before = samples.read_bytes()
    judge = {"judge.endpoint.url": "http://127.0.0.1:9/v1", "judge.endpoint.model": "m"}
    run_evaluate(trained, judge | {"judge.endpoint.max_attempts": 1}, "--behaviours=4")
    assert "the judge gave no verdict on behaviours" in capsys.readouterr().out
    assert samples.read_bytes() == before and (trained / "evaluation" / "behaviours.jsonl").exists()
    run_evaluate(trained)  # which knows no judge
    _, err = refused(capsys, run_evaluate, trained, judge | {"eval.num_samples": 4})
    assert "eval.num_samples" in err and "judge" not in err


class Killed(BaseException):
    pass


def kill_after(monkeypatch, ticks):
    """Lets the next run end at its tick of that number; returns a list of the ticks there were."""
    ticked = []

    def show(bar, progress):
        ticked.append(progress.done)
        if len(ticked) == ticks:
            raise Killed

    monkeypatch.setattr(log, "show", show)
    return ticked


# Four slots and eight samples: parts of one question, so that several are done and one is not.
PARTS = {"eval.texts_per_slot": 2}
REFINED = PARTS | {"critique.kind": "cot"}


def test_an_evaluation_that_was_killed_goes_on_to_the_same_bytes(trained, tmp_path, monkeypatch):
    ticked = kill_after(monkeypatch, None)
    run_evaluate(trained, REFINED, "--refine", f"--out={tmp_path / 'whole'}")
    for ticks in (len(ticked) // 5, len(ticked) // 2, len(ticked) - 2):
        out = tmp_path / str(ticks)
        kill_after(monkeypatch, ticks)
        with pytest.raises(Killed):
            run_evaluate(trained, REFINED, "--refine", f"--out={out}")
        assert not (out / "summary.json").exists()
        kill_after(monkeypatch, None)
        run_evaluate(trained, REFINED, "--refine", f"--out={out}")
        for name in ("greedy.jsonl", "samples.jsonl", "summary.json", "about.json"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = tiny_run.lines(tmp_path / "whole" / "samples.jsonl")
    assert len(rows) == 8 and all(row["critique"] is not None for row in rows)
    assert all(("refinement" in row) == (row["verdict"] is False) for row in rows)


@pytest.mark.parametrize(
    "run_it, files, number, status",
    [
        (run_evaluate, ("greedy", "samples"), signal.SIGTERM, 75),
        (run_diagnose, ("responses", "execution"), signal.SIGINT, 130),
    ],
    ids=["evaluate", "diagnose"],
)
def test_a_signal_ends_it_and_it_says_what_is_kept(
    trained, tmp_path, monkeypatch, capsys, run_it, files, number, status
):
    changes = {"engine.num_slots": 1, "eval.texts_per_slot": 1, "diagnosis.kinds": "('execution',)"}
    ticked = kill_after(monkeypatch, None)
    run_it(trained, changes, f"--out={tmp_path / 'whole'}")

    def show(bar, progress):
        counted.append(progress.done)
        if len(counted) == len(ticked) - 2:
            signal.raise_signal(number)

    counted = []
    monkeypatch.setattr(log, "show", show)
    monkeypatch.setenv("CGRPO_STOPPED_STATUS", "75")
    old = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    with pytest.raises(SystemExit) as caught:
        run_it(trained, changes, f"--out={tmp_path / 'out'}")
    signal.signal(signal.SIGINT, old)
    assert caught.value.code == status and len(counted) == len(ticked) - 2
    said = capsys.readouterr().err.splitlines()[-1]
    first, last = (len(tiny_run.lines(tmp_path / "whole" / f"{name}.jsonl")) for name in files)
    kept = int(re.search(r" and (\d+) of", said).group(1))
    assert 0 < kept < last and kept <= len(tiny_run.lines(tmp_path / "out" / f"{files[1]}.jsonl"))
    assert said == (
        f"stopped by {signal.Signals(number).name}; {tmp_path / 'out'} keeps {first} of {first} questions in "
        f"{files[0]}.jsonl and {kept} of {last} questions in {files[1]}.jsonl; the same command resumes it"
    )
    counted.clear()
    run_it(trained, changes, f"--out={tmp_path / 'out'}")
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_test_time_refinement_with_a_frozen_critic(tmp_path, monkeypatch):
    """The critic writes critiques, greedily; the policy writes all else; neither is told what is right."""
    folder = tiny_run.run(tmp_path / "run", {"data.num_eval": 0, "optimizer.learning_rate": 1e-2}, num_iterations=1)
    convert.export_hf(pathlib.Path(tiny_run.start()), tmp_path / "critic")
    asked, written = [], []
    write, write_critique = Generator.write, Generator.write_critique

    async def watch(self, prompt_ids, indices, **kw):
        written.extend((index.stage, self) for index in indices)
        return await write(self, prompt_ids, indices, **kw)

    async def watch_critique(self, problem, row, index, **kw):
        asked.append((problem, row, kw["see_answer"]))
        return await write_critique(self, problem, row, index, **kw)

    monkeypatch.setattr(Generator, "write", watch)
    monkeypatch.setattr(Generator, "write_critique", watch_critique)
    run_evaluate(
        folder, {"critique.kind": "cot", "critic.kind": "folder", "critic.folder": str(tmp_path / "critic")}, "--refine"
    )

    assert len(asked) == 8
    for problem, row, see_answer in asked:
        assert (problem.answer, problem.solution, problem.columns, row.reward, see_answer) == (
            "",
            None,
            {},
            None,
            False,
        )
    start, trained = (restore_params(path, tiny_run.template()) for path in (tiny_run.start(), folder))
    assert not np.array_equal(start["embed"], trained["embed"])
    rows = tiny_run.lines(folder / "evaluation" / "samples.jsonl")
    wrong = sum(row["verdict"] is False for row in rows)
    stages = collections.Counter(stage for stage, _ in written)
    assert stages == {Stage.RESPONSE: 8 * (1 + 8), Stage.CRITIQUE: 8, Stage.REFINEMENT: wrong} and wrong
    for stage, generator in written:
        criticises = stage == Stage.CRITIQUE
        assert generator.author == (Author.CRITIC if criticises else Author.POLICY)
        np.testing.assert_array_equal(generator.params["embed"], (start if criticises else trained)["embed"])
        assert stage == Stage.RESPONSE or generator.sampling.temperature == 0
    for row in rows:
        assert isinstance(row["critique"], str) and ("refinement" in row) == (row["verdict"] is False)
    summary = evaluated(folder / "evaluation")[1]["mean"]
    assert summary["critiqued_wrong"] == wrong / 8 and summary["questions"] == 8


def test_evaluate_does_not_mix_weights_or_configurations(trained, tmp_path, capsys):
    run_evaluate(trained)
    _, err = refused(capsys, run_evaluate, trained, {"eval.temperature": 0.5})
    assert "evaluation holds results of something else (eval.temperature: 0.6 -> 0.5), which are not mixed" in err
    folder = shutil.copytree(trained, tmp_path / "moved")
    run_evaluate(folder)  # the same, wherever it lies
    shutil.rmtree(folder / "checkpoints" / "1")
    _, err = refused(capsys, run_evaluate, folder)
    assert "(weights: ../checkpoints, step 1 -> ../checkpoints, step 0)" in err
    run_evaluate(folder, None, f"--out={tmp_path / 'other'}")
    assert (tmp_path / "other" / "summary.json").exists()


def test_evaluate_takes_a_folder_without_checkpoints_if_the_config_names_weights(tmp_path, trained, capsys):
    before = json.loads((trained / "summary.json").read_text())["eval_before"]
    run_evaluate(tmp_path / "new", ONE_PART | {"model.init": tiny_run.start()})
    numbers, summary = evaluated(tmp_path / "new" / "evaluation")
    assert (
        numbers == before and summary["mean"]["questions"] == 8 and summary["weights"] == f"{tiny_run.start()}, step 0"
    )
    _, err = refused(capsys, run_evaluate, tmp_path / "other")
    assert "other has no checkpoints and the configuration names no weights; train first" in err
    assert not (tmp_path / "other").exists()


def test_evaluate_needs_held_out_questions_and_the_right_model(trained, capsys):
    _, err = refused(capsys, run_evaluate, trained, {"data.num_eval": 0})
    assert "nothing to evaluate on" in err
    _, err = refused(capsys, run_evaluate, trained, {"model.mlp_dim": 96})
    assert "are of another configuration (model.mlp_dim: 128 -> 96); leave --config and these keys out" in err


def test_evaluate_refuses_what_it_cannot_compute(trained, capsys):
    _, err = refused(capsys, run_evaluate, trained, {"eval.k": "(1,16)"})
    assert "eval.k 16 needs as many samples; eval.num_samples is 8" in err
    _, err = refused(capsys, run_evaluate, trained, {"eval.num_samples": 2000})
    assert "eval.num_samples 2000 is too large; use at most 1024" in err
    _, err = refused(capsys, run_evaluate, trained, None, "--refine")
    assert "critique 'execution' is made by a rule that knows the reward; set --config.critique.kind=cot" in err


# --- diagnose -----------------------------------------------------------------------------------------------------


def test_diagnose_writes_texts_numbers_and_pass_rates(trained, capsys, monkeypatch):
    changes = PARTS | {"diagnosis.kinds": "('indicative_gt','execution')"}
    ticked = kill_after(monkeypatch, None)
    run_diagnose(trained, changes)
    folder, out = trained / "diagnosis", capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    rows = tiny_run.lines(folder / "responses.jsonl")
    failed = [row for row in rows if max(row["rewards"]) < 1]
    assert summary["questions"] == len(rows) == 12 and 0 < len(failed) < 12
    assert summary["persistent_failures"]["value"] == len(failed) / 12 and "persistent failures" in out
    for kind in ("indicative_gt", "execution"):
        critiqued, numbers = tiny_run.lines(folder / f"{kind}.jsonl"), summary["kinds"][kind]
        assert [row["number"] for row in critiqued] == [row["number"] for row in failed]
        assert numbers["critiques"] == numbers["refinements"] == 4 * len(failed) and numbers["valid_critiques"] == 1
        assert re.search(rf"^{kind} +1.000 ", out, re.MULTILINE)
    rates = tiny_run.lines(folder / "pass_rates.jsonl")
    assert [rate["pass_rate"] for rate in rates] == [sum(row["rewards"]) / 4 for row in rows]
    # Killed, it resumes; and a kind more is added to what there is.
    kill_after(monkeypatch, len(ticked) // 2)
    with pytest.raises(Killed):
        run_diagnose(trained, changes, f"--out={trained / 'again'}")
    kill_after(monkeypatch, None)
    run_diagnose(trained, changes, f"--out={trained / 'again'}")
    for name in ("responses", "indicative_gt", "execution"):
        assert (trained / "again" / f"{name}.jsonl").read_bytes() == (folder / f"{name}.jsonl").read_bytes()
    run_diagnose(trained, changes | {"diagnosis.kinds": "('indicative_gt','execution','cot','none')"})
    summary_of_four = json.loads((folder / "summary.json").read_text())
    assert list(summary_of_four["kinds"]) == ["indicative_gt", "execution", "cot", "none"]
    more = {"cot": None, "none": None}
    assert summary_of_four["kinds"] | more == summary["kinds"] | more
    assert summary_of_four["kinds"]["none"]["refinements"] > summary_of_four["kinds"]["none"]["critiques"] == 0
    faults = []
    shown = measured.of_run(run_folder.read(trained), faults)["diagnosis"]
    assert faults == [] and shown["kinds"] == summary_of_four["kinds"]
    assert {case["kind"] for case in shown["cases"]} == {"indicative_gt", "execution", "cot"}


def test_diagnose_refuses_other_kinds(trained, capsys):
    _, err = refused(capsys, run_diagnose, trained, {"diagnosis.kinds": "('cot','hint')"})
    assert "must be kinds of critiques; use some of indicative, indicative_gt, execution, cot, none" in err
    assert not (trained / "diagnosis" / "about.json").exists() or (trained / "diagnosis" / "summary.json").exists()


# --- the folder of a run is enough --------------------------------------------------------------------------------


def test_the_folder_of_a_run_is_enough(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call(evaluate.main, evaluate.FLAGS, trained, f"--out={tmp_path / 'out'}", "--config.eval.texts_per_slot=64")
    after = json.loads((trained / "summary.json").read_text())["eval_after"]
    assert evaluated(tmp_path / "out")[0] == after
    call(sample.main, sample.FLAGS, f"--workdir={trained}", "--question=7*8")
    assert STAGES.search(capsys.readouterr().out)
    folder = shutil.copytree(trained, tmp_path / "run")
    call(train.main, {}, folder, "--config.num_iterations=2", trains=True)
    assert [row["step"] for row in tiny_run.metrics(folder)] == [0, 1]


def test_where_there_is_no_run_it_is_said(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        for main, flags in (
            (evaluate.main, evaluate.FLAGS),
            (diagnose.main, diagnose.FLAGS),
            (sample.main, sample.FLAGS),
        ):
            out, err = refused(
                capsys, call, main, flags, f"--workdir={folder}", *["--question=2"][: main is sample.main]
            )
            assert out == "" and f"missing --config: there is no run in {folder} (no config.json)" in err
    assert not (tmp_path / "nowhere").exists()
    run_sample(tmp_path / "nowhere", "--question=7*8", changes={"model.init": tiny_run.start()})
    said = f"no run in {tmp_path / 'nowhere'}: the weights that the configuration starts from\n"
    assert said in capsys.readouterr().err


# --- sample -------------------------------------------------------------------------------------------------------


def test_sample_shows_a_question_through_all_stages(trained, capsys):
    run_sample(trained, "--question=7*8")
    reward, response, critique, refined_reward, refinement = STAGES.fullmatch(capsys.readouterr().out).groups()
    assert reward == str(int(response.endswith("Answer: 56")))
    assert (refinement is None) == (reward == "1")  # what passes is not refined
    assert refinement is None or refined_reward == str(int(refinement.endswith("Answer: 56")))
    assert critique.endswith("Conclusion: right [END]" if reward == "1" else "Conclusion: wrong [END]")


def test_sample_decodes_one_text_at_a_time(trained, monkeypatch):
    """Slots that stay empty cost as much as others."""
    slots, begin = [], Engine.begin

    def noted(self, *args, **kw):
        slots.append(self.num_slots)
        return begin(self, *args, **kw)

    monkeypatch.setattr(Engine, "begin", noted)
    run_sample(trained, "--question=7*8")
    assert slots == [1]


def test_sample_reads_a_question_a_line(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n" + "7*8\n 7 * 8 \n" * 6 + "\n"))
    run_sample(trained)
    shown = STAGES.findall(capsys.readouterr().out)
    assert len(shown) == 12 and len(set(shown)) > 1  # each line has noise of its own


def test_sample_names_a_malformed_chain_and_goes_on(trained, capsys, monkeypatch):
    out, err = refused(capsys, run_sample, trained, "--question=7*8-1")
    assert out == "" and "'7*8-1' is not a chain of one-digit sums and products such as 7*8+6" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("2+3\nhello\n4+4\n"))
    with pytest.raises(SystemExit) as caught:
        run_sample(trained)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and len(STAGES.findall(out)) == 2
    assert "'hello' is not a chain" in err and err.endswith("1 questions were refused; see above.\n")


def test_sample_refuses_what_does_not_fit(trained, tmp_path, capsys):
    _, err = refused(capsys, run_sample, trained, "--question=" + "+".join("2" * 8))
    assert "the question takes 17 tokens, more than max_prompt_length 16; shorten it" in err
    _, err = refused(capsys, run_sample, tmp_path / "new", "--question=2+3")
    assert "train first" in err and not (tmp_path / "new").exists()


def test_sample_on_other_data_takes_the_answer_from_the_command_line(trained, capsys):
    other = {
        "data.kind": "jsonl",
        "data.train": "unused",
        "grader.kind": "numeric",
        "critique.step_checker": "equations",
    }
    run_sample(trained, "--question=7+2", changes=other)
    out = capsys.readouterr().out
    assert re.fullmatch(
        r"response \(no gold answer: give it with --answer\):\n.*\n\nno critique, no refinement: a critique of kind "
        r"'execution' needs to know whether the response is right; give its gold answer with --answer\n\n",
        out,
        re.DOTALL,
    )
    run_sample(trained, "--question=7+2", "--answer=9", changes=other)
    out = capsys.readouterr().out
    assert out.startswith("response (reward ") and "no gold answer" not in out
    _, err = refused(capsys, run_sample, trained, "--question=7+2", "--answer=nine", changes=other)
    assert "1 of 1 gold answers can't be read" in err and "'nine'" in err
    run_sample(trained, "--question=7+2", changes=other | {"critique.kind": "indicative_gt"})
    out = capsys.readouterr().out
    assert out.startswith("response (no gold answer: give it with --answer):\n")
    assert (
        "no critique, no refinement: a critique of kind 'indicative_gt' shows or sees the gold answer; give it" in out
    )


REWARD = """
def by_unit(completions, answer, unit, **columns):
    if columns["gold"] != answer:
        raise ValueError("the gold answer has its column's name too")
    return [{"km": 0.5, "m": 1.0}[one] for one in unit]
"""


def test_sample_gives_a_reward_function_the_columns_of_the_question(trained, tmp_path, capsys):
    (tmp_path / "reward.py").write_text(REWARD)
    other = {
        "data.kind": "jsonl",
        "data.train": "unused",
        "data.answer_key": "gold",
        "grader.kind": f"{tmp_path / 'reward.py'}:by_unit",
        "critique.step_checker": "equations",
        "critique.kind": "none",
    }
    run_sample(trained, "--question=7+2", "--answer=9", '--columns={"unit": "km"}', changes=other)
    out = capsys.readouterr().out
    assert (
        out.startswith("response (reward 0.5):\n") and "critique" not in out and "\nrefinement (reward 0.5):\n" in out
    )
    run_sample(trained, "--question=7+2", "--answer=9", '--columns={"unit": "m"}', changes=other)
    assert capsys.readouterr().out.endswith("no refinement: it passes\n\n")
    run_sample(trained, "--question=7+2", "--answer=9", changes=other)  # the text is shown all the same
    out = capsys.readouterr().out
    assert re.match(
        r"response \(no verdict: grader .*missing a required .*'unit'.*\):\n.*\n\nrefinement \(no verdict", out, re.S
    )
    _, err = refused(capsys, run_sample, trained, "--question=7+2", "--columns=km", changes=other)
    assert "--columns 'km' is no JSON object; write one such as" in err


def test_sample_of_a_run_that_refines_nothing_ends_with_the_response(trained, capsys):
    run_sample(trained, "--question=7*8", changes={"refine.kind": "none"})
    assert capsys.readouterr().out.endswith("no critique, no refinement: refine.kind is 'none'\n\n")
