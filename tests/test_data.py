import json
import subprocess
import sys
import textwrap

import pytest

from cgrpo_jax import data
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem


def _write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_reads_answer_behind_a_pattern_and_solution(tmp_path):
    path = _write(tmp_path / "a.jsonl", {"question": " How many? ", "answer": "6*7=42\n#### 42 "}, "")
    keys = dict(question_key="question", answer_key="answer", answer_pattern=r"####\s*(.+)")
    assert data.read_jsonl(path, **keys) == [Problem(0, "How many?", "42")]
    assert data.read_jsonl(path, solution_key="answer", **keys)[0].solution == "6*7=42\n#### 42"


def test_joins_columns_and_reads_numbers(tmp_path):
    rows = [{"Body": "There are 2.", "Question": "How many?", "Answer": value} for value in (145.0, 3, 2.5, "1/2")]
    problems = data.read_jsonl(_write(tmp_path / "a.jsonl", *rows), question_key="Body,Question", answer_key="Answer")
    assert [problem.answer for problem in problems] == ["145", "3", "2.5", "1/2"]
    assert [problem.index for problem in problems] == [0, 1, 2, 3]
    assert problems[0].question == "There are 2. How many?"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([{"q": "x", "a": "#1"}, "{oops"], "line 2: not JSON"),
        ([{"q": "x", "a": "#1"}, "[1]"], "line 2: a list"),
        ([{"q": "x", "a": "#1"}, {"q": "x"}], r"line 2: column 'a' is missing \(there are: q\)"),
        ([{"q": "x", "a": None}], "line 1: column 'a' is None"),
        (["", {"q": "x", "a": "1"}], "line 2: answer_pattern '#(.)' is not found in '1'"),
    ],
)
def test_errors_name_the_line(tmp_path, rows, message):
    path = _write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(UserError, match=message.replace("#(.)", r"#\(\.\)")) as caught:
        data.read_jsonl(path, question_key="q", answer_key="a", answer_pattern="#(.)")
    assert "\n" not in str(caught.value)


def test_a_file_in_another_encoding_is_refused_by_its_line(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"q": "x", "a": "1"}\n{"q": "na\xefve", "a": "1"}\n')
    with pytest.raises(UserError, match="line 2: not UTF-8 .*save the file as UTF-8"):
        data.read_jsonl(path, question_key="q", answer_key="a")


def test_bad_path_and_pattern(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        data.read_jsonl(tmp_path / "none.jsonl", question_key="q", answer_key="a")
    path = _write(tmp_path / "a.jsonl", {"q": "x", "a": "1"})
    with pytest.raises(UserError, match="has no group"):
        data.read_jsonl(path, question_key="q", answer_key="a", answer_pattern="####")
    with pytest.raises(UserError, match="no regular expression"):
        data.read_jsonl(path, question_key="q", answer_key="a", answer_pattern="(")


def test_each_epoch_is_another_permutation_and_batches_span_epochs():
    stream = [i for step in range(5) for i in data.batch_indices(seed=3, step=step, batch_size=8, num_problems=20)]
    assert sorted(stream[:20]) == sorted(stream[20:]) == list(range(20))
    assert stream[:20] != stream[20:] and stream[:20] != list(range(20))
    whole = data.batch_indices(seed=3, step=0, batch_size=40, num_problems=20)  # a batch of two epochs
    assert whole == stream
    assert data.batch_indices(seed=4, step=0, batch_size=40, num_problems=20) != stream


def test_batch_indices_refuses_a_negative_step():
    with pytest.raises(ValueError, match="step -1"):
        data.batch_indices(seed=0, step=-1, batch_size=1, num_problems=1)


def test_long_prompts():
    problems = [Problem(i, "q", "a") for i in range(3)]
    kept, skipped = data.skip_or_fail_long(problems, [5, 9, 6], limit=6, on_long="skip")
    assert ([problem.index for problem in kept], skipped) == ([0, 2], 1)
    with pytest.raises(UserError, match="problem 1 has 9 tokens"):
        data.skip_or_fail_long(problems, [5, 9, 6], limit=6, on_long="error")
    with pytest.raises(UserError, match="none of 3"):
        data.skip_or_fail_long(problems, [7, 9, 8], limit=6, on_long="skip")
    with pytest.raises(UserError, match="choose skip or error"):
        data.skip_or_fail_long(problems, [1, 1, 1], limit=6, on_long="cut")


def test_reads_tfds_without_tensorflow(tmp_path):
    """In a process of its own: what it imports must not depend on other tests."""
    program = """
        import pathlib, sys, warnings
        warnings.simplefilter("ignore")
        import numpy as np, tensorflow_datasets as tfds
        from cgrpo_jax import data
        from cgrpo_jax.errors import UserError

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = pathlib.Path(sys.argv[1])

            def _info(self):
                features = {"q": tfds.features.Text(), "a": tfds.features.Scalar(np.float32)}
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

            def _split_generators(self, manager):
                return {"train": ((i, {"q": f"caf\\u00e9 {i}", "a": i + 0.5 * (i == 2)}) for i in range(3))}

            def _generate_examples(self):
                pass

        Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
        keys = dict(data_dir=sys.argv[1], question_key="q", answer_key="a")
        problems = data.read_tfds("tiny", split="train", **keys)
        found = {p.question: p.answer for p in problems}
        assert found == {"caf\\u00e9 0": "0", "caf\\u00e9 1": "1", "caf\\u00e9 2": "2.5"}
        assert [p.index for p in problems] == [0, 1, 2]
        assert "tensorflow" not in sys.modules
        for name, split in (("nowhere", "train"), ("tiny", "other")):
            try:
                data.read_tfds(name, split=split, **keys)
            except UserError as error:
                assert "\\n" not in str(error) and name in str(error)
            else:
                raise AssertionError(name)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
