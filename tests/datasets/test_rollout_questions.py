"""Questions out of files of rollouts: with their responses and critiques, and which files a path means."""

import pytest
import rollout_cases

from cgrpo_jax.datasets import rollout_questions, rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Stage


@pytest.fixture
def folder(tmp_path):
    for number in (0, 3):
        path = tmp_path / rollouts.file_name(number)
        rollouts.write(path, rollout_cases.make(), iteration=number, spell=rollout_cases.spell)
    return tmp_path


def test_a_question_has_its_responses_and_what_was_said_of_them(folder):
    path = folder / "step_00000000.parquet"
    first, second = rollout_questions.questions(path)
    assert [first.problem, second.problem] == rollout_cases.PROBLEMS
    assert first.problem.columns == rollout_cases.PROBLEMS[0].columns
    assert [row.rollout.index.response for row in first.responses] == [0, 1]
    assert [row.grader for row in first.responses] == ["mine", "mine"]
    # Neither attempts that were rejected, nor the critique of a refinement.
    assert [(one.text, one.index.response, one.index.attempt) for one in first.critiques] == [
        ("wrong", 0, 2),
        ("so", 1, 0),
    ]
    assert [one.parent.index.response for one in first.critiques] == [0, 1]
    assert (len(second.responses), second.critiques) == (1, [])


def test_problems_are_those_of_the_questions_without_their_texts(folder, monkeypatch):
    path = folder / "step_00000003.parquet"
    expected = [one.problem for one in rollout_questions.questions(path)]
    asked = []
    read = rollouts.read_columns
    monkeypatch.setattr(rollouts, "read_columns", lambda path, names: asked.extend(names) or read(path, names))
    found = rollout_questions.problems(path)
    assert found == expected and [one.columns for one in found] == [one.columns for one in expected]
    assert not {"text", "token_ids", "logp", "prompt_ids"} & set(asked)


def test_whether_a_file_has_critiques(folder, tmp_path):
    assert rollout_questions.has_critiques(folder / "step_00000000.parquet")
    alone = [row for row in rollout_cases.make() if row.rollout.stage == Stage.RESPONSE]
    path = tmp_path / "alone.parquet"
    rollouts.write(path, alone, iteration=0, spell=rollout_cases.spell)
    assert not rollout_questions.has_critiques(path)


def test_a_path_means_a_file_a_folder_or_a_run(folder, tmp_path):
    names = [folder / "step_00000000.parquet", folder / "step_00000003.parquet"]
    assert rollout_questions.files(folder) == names
    assert rollout_questions.files(str(names[1])) == names[1:]
    run = tmp_path / "run"
    run.mkdir()
    (run / "rollouts").symlink_to(folder)
    assert [path.name for path in rollout_questions.files(run)] == [path.name for path in names]


def test_a_path_without_rollouts_is_refused(tmp_path):
    for where in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"holds no rollouts \(step_\*.parquet\); give a folder that"):
            rollout_questions.files(where)


def test_a_question_without_a_response_is_refused(tmp_path):
    path = tmp_path / "step_00000000.parquet"
    rows = [row for row in rollout_cases.make() if row.rollout.index.question == 1]
    rollouts.write(path, rows[1:], iteration=0, spell=rollout_cases.spell)
    with pytest.raises(UserError, match="question 1 has no response; give files that hold whole questions"):
        rollout_questions.questions(path)


def test_a_digest_is_of_names_and_contents(folder):
    paths = rollout_questions.files(folder)
    before = rollout_questions.digest(paths)
    assert before.startswith("2 files (") and before == rollout_questions.digest(paths)
    assert rollout_questions.digest(paths[:1]) != before
    rollouts.write(paths[1], rollout_cases.make()[:2], iteration=3, spell=rollout_cases.spell)
    assert rollout_questions.digest(paths) != before
