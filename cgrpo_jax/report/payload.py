"""What a report says, as plain values for JSON: runs and their curves, an index of all groups, texts in shards."""

import base64
import dataclasses
import functools
import gzip
import itertools
import json
import operator
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation import estimators
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.report import details, lessons, measured, task, warnings
from cgrpo_jax.report import rows as rows_lib
from cgrpo_jax.report.groups import Asked, Critics, Flag, Group, Outcome
from cgrpo_jax.report.run_folder import RunFolder
from cgrpo_jax.report.selection import Selection
from cgrpo_jax.runs import facts
from cgrpo_jax.runs.metrics import METRICS
from cgrpo_jax.runtime import local_copies
from cgrpo_jax.runtime import text as text_lib

SHARD_BYTES = 2 << 20  # of JSON, before it is compressed
_METHOD = ("num_responses", "num_kept", "pass_threshold", "gamma", "clip_low", "clip_high", "clip_initial")
_METHOD += (
    "clip_refined",
    "initial_ratio",
    "refined_ratio",
    "tis_cap",
    "baseline",
    "refine",
    "critique",
    "trainer_logp",
)

_KEYS = {
    "aggregate": "objective.aggregate",
    "scale_by_std": "objective.scale_by_std",
    "tis_level": "objective.tis_level",
    "select": "refine.select",
    "max_pass": "refine.max_pass",
    "refined": "refine.which",
    "critiqued": "critique.when",
    "sees": "critic.sees",
    "reveals": "critique.reveals_value",
    "warm_start": "warm_start.num_updates",
    "questions": "questions_per_iteration",
}


def of_runs(runs: Sequence[RunFolder], groups: Sequence[Group]) -> dict[str, Any]:
    """Returns what is said of runs as wholes: their methods, arms and seeds, curves, warnings and summaries.

    Args:
      runs: in their order.
      groups: of all of them.
    """
    keys = facts.differing([run.facts for run in runs])
    told = [", ".join(f"{key}={_shown(run.facts.values.get(key))}" for key in keys) for run in runs]
    labels = [run.arm or words for run, words in zip(runs, told, strict=True)]
    arms = list(dict.fromkeys(labels))
    own = [[one for one in groups if one.run == number] for number in range(len(runs))]
    each = zip(runs, labels, own, strict=True)
    return {
        "arms": [label or "all runs" for label in arms],
        "differing": [[key, [_shown(run.facts.values.get(key)) for run in runs]] for key in keys],
        "help": METRICS,
        "runs": [_of_run(run, its) | {"arm": arms.index(label)} for run, label, its in each],
        "outcomes": list(Outcome),
        "flags": list(Flag),
    }


def _of_run(run: RunFolder, groups: Sequence[Group]) -> dict[str, Any]:
    names = list(dict.fromkeys(itertools.chain.from_iterable(run.metrics)))
    values, dead_shares = run.facts.values, dead(run, groups)
    return {
        "name": run.name,
        "seed": run.facts.seed,
        "planned": run.planned,
        "done": run.metrics[-1]["step"] + 1 if run.metrics else 0,
        "ended": run.ended,
        "task": task.of_run(run),
        "critics": dataclasses.asdict(functools.reduce(operator.add, (one.critics for one in groups), Critics())),
        "data": values["data.train"] or values["data.kind"],
        "method": {name: getattr(run.facts, name) for name in _METHOD}
        | {name: values[key] for name, key in _KEYS.items()},
        "changed": {key: _shown(value) for key, value in run.facts.changed.items()},
        "metrics": {name: [_number(row.get(name)) for row in run.metrics] for name in names},
        "dead": dead_shares,
        "heldOut": held_out(run),
        "summary": run.summary if run.ended else None,
        "starts": [dataclasses.asdict(one) for one in run.starts],
        "warnings": [dataclasses.asdict(one) for one in warnings.find(run.metrics, dead_shares)],
        "faults": list(run.faults),
    }


def dead(run: RunFolder, groups: Sequence[Group]) -> list[float | None]:
    """Returns of each row of the metrics the share of questions whose texts have no advantage, refinements included.

    Of the batch: questions that others were drawn for, and verdict problems, are not counted.
    None where the iteration's texts were not written: metrics say it of a run without refinements alone.

    Args:
      run: the run.
      groups: its own.
    """
    by_iteration: dict[int, list[bool]] = {}
    for one in groups:
        if one.drawn_on:
            continue
        by_iteration.setdefault(one.iteration, []).append(one.dead)
    shares = {iteration: statistics.fmean(values) for iteration, values in by_iteration.items()}
    unrefined = run.facts.refine == "none"
    return [
        shares.get(row["step"], _number(row.get("frac_reward_zero_std")) if unrefined else None) for row in run.metrics
    ]


