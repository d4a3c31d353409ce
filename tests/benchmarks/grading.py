"""How fast mathematical answers are graded, against one plain math-verify process, and whether verdicts are its own.

    python tests/benchmarks/grading.py [--json=FILE] [--data=FILE.jsonl] [--pairs=3] [--answers=100] [--only=NAME,...]
        [--changes=FILE]

8 responses for each gold answer, each about 1000 characters of working that ends in a box, on two processor cores and
with cold caches: every measurement starts new processes, whose imports are not counted. The plain process keeps the
gold answers that it has parsed, and parses and compares one response after the other. Numbers are medians of `--pairs`
measurements, with the least and the greatest; the two are measured in turn, so a ratio is that of neighbours in time.

    distinct   the 8 responses to a question end in 8 different answers, four of them right
    sampled    as a model samples them: some end in the same answer

Gold answers are made up in the proportions of MATH-500, or taken from the `answer` column of `--data`. Each workload
comes with the processor time that the calling thread spends on a response; with the verdicts that are wrong, since a
response is made to be right or not; and with those that differ from the plain process's (none may, of what is made up).
`--changes` lists the latter by workload, beside those that the file holds of others: what is right, and the rules that
rewrote their answers. Exits with 1 where a target is missed.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import random
import sys
import time
from collections.abc import Iterator, Sequence

from report import progress, row, table

from cgrpo_jax.rewards import answers
from cgrpo_jax.rewards.formulas import normalize
from cgrpo_jax.rewards.grader import Grader

TARGET = 1.7  # times the speed of one plain process, on two cores
THREAD_MS = 2.0  # at most, of the calling thread a response
RESPONSES = 8
CORES = 2
PATIENCE = 60  # seconds for an answer: its own limits are a busy machine's verdicts
_WORDS = (
    "we first note that the given value must satisfy both conditions so substitute it into the second equation and "
    "collect terms which leaves a simpler expression to factor then check each of the cases in turn"
).split()


def gold_answers(number: int, rng: random.Random) -> list[tuple[str, list[str]]]:
    """Returns gold answers in about the proportions of MATH-500, each with three other spellings of it."""
    found = []
    for _ in range(number):
        a, b, c = rng.randint(2, 60), rng.randint(2, 30), rng.choice((2, 3, 5, 7, 11, 13))
        found.append(rng.choices(_KINDS, weights=(58, 14, 7, 6, 5, 5, 5))[0](a, b, c))
    return found


def _integer(a, b, c):
    n = a * b
    return f"{n}", [f"{a} \\cdot {b}", f"{n}.0", f"x = {n}"]


def _fraction(a, b, c):
    below = a * c + 1
    return f"\\frac{{{b}}}{{{below}}}", [
        f"\\dfrac{{{b}}}{{{below}}}",
        f"{b}/{below}",
        f"\\frac{{{2 * b}}}{{{2 * below}}}",
    ]


def _radical(a, b, c):
    return f"{a}\\sqrt{{{c}}}", [f"{a} \\sqrt{c}", f"\\sqrt{{{a * a * c}}}", f"\\sqrt{{{c}}} \\cdot {a}"]


def _pair(a, b, c):
    return f"({a},{b})", [f"({a}, {b})", f"\\left({a},{b}\\right)", f"\\left( {a}, {b} \\right)"]


def _polynomial(a, b, c):
    return f"x^2+{a}x+{b}", [f"x^{{2}} + {a}x + {b}", f"{b}+{a}x+x^2", f"x(x+{a})+{b}"]


def _angle(a, b, c):
    return f"{a}^\\circ", [f"{a}", f"{a}^{{\\circ}}", f"{a}\\text{{ degrees}}"]


def _multiple_of_pi(a, b, c):
    return f"{a}\\pi", [f"{a} \\pi", f"\\pi \\cdot {a}", f"\\frac{{{2 * a}\\pi}}{{2}}"]


_KINDS = (_integer, _fraction, _radical, _pair, _polynomial, _angle, _multiple_of_pi)


def read_answers(path: pathlib.Path, number: int, rng: random.Random) -> list[tuple[str, list[str]]]:
    """Returns gold answers of a file, each with other spellings of it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["answer"] for line in lines]
    return [
        (gold, [f" {gold} ", f"{gold}\\;", f"\\displaystyle {gold}"])
        for gold in rng.sample(golds, min(number, len(golds)))
    ]


