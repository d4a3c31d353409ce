"""Rubrics of three items that a script rules on, as a judge behind an endpoint does: runs that are judged by them."""

import itertools
import json
import pathlib
import re

from chat_server import good
from method_equations import values_of

HOLDS = {
    "names the answer": lambda text: "Answer" in text,
    "has an even number of characters": lambda text: len(text) % 2 == 0,
    "begins with 7": lambda text: text.startswith("7"),
}
WEIGHTS = (3, 1, -2)
RUBRIC = [{"text": text, "weight": weight} for text, weight in zip(HOLDS, WEIGHTS, strict=True)]


def response_in(prompt):
    (mark,) = re.findall(r"between two lines of (\S+):", prompt)
    return prompt.split(f"\n{mark}\n")[1]


def check(handler):
    """Says of all items whether they hold of the response that stands in the prompt."""
    response = response_in(handler.body["messages"][0]["content"])
    verdicts = ["yes" if holds(response) else "no" for holds in HOLDS.values()]
    handler.send(good("\n".join(f"{number}: {verdict}" for number, verdict in enumerate(verdicts, 1))))


def rule(handler):
    """Says it of one item, and quotes the first line of the response."""
    prompt = handler.body["messages"][0]["content"]
    (criterion,) = re.findall(r"^Criterion: (.*)$", prompt, re.MULTILINE)
    response = response_in(prompt)
    verdict = "yes" if HOLDS[criterion](response) else "no"
    handler.send(good(f"Quote: {response.splitlines()[0]}\nVerdict: {verdict}"))


def options(folder, url, **more):
    """Returns the keys of the miniature's runs of configs/methods/rubric.py, with its questions."""
    return values_of("rubric") | {"num_responses": 4} | questions(folder, url) | more


def questions(folder, url):
    """Returns the keys of questions with rubrics, which are written to a folder, and of their judge."""
    rows = [
        {"question": f"{a}*{b}", "answer": json.dumps(RUBRIC)} for a, b in itertools.product((3, 4, 7), (2, 5, 8, 9))
    ]
    file = pathlib.Path(folder) / "rubrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "data.kind": "jsonl",
        "data.train": str(file),
        "data.num_eval": 0,
        "critique.step_checker": "equations",
        "judge.endpoint.url": url,
        "refine.max_pass": 0.5,
    }
