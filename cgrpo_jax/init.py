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
import re
import sys

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli, first_config, refinement_sections
from cgrpo_jax.runtime import console, files, processes

FLAGS = {
    "data": cli.Flag("file of training questions, .jsonl or .parquet, also gs://", is_path=True, in_bucket=True),
    "model": cli.Flag("Hugging Face folder, also gs://", is_path=True, in_bucket=True),
    "out": cli.Flag("file to write, such as my_run.py; one that is there is not overwritten", is_path=True),
    "eval": cli.Flag("file of held-out questions, also gs://", is_path=True, in_bucket=True),
    "reward": cli.Flag("your own reward, FILE.py:function with the signature of TRL's; by default by the gold answers"),
    "question_key": cli.Flag("column of the question; by default by its name"),
    "answer_key": cli.Flag("column of the gold answer; by default by its name"),
}
# Why a kind of critique was chosen.
_WHY = {
    "indicative": "a rule says right or wrong",
    "indicative_gt": "a rule says right or wrong, and the answer",
    "execution": "a rule finds the wrong step",
    "cot": "the policy criticises itself",
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
        files.write_atomically(path, written(found, name=out))
    try:
        first_config.check(path)
    except UserError:
        path.unlink()
        raise
    measured = f"cgrpo evaluate --workdir=runs/{path.stem}" + ("" if eval else " --config.data.eval=FILE")
    console.say(
        f"wrote {path}; next: cgrpo train --config={path} --workdir=runs/{path.stem}\nthen: {measured}", sys.stdout
    )


def said(found: first_config.Found) -> str:
    """Returns what was found, for people: a line each."""
    columns, lengths = found.columns, found.lengths
    where = f", the answer by {columns.pattern!r}" if columns.pattern else ""
    lines = [
        f"columns: question {columns.question!r}, answer {columns.answer!r}{where}",
        f"questions: {found.num_rows}, of up to {found.longest} tokens, 99 % of at most {found.p99}",
        f"grader: {found.grader}; critique: {found.critique}"
        + (f", as the policy's own would take {n} tokens" if (n := found.written_critique) else ""),
        f"model: {found.num_params / 1e6:.4g} million parameters, context {found.context} tokens",
        f"lengths: question {lengths.prompt}, response {lengths.response}, refine prompt {lengths.refine_prompt}"
        + (f", critique {lengths.critique}, critique prompt {lengths.critique_prompt}" if lengths.critique else ""),
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


# --- the file -----------------------------------------------------------------------------------------------------


def written(found: first_config.Found, *, name: str) -> str:
    """Returns the text of the configuration's file.

    Args:
      found: from `look_at`.
      name: of the file, for its commands.
    """
    lines = [*_data_lines(found), "", *_grading_lines(found), "", *_length_lines(found), "", *_training_lines(found)]
    body = "\n".join(f"    {line}".rstrip() for line in lines)
    stem = pathlib.PurePath(name).stem
    return (
        f'"""Critique-GRPO on {_plain(pathlib.PurePath(found.data).name)}, written by `cgrpo init`.\n\n'
        f"    cgrpo train --config={_plain(name)} --workdir=runs/{_plain(stem)}\n\n"
        "Every key, with its default: `cgrpo train --help`.\n"
        '"""\n\n'
        "from cgrpo_jax.runs import base\n\n\n"
        "def get_config():\n"
        '    """Returns the defaults, which are the paper\'s, with what this data and this model need."""\n'
        f"    c = base.get_config()\n\n{body}\n    return c\n"
    )


def _plain(text: str) -> str:
    """Returns a name as it can stand within a docstring."""
    return re.sub(r"[^\w./ +=-]", "?", text)


def _data_lines(found: first_config.Found) -> list[str]:
    columns = found.columns
    lines = [
        f"c.model.folder = {found.model!r}  # {found.num_params / 1e6:.4g} million parameters",
        f"c.data.train = {found.data!r}  # {found.num_rows} questions were looked at",
        f"c.data.eval = {found.eval!r}  # held-out questions" + ("" if found.eval else "; give a file to measure on"),
        f"c.data.kind = {found.kind!r}",
        f"c.data.question_key = {columns.question!r}  # the columns",
        f"c.data.answer_key = {columns.answer!r}",
    ]
    if columns.pattern:
        lines.append(f"c.data.answer_pattern = {columns.pattern!r}  # its first group is the answer")
    return lines


def _grading_lines(found: first_config.Found) -> list[str]:
    lines = [f"c.grader.kind = {found.grader!r}  # math, numeric, choice, exact, code, or FILE.py:function"]
    if found.question:
        lines.append("# The question as it is asked, in a form in which the grader finds the answer.")
        lines.append(f"c.prompts.question = {found.question!r}")
    if found.written_critique:
        lines.append(
            f"# A critique by the policy itself (cot) would take {found.written_critique} tokens with its prompt; the "
            f"context holds {found.context}."
        )
    others = ", ".join(kind for kind in refinement_sections.CRITIQUES if kind != found.critique)
    lines.append(f"c.critique.kind = {found.critique!r}  # {_WHY[found.critique]}; others: {others}")
    if found.refine:
        lines.append(f"c.prompts.refine = {found.refine!r}  # short, as the context is")
    return lines


def _length_lines(found: first_config.Found) -> list[str]:
    n = found.lengths
    lines = [
        f"# In tokens. The model's context is {found.context}; questions take up to {found.longest}, 99 % of them at "
        f"most {found.p99}.",
        f"c.max_prompt_length = {n.prompt}" + ("  # longer questions are left out" if n.prompt < found.longest else ""),
        f"c.max_response_length = {n.response}  # of a response, and of a refinement",
        f"c.refine.max_prompt_length = {n.refine_prompt}  # question, response and critique",
    ]
    if n.critique:
        lines.append(f"c.critic.max_length = {n.critique}  # of a critique")
        lines.append(f"c.critic.max_prompt_length = {n.critique_prompt}  # question and response")
    return lines


def _training_lines(found: first_config.Found) -> list[str]:
    rate = "1e-6" if found.num_params >= 1e9 else "1e-5" if found.num_params >= 5e7 else "1e-4"
    questions = next(n for n in (32, 16, 8, 4, 2, 1) if n <= found.num_rows)
    lines = [
        "c.num_iterations = 100  # each: respond, critique, refine, update",
        f"c.questions_per_iteration = {questions}",
        "c.num_responses = 7  # to each question",
        "c.optimizer.updates_per_batch = 1  # of an iteration",
        f"c.optimizer.learning_rate = {rate}  # for a model of this size",
        "c.mesh.fsdp = 0  # all devices share weights and rows; c.mesh.tensor cuts heads and MLP",
        "c.checkpoints.every = 25  # iterations",
    ]
    if found.eval:
        lines.append("c.eval.every = 25  # iterations between evaluations")
    return lines


if __name__ == "__main__":
    cli.run(main, require=("data", "model", "out"), flags=FLAGS)
