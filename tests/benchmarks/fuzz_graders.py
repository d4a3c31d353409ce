"""Grades random and mutated responses: no exception, no worker lost, and no text that takes far longer than others.

    python tests/benchmarks/fuzz_graders.py [--json=FILE] [--kinds=NAME,...] [--share=PERCENT] [--seed=TEXT]

Each kind gets 10,000 strings, `code` 1,000 programs: pieces of real answers, of LaTeX, JSON and Unicode (lone
surrogates and control characters among them), cut, doubled, swapped, nested and repeated; every 50th has 100,000
characters. A string is a pure function of the seed, its kind and its number, so that a fault can be had again.

A fault is an exception, a grade that has failed or timed out, or a long string that takes more than 10 times the median
of its kind (and more than 0.2 s). Each is printed with its number and the ends of its string. A program may run into
its time limit: that is its own doing.

With `--json`, results are written after every part of a kind, and those that a file holds of the same modules are not
computed again. With `--share`, that much of each kind is graded. It ends with 1 where there is a fault.
"""

import argparse
import hashlib
import json
import pathlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from cgrpo_jax.critiques import texts
from cgrpo_jax.critiques.step_check.equations import first_false_equation
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.rewards import comparisons
from cgrpo_jax.rewards.grader import Grade, Grader
from cgrpo_jax.rewards.rubrics import replies, rubric
from cgrpo_jax.rewards.thinking import after_thinking

ROOT = pathlib.Path(__file__).resolve().parents[2]
LENGTH, EVERY = 100_000, 50  # characters of a long string, and how many strings have one that is long
PART = 500  # strings between two times that results are written
MOST, LEAST_SECONDS = 10.0, 0.2  # times the median, and what is never too long
TIMEOUT = 10.0
SHOWN = 240  # characters of a string that are printed

# A line a piece, with "|" for an end of line and "␣" for a space at its end.
PROSE = """So the answer is␣
The answer is B.
**Answer:** 12
####␣
Therefore,␣
option C is correct
I choose D
we get x = 5
because␣
not␣
if␣
(A)␣
||
Answer:
Answer: 7*8=56
<think>
</think>
{"answer": "C"}
<answer>
</answer>
答案：C
Antwort: C
1: yes|
2) no|
Better: A
- names Paris|
["a", "b"]
{"criteria": ["a"], "reference": "r"}
Conclusion: right [END]
Conclusion:␣
my previous answer␣
6+6=13␣
2(x + 3) = 2x + 5␣
50% of 20 = 10␣
10/3 = 3.33, rounded␣
1 hour = 60 minutes␣
```json|
```|"""
MATHS = r"""\boxed{ \boxed{12} \frac{1}{2} \frac{ \sqrt{16} 3\pi (3,5) [0,1) \{1,2\} x^2+1 \text{cm}^2 10^{6} 1.5e3
2\times10^{-3} 1,234,567 1.234,56 50\% \$5 - − \left( \right) \begin{pmatrix}1&2\\3&4\end{pmatrix} \int_0^1xdx \log_28
\infty x\geq5 90^\circ \pm \cdot ^ _ { } $ $$ = ! | \\ \ & ~ ½ 10⁶ ９ ٣ √ π ∪ 或 0.\overline{3} \mathrm{e} 1e999999999
99999999999999999999999999999999999999999999999999 00000000000000000000000000000000 1/0 2^{2^{2^{99}}} \, \text{ 1/2"""
PROGRAMS = r"""def f(x):|    return x + 1|
```python|def f(x):|    return 2|```|
import math|
print(
raise ValueError(chr(0xd800))|
class A:|    def __eq__(self, other): return True|
f = lambda x: [x] * 10**6|
def f(x): return f(x)|
x = '
import sys; sys.exit(3)|
import os; os._exit(0)|
f = 9**9**5|
f = {}|
[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[
((((((((((((((((((((((((((((((((((((((((
lambda:␣
␣␣␣␣
if x:|
def f(x):|    return '\ud800'|
def f(x):|    return float('nan')|
def f(x):|    raise RecursionError('a' * 10**6)|
import threading|
async def f(x): ...|
f = type('f', (), {})|
def f(x):|    print('x' * 10**6)|    return 2|"""
ODD = """\ud800 \udfff \x00 \x1b[31m \u202e \u200b \u0301 \ufeff \U0001f600 \r \t \x85 \u2028 \xa0 \n # ''' ``` ~~~"""


def lines(text: str) -> list[str]:
    return [line.replace("|", "\n").replace("␣", " ") for line in text.split("\n")]


