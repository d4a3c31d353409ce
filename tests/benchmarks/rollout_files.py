"""What writing the rollouts of an iteration costs beside the iteration, and how many bytes a token takes.

    python tests/benchmarks/rollout_files.py [RUN ...] [--made=2,7,192,48] [--vocab=49152] [--seconds=30] [--pairs=5]

Of each run's folder, the rows of its newest files are read, and written again to a temporary folder; the seconds of an
iteration are `step_time` of its metrics. `--made` makes up rows instead: of so many questions so many responses, of
so many tokens after so long a prompt, half of the questions critiqued and refined, in an iteration of `--seconds`. The
default is configs/smollm2_svamp.py, of which an iteration takes about 30 s on two cores.

    cpu      processor time of the writing thread, as a share of the iteration; it may be 1 % at most
    wall     the same of the time that it takes, on the disk of the temporary folder
    bytes    of the file, for each token that was written by a model or a rule
Exits with 1 where a target is missed.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
from report import row, table

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage, TrainRow

MOST = 0.01  # of an iteration


def made_up(questions: int, responses: int, prompt: int, length: int, *, vocab: int) -> list[rollouts.Row]:
    """Returns rows as long as they may be; token ids are as frequent as words are, two thirds of tokens nearly sure."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, vocab + 1)

    def ids(number: int) -> np.ndarray:
        return rng.choice(vocab, number, p=share / share.sum()).astype(np.int32)

    def text(index: RowIndex, prompt_ids: np.ndarray, parent: Rollout | None) -> Rollout:
        sure = rng.random(length) < 2 / 3
        logp = -np.where(sure, rng.exponential(0.01, length), rng.exponential(1.0, length)).astype(np.float32)
        tokens = ids(length)
        reward = None if index.stage == Stage.CRITIQUE else float(rng.random() < 0.5)
        said = " ".join(f"w{token}" for token in tokens)
        return Rollout(index, Author.POLICY, 1, prompt_ids, tokens, logp, said, parent=parent, reward=reward)

    found = []
    for q in range(questions):
        asked, problem = ids(prompt), Problem(q, f"Question {q} " * 20, "12", "so 12", "made up")
        answers = [text(RowIndex(q, response=n), asked, None) for n in range(responses)]
        for place, one in enumerate(answers):
            trained = TrainRow(asked, one.token_ids, one.logp, 0.25)
            found.append(rollouts.Row(one, problem, "numeric", train_row=trained, place=place, trainer_logp=one.logp))
        for one in answers if q % 2 == 0 else ():
            quoted = np.concatenate([asked, one.token_ids])
            critique = text(one.index.replace(stage=Stage.CRITIQUE), quoted, one)
            refining = np.concatenate([quoted, critique.token_ids])
            refined = text(one.index.replace(stage=Stage.REFINEMENT), refining, critique)
            found += [
                rollouts.Row(critique, problem),
                rollouts.Row(refined, problem, "numeric", dropped="not_selected"),
            ]
    return found


@dataclasses.dataclass(frozen=True)
class Written:
    """Of a file: processor seconds, seconds, bytes and tokens."""

    cpu: float
    wall: float
    bytes: int
    tokens: int


def measure(rows: Sequence[rollouts.Row], spell: Callable[[np.ndarray], str]) -> Written:
    """Writes rows once."""
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = time.thread_time(), time.perf_counter()
        size = rollouts.write(pathlib.Path(folder) / "a.parquet", rows, iteration=0, spell=spell)
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    return Written(cpu, wall, size, sum(len(one.rollout.token_ids) for one in rows))


def report(name: str, written: Sequence[Written], seconds: float) -> list[dict]:
    """Returns the rows of the report on files that were written beside iterations of so many seconds."""
    tokens, size = (
        statistics.mean(values) for values in zip(*((one.tokens, one.bytes) for one in written), strict=True)
    )
    what = f"{tokens:.0f} tokens, {size / 1e3:.1f} kB, {1e3 * statistics.median(one.cpu for one in written):.1f} ms of "
    what += f"processor time; an iteration of {seconds:.3g} s"
    return [
        row(f"cpu/{name}", [one.cpu / seconds for one in written], what, target=MOST, most=True),
        row(f"wall/{name}", [one.wall / seconds for one in written], what),
        row(f"bytes/{name}", [one.bytes / one.tokens for one in written], what),
    ]


def of_run(folder: pathlib.Path, *, pairs: int) -> list[dict]:
    """Returns the report on the newest files of a run, whose first iteration compiles and does not count."""
    spell = load_tokenizer(folder / "model").spell
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]]
    seconds = statistics.median(one["step_time"] for one in metrics[1:])
    files = sorted((folder / "rollouts").glob(rollouts.NAMES))[-pairs:]
    return report(folder.name, [measure(rollouts.read(path), spell) for path in files], seconds)


def main() -> None:
    """Measures, prints a table, and says whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=pathlib.Path)
    parser.add_argument("--made", default="2,7,192,48")
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    rows = made_up(*map(int, options.made.split(",")), vocab=options.vocab)
    spell = lambda ids: " ".join(map(str, ids))  # noqa: E731 - slower than a tokenizer
    measure(rows, spell)  # what is slow once
    found = report("made up", [measure(rows, spell) for _ in range(options.pairs)], options.seconds)
    for folder in options.runs:
        found += of_run(folder, pairs=options.pairs)
    print(table(found))
    sys.exit(any(one["met"] is False for one in found))


if __name__ == "__main__":
    main()
