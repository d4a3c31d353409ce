"""Grading of mathematical answers with math-verify, run only inside worker processes.

math-verify and SymPy can hang or eat all memory on what a model writes, so the trainer never calls this module's
functions itself: `rewards.Grader` runs them in processes that it can kill. Nothing heavy is imported at the top.
"""

import re
import sys

TAIL_CHARS = 4000  # without a box only the end is searched: math-verify's patterns are slower than linear
MAX_ANSWER_CHARS = 1000  # no gold answer is near this long; deep nesting would only burn the time limit

_BOX = re.compile(r"\\f?boxed\s*\{")
_BETWEEN_BOXES = re.compile(r"[\s$.]*(?:,|,?\s*\band\b|,?\s*\bor\b)[\s$]*")


def start(memory_limit):
    """Initialises a worker: imports math-verify before the first time limit runs, and limits the address space."""
    import logging

    import math_verify  # noqa: F401

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time limits are off
    if memory_limit and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))


def without_thinking(text):
    """The text after the thinking part; empty if a `<think>` was never closed."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def boxed(text):
    """Contents of the last `\\boxed{...}`, or None. Boxes joined by "and", "or" or a comma are one answer: "1, 2".

    Only the last one counts, so a response can't collect the reward by boxing every candidate.
    """
    spans = []
    end = 0
    for match in _BOX.finditer(text):
        if match.start() < end:
            continue  # a box within a box
        depth = 0
        for brace in re.finditer(r"\\[{}]|[{}]", text[match.end() - 1 : match.end() + MAX_ANSWER_CHARS]):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                end = match.end() - 1 + brace.end()
                spans.append((match.start(), end, text[match.end() : end - 1]))
                break
    if not spans:
        return None
    first, _, content = spans.pop()
    while spans and _BETWEEN_BOXES.fullmatch(text, spans[-1][1], first):
        first, _, earlier = spans.pop()
        content = f"{earlier}, {content}"
    return content.strip()


def parse(text):
    """math-verify's reading of `text`: SymPy expressions, then the string that they came from; empty if none."""
    import math_verify

    # The pool enforces the time limit: math-verify's own rests on SIGALRM, which compiled code can ignore.
    return math_verify.parse(text, parsing_timeout=None)


def readable(answer):
    """Does math-verify read the gold answer as mathematics, rather than keep it as a string?"""
    if not answer.strip() or len(answer) > MAX_ANSWER_CHARS:
        return False
    return any(not isinstance(value, str) for value in parse(f"\\boxed{{{answer}}}"))


def grade(response, answer):
    """Compares the final answer of `response` with `answer`.

    Returns:
      `(score, extracted, reason)`, see `rewards.Grade`.
    """
    import math_verify

    if not readable(answer):
        return 0.0, None, f"gold answer {answer[:80]!r} can't be read"
    text = without_thinking(response)
    box = boxed(text)
    predicted = parse(text[-TAIL_CHARS:] if box is None else f"\\boxed{{{box}}}")
    if not predicted:
        return 0.0, box, "no answer found"
    extracted = (box if box is not None else str(predicted[-1]))[:200]  # for logs and people
    gold = parse(f"\\boxed{{{answer}}}")
    if math_verify.verify(gold, predicted, timeout_seconds=None):
        return 1.0, extracted, "equal"
    return 0.0, extracted, "not equal"


def loaded_modules():
    """Names of the modules that this worker has imported."""
    return sorted(sys.modules)