RESPONSES = [*lines(PROSE), *MATHS.split(), "1 234 ", "2 1/2 ", *ODD.split(" ")]
CODE = [*lines(PROGRAMS), *ODD.split(" ")]


def text_of(seed: str, kind: str, number: int) -> str:
    """Returns a string of a kind."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    pieces = CODE if kind == "code" else RESPONSES
    if number % EVERY == 0:
        # A program that works long says nothing of its grader.
        return long_text(rng, [piece for piece in pieces if "10**6" not in piece and "9**9" not in piece])
    text = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
    for _ in range(rng.randint(0, 6)):
        text = mutated(rng, text, pieces)
    return text


def long_text(rng: random.Random, pieces: Sequence[str]) -> str:
    """Returns a string of `LENGTH` characters: one piece again and again, some, or all in any order."""
    if rng.random() < 0.2:
        unit = "".join(rng.choices(pieces, k=LENGTH // 4))
    else:
        unit = "".join(rng.choices([*pieces, " ", "a", "B", "7", ", "], k=rng.choice((1, 1, 2, 3))))
        for _ in range(rng.choice((0, 0, 1))):
            unit = mutated(rng, unit, pieces)
    ends = [rng.choice(["", *pieces]) for _ in range(2)]
    middle = max(0, LENGTH - len(ends[0]) - len(ends[1]))
    return ends[0] + ((unit or "a") * (middle // len(unit or "a") + 1))[:middle] + ends[1]


def mutated(rng: random.Random, text: str, pieces: Sequence[str]) -> str:
    """Returns a text with a slice cut out, doubled, moved, repeated or put in braces, or with something put in."""
    start, end = sorted(rng.randint(0, len(text)) for _ in range(2))
    before, inner, after = text[:start], text[start:end], text[end:]
    changes = [
        before + after,
        before + inner + inner + after,
        before + after + inner,
        before + inner[:20] * rng.randint(2, 40) + after,
        before + "{" * rng.randint(1, 30) + inner + "}" * rng.randint(0, 30) + after,
        before + rng.choice(pieces) + inner + after,
        before + chr(rng.choice((rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000)))) + after,
        before + str(rng.getrandbits(rng.choice((8, 64, 5000)))) + after,
        before + inner[::-1] + after,
    ]
    return rng.choice(changes)


def shown(text: str) -> str:
    """Returns a string as people can read it: escaped, and of a long one both ends."""
    if len(text) <= SHOWN:
        return ascii(text)
    return f"{ascii(text[: SHOWN // 2])} ... {ascii(text[-SHOWN // 2 :])}, {len(text):,} characters"


# --- kinds --------------------------------------------------------------------------------------------------------

GOLDS = {
    "numeric": ("7", "1,234.5", "3/4"),
    "choice": ("B", "C"),
    "exact": ("Paris", "7"),
    "trace": ("56", "7*8=56"),
    "math": ("12", "\\frac{1}{2}", "x^2 + 1", "(3, 5)", "\\text{Evelyn}"),
    "code": ('{"asserts": ["assert f(1) == 2"], "names": ["f"]}', '{"stdin": [{"input": "1", "output": "2"}]}'),
}


def compare(kind: str, text: str, number: int) -> None:
    """Grades by a kind without a parser, also with the string for the gold answer."""
    golds = GOLDS[kind]
    response = after_thinking(text)
    score, extracted, reason = comparisons.COMPARE[kind](response, golds[number % len(golds)])
    assert score in (0.0, 1.0) and len(extracted or "") <= 200 and 0 < len(reason) <= 500, (score, extracted, reason)
    comparisons.READABLE[kind](text)


def read_replies(text: str, number: int) -> None:
    """Reads the string as a judge's replies and as a rubric."""
    replies.read_verdicts(text, number=1 + number % 3)
    replies.read_comparison(text)
    replies.read_score(text)
    replies.read_ruling(text, shown=[text])
    assert (rubric.read(text) is None) == bool(rubric.fault(text))


def read_critique(text: str, number: int) -> None:
    texts.parse_verdict(text)
    texts.mentions_critique(text)
    texts.of_tests(False, text)
    texts.of_checklist(False, text)


def check_steps(text: str, number: int) -> None:
    for error in (first_false_equation(text), arithmetic.check_steps("7*8+6+6", text)):
        assert len(texts.execution(False, error)) < 2000


ALONE: dict[str, Callable[[str, int], None]] = {
    **{kind: lambda text, number, kind=kind: compare(kind, text, number) for kind in comparisons.COMPARE},
    "judge": read_replies,
    "critique": read_critique,
    "steps": check_steps,
}
TOTALS = dict.fromkeys(ALONE, 10_000) | {"math": 10_000, "code": 1000}


