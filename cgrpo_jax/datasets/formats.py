"""The formats that the paper's training data and benchmarks come in: what their columns mean, and where they are.

`FORMATS` is the table. A row of a source becomes an `Example`: the question as the policy sees it, the gold answer as
the grader reads it, and which grader that is.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cgrpo_jax.datasets import tables
from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards.answers import boxed
from cgrpo_jax.rewards.sandbox import names as names_lib

_LETTERS = "ABCDEFGHIJ"
_BARE_BOX = re.compile(r"\\(?:f?boxed|fbox)\s*([^\s$.{}\\]+)")  # \boxed 5
# What MBPP's paper (arXiv 2108.07732) has in which split, by task_id; the first ten are its few-shot prompt.
_MBPP_SPLITS = {"test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}


@dataclasses.dataclass(frozen=True)
class Example:
    """A row as it is stored.

    Attributes:
      question: what the policy sees.
      answer: the gold answer, for the grader; of kind `code` it is JSON.
      solution: a worked solution; empty if there is none.
      columns: the row's other columns that a user's own reward function may want.
      grader: kind of grader; empty: the format's, and where that is empty the run's.
    """

    question: str
    answer: str
    solution: str = ""
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grader: str = ""


class NoAnswer(UserError):
    """A row has no gold answer: its column is missing or empty, or nothing in it is an answer."""


# (row, where it is, split) -> the example, or why the row is left out.
Convert = Callable[[Mapping[str, Any], str, str], Example | str]


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
      about: what is in it.
      get: where its files are published, and under which licence where that is known; read it there.
      grader: kind of grader of its answers.
      splits: the splits it has; a file whose name says none is of the first.
      convert: reads a row.
      solved: its solutions are responses that must pass their grader.
    """

    about: str
    get: str
    grader: str
    splits: Sequence[str]
    convert: Convert
    solved: bool = False


def examples(convert: Convert, path: str | pathlib.Path, split: str) -> Iterator[tuple[str, Example | str | NoAnswer]]:
    """Yields where each row of a source is, and its example, why it is left out, or that it has no gold answer.

    Raises:
      UserError: a row that can't be read for another reason: the file, the row and the column.
    """
    for where, row in tables.rows(path):
        try:
            example = convert(row, where, split)
        except NoAnswer as error:
            example = error
        yield where, example


def generic(*, question_key: str, answer_key: str, solution_key: str | None, answer_pattern: str | None) -> Convert:
    """Returns what reads rows whose columns the user names; arguments as for `readers.read_jsonl`."""
    pattern = tables.answer_pattern(answer_pattern)
    asked = {key.strip() for key in ",".join(filter(None, (question_key, solution_key))).split(",")}

    def convert(row, where, split):
        with _gold_answer():
            answer = tables.answer_in(tables.column(row, answer_key, where), pattern, where)
        solution = tables.column(row, solution_key, where) if solution_key else ""
        others = {key: tables.plain(value) for key, value in row.items() if key not in asked}
        return Example(tables.column(row, question_key, where), answer, solution, others)

    return convert


def describe() -> str:
    """Returns the table for people: name, what it is, where it is."""
    width = max(map(len, FORMATS))
    return "\n".join(f"  {name:<{width}}  {one.about}\n  {'':<{width}}  {one.get}" for name, one in FORMATS.items())


# --- reading rows -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _gold_answer() -> Iterator[None]:
    """Within the block the gold answer is read: what is wrong there is raised as `NoAnswer`."""
    try:
        yield
    except UserError as error:
        raise NoAnswer(str(error)) from error


def _any(row: Mapping[str, Any], names: str, where: str) -> str:
    """The text of the first column there is of several, "problem|question"."""
    wanted = names.split("|")
    for name in wanted:
        if tables.has(row, name):
            return tables.column(row, name, where)
    return tables.column(row, wanted[0], where)  # which says what is missing


def _maybe(row: Mapping[str, Any], names: str, where: str) -> str:
    return _any(row, names, where) if any(tables.has(row, name) for name in names.split("|")) else ""


def _kept(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: tables.plain(row[name]) for name in names if row.get(name) is not None}