def held_out(run: RunFolder) -> list[dict[str, Any]]:
    """Returns the evaluations of a run, in their order: after how many iterations, and their numbers.

    pass@1 has the 95 % interval (Wilson's), where the number of questions is known.
    """
    summary = run.summary or {}
    found: dict[int, dict[str, Any]] = {}
    if before := summary.get("eval_before"):
        found[0] = dict(before)
    for row in run.metrics:
        if numbers := {name.removeprefix("eval/"): row[name] for name in row if name.startswith("eval/")}:
            found[row["step"] + 1] = numbers
    if after := summary.get("eval_after"):
        iterations = summary.get("iterations", run.planned)
        found[iterations] = found.get(iterations, {}) | after
    asked = summary.get("eval_questions") or next((one["questions"] for one in found.values() if "questions" in one), 0)
    points = []
    for iteration, numbers in sorted(found.items()):
        point: dict[str, Any] = {"iteration": iteration} | {name: _number(value) for name, value in numbers.items()}
        number = int(numbers.get("questions") or asked)
        right = round((point.get("pass@1") or 0) * number)
        if number and point.get("pass@1") is not None and 0 <= right <= number:
            point["questions"], point["interval"] = number, estimators.wilson(right, number)
        points.append(point)
    return points


def index(
    groups: Sequence[Group],
    asked: Mapping[str, Asked],
    places: Mapping[int, tuple[int, int]],
    said: Mapping[int, lessons.Said] | None = None,
    failed: Mapping[int, lessons.Failed] | None = None,
) -> dict[str, Any]:
    """Returns all groups by columns, one number of a list for each; small, as every group of a run is in it.

    Args:
      groups: of all runs.
      asked: their questions, by `problem_id`.
      places: of the groups that are shown whole, in which shard, and where in it.
      said: of these, by their numbers, what their critiques said.
      failed: likewise, what became of refinements that are all wrong; of questions that nothing solved it is kept.
    """
    ids = {problem: number for number, problem in enumerate(asked)}
    flags = {flag: 1 << bit for bit, flag in enumerate(Flag)}
    outcomes = {outcome: number for number, outcome in enumerate(Outcome)}
    shards = [places.get(number, (-1, -1)) for number in range(len(groups))]
    return {
        "problems": [[key, one.index, one.question, one.answer] for key, one in asked.items()],
        "run": [one.run for one in groups],
        "iteration": [one.iteration for one in groups],
        "question": [one.question for one in groups],
        "problem": [ids[one.problem] for one in groups],
        "outcome": [outcomes[one.outcome] for one in groups],
        "flags": [sum(flags[flag] for flag in one.flags) for one in groups],
        "rewards": [[_number(reward) for reward in one.rewards] for one in groups],
        "refined": [one.refined for one in groups],
        "refinedPassed": [one.refined_passed for one in groups],
        "kept": [one.kept for one in groups],
        "critiques": [one.critiques for one in groups],
        "trained": [one.trained for one in groups],
        "shard": [shard for shard, _ in shards],
        "at": [at for _, at in shards],
        "said": {str(at): text for at, text in (said or {}).items()},
        "failed": {str(at): one for at, one in (failed or {}).items() if Flag.NEVER_SOLVED in groups[at].flags},
    }


@dataclasses.dataclass
class Texts:
    """The texts of the groups that are shown whole.

    Attributes:
      shards: each JSON, a list of groups, as gzip in base64.
      places: of each group, by its number, in which shard it is, and where in it.
      faults: what could not be told.
      lesson: the token that a critique has helped most with: group, `row` and place of the token; None where no
        trained refinement has the trainer's log-probabilities.
      said: of each group, by its number, what its critique said (`lessons.Lessons`).
      critiques: of each run, the critiques that led to most right refinements (`lessons.Lessons.most`).
      learned: the lessons of each run.
      search: shards with the texts alone, JSON as it is, lists of a group's number and its texts as one, in lower case:
        what a search reads.
      examples: of each run, a question with its answer (`task.example`): of a rescued group, if there is one; None
        without texts.
    """

    shards: list[str]
    places: dict[int, tuple[int, int]]
    faults: list[str]
    lesson: lessons.Place | None = None
    said: Mapping[int, lessons.Said] = dataclasses.field(default_factory=dict)
    critiques: Sequence[list[list[Any]]] = ()
    learned: Sequence[lessons.Lessons] = ()
    search: Sequence[str] = ()
    examples: Sequence[dict[str, str] | None] = ()


