"""Critiques as text: default prompts for critics and refiners, verdicts, rule-written critiques, mentions, cuts."""

import random
import re
from collections.abc import Callable, Sequence

from cgrpo_jax.critiques.step_check.equations import StepError
from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards.rubrics import rubric
from cgrpo_jax.rewards.sandbox.values import EXPECTED
from cgrpo_jax.rewards.thinking import after_thinking

CRITIQUE_PROMPT = """\
Below are a problem and somebody's solution of it. Judge whether the solution is right.

Problem:
{question}

Solution:
{response}

Go through the solution one step at a time. For each step say whether it follows, and if it does not, what is wrong \
with it and how it could be mended. Then give your verdict on the final answer. Your last line must be exactly \
"Conclusion: right [END]" or exactly "Conclusion: wrong [END]"."""

CRITIQUE_PROMPT_WITH_ANSWER = """\
Below are a problem, its correct final answer, and somebody's solution of it. Judge whether the solution is right.

Problem:
{question}

Correct final answer:
{answer}

Solution:
{response}

Go through the solution one step at a time. For each step say whether it follows, and if it does not, what is wrong \
with it and how it could be mended. Then compare the solution's final answer with the correct one. Your last line \
must be exactly "Conclusion: right [END]" or exactly "Conclusion: wrong [END]"."""

CRITIQUE_PROMPT_WITH_SOLUTION = """\
Below are a problem, its correct final answer, a reference solution, and another solution. Judge whether the other \
solution is right.

Problem:
{question}

Correct final answer:
{answer}

Reference solution:
{solution}

Solution to judge:
{response}

Go through the solution to judge one step at a time. For each step say whether it follows, and if it does not, what is \
wrong with it and how it could be fixed. It may go another way than the reference: compare results, not wording. \
Then compare its final answer with the correct one. Your last line must be exactly "Conclusion: right [END]" or \
exactly "Conclusion: wrong [END]"."""

REFINE_PROMPT = """\
Solve the problem below. To help you, there is an attempt at it and an assessment of that attempt; use what is \
right in them and mend what is wrong.

Problem:
{question}

Attempt:
{response}

Assessment:
{critique}

Now write a new, complete solution of the problem, ending in its final answer. It must stand on its own: somebody \
who has seen only the problem will read it, so mention neither the attempt nor the assessment."""

REFINE_PROMPT_WITHOUT_CRITIQUE = """\
Solve the problem below. There is an attempt at it, which may be wrong; use what is right in it and mend what is wrong.

Problem:
{question}

Attempt:
{response}

Now write a new, complete solution of the problem, ending in its final answer. It must stand on its own: somebody \
who has seen only the problem will read it, so do not mention the attempt."""

HINT_PROMPT = """\
Below are a problem and its correct final answer. Write a hint for somebody who has tried to solve it and failed.

Problem:
{question}

Correct final answer:
{answer}

Work out for yourself how the problem is solved. Then say in a few sentences the idea, fact or method that a solver \
must not miss. Be abstract: give neither the final answer nor a step's result, nor so much that they follow at once."""

REFINE_PROMPT_WITH_HINT = """\
Solve the problem below. To help you, there is a hint.

Problem:
{question}

Hint:
{hint}

Now write a complete solution of the problem, ending in its final answer. It must stand on its own: somebody who has \
seen only the problem will read it, so do not mention the hint."""

_VERDICT = re.compile(r"Conclusion:\s*(right|correct|wrong|incorrect)\b[.\s]*\[END\]", re.IGNORECASE)


def parse_verdict(text: str, *, thinking_opened: bool = False) -> bool | None:
    """The verdict of a critique: True for right, False for wrong, None if there is none or the text contradicts itself.

    It is what the critique says after its thinking; one that was cut off within that has none.

    Args:
      text: what a critic wrote.
      thinking_opened: its prompt ends in a thinking part, which the text goes on with.

    Example:
      >>> parse_verdict("Step 2 does not follow. Conclusion: wrong [END]")
      False
    """
    said = after_thinking(text, opened=thinking_opened)
    verdicts = {word.lower() in ("right", "correct") for word in _VERDICT.findall(said)}
    return verdicts.pop() if len(verdicts) == 1 else None


_ANSWER = re.compile(r"\b(the answer is )(right|wrong)\b", re.IGNORECASE)
_OPPOSITE = {"right": "wrong", "wrong": "right", "correct": "incorrect", "incorrect": "correct"}


def inverted(critique: str, rng: random.Random) -> str:
    """Returns a critique with the opposite verdict, as a control: all else that it says stays.

    Example:
      >>> inverted("The answer is wrong. Conclusion: wrong [END]", random.Random(0))
      'The answer is right. Conclusion: right [END]'
    """

    def opposite(match: re.Match[str]) -> str:
        word = match[match.lastindex or 0]  # of both patterns the last group
        return match[0].replace(word, _OPPOSITE[word.lower()])

    return _ANSWER.sub(opposite, _VERDICT.sub(opposite, critique))


