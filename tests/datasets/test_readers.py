import json
import subprocess
import sys
import textwrap

import pytest

from cgrpo_jax.datasets import fingerprints, readers
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem, problem_id


def _write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_reads_answer_behind_a_pattern_and_solution(tmp_path):
    path = _write(tmp_path / "a.jsonl", {"question": " How many? ", "answer": "6*7=42\n#### 42 "}, "")
    keys = dict(question_key="question", answer_key="answer", answer_pattern=r"####\s*(.+)")
    assert readers.read_jsonl(path, **keys) == [Problem(0, "How many?", "42")]
    assert readers.read_jsonl(path, solution_key="answer", **keys)[0].solution == "6*7=42\n#### 42"


def test_joins_columns_and_reads_numbers(tmp_path):
    rows = [{"Body": "There are 2.", "Question": "How many?", "Answer": value} for value in (145.0, 3, 2.5, "1/2")]
    problems = readers.read_jsonl(
        _write(tmp_path / "a.jsonl", *rows), question_key="Body,Question", answer_key="Answer"
    )
    assert [problem.answer for problem in problems] == ["145", "3", "2.5", "1/2"]
    assert [problem.index for problem in problems] == [0, 1, 2, 3]
    assert problems[0].question == "There are 2. How many?"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([{"q": "x", "a": "#1"}, "{oops"], "line 2: not JSON"),
        ([{"q": "x", "a": "#1"}, "[1]"], "line 2: a list"),
        (
            [{"q": "x", "a": "#1"}, {"q": "x"}],
            r"line 2: column 'a' is missing \(there are: q\); name one of these in data.answer_key.$",
        ),
        ([{"a": "#1"}], r"column 'q' is missing \(there are: a\); name one of these in data.question_key.$"),
        ([{"q": "x", "a": None}], "line 1: column 'a' is None; it must hold text or a number"),
        (
            [{"q": "x", "a": {"b": "1", "c": 2}}],
            r"column 'a' is nested \(it has: b, c\); name a column within it, as a.b",
        ),
        (["", {"q": "x", "a": "1"}], "line 2: answer_pattern '#(.)' is not found in '1'"),
    ],
)
def test_errors_name_the_line(tmp_path, rows, message):
    path = _write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(UserError, match=message.replace("#(.)", r"#\(\.\)")) as caught:
        readers.read_jsonl(path, question_key="q", answer_key="a", answer_pattern="#(.)")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a.y", r"column 'a.y' is missing \(a has: b, c\); name one of these"),
        ("a.b.y", r"column 'a.b.y' is missing \(b has: d\); name one of these"),
        ("a.b", r"column 'a.b' is nested \(it has: d\); name a column within it, as a.b.d"),
        ("a.c.y", r"column 'a.c.y' is missing \(a has: b, c\)"),
        ("y.b", r"column 'y.b' is missing \(there are: q, a\)"),
    ],
)
def test_columns_within_columns_that_are_not_there(tmp_path, key, message):
    path = _write(tmp_path / "a.jsonl", {"q": "x", "a": {"b": {"d": "1"}, "c": "2"}})
    with pytest.raises(UserError, match=message):
        readers.read_jsonl(path, question_key="q", answer_key=key)


def test_a_file_in_another_encoding_is_refused_by_its_line(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"q": "x", "a": "1"}\n{"q": "na\xefve", "a": "1"}\n')
    with pytest.raises(UserError, match="line 2: not UTF-8 .*save the file as UTF-8"):
        readers.read_jsonl(path, question_key="q", answer_key="a")


def test_a_source_and_the_other_columns(tmp_path):
    path = _write(tmp_path / "a.jsonl", {"q": "2+2", "a": 4, "level": "easy"})
    (problem,) = readers.read_jsonl(path, question_key="q", answer_key="a", source="mine")
    assert (problem.source, problem.grader, problem.columns) == ("mine", "", {"a": 4, "level": "easy"})
    assert {problem: "a key"}[problem] == "a key"


