import pytest
import report_runs

from cgrpo_jax.datasets.tasks import arithmetic, snippets
from cgrpo_jax.report import run_folder, task
from cgrpo_jax.rewards import grader


def about(tmp_path, **changes):
    folder = report_runs.write(tmp_path / "a", iterations=1, questions=1, changes=changes)
    return task.of_run(run_folder.read(folder))


def test_a_made_up_task_says_what_is_asked_and_what_its_warm_start_left_out(tmp_path):
    said = about(tmp_path)
    assert said["asked"].startswith(arithmetic.ASKED) and "2,048 to train on and 128 held out" in said["asked"]
    assert "equals the gold answer" in said["graded"] and said["graded"].endswith("its reward is 1 then, else 0")
    assert said["model"] == "2 layers of width 192, drawn at random, then taught by a warm start"
    assert "400 updates then taught it 25,600 lessons" in said["start"]
    listed = said["start"].partition("16 products: ")[2].partition(". ")[0].split(", ")
    assert set(listed) == {f"{a}{op}{b}" for a, op, b in arithmetic.held_out_facts(16)} and len(listed) == 16
    assert said["start"].endswith("Of the questions 60 % need one of them.")


def test_words_that_no_lesson_explains_are_named_with_what_they_mean(tmp_path):
    changes = {
        "data.kind": "snippets",
        "grader.kind": "code",
        "data.num_held_out": 8,
        "critique.step_checker": "equations",
    }
    said = about(tmp_path, **changes, **{"warm_start.rare_rate": 0.01})
    assert said["asked"].startswith(snippets.ASKED) and "passes every test" in said["graded"]
    held_out = snippets.make_glossary(8).held_out
    assert all(f"{word} ({op}{number})" in said["start"] for word, (op, number) in held_out.items())
    assert "only 1 % of the lessons in solving hold these 8 words" in said["start"]


def test_what_the_warm_start_never_showed_is_found_in_questions(tmp_path):
    a, op, b = min(arithmetic.held_out_facts(16))
    (word, (does, number)), *_ = snippets.make_glossary(8).held_out.items()
    changes = {"data.kind": "snippets", "grader.kind": "code", "data.num_held_out": 8}
    changes |= {"critique.step_checker": "equations"}
    cases = [
        ({}, {"p": f"{a}*{b}", "q": f"{a}*{b}+2", "r": "2+2", "s": "cut sh"}, {f"{a}{op}{b}={a * b}": ["p", "q"]}),
        (changes, {"p": f"f(a, b): a {word}, b {word}", "q": "f(a): a plus 3"}, {f"{word} ({does}{number})": ["p"]}),
        ({"warm_start.num_updates": 0}, {"p": f"{a}*{b}"}, {}),
        ({"data.kind": "jsonl", "data.train": "mine.jsonl", "model.folder": "Qwen"}, {"p": f"{a}*{b}"}, {}),
    ]
    for number, (changed, questions, found) in enumerate(cases):
        folder = report_runs.write(tmp_path / str(number), iterations=1, questions=1, changes=changed)
        assert task.unseen(run_folder.read(folder), questions) == found


def test_data_and_weights_of_ones_own_are_named(tmp_path):
    changes = {"data.kind": "jsonl", "data.train": "mine.jsonl", "grader.kind": "mine.py:score", "model.folder": "Qwen"}
    changes |= {"warm_start.num_updates": 0, "data.num_train": 0, "data.num_eval": 0, "pass_threshold": 0.5}
    said = about(tmp_path, **changes, **{"critique.step_checker": "equations"})
    assert said["asked"] == "Questions of mine.jsonl"
    assert said["graded"] == "graded by the user's own function mine.py:score; it passes with a reward of 0.5 or more"
    assert (said["model"], said["start"]) == (
        "Qwen",
        "It starts with the weights of Qwen, and nothing was taught before the first iteration.",
    )


@pytest.mark.parametrize("kind", grader.KINDS)
def test_every_grader_has_words(tmp_path, kind):
    assert "user's own" not in about(tmp_path, **{"grader.kind": kind})["graded"]


def test_an_example_is_cut_where_it_is_long():
    found = task.example({"question": "x" * 700, "answer": "1", "solution": None})
    assert found["question"] == f"{'x' * 600} ... [100 characters more]"
    assert (found["answer"], found["solution"]) == ("1", "")
