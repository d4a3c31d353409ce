"""A small task in code: one-line programs, some of whose operations have names that the warm start never explains.

A question lists what a function does to each of its arguments, in plain operations and in words coined for the task,
like the in-house names of a codebase; its answer is a program, which is graded by running it three times:

    f(a, b): a plus 3, b dofu          def f(a, b): return [a+3, b*7]

A `Glossary` says what the words mean: each is one operation with one number. Some are *taught* by the warm start's
lessons. Others are *held out*: no lesson contains them, so the policy hardly ever samples what they mean, while the
failing test that an execution critique quotes shows it. Training and held-out questions are different questions over
the same words.
"""

import dataclasses
import json
import pathlib
import random
from collections.abc import Iterator, Mapping, Sequence

from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards.sandbox.values import EXPECTED

VERSION = 3  # of the task and of the lessons of its warm start, as in `arithmetic`

# What is done to an argument: ("+", 3).
Step = tuple[str, int]

PLAIN = {"plus": "+", "minus": "-", "times": "*"}
ARGUMENTS = "abcd"
NUM_TESTS = 3
NUM_TAUGHT = 24  # words
_NUMBERS = range(2, 21)  # that an operation may have
_DECIDES = 21  # the least number on which no two operations agree
_INPUTS = range(3, 10)  # of a program's last test
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_DO = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}

# What is asked, for those who read of a run.
ASKED = (
    "One-line programs: a question lists what a function does to each of its arguments, in plain operations and in "
    "words coined for the task, each of which means one operation with one number"
)


@dataclasses.dataclass(frozen=True)
class Glossary:
    """What the words mean.

    Attributes:
      taught: words that lessons contain.
      held_out: words that no lesson contains.
    """

    taught: Mapping[str, Step]
    held_out: Mapping[str, Step]

    @property
    def words(self) -> dict[str, Step]:
        return {**self.taught, **self.held_out}


def operations() -> list[Step]:
    """Returns every operation that a word may mean."""
    return [(op, number) for op in _DO for number in _NUMBERS]


def make_glossary(num_held_out: int, *, seed: int = 0) -> Glossary:
    """Returns `NUM_TAUGHT` words that are taught and `num_held_out` that are not, by default always the same.

    Raises:
      UserError: there are not so many operations for held-out words to differ in.
    """
    most = len(operations())
    if not 0 <= num_held_out <= most:
        raise UserError(f"num_held_out {num_held_out} is not possible; 0 to {most} words of different meanings are.")
    rng, words = random.Random(f"glossary {seed}"), {}
    while len(words) < NUM_TAUGHT + num_held_out:
        words[_word(rng)] = None
    names = list(words)
    taught = dict(zip(names, rng.sample(operations(), NUM_TAUGHT), strict=False))
    return Glossary(taught, dict(zip(names[NUM_TAUGHT:], rng.sample(operations(), num_held_out), strict=True)))


def coin(rng: random.Random, glossary: Glossary) -> str:
    """Returns a word that is not in the glossary."""
    while (word := _word(rng)) in glossary.words:
        pass
    return word


def _word(rng: random.Random) -> str:
    return rng.choice(_SYLLABLES) + rng.choice(_SYLLABLES)


# --- questions and programs ---------------------------------------------------------------------------------------


def ask(names: Sequence[str]) -> str:
    """Returns the question for operations by their names, the first one on `a`.

    Example:
      >>> ask(["plus 3", "dofu"])
      'f(a, b): a plus 3, b dofu'

    Raises:
      UserError: there are more than programs have arguments, or none.
    """
    if not 0 < len(names) <= len(ARGUMENTS):
        raise UserError(
            f"{len(names)} operations are not possible, programs have 1 to {len(ARGUMENTS)} arguments; change "
            "data.chain_length and warm_start.chain_lengths."
        )
    arguments = ARGUMENTS[: len(names)]
    listed = ", ".join(f"{argument} {name}" for argument, name in zip(arguments, names, strict=True))
    return f"f({', '.join(arguments)}): {listed}"


