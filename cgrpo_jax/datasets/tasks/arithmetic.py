"""The quickstart's task: chains of sums and products, some of whose one-digit facts the warm start never shows.

A question is a chain such as `7*8+6*3`, worked from left to right; only the last digit of a step's result is carried
to the next, so every step is one fact about two digits:

    7*8=56, 6+6=12, 2*3=6. Answer: 56 12 6

A fact is `(left, operator, right)`. Some products are *held out*: no lesson of the warm start contains them, so the
policy hardly ever samples their results, while a critique that recomputes the step names them. Training and held-out
questions are different chains over the same facts. The answer lists every result: a lucky last digit is no answer.
"""

import io
import itertools
import pathlib
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from cgrpo_jax.critiques import texts
from cgrpo_jax.critiques.step_check.equations import StepError
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem

# Of the task and its warm start. It changes with whatever changes what is asked, taught or graded, and stands in every
# result: numbers of different versions are not compared.
VERSION = 2
# What is asked, for those who read of a run.
ASKED = (
    "Chains of sums and products of digits, worked from left to right; of each step's result only the last digit is "
    "carried to the next step. The answer lists the result of every step"
)

Fact = tuple[int, str, int]

_OPERANDS = range(2, 10)
_MOST_MISSES = 10_000  # questions seen before, one after the other, until there seem to be no new ones
_CHAIN = re.compile(r"\d([+*]\d)+")
PHRASES = (
    "\nTried: ",
    "\nCritique: ",
    "\nTry again.",
    "\nCheck.",
    "\nThe answer is ",
    "The answer is right.",
    "The answer is wrong.",
    " The correct answer is ",
    "Step ",
    " is wrong: ",
    ", not ",
    " does not hold.",
    "Every step that can be checked holds",
    ", but the answer is wrong.",
    " Conclusion: right [END]",
    " Conclusion: wrong [END]",
    ", ",
    ". Answer: ",
    " ",
)
_STEP = re.compile(r"(?<!\d)(\d{1,9})([+*])(\d{1,9})=(\d+)")
_MOST_QUOTED = 20  # digits of a result; none of a chain is near as long


def facts() -> list[Fact]:
    """Returns every fact that a chain can ask for: a carried digit, an operator, a digit from 2 to 9."""
    return [(left, op, right) for left in range(10) for op in "+*" for right in _OPERANDS]


def held_out_facts(count: int, *, seed: int = 0) -> frozenset[Fact]:
    """Returns `count` products (both orders of each pair) that the warm start never shows, by default the same ones.

    Operands run from 3 to 9, where no rule of thumb gives the result.

    Raises:
      UserError: more than the 49 products of these digits are asked for.
    """
    pairs = [(a, b) for a in range(3, 10) for b in range(a, 10)]
    if not 0 <= count <= 49:
        raise UserError(f"num_held_out {count} is not possible; 0 to 49 products of two digits from 3 to 9 are.")
    random.Random(seed).shuffle(pairs)
    chosen: list[Fact] = []
    for a, b in pairs:
        both = {(a, "*", b), (b, "*", a)}
        if len(chosen) + len(both) <= count:
            chosen += sorted(both)
    if len(chosen) < count:
        # One fact is missing and only pairs of two are left (a square would have fitted): one takes a square's place.
        chosen.remove(next(fact for fact in chosen if fact[0] == fact[2]))
        a, b = next((a, b) for a, b in pairs if (a, "*", b) not in chosen and a != b)
        chosen += [(a, "*", b), (b, "*", a)]
    return frozenset(chosen)


def trace(question: str, forced: Mapping[int, int] | None = None) -> list[tuple[Fact, int]]:
    """Returns the steps of a chain, each a fact and its result.

    Args:
      question: the chain.
      forced: results that replace the true ones, by step (from 1); what follows builds on them.

    Example:
      >>> trace("7*8+6")
      [((7, '*', 8), 56), ((6, '+', 6), 12)]
      >>> trace("7*8+6", {1: 54})
      [((7, '*', 8), 54), ((4, '+', 6), 10)]
    """
    if not _CHAIN.fullmatch(question):
        raise UserError(
            f"{question!r} is not a chain of one-digit sums and products such as 7*8+6 (worked from left to right, the "
            "last digit carried)."
        )
    steps, carried = [], int(question[0])
    for number, (op, digit) in enumerate(zip(question[1::2], question[2::2], strict=True), start=1):
        right = int(digit)
        value = carried + right if op == "+" else carried * right
        value = (forced or {}).get(number, value)
        steps.append(((carried, op, right), value))
        carried = value % 10
    return steps


def write(steps: Sequence[tuple[Fact, int]]) -> str:
    """Returns steps as the policy is taught to write them."""
    worked = ", ".join(f"{left}{op}{right}={value}" for (left, op, right), value in steps)
    return f"{worked}. Answer: {results(steps)}"


def results(steps: Sequence[tuple[Fact, int]]) -> str:
    """Returns the answer that steps lead to: the result of each."""
    return " ".join(str(value) for _, value in steps)


def solution(question: str) -> str:
    """Returns the worked solution."""
    return write(trace(question))


def answer(question: str) -> str:
    """Returns the gold answer."""
    return results(trace(question))


