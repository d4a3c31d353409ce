"""The configuration that `cgrpo init` writes: what it finds in data and models, and what it makes of it."""

import dataclasses
import json

import converted
import hf_folders
import pytest

from cgrpo_jax import init
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import first_config, refinement_sections
from cgrpo_jax.runs.first_config import Columns


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return converted.make_folder(
        tmp_path_factory.mktemp("m") / "model", hf_folders.LLAMA | {"max_position_embeddings": 256}
    )


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A model whose context holds a written critique, too: its tokenizer takes a token for each letter."""
    return converted.make_folder(
        tmp_path_factory.mktemp("m") / "model", hf_folders.LLAMA | {"max_position_embeddings": 2048}
    )


def data(folder, *rows, name="train.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def look(folder, model, *rows, **more):
    return first_config.look_at(data=data(folder, *rows), model=str(model), **more)


TESTS = json.dumps({"asserts": ["assert f(2) == 4"], "names": ["f"]})


@pytest.mark.parametrize(
    "rows, columns, kind, critique",
    [
        ([{"id": 1, "question": "2+2", "answer": "4"}], Columns("question", "answer"), "numeric", "execution"),
        ([{"Prompt": "2+2", "Target": 4}], Columns("Prompt", "Target"), "numeric", "execution"),
        (
            [{"question": "2+2", "answer": "2+2 is 4.\n#### 4"}, {"question": "?", "answer": "so\n#### 1,000"}],
            Columns("question", "answer", r"####\s*(.+)"),
            "numeric",
            "execution",
        ),
        (
            [{"Body": "There are 2.", "Question": "How many?", "Answer": 2.0}],
            Columns("Body,Question", "Answer"),
            "numeric",
            "execution",
        ),
        ([{"question": "Which?", "answer": "(B)"}], Columns("question", "answer"), "choice", "cot"),
        ([{"query": "Who?", "label": "Ada Lovelace"}], Columns("query", "label"), "exact", "cot"),
        ([{"prompt": "Double.", "tests": TESTS, "solution": "..."}], Columns("prompt", "tests"), "code", "execution"),
        ([{"problem": "2?", "answer": "", "solution": "The answer is 7."}],
         Columns("problem", "solution", first_config.PATTERNS[2]), "numeric", "execution"),
    ],
)  # fmt: skip
def test_columns_and_graders(tmp_path, roomy, rows, columns, kind, critique):
    found = look(tmp_path, roomy, *rows)
    assert (found.columns, found.grader, found.critique, found.num_rows) == (columns, kind, critique, len(rows))


def test_what_is_given_is_taken(tmp_path, model, roomy):
    rows = [{"a": "2+2", "b": "4", "question": "no", "answer": "no"}]
    found = look(tmp_path, model, *rows, question_key="a", answer_key="b")
    assert found.columns == Columns("a", "b") and found.longest < 12
    (tmp_path / "reward.py").write_text("def score(completions, **columns):\n    return [1.0] * len(completions)\n")
    reward = f"{tmp_path / 'reward.py'}:score"
    found = look(tmp_path, roomy, *rows, reward=reward)
    assert (found.grader, found.critique, found.question) == (reward, "cot", "")


def test_lengths_fit_the_context_and_the_longest_question(tmp_path, model):
    found = look(tmp_path, model, {"question": "2+2", "answer": "4"}, {"question": "2+" * 20 + "2", "answer": "42"})
    n = found.lengths
    assert found.context == 256 and found.longest <= n.prompt <= found.longest + 16
    assert n.refine_prompt + n.response <= 256 and n.prompt + n.response <= n.refine_prompt
    assert n.response >= 48 and n.critique == 0
    # one question of very many that is far too long is left out, not given a room
    rows = [{"question": "2+2", "answer": "4"}] * 200 + [{"question": "2+" * 300 + "2", "answer": "602"}]
    found = look(tmp_path, model, *rows)
    assert found.lengths.prompt < 64 < found.longest and "longer questions are left out" in init.written(
        found, name="a.py"
    )


def test_the_lengths_are_those_of_both_files(tmp_path, model):
    held_out = data(tmp_path, {"question": "2+" * 20 + "2", "answer": "1/2"}, name="test.jsonl")
    alone = look(tmp_path, model, {"question": "2+2", "answer": "4"})
    both = look(tmp_path, model, {"question": "2+2", "answer": "4"}, eval=held_out)
    assert alone.longest < 16 < both.longest <= both.lengths.prompt and both.num_rows == 1


def test_a_critic_that_writes_has_lengths_too(tmp_path, roomy):
    found = look(tmp_path, roomy, {"question": "Who?", "answer": "Ada"})
    n = found.lengths
    assert n.critique == 128 and n.critique_prompt + n.critique <= 2048 and not found.written_critique


@pytest.mark.parametrize(
    "row, reward, kind",
    [
        ({"question": "Which?", "answer": "(B)"}, False, "indicative_gt"),
        ({"question": "Who?", "answer": "Ada"}, False, "indicative_gt"),
        ({"question": "2+2", "answer": "4"}, True, "indicative_gt"),
        ({"question": "Double.", "tests": TESTS}, True, "indicative"),
    ],
)
def test_a_rule_writes_where_the_context_does_not_hold_a_written_critique(tmp_path, model, row, reward, kind):
    (tmp_path / "reward.py").write_text("def score(completions, **columns):\n    return [1.0] * len(completions)\n")
    found = look(tmp_path, model, row, reward=f"{tmp_path / 'reward.py'}:score" if reward else "")
    assert found.critique == kind and not found.lengths.critique and found.written_critique > 256
    file = tmp_path / "mine.py"
    file.write_text(init.written(found, name=str(file)))
    first_config.check(file)
    text = file.read_text()
    assert f"(cot) would take {found.written_critique} tokens with its prompt; the context holds 256." in text
    others = next(line for line in text.splitlines() if "c.critique.kind" in line).partition("others: ")[2]
    assert sorted([*others.split(", "), kind]) == sorted(refinement_sections.CRITIQUES)


def test_a_file_whose_prompts_do_not_fit_is_not_said_to_be_good(tmp_path, model):
    found = look(tmp_path, model, {"question": "Who?", "answer": "Ada"})
    lengths = dataclasses.replace(found.lengths, critique=16, critique_prompt=240)
    file = tmp_path / "mine.py"
    file.write_text(init.written(dataclasses.replace(found, critique="cot", lengths=lengths), name=str(file)))
    with pytest.raises(UserError, match="with nothing left of its response; critic.max_prompt_length is 240"):
        first_config.check(file)


def test_the_file_is_short_commented_and_one_that_a_run_can_have(tmp_path, model):
    rows = [{"question": "2+2", "answer": "it's\n#### 4"}] * 20
    data(tmp_path, *rows[:4], name="test.jsonl")
    found = look(tmp_path, model, *rows, eval=str(tmp_path / "test.jsonl"))
    file = tmp_path / "my run.py"
    file.write_text(init.written(found, name=str(file)))
    first_config.check(file)
    lines = file.read_text().splitlines()
    assert 25 <= len(lines) <= 45 and "from cgrpo_jax.runs import base" in lines
    assert sum("#" in line for line in lines if line.strip().startswith("c.")) >= 12
    config = config_lib.freeze(config_lib.load(file))
    assert config.data.train == str(tmp_path / "train.jsonl") and config.model.folder == str(model)
    assert config.data.answer_pattern == r"####\s*(.+)" and config.questions_per_iteration == 16
    assert config.eval.every == 25 and config.grader.kind == "numeric"


@pytest.mark.parametrize(
    "rows, more, message",
    [
        (
            [{"q": "2+2", "a": "4"}],
            {},
            "has the columns q, a, none of which is filled and called like question; give --q",
        ),
        ([{"question": "2+2", "a": "4"}], {}, "called like answer; give --answer_key=COLUMN"),
        (
            [{"question": "2+2", "answer": "4"}],
            {"answer_key": "b"},
            "column 'b' is missing (there are: question, answer)",
        ),
        (
            [{"question": "2+2", "answer": "4"}],
            {"question_key": "prompt"},
            "train.jsonl': column 'prompt' is missing (there are: question, answer); name one of these in "
            "--question_key.",
        ),
        (
            [{"question": "2+2", "a": "4"}],
            {"question_key": "question,prompt"},
            "column 'prompt' is missing (there are: question, a)",
        ),
        ([{"question": "?", "answer": "a b " * 50 + "\nc"}], {}, "are neither choices, numbers, mathematics nor short"),
        (
            [{"question": "2+" * 300 + "2", "answer": "4"}] * 3,
            {},
            "0 of 3 questions fit a quarter of the model's context of 256 ",
        ),
        ([{"question": "2", "answer": "4"}], {"reward": "none.py:f"}, "there is no file"),
        ([{"question": "2", "answer": "4"}], {"reward": "f"}, "'f' is unknown"),
        ([{"question": "2", "answer": "4"}], {"eval": "x.parquet"}, "is of another kind than --data"),
    ],
)
def test_what_can_not_be_used(tmp_path, model, rows, more, message):
    with pytest.raises(UserError) as caught:
        look(tmp_path, model, *rows, **more)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path, model):
    for name, message in (
        ("a.csv", "is neither .jsonl nor .parquet; cgrpo data prepare"),
        ("a.jsonl", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            first_config.look_at(data=str(tmp_path / name), model=str(model))
    with pytest.raises(UserError, match="give a Hugging Face model folder"):
        first_config.look_at(data=data(tmp_path, {"question": "2", "answer": "4"}), model=str(tmp_path))