def test_parquet_with_columns_within_columns_and_chats(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    chat = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    rows = [{"prompt": chat, "reward_model": {"ground_truth": answer}} for answer in ("4", None)]
    for number in (1, 2):
        parquet.write_table(pyarrow.Table.from_pylist(rows[:number]), tmp_path / f"{number}.parquet")
    keys = dict(question_key="prompt", answer_key="reward_model.ground_truth")
    assert readers.read_parquet(tmp_path / "1.parquet", **keys) == [Problem(0, "2+2?", "4")]
    with pytest.raises(UserError, match="2.parquet, row 2: column 'reward_model.ground_truth' is None"):
        readers.read_parquet(tmp_path / "2.parquet", **keys)
    with pytest.raises(UserError, match="'nowhere.parquet' does not exist"):
        readers.read_parquet("nowhere.parquet", **keys)


@pytest.mark.parametrize("read", [readers.read_jsonl, readers.read_parquet])
def test_a_folder_is_no_file(tmp_path, read):
    with pytest.raises(UserError, match="does not exist; check the path"):
        read(tmp_path, question_key="q", answer_key="a")


def test_bad_path_and_pattern(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        readers.read_jsonl(tmp_path / "none.jsonl", question_key="q", answer_key="a")
    path = _write(tmp_path / "a.jsonl", {"q": "x", "a": "1"})
    with pytest.raises(UserError, match="has no group"):
        readers.read_jsonl(path, question_key="q", answer_key="a", answer_pattern="####")
    with pytest.raises(UserError, match="no regular expression"):
        readers.read_jsonl(path, question_key="q", answer_key="a", answer_pattern="(")


def test_reads_tfds_without_tensorflow(tmp_path):
    """In a process of its own: what it imports must not depend on other tests."""
    program = """
        import pathlib, sys, warnings
        warnings.simplefilter("ignore")
        import numpy as np, tensorflow_datasets as tfds
        from cgrpo_jax.datasets import readers
        from cgrpo_jax.errors import UserError

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = pathlib.Path(sys.argv[1])

            def _info(self):
                features = {"q": tfds.features.Text(), "a": tfds.features.Scalar(np.float32)}
                features["chat"] = tfds.features.Sequence(dict.fromkeys(("role", "content"), tfds.features.Text()))
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

            def _split_generators(self, manager):
                chat = [{"role": "system", "content": "Count."}, {"role": "user", "content": "How many?"}]
                rows = ({"q": f"caf\\u00e9 {i}", "a": a, "chat": chat} for i, a in enumerate((0, 1, 33.3, 2e-5)))
                return {"train": enumerate(rows)}

            def _generate_examples(self):
                pass

        Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
        keys = dict(data_dir=sys.argv[1], question_key="q", answer_key="a")
        problems = readers.read_tfds("tiny", split="train", **keys)
        found = {p.question: p.answer for p in problems}
        assert found == {"caf\\u00e9 0": "0", "caf\\u00e9 1": "1", "caf\\u00e9 2": "33.3", "caf\\u00e9 3": "0.00002"}
        assert [p.index for p in problems] == [0, 1, 2, 3] and 33.3 in [p.columns["a"] for p in problems]
        first = readers.read_tfds("tiny", split="train", **keys | {"question_key": "chat"})[0]
        assert (first.question, first.turns) == ("How many?", (("system", "Count."),))
        assert "tensorflow" not in sys.modules
        for name, split in (("nowhere", "train"), ("tiny", "other")):
            try:
                readers.read_tfds(name, split=split, **keys)
            except UserError as error:
                assert "\\n" not in str(error) and name in str(error)
            else:
                raise AssertionError(name)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


# --- chats ----------------------------------------------------------------------------------------------------------

SYSTEM, ASKED = {"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": " And 3+4? "}
FIRST, REPLY = {"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}
KEPT = {"system": ("system", " Be brief.\n"), "first": ("user", "2+3?"), "reply": ("assistant", "5")}


@pytest.mark.parametrize(
    ("chat", "turns"),
    [
        ([ASKED], ()),
        ([SYSTEM, ASKED], ("system",)),
        ([FIRST, REPLY, ASKED], ("first", "reply")),
        ([SYSTEM, FIRST, REPLY, ASKED], ("system", "first", "reply")),
        ([SYSTEM, ASKED, REPLY], ("system",)),  # what follows answers the question
        ([SYSTEM, ASKED, {"role": "assistant", "content": None, "tool_calls": []}], ("system",)),
        ([FIRST, ASKED], ("first",)),
        ([SYSTEM, {"role": "user", "content": [{"type": "text", "text": " And "}, {"type": "text", "text": "3+4?"}]}],
         ("system",)),
        ({"role": ["system", "user"], "content": [SYSTEM["content"], "And 3+4?"]}, ("system",)),
    ],
)  # fmt: skip
def test_a_chat_is_its_last_question_and_the_turns_before(tmp_path, chat, turns):
    path = _write(tmp_path / "a.jsonl", {"q": chat, "a": "7", "n": {"q": chat}})
    for key in ("q", "n.q"):
        (problem,) = readers.read_jsonl(path, question_key=key, answer_key="a")
        assert (problem.question, problem.answer) == ("And 3+4?", "7")
        assert problem.turns == tuple(KEPT[name] for name in turns)


def test_chats_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([{"q": [SYSTEM, ASKED], "a": 7}]), tmp_path / "a.parquet")
    (problem,) = readers.read_parquet(tmp_path / "a.parquet", question_key="q", answer_key="a")
    assert problem == Problem(0, "And 3+4?", "7", turns=(KEPT["system"],))


def test_the_answer_in_a_chat_is_the_last_of_the_assistant(tmp_path):
    path = _write(tmp_path / "a.jsonl", {"chat": [SYSTEM, FIRST, REPLY, ASKED, {"role": "assistant", "content": "#7"}]})
    keys = dict(question_key="chat", answer_key="chat", solution_key="chat", answer_pattern="#(.)")
    (problem,) = readers.read_jsonl(path, **keys)
    assert (problem.question, problem.answer, problem.solution, len(problem.turns)) == ("And 3+4?", "7", "#7", 3)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"role": "system"}, ASKED], "column 'q' is .*; each message of a chat must hold a role, and its text"),
        ([SYSTEM | {"content": None}, ASKED], "turn 1 of the chat in column 'q' has no text"),
        ([FIRST, {"role": "assistant", "content": [{"type": "image"}]}, ASKED], "turn 2 of the chat .* has no text"),
        ([{"content": "2+3?"}, ASKED], "turn 1 of the chat in column 'q' has no role"),
        ([SYSTEM | {"content": "\ud800"}, ASKED], "turn 1 of the chat in column 'q' is not valid Unicode"),
        ([SYSTEM, ASKED | {"content": "\ud800"}], "column 'q' is not valid Unicode"),
        ([SYSTEM, ASKED | {"content": [{"type": "image"}]}], "column 'q' is .*; each message of a chat must hold"),
        ([{"from": "human", "value": "2+3?"}], "column 'q' is .*; each message of a chat must hold a role"),
    ],
)
def test_a_turn_that_is_no_text_is_refused_with_its_row(tmp_path, chat, message):
    path = _write(tmp_path / "a.jsonl", {"q": "2+3?", "a": 5}, {"q": chat, "a": 7})
    with pytest.raises(UserError, match=f"line 2: {message}"):
        readers.read_jsonl(path, question_key="q", answer_key="a")


def test_two_chats_make_no_question(tmp_path):
    path = _write(tmp_path / "a.jsonl", {"q": [SYSTEM, ASKED], "p": [SYSTEM, ASKED], "a": 7})
    with pytest.raises(UserError, match="line 1: columns 'q,p' hold several chats; name one of them"):
        readers.read_jsonl(path, question_key="q,p", answer_key="a")


def test_turns_enter_a_problem_s_name_and_the_fingerprint_of_those_that_have_some():
    alone, told = Problem(0, "2+3?", "5"), Problem(0, "2+3?", "5", turns=(("system", "Be brief."),))
    assert problem_id(alone) != problem_id(told) != problem_id(told.replace(turns=(("user", "Be brief."),)))
    assert fingerprints.of_problems([alone]) != fingerprints.of_problems([told])
    assert {told: "a key"}[told] == "a key"