def texts(runs: Sequence[RunFolder], groups: Sequence[Group], selection: Selection) -> Texts:
    """Returns the texts of the groups that were selected."""
    shards, search = Shards(), Shards(packs=False)
    places: dict[int, tuple[int, int]] = {}
    faults: list[str] = []
    learned = [lessons.Lessons(run.facts.pass_threshold) for run in runs]
    examples: list[dict[str, str] | None] = [None] * len(runs)
    for number, run in enumerate(runs):
        of_run = [one for one in selection.chosen if groups[one].run == number]
        example = next((one for one in of_run if groups[one].outcome == Outcome.RESCUED), next(iter(of_run), None))
        spell = _spell(run, faults) if of_run else None
        where = {(groups[one].iteration, groups[one].question): one for one in of_run}
        for detail in details.of_groups(run, [groups[one] for one in of_run], spell, faults):
            at = where[detail["iteration"], detail["question_index"]]
            learned[number].add(at, detail)
            if at == example:
                examples[number] = task.example(detail)
            places[at] = shards.add(detail)
            search.add([at, "\n".join([detail["question"], *map(details.text_of, detail["rows"])]).lower()])
    shards.close()
    search.close()
    _, best = max((one.token for one in learned), key=lambda one: one[0], default=(0.0, None))
    said = {at: text for one in learned for at, text in one.said.items()}
    return Texts(
        shards.made, places, faults, best, said, [one.most() for one in learned], learned, search.made, examples
    )


@dataclasses.dataclass
class Beside:
    """What lies beside the texts, and is read when it is asked for.

    Attributes:
      shards: as of `Texts`, after these.
      rows: of each run and iteration, `RUN/ITERATION`, the shard with its rows, and the place in it.
      measured: the shard with what `evaluate` and `diagnose` have found of the runs, in their order.
      sums: of each run the tokens that models wrote, by stage, and what critiques of each length gained.
      faults: what could not be read.
    """

    shards: list[str]
    rows: dict[str, tuple[int, int]]
    measured: int
    sums: list[dict[str, Any]]
    faults: list[str]


def beside(runs: Sequence[RunFolder], faults: Sequence[str], *, first: int) -> Beside:
    """Returns the rows of all groups without their texts, and what was measured of the runs.

    Args:
      runs: in their order.
      faults: that are known.
      first: number of the first shard.
    """
    shards, rows, known = Shards(first), {}, list(faults)
    sums, found = [], []
    for number, run in enumerate(runs):
        of_run = rows_lib.Sums()
        for iteration, columns in rows_lib.read(run, of_run, known):
            rows[f"{number}/{iteration}"] = shards.add(columns)
        sums.append({"tokens": of_run.tokens, "gains": of_run.gains()})
        found.append(measured.of_run(run, known))
    shards.close()
    (place, _) = shards.add(found)
    shards.close()
    return Beside(shards.made, rows, place, sums, known[len(faults) :])


class Shards:
    """Values as JSON in shards of some size, each closed as it is full.

    Args:
      first: number of the first shard.
      packs: whether they are compressed.

    Attributes:
      made: those that are closed.
    """

    def __init__(self, first: int = 0, *, packs: bool = True):
        self.made: list[str] = []
        self._packs = packs
        self._first, self._held, self._size = first, list[str](), 0

    def add(self, value: Any) -> tuple[int, int]:
        """Adds a value; returns in which shard it is, and where in it."""
        place = self._first + len(self.made), len(self._held)
        self._held.append(as_json(value))
        self._size += len(self._held[-1])
        if self._size >= SHARD_BYTES:
            self.close()
        return place

    def close(self) -> None:
        """Ends the shard that is being filled."""
        if self._held:
            text = f"[{','.join(self._held)}]"
            self.made.append(packed(text) if self._packs else text)
        self._held, self._size = [], 0


def packed(text: str) -> str:
    """Returns a text as gzip in base64; the same text gives the same."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode("ascii")


def as_json(value: Any) -> str:
    """Returns a value as JSON that may stand in a page: no character of it ends a script, or is no valid Unicode."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text_lib.clean(text).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _spell(run: RunFolder, faults: list[str]) -> details.Spell | None:
    try:
        return load_tokenizer(local_copies.local(run.path / "model", suffixes=local_copies.DESCRIPTION)).spell
    except UserError as error:
        faults.append(f"{run.name}: tokens are not told apart, for its tokenizer can't be read ({error})")
        return None


def _number(value: Any) -> float | None:
    """Returns a metric's value for the page: seven digits, which is more than is shown."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return details.finite(value if isinstance(value, int) else float(f"{value:.7g}"))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
