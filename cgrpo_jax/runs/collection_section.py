"""The section of a configuration that says what `cgrpo collect` writes, which trains nothing."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from cgrpo_jax.runs.keys import Resumed, at_least_one, key, not_negative, one_of

_OTHERS = Resumed.TRAINING | Resumed.EVALUATION | Resumed.DIAGNOSIS
_COLLECTS = "no other command than `collect` reads it"


@dataclasses.dataclass(frozen=True)
class Collect:
    """What `cgrpo collect` writes: responses, critiques of them and refinements after these. Symbols as in RCO."""

    rows: str = key(
        "",
        "rows collected before, or of a run: folder of step_*.parquet, whose responses are taken as they are; empty: "
        "the policy responds to the data's questions",
        may_change=_OTHERS,
        because=_COLLECTS,
        is_path=True,
    )
    questions: Literal["training", "held_out"] = key(
        "training",
        "which of the data's: training, held_out",
        one_of("training", "held_out"),
        may_change=_OTHERS,
        because=_COLLECTS,
    )
    num_questions: int = key(0, "of these, or of the rows', the first ones; 0: all", not_negative,
                             may_change=_OTHERS, because=_COLLECTS)  # fmt: skip
    num_responses: int = key(
        0, "to a question; 0: as in training (num_responses)", not_negative, may_change=_OTHERS, because=_COLLECTS
    )
    which: Literal["failed", "all"] = key(
        "all",
        "of the responses, those that are critiqued and refined: failed, or all, those that pass too",
        one_of("failed", "all"),
        may_change=_OTHERS,
        because=_COLLECTS,
    )
    num_critiques: int = key(
        1,
        "[N] of such a response, each as it is written first; 0: those of the rows (collect.rows), else none",
        not_negative,
        may_change=_OTHERS,
        because=_COLLECTS,
    )
    num_refinements: int = key(1, "[M] after a critique; 0: none", not_negative, may_change=_OTHERS, because=_COLLECTS)
    utility: Literal["verifier", "judge"] = key(
        "verifier",
        "what a refinement is worth beside its response: 1 better, 0.5 alike, 0 worse, by the verifier; or judge: by "
        "the judge's endpoint, asked in both orders, the mean",
        one_of("verifier", "judge"),
        may_change=_OTHERS,
        because=_COLLECTS,
    )
    questions_per_file: int = key(
        128,
        "of a file, which are sampled together, and again where that is killed; of collect.rows as in its files",
        at_least_one,
        may_change=_OTHERS,
        because=_COLLECTS,
    )

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        if not self.rows and not self.num_critiques and self.num_refinements:
            yield (
                f"{name}.num_refinements {self.num_refinements} follow critiques, but {name}.num_critiques is 0 and "
                f"{name}.rows names no rows that have some; set one of them, or {name}.num_refinements to 0."
            )
        if self.rows and not self.num_critiques and not self.num_refinements:
            yield (
                f"{name}.rows has responses, but {name}.num_critiques and {name}.num_refinements are 0: nothing is "
                "written about them; set one of them."
            )
        if self.rows and self.num_responses:
            yield (
                f"{name}.num_responses {self.num_responses} changes nothing: the responses are those of {name}.rows; "
                "leave it at 0."
            )