def names_in(question: str) -> list[str]:
    """Returns the names of the operations that a question lists.

    Raises:
      UserError: it is no question of this task.
    """
    names = [part.partition(" ")[2] for part in question.partition(": ")[2].split(", ")]
    if not 0 < len(names) <= len(ARGUMENTS) or question != ask(names):
        raise UserError(f"{question!r} is no question such as 'f(a, b): a plus 3, b times 7'.")
    return names


def unseen(question: str, held_out: Mapping[str, Step]) -> list[str]:
    """Returns the words of a question that the warm start never shows, each once, with what they mean.

    Example:
      >>> unseen("f(a, b): a plus 3, b dofu", {"dofu": ("*", 7)})
      ['dofu (*7)']

    Raises:
      UserError: it is no question of this task.
    """
    found = [name for name in dict.fromkeys(names_in(question)) if name in held_out]
    return [f"{name} ({held_out[name][0]}{held_out[name][1]})" for name in found]


def steps(question: str, words: Mapping[str, Step]) -> list[Step]:
    """Returns the operations that a question asks for, one an argument.

    Example:
      >>> steps("f(a, b): a plus 3, b dofu", {"dofu": ("*", 7)})
      [('+', 3), ('*', 7)]

    Raises:
      UserError: it is no question of this task, or names an operation that is not among `words`.
    """
    known = {f"{name} {number}": (op, number) for name, op in PLAIN.items() for number in _NUMBERS} | dict(words)
    names = names_in(question)
    if unknown := [name for name in names if name not in known]:
        numbers = f"a number from {_NUMBERS[0]} to {_NUMBERS[-1]}"
        raise UserError(f"{unknown[0]!r} is no operation; use {', '.join(PLAIN)} with {numbers}, or a known word.")
    return [known[name] for name in names]


def write(operations: Sequence[Step]) -> str:
    """Returns the program that applies each operation to its argument, as the policy is taught to write it."""
    arguments = ARGUMENTS[: len(operations)]
    results = [f"{argument}{op}{number}" for argument, (op, number) in zip(arguments, operations, strict=True)]
    return f"def f({', '.join(arguments)}): return [{', '.join(results)}]"


def run(operations: Sequence[Step], values: Sequence[int]) -> list[int]:
    """Returns what the program of these operations returns.

    Example:
      >>> run([("+", 3), ("*", 7)], (4, 2))
      [7, 14]
    """
    return [_DO[op](value, number) for (op, number), value in zip(operations, values, strict=True)]


def pick_inputs(question: str) -> list[tuple[int, ...]]:
    """Returns what the programs of a question are tested on, always the same: 21 everywhere, twos, then anything.

    No two operations agree on 21, so a program that passes is right, and one failing test says what is meant. (On 1,
    `a*17` and `a+16` agree: a policy that has come to prefer the sum refines it wrongly for ever.)

    Example:
      >>> pick_inputs("f(a, b): a plus 3, b times 7")[:2]
      [(21, 21), (2, 2)]
    """
    number, rng = len(names_in(question)), random.Random(question)
    return [(_DECIDES,) * number, (2,) * number, tuple(rng.choice(_INPUTS) for _ in range(number))]


def answer(question: str, words: Mapping[str, Step]) -> str:
    """Returns the gold answer for grader `code`: three asserts."""
    right = steps(question, words)
    asserts = [f"assert {_call(values)} == {run(right, values)}" for values in pick_inputs(question)]
    return json.dumps({"asserts": asserts})


