"""Every format, from a small file of its own layout to the problems that training reads."""

import csv
import gzip
import json

import pytest

from cgrpo_jax.datasets import array_record, formats, readers
from cgrpo_jax.datasets.prepare import prepare
from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards import grader as grader_lib

GPQA = {
    "Question": "Which gas?",
    "Correct Answer": "Argon",
    "Incorrect Answer 1": "Neon",
    "Incorrect Answer 2": "Xenon",
    "Incorrect Answer 3": "Radon",
    "Subdomain": "Chemistry",
    "Explanation": "It is noble.",
}
CHAT = [{"role": "system", "content": "Think."}, {"role": "user", "content": "What is 2+2?"}]
THEOREM = {"Picture": None, "theorem": "a theorem"}
ADD = "assert add(1, 2) == 3"
CODE = "def add(a, b):\r\n    return a + b"

# Format: (file, rows, split that is read, the first row's question, answer and grader, rows there are, rows left out)
CASES = {
    "openr1": (
        "openr1.parquet",
        [
            {
                "data_source": "MATH",
                "prompt": CHAT,
                "target": [{"role": "assistant", "content": "It is 4."}],
                "reward_model": {"ground_truth": "4", "style": "rule"},
                "extra_info": {"index": 7, "split": "train"},
            }
        ],
        ("train", "What is 2+2?", "4", "math", 1, {}),
    ),
    "gsm8k": (
        "gsm8k_test.jsonl",
        [{"question": "How many?", "answer": "6*200=<<6*200=1200>>1200\n#### 1,200"}],
        ("test", "How many?", "1200", "numeric", 1, {}),
    ),
    "math": (
        "math/test/algebra/1.json",
        {"problem": "Half?", "level": "Level 1", "type": "Algebra", "solution": r"\boxed{1}, no: \boxed{\frac{1}{2}}."},
        ("test", "Half?", r"\frac{1}{2}", "math", 1, {}),
    ),
    "math500": (
        "math500.jsonl",
        [{"problem": "Point?", "answer": r"\left( 3, \frac{\pi}{2} \right)"}],
        ("test", "Point?", r"\left( 3, \frac{\pi}{2} \right)", "math", 1, {}),
    ),
    "aime24": (
        "aime24.jsonl",
        [{"id": 60, "problem": "Walk?", "solution": "So 204.", "answer": "204", "question": "Walk?"}],
        ("test", "Walk?", "204", "math", 1, {}),
    ),
    "aime25": ("aime25.jsonl", [{"question": "Bases?", "answer": 70}], ("test", "Bases?", "70", "math", 1, {})),
    "amc23": ("amc23.jsonl", [{"problem": "When?", "answer": "27.0"}], ("test", "When?", "27", "math", 1, {})),
    "minerva_math": (
        "minerva.jsonl",
        [{"problem": "Stars?", "solution": r"It is \boxed{ 1.6e{3} }.", "type": "Astronomy"}],
        ("test", "Stars?", "1.6e{3}", "math", 1, {}),
    ),
    "olympiadbench": (
        "OE_TO_maths_en_COMP.parquet",
        [
            {"question": "Find all.", "final_answer": ["$1$", "$2$"], "solution": ["So.", "Or so."], "image_1": None},
            {"question": "See.", "final_answer": ["1"], "solution": ["So."], "image_1": b"png"},
            {"question": "Prove.", "final_answer": None, "solution": ["So."], "image_1": None},
        ],
        (
            "test", "Find all.", "1, 2", "math", 1,
            {"needs a picture": 1, "a proof, without a final answer": 1},
        ),
    ),
    "theoremqa": (
        "theoremqa_test.json",
        [
            THEOREM | {"Question": "Which?", "Answer": "(b)", "Answer_type": "option"},
            THEOREM | {"Question": "How many?", "Answer": 3.5, "Answer_type": "float"},
            THEOREM | {"Question": "Which both?", "Answer": [1, 2], "Answer_type": "list of integer"},
            THEOREM | {"Question": "Is it?", "Answer": True, "Answer_type": "bool"},
            THEOREM | {"Question": "What is shown?", "Answer": 1, "Answer_type": "integer", "Picture": "images/1.png"},
        ],
        ("test", "Which?", "B", "choice", 4, {"needs a picture": 1}),
    ),
    "gpqa_diamond": (
        "gpqa_diamond.csv",
        [GPQA],
        ("test", "Which gas?\n\nA. Radon\nB. Xenon\nC. Argon\nD. Neon", "C", "choice", 1, {}),
    ),
    "mmlu_pro": (
        "mmlu_pro.parquet",
        [{"question": "Which?", "options": ["no", "yes", "N/A"], "answer": "B", "answer_index": 1, "category": "law"}],
        ("test", "Which?\n\nA. no\nB. yes", "B", "choice", 1, {}),
    ),
    "svamp": (
        "SVAMP.json",
        [{"ID": "chal-1", "Body": "There are 2 oranges.", "Question": "How many?", "Answer": 145.0, "Type": "Sum"}],
        ("test", "There are 2 oranges. How many?", "145", "numeric", 1, {}),
    ),
    "humaneval": (
        "HumanEval.jsonl.gz",
        [
            {
                "task_id": "HumanEval/0",
                "prompt": "def add(a, b):\n",
                "entry_point": "add",
                "canonical_solution": "    return a + b\n",
                "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
            }
        ],
        (
            "test",
            "Complete this Python function:\n\n```python\ndef add(a, b):\n```",
            {
                "prompt": "def add(a, b):\n",
                "check": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
                "entry_point": "add",
            },
            "code", 1, {},
        ),
    ),
    "mbpp": (
        "mbpp.jsonl",
        [
            {"task_id": 11, "text": "Add.", "code": CODE, "test_setup_code": "import re", "test_list": [ADD]},
            {"task_id": 601, "text": "Sub.", "code": "def sub(): ...", "test_setup_code": "", "test_list": [ADD]},
        ],
        (
            "test",
            f"Add.\n\nYour code must pass these tests:\n\n```python\n{ADD}\n```",
            {"setup": "import re", "asserts": [ADD], "names": ["add"]},
            "code", 1, {"its task_id is not of split test": 1},
        ),
    ),
}  # fmt: skip