def _code(row: Mapping[str, Any], key: str, where: str) -> str:
    """The text of a column as it is: blanks at its ends mean something in Python."""
    value = row.get(key)
    return value if isinstance(value, str) and value else tables.column(row, key, where)


def _list(row: Mapping[str, Any], key: str, where: str) -> list[str]:
    """The texts of a column that is a list of them."""
    values = tables.plain(row.get(key))
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise UserError(f"{where}: column '{key}' is {values!r:.40}; it must hold a list of texts.")
    return values


def _last_box(solution: str) -> str | None:
    """The answer in a solution's last box; MATH has boxes of one digit without braces, too. None if there is none."""
    return boxed(solution) or next(iter(_BARE_BOX.findall(solution)[-1:]), None)


def _openr1(row, where, split):
    question = tables.column(row, "prompt", where)
    with _gold_answer():
        answer = tables.column(row, "reward_model.ground_truth", where)
    return Example(question, answer, _maybe(row, "target", where), _kept(row, "data_source", "ability"))


def _gsm8k(row, where, split):
    with _gold_answer():
        text = tables.column(row, "answer", where)
        answer = tables.answer_in(text, re.compile(r"####\s*(.+)"), where).replace(",", "")
    return Example(tables.column(row, "question", where), answer, re.sub(r"<<[^>]*>>", "", text))


def _math(row, where, split):
    """MATH and what is written like it: the answer in a column of its own, or in the solution's last box."""
    solution = _maybe(row, "solution|Solution", where)
    answer = _maybe(row, "answer|Answer", where) or _last_box(solution)
    if answer is None:
        raise NoAnswer(f"{where}: there is no column 'answer', and no \\boxed{{...}} in column 'solution'.")
    answer = re.sub(r"(?<=\d)\.0+$", "", answer)  # 27.0, as AMC's files have it, is the answer 27
    others = _kept(row, "subject", "type", "level", "unique_id", "id", "ID", "url")
    return Example(_any(row, "problem|question|Problem|Question", where), answer, solution, others)


def _svamp(row, where, split):
    question = tables.column(row, "Body,Question", where)
    with _gold_answer():
        answer = tables.column(row, "Answer", where)
    return Example(question, answer, "", _kept(row, "ID", "Type", "Equation"))


def _olympiadbench(row, where, split):
    if any(name.startswith("image") and value is not None for name, value in row.items()):
        return "needs a picture"
    if not tables.has(row, "final_answer"):
        return "a proof, without a final answer"
    answers = row["final_answer"]
    if not isinstance(answers, str):
        answers = ", ".join(text.strip().strip("$") for text in _list(row, "final_answer", where))
    question = "\n".join(filter(None, (_maybe(row, "context", where), tables.column(row, "question", where))))
    solution = "\n\n".join(_list(row, "solution", where)) if isinstance(row.get("solution"), list) else ""
    others = _kept(row, "id", "subfield", "answer_type", "unit", "error", "is_multiple_answer")
    return Example(question, answers.strip().strip("$"), solution, others)


def _theoremqa(row, where, split):
    """Four kinds of answers: numbers within a tolerance, lists, True or False, and the letter of an option."""
    if tables.has(row, "Picture"):
        return "needs a picture"
    question, kind = tables.column(row, "Question", where), tables.column(row, "Answer_type", where)
    value = row.get("Answer")
    with _gold_answer():
        answer = str(value) if isinstance(value, bool | list) else tables.column(row, "Answer", where)
    others = _kept(row, "Answer_type", "theorem", "subfield", "id")
    if kind == "option":
        return Example(question, answer.strip("() ").upper(), "", others, "choice")
    if kind == "bool":
        question += "\nEnd with a line that says Answer: True or Answer: False."
        return Example(question, answer, "", others, "exact")
    return Example(question, answer, "", others, "numeric" if kind in ("integer", "float") else "math")


def _choices(question: str, options: Sequence[str]) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
    return question + "\n\n" + "\n".join(lines)


