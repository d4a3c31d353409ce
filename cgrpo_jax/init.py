"""Writes a first configuration: for your data, your Hugging Face folder, your reward.

    python -m cgrpo_jax.init --data=train.jsonl --model=FOLDER --out=my_run.py
    python -m cgrpo_jax.init --data=train.jsonl --eval=test.jsonl --model=FOLDER --reward=FILE.py:score --out=my_run.py

It reads the data and the model's config.json and tokenizer, says what it found (columns, the answer's place, lengths),
chooses grader, critique and lengths that fit the model's context, and writes a short file with a comment on each line.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    from cgrpo_jax.runtime import signals

    signals.end_while_importing()

import os
import pathlib
import sys

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli, first_config
from cgrpo_jax.runtime import console, files, processes

FLAGS = {
    "data": cli.Flag("file of training questions, .jsonl or .parquet"),
    "model": cli.Flag("Hugging Face folder"),
    "out": cli.Flag("file to write, such as my_run.py; one that is there is not overwritten"),
    "eval": cli.Flag("file of held-out questions"),
    "reward": cli.Flag("your own reward, FILE.py:function with the signature of TRL's; by default by the gold answers"),
    "question_key": cli.Flag("column of the question; by default by its name"),
    "answer_key": cli.Flag("column of the gold answer; by default by its name"),
}


def main(
    data: str,
    model: str,
    out: str,
    eval: str | None,
    reward: str | None,
    question_key: str | None,
    answer_key: str | None,
) -> None:
    """Looks at what is given, writes the file, and checks that a run can have it; else the file goes again."""
    processes.start()
    path = pathlib.Path(out)
    _check_target(path)
    console.say(f"reading {data} and {model}")
    found = first_config.look_at(
        data=data,
        model=model,
        eval=eval or "",
        reward=reward or "",
        question_key=question_key or "",
        answer_key=answer_key or "",
    )
    console.say(said(found), sys.stdout)
    with files.checked(path):
        files.write_atomically(path, first_config.written(found, name=out))
    try:
        first_config.check(path)
    except UserError:
        path.unlink()
        raise
    console.say(f"wrote {path}; next: cgrpo train --config={path} --workdir=runs/{path.stem}", sys.stdout)


def said(found: first_config.Found) -> str:
    """Returns what was found, for people: a line each."""
    columns, n = found.columns, found.lengths
    where = f", the answer by {columns.pattern!r}" if columns.pattern else ""
    lines = [
        f"columns: question {columns.question!r}, answer {columns.answer!r}{where}",
        f"questions: {found.num_rows}, of up to {found.longest} tokens, 99 % of at most {found.p99}",
        f"grader: {found.grader}; critique: {found.critique}",
        f"model: {found.num_params / 1e6:.4g} million parameters, context {found.context} tokens",
        f"lengths: question {n.prompt}, response {n.response}, refine prompt {n.refine_prompt}"
        + (f", critique {n.critique}, critique prompt {n.critique_prompt}" if n.critique else ""),
    ]
    return "\n".join(lines)


def _check_target(path: pathlib.Path) -> None:
    if path.exists():
        raise UserError(f"--out {path} is there already; give another file, or remove it.")
    if path.suffix != ".py":
        raise UserError(f"--out {path} is no Python file; give one such as {path.stem or 'my_run'}.py.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--out {path} is in no folder; make {path.parent} first.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"--out {path} can't be written; give another file.")


if __name__ == "__main__":
    cli.run(main, require=("data", "model", "out"), flags=FLAGS)