def endings(gold: str, spellings: Sequence[str], name: str, rng: random.Random) -> list[tuple[str, bool]]:
    """Returns the final answers of the responses to a question, and whether each is right."""
    whole = gold.lstrip("-").isdecimal()
    wrong = [str(int(gold) + k) if whole else f"{gold}+{k}" for k in rng.sample(range(1, 100), 4)]
    if name == "sampled":
        right, wrong = [gold, gold, gold, spellings[0], spellings[0]], [wrong[0], wrong[0], wrong[1]]
    else:
        right = [gold, *spellings]
    return [*((final, True) for final in right), *((final, False) for final in wrong)]


def response(final: str, rng: random.Random) -> str:
    """Returns working of about 1000 characters with formulas in it, and the final answer in a box."""
    lines = []
    for step in range(8):
        words = " ".join(rng.choices(_WORDS, k=14))
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        lines.append(f"Step {step + 1}: {words}, thus ${a}x + {b} = {a + b}$ and \\(y = \\frac{{{a}}}{{{b}}}\\).")
    return "\n".join([*lines, f"The final answer is $\\boxed{{{final}}}$."])


def workload(
    golds: Sequence[tuple[str, list[str]]], name: str, rng: random.Random
) -> tuple[list[tuple[str, str]], list[bool]]:
    """Returns the rows (response, gold answer), those of a question beside each other, and which of them are right."""
    made = [(gold, final, right) for gold, others in golds for final, right in endings(gold, others, name, rng)]
    return [(response(final, rng), gold) for gold, final, _ in made], [right for *_, right in made]


def plain(rows: Sequence[tuple[str, str]]) -> tuple[float, list[bool]]:
    """Grades by math-verify alone; returns the seconds and the verdicts. To be run in a process of its own."""
    import logging

    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    math_verify.parse("$1$")
    began, parsed, verdicts = time.monotonic(), {}, []
    for text, gold in rows:
        if gold not in parsed:
            parsed[gold] = math_verify.parse(f"\\boxed{{{gold}}}", parsing_timeout=PATIENCE)
        own = math_verify.parse(text, parsing_timeout=PATIENCE)
        verdicts.append(math_verify.verify(parsed[gold], own, timeout_seconds=PATIENCE))
    return time.monotonic() - began, verdicts


def in_own_process(rows: Sequence[tuple[str, str]]) -> tuple[float, list[bool]]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(plain, (rows,))


def ours(rows: Sequence[tuple[str, str]]) -> tuple[float, float, list[bool]]:
    """Grades by a new Grader; returns the seconds, those of this thread's processor time, and the verdicts."""
    with Grader("math", num_workers=CORES, timeout=30.0) as grader:
        started: set[int] = set()
        while len(started) < CORES:
            calls = [grader._pool("math").call(os.getpid) for _ in range(CORES)]
            started |= {call.outcome().value for call in calls}
        began, thread = time.monotonic(), time.thread_time()
        grades = grader.grade(*zip(*rows, strict=True))
        seconds, spent = time.monotonic() - began, time.thread_time() - thread
    return seconds, spent, [grade.score == 1.0 for grade in grades]


def reason(gold: str, final: str) -> str:
    """Says why a verdict on `final` may differ from math-verify's: the rules that rewrite either of the answers."""
    if final == gold:
        return "the gold answer itself"
    rules = [rule.name for rule in normalize.RULES if any(rule.apply(text) != text for text in (gold, final))]
    return f"rewritten: {', '.join(rules)}" if rules else "compared by value"


