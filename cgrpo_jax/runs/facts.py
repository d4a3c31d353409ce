"""What a run's configuration says to those who read its results: a report, a line in the terminal.

facts = read("runs/quickstart")
facts.gamma, facts.changed["objective.gamma"]        # 0.01, 0.01
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base, saved_config
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.config import Config

_START = "model.init"


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What a run was to do.

    Attributes:
      num_iterations, seed: of the run.
      num_responses, num_kept: n responses to a question, of whose refinements k are kept.
      pass_threshold: reward from which a text is right.
      initial_ratio, refined_ratio, gamma, clip_low, clip_high, clip_initial, clip_refined, baseline, tis_cap: of the
        objective.
      refine: `policy`, `solution` or `none`.
      critique: kind of critique.
      trainer_logp: whether the trainer's log-probabilities before the updates are kept; they are pi_old then.
      values: all keys, dotted.
      changed: those that are not the defaults.
    """

    num_iterations: int
    seed: int
    num_responses: int
    num_kept: int
    pass_threshold: float
    initial_ratio: str
    refined_ratio: str
    gamma: float
    clip_low: float
    clip_high: float
    clip_initial: bool
    clip_refined: bool
    baseline: str
    tis_cap: float
    refine: str
    critique: str
    trainer_logp: bool
    values: Mapping[str, Any]
    changed: Mapping[str, Any]


def read(workdir: str | pathlib.Path) -> RunFacts:
    """Returns what the configuration of a run's folder says.

    Raises:
      UserError: there is no run, or its configuration can't be read.
    """
    saved = saved_config.read(workdir)
    if saved is None:
        raise UserError(f"there is no run in {workdir} (no config.json); give the folder of a run.")
    return of(config_lib.freeze(saved))


def of(config: Config) -> RunFacts:
    """Returns what a configuration says."""
    values = config_lib.flatten(config_lib.to_json(config))
    defaults = config_lib.flatten(config_lib.to_json(config_lib.freeze(base.get_config())))
    return RunFacts(
        num_iterations=config.num_iterations,
        seed=config.seed,
        num_responses=config.num_responses,
        num_kept=config.refine.num_kept,
        pass_threshold=config.pass_threshold,
        initial_ratio=config.objective.initial_ratio,
        refined_ratio=config.objective.refined_ratio,
        gamma=config.objective.gamma,
        clip_low=config.objective.clip_low,
        clip_high=config.objective.clip_high,
        clip_initial=config.objective.clip_initial,
        clip_refined=config.objective.clip_refined,
        baseline=config.objective.baseline,
        tis_cap=config.objective.tis_cap,
        refine=values["refine.kind"],
        critique=values["critique.kind"],
        trainer_logp=config.objective.old_logp == "trainer" or config.objective.tis_cap > 0,
        values=values,
        changed={key: value for key, value in values.items() if value != defaults[key]},
    )


def differing(runs: Sequence[RunFacts], *, apart: Sequence[str] = ("seed",)) -> list[str]:
    """Returns the keys of which runs have not all the same value, `apart` aside: what tells arms of a study apart.

    `model.init` tells none apart where seed and other keys decide it: each seed of a study has a warm start of its own.

    Example: of two runs with seeds 0 and 1, and `num_responses` 7 and 8:
      >>> differing([of(a), of(b)])
      ['num_responses']
    """
    first = runs[0].values
    keys = [*first, *(key for run in runs[1:] for key in run.values if key not in first)]
    unlike = {key: any(run.values.get(key) != first.get(key) for run in runs) for key in keys}
    found = [key for key, differs in unlike.items() if differs and key not in apart]
    others = [key for key in found if key != _START]
    seen: dict[tuple, set] = {}
    for run in runs:
        of_seed = (run.seed, *(repr(run.values.get(key)) for key in others))
        seen.setdefault(of_seed, set()).add(run.values.get(_START))
    several = len({run.seed for run in runs}) > 1
    return others if several and all(len(starts) == 1 for starts in seen.values()) else found
