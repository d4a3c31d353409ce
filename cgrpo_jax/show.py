"""Shows a question of a run in the terminal: what was answered, criticised, refined and learned.

    python -m cgrpo_jax.show runs/quickstart
    python -m cgrpo_jax.show runs/quickstart --question=7f0a2c91

Without --question it is the last iteration's most telling one, rescued ones first, on one screen. With it, every text
of a question, of the last iteration that asked it or of --iteration. The run may still go on.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    from cgrpo_jax.runtime import signals

    signals.end_while_importing()

import os
import shutil
import sys

import jax

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.report import groups as groups_lib
from cgrpo_jax.report import run_folder, terminal
from cgrpo_jax.report.groups import Group
from cgrpo_jax.report.run_folder import RunFolder
from cgrpo_jax.runs import cli

FLAGS = {
    "question": cli.Flag("beginning of a question's problem_id, or its number in the data set"),
    "iteration": cli.Flag("which iteration, from 0; by default the last that was written, or that asked the question"),
}


def main(run: str, question: str | None, iteration: str | None) -> None:
    """Prints one group of a run."""
    jax.config.update("jax_platforms", "cpu")  # reading files takes no accelerator from a run
    found = run_folder.read(run)
    columns, lines = shutil.get_terminal_size()
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if question is None:
        *_, newest = of_iterations(found, iteration)
        screen = terminal.Screen(min(columns, 110), max(2, (lines - 16) // 4), colours)
        sys.stdout.write(terminal.lesson(found, terminal.most_telling(newest), screen))
        sys.stdout.write(f"\n  iteration {newest[0].iteration}: {terminal.counted(newest)}\n")
        return
    asked = asked_in(found, question, iteration)
    sys.stdout.write(terminal.whole(found, asked[-1], terminal.Screen(min(columns, 110), None, colours)))
    if len(asked) > 1:
        others = ", ".join(f"{one.iteration} ({one.outcome.replace('_', ' ')})" for one in asked[:-1])
        sys.stdout.write(f"\n  also asked in iteration {others}\n")


def of_iterations(run: RunFolder, iteration: str | None) -> list[list[Group]]:
    """Returns the groups of an iteration; without one, of the last that was written.

    Raises:
      UserError: nothing was written of it.
    """
    files = _files(run, iteration)[-1:]
    return [found for path in files if (found := groups_lib.read(run, files=[path])[0])]


def asked_in(run: RunFolder, question: str, iteration: str | None) -> list[Group]:
    """Returns the groups of a question, the oldest first.

    Raises:
      UserError: there is none, or the beginning of its name is that of several questions.
    """
    found, asked = groups_lib.read(run, files=_files(run, iteration))
    ids = [name for name, one in asked.items() if question == str(one.index)]
    ids = ids or [name for name in asked if name.startswith(question)]
    if not ids:
        raise UserError(
            f"no question {question!r} is in what was read of {run.path}; give the beginning of a problem_id, such as "
            f"{next(iter(asked), '7f0a2c91')[:8]}, or the number of a question in its data set."
        )
    if len(ids) > 1:
        raise UserError(f"--question={question} is the beginning of {len(ids)} questions: {', '.join(ids[:4])}, ...")
    return [one for one in found if one.problem == ids[0]]


def _files(run: RunFolder, iteration: str | None) -> list:
    if not run.files and run.learns_rows:
        raise UserError(
            f"{run.path} has no rollouts: `cgrpo finetune` learns from rows; `cgrpo report` shows its curves."
        )
    if not run.files:
        raise UserError(f"{run.path} has no rollouts yet; they are written after each iteration (rollouts.every).")
    if iteration is None:
        return list(run.files)
    numbers = [rollouts.iteration_of(path) for path in run.files]
    chosen = [path for path, number in zip(run.files, numbers, strict=True) if str(number) == iteration]
    if not chosen:
        raise UserError(f"--iteration={iteration} was not written; there are {numbers[0]} to {numbers[-1]}.")
    return chosen


if __name__ == "__main__":
    cli.run(main, flags=FLAGS, arguments=("run",))