def changed(
    rows: Sequence[tuple[str, str]], rights: Sequence[bool], ours: Sequence[bool], theirs: Sequence[bool]
) -> Iterator[dict]:
    """Yields one row for each pair of gold and final answer whose verdicts differ."""
    seen = set()
    for (text, gold), right, verdict, plain_verdict in zip(rows, rights, ours, theirs, strict=True):
        final = answers.boxed(text) or ""
        if verdict != plain_verdict and (gold, final) not in seen:
            seen.add((gold, final))
            verdicts = {"right": right, "verdict": verdict, "math_verify": plain_verdict}
            yield {"gold": gold, "answer": final, **verdicts, "reason": reason(gold, final)}


def measure(
    name: str,
    rows: Sequence[tuple[str, str]],
    rights: Sequence[bool],
    *,
    pairs: int,
    changes: list[dict],
    most_differing: int | None,
) -> Iterator[dict]:
    """Yields the rows of one workload; adds to `changes` the verdicts that differ."""
    what = f"{len(rows)} responses, {len({gold for _, gold in rows})} gold answers"
    ratios, speeds, theirs, threads, differing, wrong = [], [], [], [], [], []
    for pair in range(pairs):
        plain_seconds, plain_verdicts = in_own_process(rows)
        seconds, thread, verdicts = ours(rows)
        ratios.append(plain_seconds / seconds)
        speeds.append(len(rows) / seconds)
        theirs.append(len(rows) / plain_seconds)
        threads.append(1e3 * thread / len(rows))
        differing.append(sum(a != b for a, b in zip(verdicts, plain_verdicts, strict=True)))
        wrong.append(sum(a != b for a, b in zip(verdicts, rights, strict=True)))
        progress(f"{name}: {pair + 1} of {pairs}, {ratios[-1]:.2f} times {theirs[-1]:.0f} responses/s")
        for (text, gold), right, verdict in zip(rows, rights, verdicts, strict=True):
            if verdict != right:
                progress(f"wrong: gold {gold!r}, answer {answers.boxed(text)!r}: {verdict}")
        changes += [one for one in changed(rows, rights, verdicts, plain_verdicts) if one not in changes]
    yield row(f"{name}/plain", theirs, f"{what}, one plain process", unit="1/s")
    yield row(f"{name}/ours", speeds, f"{what}, {CORES} workers", unit="1/s")
    yield row(f"{name}/ratio", ratios, what, target=TARGET)
    yield row(f"{name}/right", [sum(plain_verdicts) / len(rows)], what)
    yield row(f"{name}/wrong", wrong, f"{what}, wrong verdicts", target=0, most=True)
    yield row(f"{name}/differing", differing, f"{what}, other verdicts", target=most_differing, most=True)
    yield row(f"{name}/thread", threads, f"{what}, calling thread", unit="ms", target=THREAD_MS, most=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--only", default="distinct,sampled", metavar="NAME,...")
    parser.add_argument("--changes", type=pathlib.Path)
    given = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    found, listed = [], {}
    for name in given.only.split(","):
        rng = random.Random(f"grading {name}")
        golds = (
            read_answers(given.data, given.answers, rng)
            if given.data
            else list(dict(gold_answers(2 * given.answers, rng)).items())[: given.answers]
        )
        changes = listed[f"{given.data.stem if given.data else 'made-up'}/{name}"] = []
        most = None if given.data else 0
        found += measure(name, *workload(golds, name, rng), pairs=given.pairs, changes=changes, most_differing=most)
    if "sympy" in sys.modules or "math_verify" in sys.modules:
        sys.exit("the calling process has imported the parser")
    print(table(found))
    if given.changes:
        kept = json.loads(given.changes.read_text(encoding="utf-8")) if given.changes.exists() else {}
        given.changes.write_text(json.dumps(kept | listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(one["met"] is False for one in found))


if __name__ == "__main__":
    sys.exit(main())
