"""A first configuration, from what data, a model and a reward say of themselves: measured, and written as a file.

found = look_at(data="train.jsonl", model="Qwen3-0.6B")
text = written(found)
"""

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
from cgrpo_jax.runs import build_model, settings, validate
from cgrpo_jax.runs import config as config_lib

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
      longest, p99: tokens of the questions as they are asked.
      context: tokens that the model was made for.
      num_params: its parameters.
      lengths: chosen.
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


def look_at(
    *, data: str, model: str, eval: str = "", reward: str = "", question_key: str = "", answer_key: str = ""
) -> Found:
    """Looks at data and a model, and chooses what a first run of them needs.

    Args:
      data, eval: files of training and of held-out questions; the latter may be empty.
      model: Hugging Face folder.
      reward: FILE.py:name of the user's own function; empty: by what the gold answers look like.
      question_key, answer_key: columns; empty: by their names.

    Raises:
      UserError: something can't be read, no column or grader fits, or the model's context is too short.
    """
    shape = hf_config.read_config(model)
    tokenizer = load_tokenizer(model)
    load.check_vocab(tokenizer, shape)
    load.check_weights(pathlib.Path(model), shape)
    kind = _kind_of(data)
    columns = _columns(_first_rows(data, kind), data, question_key, answer_key)
    problems = _read(data, kind, columns)
    if eval:
        if _kind_of(eval) != kind:
            raise UserError(f"--eval={eval} is of another kind than --data={data}; give both as .jsonl or as .parquet.")
        _read(eval, kind, columns)
    grades = reward or _grader([problem.answer for problem in problems], columns, data)
    if reward:
        grader.check_kind(reward)
        grader.check_gold(reward, [problem.answer for problem in problems[:1]], num_workers=1)
    critique = _CRITIQUES.get(grades, "cot")
    prompts = Prompts(tokenizer, 1 << 30, 1 << 30, 1 << 30, question=_FORMS.get(grades, "{question}"))
    if _around(prompts) > shape.max_context // 8:  # of a model so small that the words leave no room
        prompts = dataclasses.replace(prompts, question="{question}")
    if _refine_words(prompts) > shape.max_context // 4:
        prompts = dataclasses.replace(prompts, refine=_SHORT_REFINE)
    sizes = sorted(len(prompts.for_question(problem.question, problem.turns)) for problem in problems)
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
        lengths=_lengths(prompts, sizes, shape.max_context, writes_critiques=critique == "cot"),
    )


def check(path: pathlib.Path) -> None:
    """Checks that a run can have the configuration of a file; raises a `UserError` where none can."""
    config = config_lib.freeze(config_lib.load(path))
    validate.check(config)
    settings.run_settings(config, build_model.make_mesh(config))


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
    for _, row in tables.jsonl_rows(path) if kind == "jsonl" else tables.parquet_rows(path):
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
        path, question_key=columns.question, answer_key=columns.answer, answer_pattern=columns.pattern or None
    )
    return problems[:_READ]


def _grader(golds: Sequence[str], columns: Columns, path: str) -> str:
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
        f"the answers of '{path}', column '{columns.answer}', are neither choices, numbers, mathematics nor short "
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


def _lengths(prompts: Prompts, sizes: Sequence[int], context: int, *, writes_critiques: bool) -> Lengths:
    """Chooses lengths with which every stage fits the context.

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
    return Lengths(prompt, response, refine_prompt, critique, min(context - critique, asked))


# --- the file -----------------------------------------------------------------------------------------------------


def written(found: Found, *, name: str) -> str:
    """Returns the text of the configuration's file.

    Args:
      found: from `look_at`.
      name: of the file, for its commands.
    """
    lines = [*_data_lines(found), "", *_grading_lines(found), "", *_length_lines(found), "", *_training_lines(found)]
    body = "\n".join(f"    {line}".rstrip() for line in lines)
    stem = pathlib.PurePath(name).stem
    return (
        f'"""Critique-GRPO on {_plain(pathlib.PurePath(found.data).name)}, written by `cgrpo init`.\n\n'
        f"    cgrpo train --config={_plain(name)} --workdir=runs/{_plain(stem)}\n\n"
        "Every key, with its default: `cgrpo train --help`.\n"
        '"""\n\n'
        "from cgrpo_jax.runs import base\n\n\n"
        "def get_config():\n"
        '    """Returns the defaults, which are the paper\'s, with what this data and this model need."""\n'
        f"    c = base.get_config()\n\n{body}\n    return c\n"
    )


def _plain(text: str) -> str:
    """Returns a name as it can stand within a docstring."""
    return re.sub(r"[^\w./ +=-]", "?", text)


def _data_lines(found: Found) -> list[str]:
    columns = found.columns
    lines = [
        f"c.model.folder = {found.model!r}  # {found.num_params / 1e6:.4g} million parameters",
        f"c.data.train = {found.data!r}  # {found.num_rows} questions were looked at",
        f"c.data.eval = {found.eval!r}  # held-out questions" + ("" if found.eval else "; give a file to measure on"),
        f"c.data.kind = {found.kind!r}",
        f"c.data.question_key = {columns.question!r}  # the columns",
        f"c.data.answer_key = {columns.answer!r}",
    ]
    if columns.pattern:
        lines.append(f"c.data.answer_pattern = {columns.pattern!r}  # its first group is the answer")
    return lines


def _grading_lines(found: Found) -> list[str]:
    lines = [f"c.grader.kind = {found.grader!r}  # math, numeric, choice, exact, code, or FILE.py:function"]
    if found.question:
        lines.append("# The question as it is asked, in a form in which the grader finds the answer.")
        lines.append(f"c.prompts.question = {found.question!r}")
    why = "a rule finds the wrong step" if found.critique == "execution" else "the policy criticises itself"
    lines.append(f"c.critique.kind = {found.critique!r}  # {why}; others: indicative, indicative_gt, execution, cot")
    if found.refine:
        lines.append(f"c.prompts.refine = {found.refine!r}  # short, as the context is")
    return lines


def _length_lines(found: Found) -> list[str]:
    n = found.lengths
    lines = [
        f"# In tokens. The model's context is {found.context}; questions take up to {found.longest}, 99 % of them at "
        f"most {found.p99}.",
        f"c.max_prompt_length = {n.prompt}" + ("  # longer questions are left out" if n.prompt < found.longest else ""),
        f"c.max_response_length = {n.response}  # of a response, and of a refinement",
        f"c.refine.max_prompt_length = {n.refine_prompt}  # question, response and critique",
    ]
    if n.critique:
        lines.append(f"c.critic.max_length = {n.critique}  # of a critique")
        lines.append(f"c.critic.max_prompt_length = {n.critique_prompt}  # question and response")
    return lines


def _training_lines(found: Found) -> list[str]:
    rate = "1e-6" if found.num_params >= 1e9 else "1e-5" if found.num_params >= 5e7 else "1e-4"
    questions = next(n for n in (32, 16, 8, 4, 2, 1) if n <= found.num_rows)
    lines = [
        "c.num_iterations = 100  # each: respond, critique, refine, update",
        f"c.questions_per_iteration = {questions}",
        "c.num_responses = 7  # to each question",
        "c.optimizer.updates_per_batch = 1  # of an iteration",
        f"c.optimizer.learning_rate = {rate}  # for a model of this size",
        "c.mesh.fsdp = 0  # all devices share weights and rows; c.mesh.tensor cuts heads and MLP",
        "c.checkpoints.every = 25  # iterations",
    ]
    if found.eval:
        lines.append("c.eval.every = 25  # iterations between evaluations")
    return lines
