"""A judge with and without its evidence step, against the tests' own verdicts on programs that look right and fail.

    python tests/benchmarks/local_endpoint.py --model=FOLDER --port=8001
    python tests/benchmarks/judge_evidence.py --url=http://127.0.0.1:8001/v1 --model=NAME --json=FILE [--snippets=200]
        [--right=30]

Each snippet is a response whose program has one thing changed (failing_snippets.py), judged by one criterion: that the
function does what is asked. Beside them stand the right programs of the same tasks: a judge that says no to all would
agree with the tests on every failing one. The judge never sees the tests. FILE gets the programs that fail, once they
are known, and every judgement when it comes; neither is run, or asked of the same model and settings, again. Programs
that fail and right ones are asked about in turn, with and without evidence, so that what FILE holds when it is stopped
is a sample of both. What the endpoint did not answer is not in FILE, so the same command asks it again; it ends at once
where of all that it asked at a time nothing was. It ends with the table, and with 1 where answers are missing.
"""

import argparse
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import failing_snippets
from failing_snippets import Snippet
from scipy import stats

from cgrpo_jax.inference.chat_client import ChatClient
from cgrpo_jax.rewards.judge import Judge
from cgrpo_jax.rewards.rubrics.programs import Programs

CRITERION = "for all inputs that the question allows, the function returns what the question asks for"
MODES = {"plain": False, "evidence": True}
UNREADABLE = "judge failed: its reply can't be read"  # the reason of a grade that was answered, and has failed
FAILING = "fails its tests"  # what rows of programs are about; those of judgements name the judge


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of an OpenAI-like endpoint")
    parser.add_argument("--model", required=True, help="its name there, and in the table")
    parser.add_argument("--json", required=True, type=pathlib.Path, help="a line a judgement")
    parser.add_argument("--snippets", type=int, default=200, help="that fail")
    parser.add_argument("--right", type=int, default=30, help="right ones")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds of a reply")
    parser.add_argument("--max-length", type=int, default=384, help="tokens of a reply")
    options = parser.parse_args(arguments)
    known = _read(options.json)
    both = _failing(options.snippets, known, options.json), failing_snippets.right()[: options.right]
    snippets = [one for pair in itertools.zip_longest(*both) for one in pair if one]
    with (
        ChatClient(
            options.url,
            model=options.model,
            name="judge",
            concurrency=options.concurrency,
            timeout=options.timeout,
            max_attempts=1,
        ) as endpoint,
        Programs(num_workers=1, timeout=20.0) as programs,
        options.json.open("a") as file,
    ):
        keywords = {"programs": programs, "max_length": options.max_length}
        judges = {mode: Judge(endpoint, evidence=evidence, **keywords) for mode, evidence in MODES.items()}
        for first in range(0, len(snippets), options.concurrency):
            for mode, judge in judges.items():
                about = f"{options.model} {options.max_length} {mode}"
                some = snippets[first : first + options.concurrency]
                if left := [one for one in some if (one.key, about) not in known]:
                    known |= _judged(judge, left, about, file)
    about = f"{options.model} {options.max_length}"
    print(table(snippets, known, about))
    missing = sum((one.key, f"{about} {mode}") not in known for one in snippets for mode in MODES)
    if missing:
        print(f"{missing} of {len(snippets) * len(MODES)} were not answered; the same command asks for them again")
    return int(missing > 0)


def _read(path: pathlib.Path) -> dict[tuple[str, str], dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["key"], row["about"]): row for row in rows}


def _failing(number: int, known: dict, path: pathlib.Path) -> list[Snippet]:
    """Returns programs that fail, from the file where it has as many; else all are run, a minute each endless one."""
    found = [
        Snippet(row["question"], row["program"], row["tests"], False)
        for (_, about), row in known.items()
        if about == FAILING
    ]
    if len(found) < number:
        found = failing_snippets.failing(number)
        with path.open("a") as file:
            for one in found:
                row = {"key": one.key, "about": FAILING, "question": one.question, "program": one.program}
                file.write(json.dumps(row | {"tests": one.tests}) + "\n")
    return found[:number]


def _judged(judge: Judge, snippets: Sequence[Snippet], about: str, file) -> dict:
    """Judges snippets, all at a time; returns, and writes, what was said of those that were answered."""
    began, before, rubric = time.monotonic(), judge.counts, json.dumps([CRITERION])
    grades = [one.result() for one in [judge.submit(s.question, s.response, rubric) for s in snippets]]
    tokens = judge.counts["completion_tokens"] - before["completion_tokens"]
    # Else it would count as no judgement, and not be asked again. A reply that can't be read is one.
    answered = [not one.failed or one.reason == UNREADABLE for one in grades]
    if not any(answered):
        raise SystemExit(f"the endpoint has answered nothing: {grades[0].reason}")
    found = {}
    for snippet, grade in itertools.compress(zip(snippets, grades, strict=True), answered):
        found[snippet.key, about] = {
            "key": snippet.key,
            "about": about,
            "passes": snippet.passes,
            "says": None if grade.failed else grade.score == 1,
            "reason": grade.reason,
        }
    file.write("".join(json.dumps(row) + "\n" for row in found.values()))
    file.flush()
    print(f"{about}: {len(found)}, {tokens} tokens, {time.monotonic() - began:.0f} s", flush=True)
    return found


def table(snippets: Sequence[Snippet], known: dict, about: str) -> str:
    """Returns how often the judge disagrees with the tests, with 95 % intervals, by what they say and by its mode.

    A judgement that can't be read is neither; the intervals (Wilson) are of the others. Programs of which no answer
    came are not in it.
    """
    lines = [
        "| judge | programs | judged | no judgement | disagrees with the tests | 95 % |",
        "|---|---|---|---|---|---|",
    ]
    for mode in MODES:
        for passes, name in ((False, "fail"), (True, "right")):
            places = [(one.key, f"{about} {mode}") for one in snippets if one.passes == passes]
            rows = [known[place] for place in places if place in known]
            said = [row["says"] for row in rows if row["says"] is not None]
            wrong = sum(one != passes for one in said)
            share, interval = "-", "-"
            if said:
                low, high = stats.binomtest(wrong, len(said)).proportion_ci(method="wilson")
                share, interval = f"{wrong} ({wrong / len(said):.0%})", f"{low:.0%} to {high:.0%}"
            lines.append(f"| {mode} | {name} | {len(said)} | {len(rows) - len(said)} | {share} | {interval} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