def feedback(attempt: Sequence[Step], right: Sequence[Step], inputs: Sequence[tuple[int, ...]]) -> str:
    """Returns what the grader says of the program of these operations, without running it.

    Example:
      >>> feedback([("+", 3), ("+", 9)], [("+", 3), ("*", 7)], [(4, 2), (5, 3), (8, 4)])
      'Test 1 of 3 fails: f(4, 2) returns [7, 11], wrong from index 1 on. Tests passed: 0 of 3.\\nExpected: [7, 14], \
at index 1 14'
    """
    failed = [number for number, values in enumerate(inputs) if run(attempt, values) != run(right, values)]
    if not failed:
        return f"passes all {len(inputs)} tests"
    values, total = inputs[failed[0]], len(inputs)
    given, expected = run(attempt, values), run(right, values)
    at = next(at for at in range(len(values)) if given[at] != expected[at])
    return (
        f"Test {failed[0] + 1} of {total} fails: {_call(values)} returns {given}"
        f"{f', wrong from index {at} on' if at else ''}. Tests passed: {total - len(failed)} of {total}."
        f"{EXPECTED}{expected}{f', at index {at} {expected[at]}' if at else ''}"
    )


def _call(values: Sequence[int]) -> str:
    return f"f({', '.join(map(str, values))})"


# --- problems -----------------------------------------------------------------------------------------------------


def pick_names(rng: random.Random, length: int, glossary: Glossary) -> list[str]:
    """Returns names of operations, each as likely a plain one as a taught word."""
    plain = [f"{name} {number}" for name in PLAIN for number in _NUMBERS]
    return [rng.choice(plain if rng.random() < 0.5 else list(glossary.taught)) for _ in range(length)]


def questions(rng: random.Random, lengths: Sequence[int], glossary: Glossary, *, hard: bool) -> Iterator[str]:
    """Yields questions of these lengths, with one held-out word each if `hard`, else with none."""
    while True:
        names = pick_names(rng, rng.choice(lengths), glossary)
        if hard:
            names[rng.randrange(len(names))] = rng.choice(list(glossary.held_out))
        yield ask(names)


def make_problems(
    num: int, *, seed: int, length: int, glossary: Glossary, hard_share: float, exclude: Sequence[str] = ()
) -> list[Problem]:
    """Returns `num` different questions.

    Args:
      num: how many.
      seed: picks them.
      length: arguments, and operations, of one.
      glossary: what the words mean.
      hard_share: share of the questions with one held-out word; the others have none.
      exclude: questions not to be used (those of another split).

    Raises:
      UserError: there are not so many different questions of this length, or functions have fewer arguments.
    """
    rng = random.Random(f"problems {seed}")
    num_hard = round(num * hard_share) if glossary.held_out else 0
    with_word, without = (questions(rng, [length], glossary, hard=hard) for hard in (True, False))
    found = arithmetic.draw_different(((with_word, num_hard), (without, num - num_hard)), exclude)
    if found is None:
        raise UserError(f"there are fewer than {num} questions of {length} operations; ask for fewer.")
    rng.shuffle(found)
    words = glossary.words
    return [Problem(i, q, answer(q, words), write(steps(q, words))) for i, q in enumerate(found)]


# --- the tokenizer ------------------------------------------------------------------------------------------------

PHRASES = (
    *(f"f({', '.join(ARGUMENTS[: i + 1])}): " for i in range(len(ARGUMENTS))),
    *(f"def f({', '.join(ARGUMENTS[: i + 1])}): return [" for i in range(len(ARGUMENTS))),
    *(f"{argument} " for argument in ARGUMENTS),
    *(f"{name} " for name in PLAIN),
    ", ",
    "\nTried: ",
    "\nCritique: ",
    "\nTry again.",
    "The answer is right.",
    "The answer is wrong.",
    "Test ",
    f" of {NUM_TESTS} fails: f(",
    ") returns [",
    *(f"], wrong from index {i} on. Tests passed: " for i in range(1, len(ARGUMENTS))),
    "]. Tests passed: ",
    f" of {NUM_TESTS}.",
    " Expected: [",
    *(f"], at index {i} " for i in range(1, len(ARGUMENTS))),
    "].",
    " Conclusion: right [END]",
    " Conclusion: wrong [END]",
    " ",
    *_SYLLABLES,
)


def train_tokenizer(folder: pathlib.Path) -> None:
    """Writes the task's SentencePiece model, which is part of the package (`assets/snippets`)."""
    arithmetic.train_tokenizer(folder, phrases=PHRASES)