def _gpqa(row, where, split):
    """The right answer comes first in the file: options are ordered by hashes, which every machine has alike."""
    question = tables.column(row, "Question", where)
    with _gold_answer():
        right = tables.column(row, "Correct Answer", where)
    wrong = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    options = [right, *(tables.column(row, name, where) for name in wrong)]
    shuffled = sorted(options, key=lambda option: hashlib.sha256(f"{question}\0{option}".encode()).digest())
    letter = _LETTERS[shuffled.index(options[0])]
    others = _kept(row, "Record ID", "High-level domain", "Subdomain")
    solution = _maybe(row, "Explanation", where)
    return Example(_choices(question, shuffled), letter, solution, others)


def _mmlu_pro(row, where, split):
    options = _list(row, "options", where)
    with _gold_answer():
        letter = tables.column(row, "answer", where)
    while options[-1:] == ["N/A"]:  # what fills up rows of fewer than ten
        options.pop()
    if letter not in list(_LETTERS[: len(options)]) or len(options) > len(_LETTERS):
        raise NoAnswer(f"{where}: column 'answer' is {letter!r:.40}; it must be the letter of one of its options.")
    question = _choices(tables.column(row, "question", where), options)
    others = _kept(row, "question_id", "category", "src")
    return Example(question, letter, _maybe(row, "cot_content", where), others)


def _humaneval(row, where, split):
    prompt = _code(row, "prompt", where)
    with _gold_answer():
        tests = {"prompt": prompt, "check": _code(row, "test", where), "entry_point": _code(row, "entry_point", where)}
    question = f"Complete this Python function:\n\n```python\n{prompt.rstrip()}\n```"
    solution = f"```python\n{prompt}{row['canonical_solution']}\n```" if row.get("canonical_solution") else ""
    return Example(question, json.dumps(tests), solution, _kept(row, "task_id"))


def _mbpp(row, where, split):
    """As in its paper, the question shows the tests: the function's name is nowhere else.

    What the tests take from a program is what the row's own solution defines. It may use what `test_setup_code` makes
    of that (a tree of its nodes, say), so the setup is run after it; see `rewards.sandbox.grade`.
    """
    if not re.fullmatch("[0-9]{1,9}", tables.column(row, "task_id", where)):
        raise UserError(f"{where}: column 'task_id' is {row['task_id']!r:.40}; it must be a number.")
    if split in _MBPP_SPLITS and int(row["task_id"]) not in _MBPP_SPLITS[split]:
        return f"its task_id is not of split {split}"
    task = _any(row, "text|prompt", where)
    with _gold_answer():
        asserts = _list(row, "test_list", where)
    imports = _list(row, "test_imports", where) if row.get("test_imports") else []
    setup = "\n".join(filter(None, [*imports, _maybe(row, "test_setup_code", where)]))
    names, forgotten = names_lib.of_solution(row.get("code") or "", setup, asserts)
    setup = "\n".join(filter(None, [*forgotten, setup]))
    tests = {"setup": setup, "asserts": asserts} | ({"names": names} if names else {})
    question = f"{task}\n\nYour code must pass these tests:\n\n```python\n" + "\n".join(asserts) + "\n```"
    solution = f"```python\n{row['code']}\n```" if row.get("code") else ""
    return Example(question, json.dumps(tests), solution, _kept(row, "task_id"))


_HF = "https://huggingface.co/datasets/"
_GITHUB = "https://github.com/"
_QWEN = f"{_GITHUB}QwenLM/Qwen2.5-Math, evaluation/data"