def shuffled(critique: str, rng: random.Random) -> str:
    """Returns a critique with its words in random order, as a control: length and verdict stay, what it says does not.

    Example:
      >>> shuffled("Step two is wrong. Conclusion: wrong [END]", random.Random(0)).endswith(" Conclusion: wrong [END]")
      True
    """
    verdicts = [match[0] for match in _VERDICT.finditer(critique)]
    words = _VERDICT.sub(" ", critique).split()
    rng.shuffle(words)
    return " ".join([*words, *verdicts[-1:]])


CORRUPTIONS: dict[str, Callable[[str, random.Random], str]] = {"inverted": inverted, "shuffled": shuffled}
ANOTHER = "another"  # a corruption that takes its text from elsewhere: what was said of another response


def _conclude(passed, *sentences):
    return " ".join([*filter(None, sentences), f"Conclusion: {'right' if passed else 'wrong'} [END]"])


def indicative(passed: bool, *, answer: str | None = None) -> str:
    """A critique that says only right or wrong, and with `answer` (`indicative_gt`) also the correct answer.

    Example:
      >>> indicative(False, answer="12")
      'The answer is wrong. The correct answer is 12. Conclusion: wrong [END]'
    """
    expected = None if answer is None else f"The correct answer is {answer}."
    return _conclude(passed, f"The answer is {'right' if passed else 'wrong'}.", expected)


def execution(passed: bool, error: StepError | None, *, reveal_value: bool = True) -> str:
    """A critique grounded in running the response's arithmetic: names the first step that does not hold.

    Example:
      >>> execution(False, first_false_equation("7*8=56 6+6=13"))
      'Step 2 is wrong: 6+6=12, not 13. Conclusion: wrong [END]'
    """
    if error is None:
        holds = "Every step that can be checked holds"
        return _conclude(passed, f"{holds}." if passed else f"{holds}, but the answer is wrong.")
    left, _, right = error.text.partition("=")
    if not reveal_value:
        step = f"Step {error.step} is wrong: {error.text} does not hold"
    else:
        # "13 = 6 + 6" is turned round; the value is always compared with the side that has to be worked out.
        worked = right if left.strip() == error.given else left
        gap = " " if left.endswith(" ") or right.startswith(" ") else ""
        step = f"Step {error.step} is wrong: {worked.strip()}{gap}={gap}{error.expected}, not {error.given}"
    return _conclude(passed, f"{step}, but the answer is right." if passed else f"{step}.")


def of_tests(passed: bool, feedback: str, *, reveal_value: bool = True) -> str:
    """A critique grounded in running the response's program: what the grader says of the first test that fails.

    Args:
      passed: the verdict.
      feedback: the grader's reason. Program and exceptions are quoted in it, so it may hold anything.
      reveal_value: also say what was expected.

    Example:
      >>> of_tests(False, "Test 1 of 1 fails: add(1, 2) returns -1. Tests passed: 0 of 1.\nExpected: 3")
      'Test 1 of 1 fails: add(1, 2) returns -1. Tests passed: 0 of 1. Expected: 3. Conclusion: wrong [END]'
    """
    said, _, expected = _without_end(feedback).partition(EXPECTED)
    said = said.strip().removesuffix(".") or f"The tests {'' if passed else 'do not '}pass"
    revealed = f"Expected: {expected.strip()}." if reveal_value and expected else None
    return _conclude(passed, f"{said[0].upper()}{said[1:]}.", revealed)


def of_checklist(passed: bool, feedback: str, *, reveal_value: bool = True) -> str:
    """A critique grounded in a rubric: the items that cost the response reward, each with its evidence.

    Args:
      passed: the verdict.
      feedback: the judge's reason. The response and its program are quoted in it, so it may hold anything.
      reveal_value: also say what the tests of an item expected.

    Example:
      >>> of_checklist(False, "met: 1; not met: 2\\n- Not met: names Paris. Evidence: It is Rome.")
      'Not met: names Paris. Evidence: It is Rome. Conclusion: wrong [END]'
    """
    said = _without_end(feedback).strip()
    found = rubric.findings(said, reveal=reveal_value)
    if not found:  # of a response that says nothing, or whose judge has failed
        found = ["All criteria are met" if passed else f"{said[:1].upper()}{said[1:]}"]
    return _conclude(passed, *(f"{one.removesuffix('.')}." for one in found))


def _without_end(feedback: str) -> str:
    """What a grader says, without what would look like a verdict of its own."""
    return re.sub(r"\[+(?=END\])", "", feedback, flags=re.IGNORECASE)


