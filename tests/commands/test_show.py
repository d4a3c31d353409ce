import re

import pytest
import report_runs

from cgrpo_jax import show
from cgrpo_jax.errors import UserError
from cgrpo_jax.report import groups, run_folder
from cgrpo_jax.report.groups import Outcome


@pytest.fixture
def folder(tmp_path):
    return report_runs.write(tmp_path / "a", iterations=3, questions=6)


def shown(capsys, folder, question=None, iteration=None):
    show.main(str(folder), question, iteration)
    return capsys.readouterr().out


def test_the_most_telling_group_is_on_one_screen(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    text = shown(capsys, folder, iteration="0")
    found, _ = groups.read(run_folder.read(folder))
    first = [one for one in found if one.iteration == 0]
    assert any(one.outcome == Outcome.RESCUED for one in first)
    assert re.match(r"a, iteration 0, question [0-9a-f]{16}: rescued", text)
    patterns = ("✗ response", "critique by the policy", "✓ refinement of")
    stages = [text.index(pattern) for pattern in patterns]
    assert stages == sorted(stages) and "trained as an answer to the question alone, advantage +0." in text
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 100 and "\x1b" not in text


def test_without_an_iteration_it_is_the_last_that_was_written(folder, capsys):
    assert "iteration 2: " in shown(capsys, folder)
    (folder / "rollouts" / "step_00000002.parquet").unlink()
    assert "iteration 1: " in shown(capsys, folder)


def test_a_question_has_all_its_texts(folder, capsys):
    found, asked = groups.read(run_folder.read(folder))
    one = next(group for group in reversed(found) if group.outcome == Outcome.RESCUED)
    at = str(one.iteration)
    text = shown(capsys, folder, one.problem[:10], at)
    assert text.count("response ") >= 4 and text.count("critique by") >= 4 and text.count("✓ refinement") >= 1
    assert "prompt that they are trained after" in text and "solution of the data" in text
    assert shown(capsys, folder, str(asked[one.problem].index), at) == text


def test_what_a_text_hides_is_spelled_out(tmp_path, capsys):
    texts = report_runs.Texts(right="\x1b[2J{n}", wrong="\u202e{m}", question="q{a}\x07*{b}")
    text = shown(capsys, report_runs.write(tmp_path / "a", iterations=1, questions=2, texts=texts))
    assert "\\x1b" in text or "\\u202e" in text
    assert "\x1b" not in text and "\u202e" not in text and "\x07" not in text


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    for question, iteration, said in (
        ("zz", None, r"no question 'zz' is in what was read of .*; give the beginning of a problem_id, such as \w{8}"),
        ("", None, r"--question= is the beginning of \d+ questions: "),
        (None, "7", r"--iteration=7 was not written; there are 0 to 2\."),
    ):
        with pytest.raises(UserError, match=said):
            shown(capsys, folder, question, iteration)
    for path in (folder / "rollouts").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="has no rollouts yet"):
        shown(capsys, folder)


@pytest.mark.parametrize("has_metrics", [True, False])
def test_a_run_that_learns_rows_is_said_to_have_no_rollouts(folder, capsys, has_metrics):
    for path in (folder / "rollouts").iterdir():
        path.unlink()
    (folder / "metrics.jsonl").write_text('{"step": 0, "epoch": 0.5}\n' if has_metrics else "")
    (folder / "starts.jsonl").write_text("" if has_metrics else '{"command": "cgrpo finetune --workdir=a"}\n')
    with pytest.raises(UserError, match="has no rollouts: `cgrpo finetune` learns from rows"):
        shown(capsys, folder)
