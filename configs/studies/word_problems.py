"""Writes one-step word problems that a model of 135M parameters can partly solve, as JSON lines.

    python configs/studies/word_problems.py --out=runs/words

`train.jsonl` holds 2000 of them, `test.jsonl` 200 others: sums and differences of numbers up to 30, and products of two
digits. The same seed writes the same problems.
"""

import argparse
import json
import pathlib
import random
from collections.abc import Iterator

NAMES = ("Tom", "Ann", "Ben", "Mia", "Sam", "Eva", "Max", "Zoe", "Leo", "Amy", "Dan", "Kim", "Joe", "Liz", "Ned", "Pam")
THINGS = ("apples", "pens", "books", "coins", "cards", "shells", "marbles", "stickers", "cookies", "stamps")
SUMS = (
    "{name} has {a} {things}. {other} gives {name} {b} more {things}. How many {things} does {name} have now?",
    "{name} found {a} {things} in the morning and {b} {things} in the afternoon. How many {things} did {name} find in "
    "all?",
    "{name} has {a} {things} and {other} has {b} {things}. How many {things} do they have together?",
)
DIFFERENCES = (
    "{name} had {a} {things} and gave {b} of them to {other}. How many {things} does {name} have left?",
    "{name} has {a} {things}. {other} has {b} {things}. How many more {things} does {name} have than {other}?",
    "There were {a} {things} on the table. {name} took {b} of them away. How many {things} are left on the table?",
)
PRODUCTS = (
    "{name} has {a} boxes with {b} {things} in each box. How many {things} does {name} have in all?",
    "{name} buys {b} {things} every day. How many {things} does {name} buy in {a} days?",
)


def problems(seed: int) -> Iterator[dict[str, str]]:
    """Yields problems, no two with the same question, for as long as there are any."""
    rng, seen = random.Random(seed), set()
    while True:
        kind = rng.choice((SUMS, DIFFERENCES, PRODUCTS))
        if kind is SUMS:
            a, b = rng.randint(2, 20), rng.randint(2, 20)
            answer = a + b
        elif kind is DIFFERENCES:
            a = rng.randint(6, 30)
            b = rng.randint(2, a - 2)
            answer = a - b
        else:
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            answer = a * b
        name, other = rng.sample(NAMES, 2)
        question = rng.choice(kind).format(name=name, other=other, things=rng.choice(THINGS), a=a, b=b)
        if question not in seen:
            seen.add(question)
            yield {"question": question, "answer": str(answer)}


def main(out: str, seed: int) -> None:
    """Writes both files."""
    folder, made = pathlib.Path(out), problems(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in (("train", 2000), ("test", 200)):
        lines = [json.dumps(next(made)) + "\n" for _ in range(number)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the two files")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.out, arguments.seed)