FORMATS = {
    "openr1": Format(
        "OpenR1-Math, 46k and 4k questions with reasoning traces; columns prompt, target, reward_model.ground_truth",
        f"{_HF}Elliott/Openr1-Math-46k-8192 (46k); {_GITHUB}zhangxy-2019/critique-GRPO, openr1_math_4k_*/",
        "math",
        ("train", "test"),
        _openr1,
    ),
    "gsm8k": Format(
        "GSM8K, grade-school word problems: 7,473 and 1,319; columns question, answer",
        f"{_GITHUB}openai/grade-school-math, grade_school_math/data/{{train,test}}.jsonl (MIT)",
        "numeric",
        ("train", "test"),
        _gsm8k,
    ),
    "math": Format(
        "MATH, 7,500 and 5,000 competition problems: a folder of JSON files, or columns problem, solution (answer)",
        f"{_GITHUB}hendrycks/math (MIT); as parquet {_HF}EleutherAI/hendrycks_math",
        "math",
        ("train", "test"),
        _math,
    ),
    "math500": Format(
        "MATH-500, 500 problems of MATH's test set; columns problem, answer",
        f"{_GITHUB}openai/prm800k, prm800k/math_splits/test.jsonl (MIT); {_HF}HuggingFaceH4/MATH-500, test.jsonl",
        "math",
        ("test",),
        _math,
    ),
    "aime24": Format(
        "AIME 2024, 30 problems; columns problem, answer",
        f"{_QWEN}/aime24/test.jsonl; {_HF}HuggingFaceH4/aime_2024",
        "math",
        ("test",),
        _math,
    ),
    "aime25": Format(
        "AIME 2025, 30 problems; columns problem or question, answer",
        f"{_HF}math-ai/aime25, test.jsonl; {_HF}opencompass/AIME2025",
        "math",
        ("test",),
        _math,
    ),
    "amc23": Format(
        "AMC 2023, 40 problems; columns problem or question, answer",
        f"{_QWEN}/amc23/test.jsonl; {_HF}math-ai/amc23",
        "math",
        ("test",),
        _math,
    ),
    "minerva_math": Format(
        "Minerva-Math, 272 undergraduate problems; columns problem, solution with a box (or answer)",
        f"{_QWEN}/minerva_math/test.jsonl; {_HF}math-ai/minervamath",
        "math",
        ("test",),
        _math,
    ),
    "olympiadbench": Format(
        "OlympiadBench; columns question, final_answer; proofs, and questions with pictures, are left out",
        f"{_QWEN}/olympiadbench/test.jsonl (675 problems); {_HF}Hothan/OlympiadBench, OE_TO_maths_en_COMP (Apache-2.0)",
        "math",
        ("test",),
        _olympiadbench,
    ),
    "theoremqa": Format(
        "TheoremQA, 800 questions on theorems; columns Question, Answer, Answer_type; those with pictures are left out",
        f"{_GITHUB}TIGER-AI-Lab/TheoremQA, theoremqa_test.json (MIT); {_HF}TIGER-Lab/TheoremQA",
        "math",
        ("test",),
        _theoremqa,
    ),
    "gpqa_diamond": Format(
        "GPQA-Diamond, 198 graduate questions with four options, in the order of their hashes",
        f"{_GITHUB}idavidrein/gpqa, dataset.zip, gpqa_diamond.csv; {_HF}Idavidrein/gpqa (CC BY 4.0; don't publish it)",
        "choice",
        ("test",),
        _gpqa,
    ),
    "mmlu_pro": Format(
        "MMLU-Pro, 12,032 questions with up to ten options; columns question, options, answer",
        f"{_HF}TIGER-Lab/MMLU-Pro, data/{{validation,test}}-*.parquet (MIT)",
        "choice",
        ("test", "validation"),
        _mmlu_pro,
    ),
    "svamp": Format(
        "SVAMP, 1,000 word problems; columns Body, Question, Answer",
        f"{_GITHUB}arkilpatel/SVAMP, SVAMP.json (MIT); {_HF}ChilleD/SVAMP",
        "numeric",
        ("test", "train"),
        _svamp,
    ),
    "humaneval": Format(
        "HumanEval, 164 Python functions with tests; columns prompt, test, entry_point",
        f"{_GITHUB}openai/human-eval, data/HumanEval.jsonl.gz (MIT)",
        "code",
        ("test",),
        _humaneval,
        solved=True,
    ),
    "mbpp": Format(
        "MBPP, 974 Python tasks with tests; of one file, each split takes its own task_ids",
        f"{_GITHUB}google-research/google-research, mbpp/mbpp.jsonl or sanitized-mbpp.json (CC BY 4.0)",
        "code",
        ("test", "train", "validation"),
        _mbpp,
        solved=True,
    ),
}
GENERIC = ("jsonl", "parquet")