def write(path, rows):
    """Writes rows as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.name.endswith(".csv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_every_format_has_its_case():
    assert CASES.keys() == formats.FORMATS.keys()


@pytest.mark.parametrize("name", CASES)
def test_builder(tmp_path, name):
    file, rows, (split, question, answer, grader, number, left_out) = CASES[name]
    path = write(tmp_path / "source" / file, rows)
    source = tmp_path / "source" / "math" / "test" if name == "math" else path
    one = formats.FORMATS[name]
    found = prepare(name, one, {split: source}, tmp_path / "out", format_name=name)
    problems = readers.read_tfds(
        name, split=split, data_dir=tmp_path / "out", question_key="not asked", answer_key="not asked", source=name
    )
    first = problems[0]
    given = first.answer if isinstance(answer, str) else json.loads(first.answer)
    assert (first.question, given, first.grader, first.source) == (question, answer, grader, name)
    assert [problem.index for problem in problems] == list(range(number)) and first.solution is None
    assert first.turns == ((("system", "Think."),) if name == "openr1" else ())
    assert found["splits"][split] == {
        "rows": number, "left_out": left_out, "source": source.name, "sha256": array_record.digest(source),
    }  # fmt: skip
    for problem in problems:
        if problem.grader in grader_lib.KINDS:
            grader_lib.check_gold(problem.grader, [problem.answer])


def test_theoremqa_has_a_grader_for_each_kind_of_answer(tmp_path):
    file, rows, _ = CASES["theoremqa"]
    path = write(tmp_path / file, rows)
    found = [one for _, one in formats.examples(formats.FORMATS["theoremqa"].convert, path, "test")]
    assert [(one.answer, one.grader) for one in found[1:4]] == [
        ("3.5", "numeric"),
        ("[1, 2]", "math"),
        ("True", "exact"),
    ]
    assert found[3].question.endswith("\nEnd with a line that says Answer: True or Answer: False.")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ([0.00002, 1e22, 3.0], "[0.00002, 10000000000000000000000, 3]"),
        ([[1, 2.5], ["a"]], "[[1, 2.5], ['a']]"),
        (False, "False"),
        ([1, float("nan")], None),
        ([1, None], None),
    ],
)
def test_a_list_of_answers_has_its_numbers_written_out(tmp_path, answer, text):
    row = THEOREM | {"Question": "Which both?", "Answer": answer, "Answer_type": "list of float"}
    path = write(tmp_path / "a.jsonl", [row])
    ((_, found),) = formats.examples(formats.FORMATS["theoremqa"].convert, path, "test")
    assert isinstance(found, formats.NoAnswer) if text is None else found.answer == text


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "x", "1.5"])
def test_a_row_s_number_is_one(tmp_path, number):
    row = {"task_id": number, "text": "Add.", "code": CODE, "test_list": [ADD]}
    path = write(tmp_path / "mbpp.jsonl", [row])
    with pytest.raises(UserError, match="line 1: column 'task_id' is '.*'?; it must be a number") as caught:
        list(formats.examples(formats.FORMATS["mbpp"].convert, path, "test"))
    assert len(str(caught.value)) < 300


def test_solutions_are_kept_for_those_who_ask(tmp_path):
    for name, solution in (
        ("openr1", "It is 4."),
        ("gsm8k", "6*200=1200\n#### 1,200"),
        ("gpqa_diamond", "It is noble."),
    ):
        file, rows, (split, *_) = CASES[name]
        path = write(tmp_path / file, rows)
        prepare(name, formats.FORMATS[name], {split: path}, tmp_path / "out", format_name=name)
        keys = dict(data_dir=tmp_path / "out", question_key="q", answer_key="a", solution_key="any")
        assert readers.read_tfds(name, split=split, **keys)[0].solution == solution


def test_options_are_shuffled_by_the_question_alone():
    rows = [GPQA | {"Question": f"Which gas is number {k}?"} for k in range(200)]
    convert = formats.FORMATS["gpqa_diamond"].convert
    found = [convert(row, "here", "test") for row in rows]
    assert found == [convert(row, "there", "train") for row in reversed(rows)][::-1]
    letters = [one.answer for one in found]
    assert {letter: letters.count(letter) > 30 for letter in "ABCD"} == dict.fromkeys("ABCD", True)
    for one in found:
        assert f"\n{one.answer}. Argon" in one.question


@pytest.mark.parametrize(
    "solution, answer",
    [
        (r"a \boxed{x^{2}} b", "x^{2}"),
        (r"$\boxed 7$.", "7"),
        (r"one \fbox{1}, then the other: it is much larger than that, and it is \boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
    ],
)
def test_the_answer_in_a_solutions_box(solution, answer):
    row = {"problem": "What?", "solution": solution}
    assert formats.FORMATS["math"].convert(row, "here", "train").answer == answer


@pytest.mark.parametrize("solution", [r"\boxed{never closed", "none"])
def test_a_solution_without_a_box(solution):
    with pytest.raises(UserError, match="here: there is no column 'answer', and no"):
        formats.FORMATS["math"].convert({"problem": "What?", "solution": solution}, "here", "train")


def test_what_mbpps_tests_take_from_a_program():
    """The names that the row's own solution defines; what the tests forgot to import, it has imported."""
    row = {
        "task_id": 927,
        "text": "Height?",
        "code": "from math import isclose\r\nimport re\r\nclass Node:\r\n    def __init__(self, data):\r\n"
        "        self.left = None\r\ndef max_height(node):\r\n    return 2.0\r\n",
        "test_setup_code": "root = Node(1)\r\nroot.left = Node(2)",
        "test_list": ["assert isclose(max_height(root), 2)", "assert len([1]) == 1"],
    }
    example = formats.FORMATS["mbpp"].convert(row, "here", "train")
    assert json.loads(example.answer) == {
        "setup": "from math import isclose\nroot = Node(1)\r\nroot.left = Node(2)",
        "asserts": row["test_list"],
        "names": ["Node", "max_height", ".left"],
    }
    assert grader_lib.grade("code", [example.solution], [example.answer])[0].reason == "passes all 2 tests"
