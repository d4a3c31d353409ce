"""`evaluate` and `sample` on a run's folder: what they print, what they write, and what they refuse."""

import io
import json
import re

import pytest
import tiny_run

from cgrpo_jax import cli, evaluate, sample
from cgrpo_jax.engine import Engine

QUESTION = {"question": cli.Flag("the question"), "answer": cli.Flag("its gold answer")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tiny_run.run(tmp_path_factory.mktemp("trained"), num_iterations=1)


def run_evaluate(workdir, changes=None, /, **more):
    cli.run(evaluate.main, require=("config", "workdir"), argv=tiny_run.arguments(workdir, changes, **more))


def run_sample(workdir, *flags, changes=None):
    argv = [*tiny_run.arguments(workdir, changes), *flags]
    cli.run(sample.main, require=("config", "workdir"), flags=QUESTION, argv=argv)


def refused(capsys, call, *args, **kw):
    """Returns what was printed before a mistake, and the one line that names it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(*args, **kw)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    return out, err


# --- evaluate -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluate_gives_the_numbers_that_training_ended_with(trained, capsys):
    run_evaluate(trained)
    after = json.loads((trained / "summary.json").read_text())["eval_after"]
    assert json.loads((trained / "evaluation" / "summary.json").read_text()) == after | {"questions": 8}
    out = capsys.readouterr().out
    assert out.startswith(f"8 questions, weights from {trained / 'checkpoints'}\n")
    assert f"pass@1      {after['pass@1']:>8.3f}\n" in out and f"pass@8      {after['pass@8']:>8.3f}\n" in out


def test_evaluate_writes_every_sample(trained):
    run_evaluate(trained)
    rows = tiny_run.lines(trained / "evaluation" / "samples.jsonl")
    after = json.loads((trained / "evaluation" / "summary.json").read_text())
    assert [row["problem"] for row in rows] == list(range(8))
    for row in rows:
        assert len(row["samples"]) == len(row["rewards"]) == 8
        for text, reward in zip([row["greedy"], *row["samples"]], [row["greedy_reward"], *row["rewards"]], strict=True):
            assert reward == float(text.endswith(f"Answer: {row['answer']}"))
    assert after["pass@1"] == sum(row["greedy_reward"] for row in rows) / 8
    assert after["pass@8"] == sum(max(row["rewards"]) for row in rows) / 8  # all 8 drawn: any that is right
    assert after["mean@8"] == pytest.approx(sum(sum(row["rewards"]) for row in rows) / 64)


def test_evaluate_takes_a_folder_without_checkpoints_if_the_config_names_weights(tmp_path, trained, capsys):
    before = json.loads((trained / "summary.json").read_text())["eval_before"]
    run_evaluate(tmp_path / "new", {"model.init": tiny_run.start()})
    assert json.loads((tmp_path / "new" / "evaluation" / "summary.json").read_text()) == before | {"questions": 8}
    _, err = refused(capsys, run_evaluate, tmp_path / "other")
    assert "other has no checkpoints and the configuration names no weights; train first" in err
    assert not (tmp_path / "other").exists()


def test_evaluate_needs_held_out_questions_and_the_right_model(trained, capsys):
    _, err = refused(capsys, run_evaluate, trained, {"data.num_eval": 0})
    assert "nothing to evaluate on" in err
    _, err = refused(capsys, run_evaluate, trained, {"model.mlp_dim": 96})
    assert "in the config's model" in err and "128" in err and "96" in err


# --- sample -------------------------------------------------------------------------------------------------------

STAGES = re.compile(
    r"response \(reward ([01])\):\n(.*?)\n\n"
    r"critique \(rule\):\n(.*?Conclusion: (?:right|wrong) \[END\])\n\n"
    r"refinement \(reward ([01])\):\n(.*?)\n\n",
    re.DOTALL,  # a text may go over several lines
)


def test_sample_shows_a_question_through_all_stages(trained, capsys):
    run_sample(trained, "--question=7*8")
    reward, response, critique, refined_reward, refinement = STAGES.fullmatch(capsys.readouterr().out).groups()
    assert reward == str(int(response.endswith("Answer: 56")))
    assert refined_reward == str(int(refinement.endswith("Answer: 56")))
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
    other = {"data.kind": "jsonl", "data.train": "unused", "grader": "numeric", "step_checker": "equations"}
    run_sample(trained, "--question=7+2", changes=other)
    out = capsys.readouterr().out
    assert out.count("(no gold answer)") == 2 and "Conclusion: wrong [END]" in out
    run_sample(trained, "--question=7+2", "--answer=9", changes=other)
    assert "(no gold answer)" not in capsys.readouterr().out
    _, err = refused(capsys, run_sample, trained, "--question=7+2", "--answer=nine", changes=other)
    assert "1 of 1 gold answers can't be read" in err and "'nine'" in err
    out, err = refused(capsys, run_sample, trained, "--question=7+2", changes=other | {"critique": "indicative_gt"})
    assert out == "" and "tells or sees the gold answer; give it with --answer" in err
