"""A first configuration, from what data, a model and a reward say of themselves: what it needs, and whether it starts.

found = look_at(data="train.jsonl", model="Qwen3-0.6B")
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence

from cgrpo_jax.critiques import texts
from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.datasets import readers, tables
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards import comparisons, grader
from cgrpo_jax.rewards.sandbox import gold
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import load_questions, open_run, stages
from cgrpo_jax.runtime import local_copies

# Names of columns, the likeliest first; a name in other letters' case counts too.
QUESTIONS = ("question", "problem", "prompt", "query", "instruction", "input", "messages", "conversations")
BODIES = ("body", "context", "passage")  # what a question is about, in a column of its own before it
TESTS = ("tests", "test_cases", "test_list", "test")
ANSWERS = (
    "answer", "final_answer", "expected_answer", "gold", "gold_answer", "ground_truth", "target", "label", "solution",
    "output", "response", "completion",
)  # fmt: skip
# Where an answer stands in a worked solution: GSM8K's, a box, a sentence.
PATTERNS = (
    r"####\s*(.+)",
    r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}",
    r"(?i:answer is):?\s*([^\n]+?)\.?\s*$",
)
_MATHEMATICS = re.compile(r"[0-9\\^=+*/<>|]|^\W*\w{1,2}\W*$")
_READ = 10_000  # rows that are looked at
_PARSED = 200  # gold answers that a parser of mathematics is tried on
_STEP = 16  # lengths are multiples of this
_LONGEST_RESPONSE = 2048
_SHORT_REFINE = "{question}\nTried: {response}\nCritique: {critique}\nTry again."
# What the policy is asked besides the question, so that the grader finds its answer.
_FORMS = {
    "math": "{question}\n\nReason step by step, and put your final answer within \\boxed{}.",
    "numeric": '{question}\n\nReason step by step. End with a line "Answer: " and the number.',
    "choice": '{question}\n\nReason step by step. End with a line "Answer: " and the letter.',
    "exact": '{question}\n\nReason step by step. End with a line "Answer: " and the answer.',
    "code": "{question}\n\nWrite the program in one ```python block.",
}
# Rules where one can say what is wrong: arithmetic that does not hold, a test that fails. Else the policy itself.
_CRITIQUES = {"numeric": "execution", "code": "execution"}
# Rules in the place of a policy whose context does not hold a critique of its own; an answer is quoted by default.
_RULES = {"math": "execution"}
_VERDICT = "Conclusion: wrong [END]"  # the least that a written critique says


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a data file, and where in one of them the answer is (empty: all of it)."""

    question: str
    answer: str
    pattern: str = ""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths in tokens, as the keys of a configuration name them; the critic's are 0 where no model is one."""

    prompt: int
    response: int
    refine_prompt: int
    critique: int = 0
    critique_prompt: int = 0


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found, and chosen by it.

    Attributes:
      data, eval, model: as they were given.
      kind: of the data.
      columns: of the data.
      num_rows: rows that were looked at.
      grader, critique: kinds.
      question, refine: templates of prompts; empty for the default.
      longest, p99: tokens of the questions of both files as they are asked.
      context: tokens that the model was made for.
      num_params: its parameters.
      lengths: chosen.
      written_critique: tokens that a critique by the policy and its prompt would take, where the context holds no such
        critique and a rule writes them; else 0.
    """

    data: str
    eval: str
    model: str
    kind: str
    columns: Columns
    num_rows: int
    grader: str
    critique: str
    question: str
    refine: str
    longest: int
    p99: int
    context: int
    num_params: int
    lengths: Lengths
    written_critique: int = 0


def look_at(
    *, data: str, model: str, eval: str = "", reward: str = "", question_key: str = "", answer_key: str = ""
) -> Found:
    """Looks at data and a model, and chooses what a first run of them needs.

    Args:
      data, eval: files of training and of held-out questions, also in a bucket; the latter may be empty.
      model: Hugging Face folder, also in a bucket.
      reward: FILE.py:name of the user's own function; empty: by what the gold answers look like.
      question_key, answer_key: columns; empty: by their names.

    Raises:
      UserError: something can't be read, no column or grader fits, or the model's context is too short.
    """
    folder = local_copies.local(model, suffixes=local_copies.MODEL)
    shape = hf_config.read_config(folder)
    tokenizer = load_tokenizer(folder)
    load.check_vocab(tokenizer, shape)
    load.check_weights(folder, shape)
    kind = _kind_of(data)
    columns = _columns(_first_rows(data, kind), data, question_key, answer_key)
    problems = _read(data, kind, columns)
    held_out = []
    if eval:
        if _kind_of(eval) != kind:
            raise UserError(f"--eval={eval} is of another kind than --data={data}; give both as .jsonl or as .parquet.")
        held_out = _read(eval, kind, columns)
    asked = [*problems, *held_out]
    files = f"'{data}' and '{eval}'" if eval else f"'{data}'"
    grades = reward or _grader([problem.answer for problem in asked], columns, files)
    if reward:
        grader.check_kind(reward)
        grader.check_gold(reward, [problem.answer for problem in problems[:1]], num_workers=1)
    prompts = Prompts(tokenizer, 1 << 30, 1 << 30, 1 << 30, question=_FORMS.get(grades, "{question}"))
    if _around(prompts) > shape.max_context // 8:  # of a model so small that the words leave no room
        prompts = dataclasses.replace(prompts, question="{question}")
    if _refine_words(prompts) > shape.max_context // 4:
        prompts = dataclasses.replace(prompts, refine=_SHORT_REFINE)
    sizes = sorted(len(prompts.for_question(problem.question, problem.turns)) for problem in asked)
    critique, lengths, written = _critique(prompts, sizes, shape.max_context, grades=grades, columns=columns)
    longest, p99 = sizes[-1], sizes[min(len(sizes) - 1, len(sizes) * 99 // 100)]
    return Found(
        data=data,
        eval=eval,
        model=model,
        kind=kind,
        columns=columns,
        num_rows=len(problems),
        grader=grades,
        critique=critique,
        question="" if prompts.question == "{question}" else prompts.question,
        refine="" if prompts.refine == texts.REFINE_PROMPT else prompts.refine,
        longest=longest,
        p99=p99,
        context=shape.max_context,
        num_params=params_lib.num_params(shape),
        lengths=lengths,
        written_critique=written,
    )


def check(path: pathlib.Path) -> None:
    """Starts a run with the configuration of a file, as far as it writes nothing and reads no weight of the policy.

    Raises:
      UserError: no run can have it, or a question or its prompts don't fit.
    """
    config = config_lib.freeze(config_lib.load(path))
    with contextlib.ExitStack() as held:
        open_run.open_run(
            config,
            f"runs/{path.stem}",
            held,
            stages=stages.of_training,
            questions=load_questions.to_train_on,
            load_weights=False,
            trains=True,
            writes={},
        )


# --- data ---------------------------------------------------------------------------------------------------------


def _kind_of(path: str) -> str:
    name = path.removesuffix(".gz")
    for suffix in ("jsonl", "parquet"):
        if name.endswith(f".{suffix}"):
            return suffix
    raise UserError(
        f"data file '{path}' is neither .jsonl nor .parquet; cgrpo data prepare NAME --format=jsonl --source={path} "
        "reads JSON and CSV files, too."
    )


def _first_rows(path: str, kind: str) -> list[dict]:
    rows = []
    here = local_copies.local(path)
    for _, row in tables.jsonl_rows(here) if kind == "jsonl" else tables.parquet_rows(here):
        rows.append(row)
        if len(rows) == 100:
            break
    if not rows:
        raise UserError(f"data file '{path}' has no rows; it needs at least one.")
    return rows


def _columns(rows: Sequence[dict], path: str, question_key: str, answer_key: str) -> Columns:
    there = list(rows[0])

    def named(given: str, likely: Sequence[str], flag: str, taken: str = "") -> str:
        if given:
            tables.column(rows[0], given, f"data file '{path}'", named_by=f"--{flag}")  # raises where it is not there
            return given
        by_name = {name.lower(): name for name in reversed(there) if name != taken}
        for name in likely:
            if name in by_name and all(tables.has(row, by_name[name]) for row in rows):
                return by_name[name]
        raise UserError(
            f"data file '{path}' has the columns {', '.join(there)}, none of which is filled and called like "
            f"{likely[0]}; give --{flag}=COLUMN."
        )

    question = named(question_key, QUESTIONS, "question_key")
    for body in (name for name in there if not question_key and name.lower() in BODIES):
        if all(isinstance(row.get(body), str) and row[body] for row in rows):
            question = f"{body},{question}"
    if not answer_key:
        for tests in (name for name in there if name.lower() in TESTS):
            if all(isinstance(row.get(tests), str) and gold.readable(row[tests]) for row in rows):
                return Columns(question, tests)
    answer = named(answer_key, ANSWERS, "answer_key", question)
    golds = [tables.solution_column(row, answer, path) for row in rows]
    pattern = next((one for one in PATTERNS if all(re.search(one, text) for text in golds)), "")
    return Columns(question, answer, pattern)


def _read(path: str, kind: str, columns: Columns) -> list[Problem]:
    read = readers.read_jsonl if kind == "jsonl" else readers.read_parquet
    problems = read(
        local_copies.local(path),
        question_key=columns.question,
        answer_key=columns.answer,
        answer_pattern=columns.pattern or None,
    )
    return problems[:_READ]


def _grader(golds: Sequence[str], columns: Columns, files: str) -> str:
    """Returns the kind of grader that can read all gold answers: the strictest one."""
    if columns.answer.lower() in TESTS and all(map(gold.readable, golds)):
        return "code"
    looks: dict[str, Callable[[str], bool]] = {
        "choice": lambda one: bool(re.fullmatch(r"\(?[A-J]\)?\.?", one)),
        "numeric": comparisons.READABLE["numeric"],
    }
    for kind, fits in looks.items():
        if all(map(fits, golds)):
            return kind
    why = "none looks like mathematics"
    if 2 * sum(bool(_MATHEMATICS.search(one)) for one in golds) >= len(golds):  # a parser reads words as products, too
        try:
            grader.check_gold("math", list(dict.fromkeys(golds))[:_PARSED])
            return "math"
        except UserError as error:
            why = str(error)[:200]
    if all(comparisons.READABLE["exact"](one) and len(one) <= 100 and "\n" not in one for one in golds):
        return "exact"
    raise UserError(
        f"the answers of {files}, column '{columns.answer}', are neither choices, numbers, mathematics nor short "
        f"texts ({why}); give another --answer_key, or your own --reward=FILE.py:function."
    )


# --- lengths ------------------------------------------------------------------------------------------------------


def _around(prompts: Prompts) -> int:
    """Returns the tokens that the template of questions adds to them."""
    plain = dataclasses.replace(prompts, question="{question}")
    return len(prompts.for_question("")) - len(plain.for_question(""))


def _refine_words(prompts: Prompts) -> int:
    """Returns the tokens of a refine prompt besides question, response and critique."""
    return len(prompts.for_refinement("", "", "")[0])


def _up(number: int) -> int:
    return -(-number // _STEP) * _STEP


def _critique(
    prompts: Prompts, sizes: Sequence[int], context: int, *, grades: str, columns: Columns
) -> tuple[str, Lengths, int]:
    """Chooses the kind of critique; returns it with its lengths and `Found.written_critique`.

    Args:
      prompts, sizes, context: as for `_lengths`.
      grades: kind of the grader.
      columns: of the data.
    """
    kind = _CRITIQUES.get(grades, "cot")
    n = _lengths(prompts, sizes, context, writes_critiques=kind == "cot")
    if kind != "cot":
        return kind, n, 0
    needed = max(n.critique, len(prompts.tokenizer.encode(_VERDICT)))
    if needed == n.critique and n.critique_prompt + needed <= context:
        return kind, n, 0
    # Unit tests as answers are not quoted.
    kind = _RULES.get(grades, "indicative" if columns.answer.lower() in TESTS else "indicative_gt")
    return kind, _lengths(prompts, sizes, context, writes_critiques=False), n.critique_prompt + needed


def _lengths(prompts: Prompts, sizes: Sequence[int], context: int, *, writes_critiques: bool) -> Lengths:
    """Chooses lengths with which question, response and refinement fit the context; a written critique may not.

    Args:
      prompts: of the model.
      sizes: tokens of the questions, in their order; those beyond a quarter of the context are left out.
      context: of the model, in tokens.
      writes_critiques: whether the policy does.
    """
    fitting = [size for size in sizes if size <= context // 4]
    if 2 * len(fitting) < len(sizes):
        raise UserError(
            f"{len(fitting)} of {len(sizes)} questions fit a quarter of the model's context of {context} tokens, the "
            f"longest takes {sizes[-1]}; use shorter questions or another model."
        )
    prompt = _up(fitting[-1])
    critique = min(1024, context // 16) if writes_critiques else min(256, context // 16)
    words = _refine_words(prompts) + _STEP  # a text can take a few tokens more within another
    response = min(_LONGEST_RESPONSE, (context - prompt - critique - words) // 2) // _STEP * _STEP
    if response < _STEP:
        raise UserError(
            f"the model's context of {context} tokens is too short: questions take {prompt}, a critique {critique}, "
            f"the words around them {words}, which leaves {max(0, response)} for a response and its refinement; use "
            "shorter questions or another model."
        )
    refine_prompt = min(context - response, prompt + response + critique + words)
    if not writes_critiques:
        return Lengths(prompt, response, refine_prompt)
    asked = len(prompts.for_critique("", "", None)[0]) + _STEP + prompt + response
    return Lengths(prompt, response, refine_prompt, critique, asked)