def part_of(kind: str, numbers: Sequence[int], seed: str, grader: Grader | None = None) -> dict:
    """Returns what became of some strings of a kind: faults, and the seconds that each long one took."""
    faults: list[dict] = []
    seconds, timeouts, began = {}, 0, time.monotonic()
    for number in numbers:
        text = text_of(seed, kind, number)
        took, grade = graded(kind, text, number, grader)
        if grade.timed_out and kind != "code":  # a busy machine is no fault
            took, grade = graded(kind, text, number, grader)
        timeouts += grade.timed_out
        if grade.failed or (grade.timed_out and kind != "code"):
            faults.append({"number": number, "fault": grade.reason[:500], "text": shown(text)})
        elif number % EVERY == 0 and not grade.timed_out:
            seconds[number] = round(took, 4)
    took = round(time.monotonic() - began, 1)
    return {"strings": len(numbers), "faults": faults, "timeouts": timeouts, "long": seconds, "seconds": took}


def graded(kind: str, text: str, number: int, grader: Grader | None) -> tuple[float, Grade]:
    """Grades a string; returns the seconds that it took, and a grade that has failed where an exception was raised."""
    clock = time.process_time if grader is None else time.monotonic
    began = clock()
    try:
        if grader is None:
            ALONE[kind](text, number)
            grade = Grade(0.0, None, "read")
        else:
            grade = grader.submit(text, GOLDS[kind][number % len(GOLDS[kind])]).result()
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        grade = Grade(0.0, None, f"{type(error).__name__}: {error}", failed=True)
    return clock() - began, grade


def too_slow(kind: str, parts: Sequence[dict], seed: str, grader: Grader | None = None) -> tuple[float, list[dict]]:
    """Returns the median seconds of a kind's long strings, and those that take far longer, tried again."""
    seconds = {int(number): took for part in parts for number, took in part["long"].items()}
    if not seconds:
        return 0.0, []
    median = statistics.median(seconds.values())
    limit, slow = max(LEAST_SECONDS, MOST * median), []
    for number in [number for number, took in seconds.items() if took > limit]:
        text = text_of(seed, kind, number)
        # A busy machine is no fault. A grade that is remembered says nothing.
        took = min(graded(kind, text + " " * attempt, number, grader)[0] for attempt in (1, 2))
        if took > limit:
            slow.append({"number": number, "fault": f"{took:.2f} s, median {median:.3f} s", "text": shown(text)})
    return median, slow


def modules_text() -> str:
    """Returns a digest of the modules that read what others write, and of this program."""
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes())
    for room in ("rewards", "critiques", "datasets/tasks"):
        for path in sorted((ROOT / "cgrpo_jax" / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=pathlib.Path, help="where results are kept")
    parser.add_argument("--kinds", default=",".join(TOTALS), help="which, with commas between")
    parser.add_argument("--share", type=float, default=100.0, help="percent of each kind's strings")
    parser.add_argument("--seed", default="0", help="by which they are made")
    options = parser.parse_args(argv)
    key = modules_text()
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    results = {(row["kind"], row["first"], row["strings"], row["seed"]): row for row in kept}
    num_faults = 0
    for kind in options.kinds.split(","):
        total, parts = round(TOTALS[kind] * options.share / 100), []
        grader = None if kind in ALONE else Grader(kind, timeout=TIMEOUT)
        if grader is not None:
            grader.submit("1", GOLDS[kind][0]).result()  # its workers start
        for first in range(0, total, PART):
            numbers = range(first, min(first + PART, total))
            name = (kind, first, len(numbers), options.seed)
            if results.get(name, {}).get("key") != key:
                part = part_of(kind, numbers, options.seed, grader)
                results[name] = {"kind": kind, "first": first, "seed": options.seed, "key": key} | part
                if options.json:
                    rows = sorted(results.values(), key=lambda row: (row["kind"], row["first"], row["strings"]))
                    options.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
            parts.append(results[name])
        median, slow = too_slow(kind, parts, options.seed, grader)
        if grader is not None:
            grader.close()
        faults = [fault for part in parts for fault in part["faults"]] + slow
        num_faults += len(faults)
        longest = max((took for part in parts for took in part["long"].values()), default=0.0)
        print(
            f"{kind}: {total} strings, {len(faults)} faults, {sum(part['timeouts'] for part in parts)} timeouts; "
            f"{LENGTH:,} characters: median {median:.3f} s, longest {longest:.3f} s",
            *(f"  {kind} {fault['number']}: {fault['fault']}: {fault['text']}" for fault in faults),
            sep="\n",
            flush=True,
        )
    return 1 if num_faults else 0


if __name__ == "__main__":
    sys.exit(main())