_MENTION = re.compile(
    r"""\b(?:the|this|that|your|above|provided|given)\s+(?:critique|critic|feedback|assessment|reviewer|evaluation)\b
    |\bcritiques?\b(?=\s+(?:says?|said|points?|pointed|above|provided|is|was|correctly|identif\w+))
    |\b(?:based\s+on|per|according\s+to|thanks\s+to|following)\s+(?:the\s+|your\s+)?(?:critique|feedback|assessment)\b
    |\b(?:as|you|was|were|been|correctly)\s+pointed\s+out\b
    |\b(?:my|your|the|an|this|our|in)\s+(?:previous|earlier|prior|initial|original|above)\s+
      (?:\w+\s+)?(?:answers?|attempts?|responses?|solutions?|reasoning)\b(?!\s+(?:times?|rates?)\b)
    |\b(?:previous|earlier|prior)\s+(?:attempt|response)s?\b(?!\s+(?:times?|rates?)\b)
    |\b(?:the|this|that)\s+attempt\b
    |\b(?:the|this|that|your|provided|given)\s+hints?\b
    |\bhints?\b(?=\s+(?:says?|said|suggests?|suggested|above|provided|tells?|told)\b)
    |\b(?:based\s+on|per|according\s+to|thanks\s+to)\s+hints?\b
    |\bas\s+hinted\b
    |\b(?:i|we)\s+(?:previously|earlier)\s+(?:said|wrote|answered|claimed|made|computed|calculated)\b""",
    re.IGNORECASE | re.VERBOSE,
)


def mentions_critique(text: str) -> bool:
    """Does a refinement speak of the critique, a hint or an earlier attempt, which its reader has not seen?"""
    return _MENTION.search(text) is not None


_NUMBERED = re.compile(r"\b(?:steps?|lines?|tests?|items?)\s+\d+", re.IGNORECASE)


def states_answer(critique: str, golds: Sequence[str]) -> bool:
    """Does a critique give the answer away: does a gold answer, or a whole solution, stand in it word for word?

    White space aside, and not within a longer word or number. What is short may stand there by chance, but numbers of
    steps, lines, tests and items are none.

    Args:
      critique: what refinements see.
      golds: the gold answer, and the solution where the data have one; empty ones stand nowhere.

    Example:
      >>> states_answer("Step 2 is wrong: 6*7=42, not 56.", ["42"]), states_answer("Step 2 is wrong.", ["2"])
      (True, False)
    """
    said = " ".join(_NUMBERED.sub("", critique).split())
    wanted = (" ".join(gold.split()) for gold in golds)
    return any(stands_in(said, gold) for gold in wanted if gold)


def stands_in(text: str, what: str) -> bool:
    """Does something stand in a text, not within a longer word or number?

    Example:
      >>> stands_in("4*7=28, 8+4=12", "4*7=28"), stands_in("14*7=28", "4*7=28")
      (True, False)
    """
    if what not in text:  # which is fast, and true of most
        return False
    return re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(what)}(?!\w|[.,]\d)", text) is not None


_NAMED = re.compile(r"\bStep \d+ is wrong: (.{1,200}?), not ")


def named_step(critique: str) -> str | None:
    """Returns the step that a critique of `execution` names, as it should be; None where it names none.

    Example:
      >>> named_step("Step 2 is wrong: 6+6=12, not 13. Conclusion: wrong [END]")
      '6+6=12'
    """
    found = _NAMED.search(critique)
    return found and found[1]


def cut_middle(ids: Sequence[int], limit: int, marker: Sequence[int]) -> list[int]:
    """Cuts a sequence to `limit` tokens by replacing its middle by `marker` (dropped where it would not fit).

    Example:
      >>> cut_middle([1, 2, 3, 4, 5, 6, 7], 5, [0])
      [1, 2, 0, 6, 7]
    """
    ids = list(ids)
    if len(ids) <= limit:
        return ids
    marker = list(marker) if len(marker) + 2 <= limit else []
    keep = limit - len(marker)
    head = (keep + 1) // 2
    return ids[:head] + marker + ids[len(ids) - (keep - head) :]


def check_template(template: str, fields: Sequence[str]) -> None:
    """Checks that a prompt template has a place for each field.

    Raises:
      UserError: a placeholder is missing.
    """
    missing = [f"{{{name}}}" for name in fields if f"{{{name}}}" not in template]
    if missing:
        raise UserError(
            f"prompt template {template[:60]!r} lacks {', '.join(missing)}; put each where its text belongs."
        )


def fill(template: str, **fields: str) -> str:
    """Replaces `{name}` by the field's text, in one pass: braces in the text (LaTeX, "{response}") stay as they are.

    Example:
      >>> fill("Q: {question}", question="What is \\\\frac{1}{2}?")
      'Q: What is \\\\frac{1}{2}?'

    Raises:
      UserError: the template lacks a placeholder of one of the fields.
    """
    check_template(template, list(fields))
    return re.sub(r"\{(" + "|".join(fields) + r")\}", lambda match: fields[match.group(1)], template)
