"""Makes a page of one or several runs: what was learned, from which critiques, and where it failed.

    python -m cgrpo_jax.report runs/quickstart --out=report.html
    python -m cgrpo_jax.report runs/critique_0 runs/critique_1 runs/grpo_0 --out=study.html

The page opens from disk without a network. A run may still go on. Seeds of one configuration become a band, different
configurations colours. Every question of every iteration is listed; texts and tokens are in the page for --max_groups
of them: the last two iterations, rescued, forgotten and flagged ones, and a sample of the others.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    from cgrpo_jax.runtime import signals

    signals.end_while_importing()

import sys

import jax

from cgrpo_jax.errors import UserError
from cgrpo_jax.report import page, run_folder
from cgrpo_jax.runs import cli
from cgrpo_jax.runtime import console, places

FLAGS = {
    "out": cli.Flag("the page to write, such as report.html; one that is there is replaced"),
    "max_groups": cli.Flag("questions with their texts, of all iterations together", kind=int, default=500),
    "seed": cli.Flag("of the sample of questions", kind=int, default=0),
}


def main(runs: list[str], out: str, max_groups: int, seed: int) -> None:
    """Reads the runs' folders and writes the page."""
    jax.config.update("jax_platforms", "cpu")  # reading files takes no accelerator from a run
    path = places.place(out)
    if places.in_bucket(path):
        raise UserError(f"--out {out} is in a bucket; give a file on a disk, such as {path.name}, and copy it there.")
    if path.suffix != ".html":
        raise UserError(f"--out {out} is no page; give a file such as {path.stem or 'report'}.html.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--out {out} is in no folder; make {path.parent} first.")
    if max_groups < 0:
        raise UserError(f"--max_groups {max_groups} is negative; give 0 or more.")
    written = page.write(run_folder.read_all(runs), path, max_groups=max_groups, seed=seed)
    for fault in written.faults:
        console.say(fault)
    console.say(said(written), sys.stdout)


def said(written: page.Written) -> str:
    """Returns what is said of a page that was written: a line or two."""
    beside = ""
    if written.shards:
        folder = f"{written.path.stem}_texts"
        beside = f", and {written.shards} files of texts and rows, {written.shard_bytes / 1e6:.1f} MB, in {folder}"
    left = written.total - written.shown
    return (
        f"wrote {written.path} ({written.bytes / 1e6:.1f} MB){beside}; {written.shown} of {written.total} questions "
        f"with their texts" + (f"; cgrpo show RUN --question=ID shows the other {left}" if left else "")
    )


if __name__ == "__main__":
    cli.run(main, require=("out",), flags=FLAGS, arguments=("runs",), several=True)
