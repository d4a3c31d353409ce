"""What the tests of commands/test_data share with those that take longer."""

import json

from cgrpo_jax import data
from cgrpo_jax.runs import cli

MINE = ("--format=jsonl", "--question_key=q", "--answer_key=a")


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def run(out, name, *flags, command="prepare"):
    cli.run(
        data.main, require=("source",), flags=data.FLAGS, arguments=("command", "name"),
        argv=[command, name, f"--out={out}", *map(str, flags)],
    )  # fmt: skip