def unseen(question: str, held_out: Collection[Fact]) -> list[str]:
    """Returns the steps of a chain whose facts the warm start never shows, each once.

    Example:
      >>> unseen("7*8+6", {(7, "*", 8)})
      ['7*8=56']

    Raises:
      UserError: it is no chain.
    """
    found = [(fact, value) for fact, value in trace(question) if fact in held_out]
    return [f"{left}{op}{right}={value}" for (left, op, right), value in dict.fromkeys(found)]


def check_steps(question: str, response: str) -> StepError | None:
    """Recomputes the chain and returns the first step of `response` that is not the chain's, or None.

    A step is wrong if its result is, or if it works on other digits than the chain has there; a missing step counts
    as wrong.
    """
    written = _STEP.findall(response.split("Answer:")[0])
    for number, ((left, op, right), value) in enumerate(trace(question), start=1):
        asked = (str(left), op, str(right))
        *digits, given = written[number - 1] if number <= len(written) else (*asked, "nothing")
        given = given[:_MOST_QUOTED]
        if tuple(digits) != asked and given == str(value):  # "6+6=12, not 12" would be no critique
            given = "{}{}{}={}".format(*digits, given)
        if (*digits, given) != (*asked, str(value)):
            return StepError(number, f"{left}{op}{right}={given}", given, str(value))
    return None


def _chain(rng: random.Random, length: int) -> str:
    return str(rng.choice(_OPERANDS)) + "".join(rng.choice("+*") + str(rng.choice(_OPERANDS)) for _ in range(length))


def _chains(rng: random.Random, lengths: Sequence[int], held_out: frozenset[Fact], count: int) -> Iterator[str]:
    """Yields chains whose traces hold exactly `count` held-out facts."""
    while True:
        question = _chain(rng, rng.choice(lengths))
        if sum(fact in held_out for fact, _ in trace(question)) == count:
            yield question


def taught_chains(rng: random.Random, lengths: Sequence[int], held_out: frozenset[Fact]) -> Iterator[str]:
    """Yields chains of these lengths whose traces hold no held-out fact."""
    return _chains(rng, lengths, held_out, 0)


def rare_chains(rng: random.Random, lengths: Sequence[int], held_out: frozenset[Fact]) -> Iterator[str]:
    """Yields chains of these lengths whose traces hold one held-out fact."""
    return _chains(rng, lengths, held_out, 1)


def make_problems(
    num: int, *, seed: int, length: int, held_out: frozenset[Fact], hard_share: float, exclude: Sequence[str] = ()
) -> list[Problem]:
    """Returns `num` different questions.

    Args:
      num: how many.
      seed: picks them.
      length: steps in a chain; the difficulty knob beside `hard_share`.
      held_out: the facts that the warm start does not show.
      hard_share: share of the questions that contain exactly one held-out fact; the others contain none.
      exclude: questions not to be used (those of another split).

    Raises:
      UserError: there are not so many different chains of this length.
    """
    rng = random.Random(seed)
    num_hard = round(num * hard_share) if held_out else 0
    hard, easy = (_chains(rng, [length], held_out, count) for count in (1, 0))
    questions = draw_different(((hard, num_hard), (easy, num - num_hard)), exclude)
    if questions is None:
        raise UserError(f"there are fewer than {num} different chains of {length} steps; ask for fewer.")
    rng.shuffle(questions)
    return [Problem(i, q, answer(q), solution(q)) for i, q in enumerate(questions)]


def draw_different(streams: Iterable[tuple[Iterator[str], int]], exclude: Iterable[str] = ()) -> list[str] | None:
    """Returns so many questions of each stream, no two alike and none of `exclude`.

    None where there seem to be too few: `_MOST_MISSES` in a row had been seen before.
    """
    seen, drawn = set(exclude), []
    for questions, num in streams:
        for _ in range(num):
            new = next((one for one in itertools.islice(questions, _MOST_MISSES) if one not in seen), None)
            if new is None:
                return None
            seen.add(new)
            drawn.append(new)
    return drawn


def made_up_result(rng: random.Random, result: int) -> int:
    """Returns a result that some other fact might have."""
    return rng.choice([value for value in range(82) if value != result])


def self_check(question: str, response: str) -> str:
    """Returns the critique that the policy is taught to write: each step recomputed up to the first wrong one."""
    error = check_steps(question, response)
    steps = trace(question)[: error.step - 1 if error else None]
    holds = ", ".join(f"{left}{op}{right}={value}" for (left, op, right), value in steps)
    verdict = texts.execution(error is None, error)
    return f"{holds}. {verdict}" if holds else verdict


# --- the tokenizer ------------------------------------------------------------------------------------------------


def train_tokenizer(folder: pathlib.Path, *, phrases: Sequence[str] = PHRASES) -> None:
    """Writes a task's SentencePiece model: characters, numbers to 99 and the task's phrases as single pieces.

    What it writes is part of the package (`assets/arithmetic`, by default), so a run never trains it.
    """
    import sentencepiece

    pieces = [*phrases, *map(str, range(100))]
    alphabet = "".join(chr(i) for i in range(33, 127)) + "\n"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # One by one: side by side, two letters could be a phrase.
        sentence_iterator=iter([c for c in alphabet if not c.isdigit()] * 2),
        model_writer=model,
        model_type="char",
        vocab_size=400,
        hard_vocab_limit=False,
        character_coverage=1.0,
        user_defined_symbols=[piece.replace(" ", "\u2581") for piece in pieces],
        control_symbols=["<|user|>", "<|assistant|>", "<|end|>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        bos_id=-1,
        eos_id=-1,
        unk_id=0,
        pad_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
