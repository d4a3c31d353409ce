"""The sections of a configuration that say what a run learns, from what, and how it is measured."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from cgrpo_jax.datasets import mixture
from cgrpo_jax.datasets.problems import MADE_UP
from cgrpo_jax.runs import best_checkpoint
from cgrpo_jax.runs.keys import (
    ALL,
    Resumed,
    at_least_one,
    at_most,
    decay,
    key,
    mass,
    not_negative,
    one_of,
    refused,
    share,
)
from cgrpo_jax.runs.refinement_sections import CRITIQUES
from cgrpo_jax.training import optimizer

_READ = {"data.kind": ("jsonl", "parquet", "tfds")}
_NO_SET = {"data.kind": (*MADE_UP, "jsonl", "parquet")}
_MADE = {"data.kind": MADE_UP}
_NOT_MEASURED = _READ | {"data.eval": ("",), "finetune.eval_rows": ("",)}

_MOST_SAMPLES = 1024  # of a question, for maj@k: the evaluation's own limit, which a test compares with this one


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How the gradient becomes new weights."""

    kind: str = key(
        "adamw",
        "adamw; adafactor: statistics of rows and columns in the place of two of every weight; muon: one statistic of "
        "a matrix, whose step has singular values that are all alike",
        one_of(*optimizer.OPTIMIZERS),
    )
    learning_rate: float = key(1e-6, "the peak of the schedule", not_negative)
    schedule: str = key(
        "constant",
        "constant after the warm-up; linear, cosine: it falls until the last of num_iterations",
        one_of(*optimizer.SCHEDULES),
    )
    warmup_updates: int = key(0, "over which the rate rises from 0", not_negative)
    final_learning_rate_share: float = key(
        0.0,
        "of the peak, that linear and cosine fall to",
        share,
        unread_with={"optimizer.schedule": ("constant",)},
    )
    weight_decay: float = key(0.0, "of matrices and embeddings, times the rate", not_negative)
    b1: float = key(0.9, "of Adam", decay)
    b2: float = key(0.999, "of Adam", decay)
    mu_dtype: str = key(
        "",
        "of the first moment: float32, bfloat16; empty: float32, as weights and gradients are",
        one_of("", "float32", "bfloat16"),
    )
    offload: bool = key(
        False,
        "the optimiser's state lies in the hosts' memory between updates",
        may_change=ALL,
        because="where the state lies between updates",
    )
    max_grad_norm: float = key(1.0, "gradients of a larger norm are scaled down to it", not_negative)
    updates_per_batch: int = key(2, "minibatches per iteration", at_least_one)
    max_nonfinite_updates: int = key(
        3,
        "skipped in a row because the gradient is not finite; one more ends the run",
        not_negative,
        may_change=ALL,
        because="how many it skips before it stops; the next start resumes after them",
    )

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        if self.kind == "adafactor" and self.mu_dtype:
            yield (
                f"{name}.mu_dtype {self.mu_dtype!r} is of the first moment, which optimizer {self.kind!r} has not; "
                "leave it empty."
            )


@dataclasses.dataclass(frozen=True)
class Packing:
    """How rows are packed for an update."""

    rows: int = key(1, "token rows of a data group in a packed batch", at_least_one)
    length: int = key(0, "tokens in one, best a multiple of 128; 0: longest prompt and response", not_negative)
    slots: int = key(0, "train rows in a packed batch; 0: 64 per token row", not_negative)


def _mixture(name: str, value: str) -> str | None:
    return refused(mixture.parse_mixture, value)


@dataclasses.dataclass(frozen=True)
class Data:
    """The questions."""

    kind: str = key(
        "jsonl",
        "jsonl, parquet, tfds; made up: chains (arithmetic), snippets (code)",
        one_of("jsonl", "parquet", "tfds", *MADE_UP),
    )
    seed: int = key(
        0, "of made-up questions and what is held out; the order of questions follows the run's seed", not_negative
    )
    train: str = key("", 'file, or TFDS name; several: "gsm8k,openr1"', unread_with=_MADE, is_path=True)
    eval: str = key("", "likewise, of held-out questions", unread_with=_MADE, is_path=True)
    mixture: str = key(
        "",
        'shares of several, such as "gsm8k:0.3,openr1:0.7"; empty: each question as often as any other',
        _mixture,
    )
    train_split: str = key(
        "train", 'of a TFDS data set; of several, one for all or one each: "train,test"', unread_with=_NO_SET
    )
    eval_split: str = key("test", "likewise", unread_with=_NO_SET)
    tfds_dir: str = key(
        "",
        "folder of TFDS data sets",
        unread_with=_NO_SET,
        may_change=ALL,
        because="where data sets lie; their questions are compared by themselves",
        is_path=True,
    )
    # A data set written by `python -m cgrpo_jax.data prepare` knows its columns, and which grader it needs.
    question_key: str = key("question", 'column; several: "Body,Question"', unread_with=_MADE)
    answer_key: str = key("answer", "column", unread_with=_MADE)
    solution_key: str = key("", "column; empty: there is none", unread_with=_MADE)
    answer_pattern: str = key("", "regular expression whose first group is the answer", unread_with=_MADE)
    num_train: int = key(0, "of each set; 0: all", not_negative)
    num_eval: int = key(0, "likewise", not_negative)
    pass_rates: str = key("", "JSON lines of how often each training question was solved: id, pass_rate", is_path=True)
    min_pass_rate: float = key(
        0.0, "train on questions above this; -1 keeps those never solved", unread_with={"data.pass_rates": ("",)}
    )
    max_pass_rate: float = key(
        1.0, "and below this; 2 keeps those always solved", unread_with={"data.pass_rates": ("",)}
    )
    chain_length: int = key(3, "steps of a chain, operations of a snippet", at_least_one, unread_with=_READ)
    num_held_out: int = key(0, "facts, or words, that the warm start never shows", unread_with=_READ)
    hard_share: float = key(0.0, "share of the questions with one of them", share, unread_with=_READ)

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        if self.pass_rates and not self.min_pass_rate < self.max_pass_rate:
            yield (
                f"{name}.min_pass_rate {self.min_pass_rate:g} is not below {name}.max_pass_rate "
                f"{self.max_pass_rate:g}; no question has a rate between them."
            )
        if self.mixture.strip(" ,") and self.kind in MADE_UP:
            yield f"{name}.mixture mixes data sets that are read; {name}.kind {self.kind} is made up. Leave it empty."


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Supervised lessons in a made-up task before the first iteration."""

    num_updates: int = key(0, "0: none", not_negative)
    rows_per_update: int = key(64, "lessons of an update", at_least_one)
    learning_rate: float = key(3e-3, "of Muon, at its peak", not_negative)
    chain_lengths: tuple[int, ...] = key((2, 3), "of the lessons in solving")
    rare_rate: float = key(0.0, "share of the lessons in solving that contain what is held out after all", share)

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        if self.num_updates > 0 and _at_least_ones(name, self.chain_lengths):
            yield f"{name}.chain_lengths {self.chain_lengths} must hold numbers of at least 1, such as (1, 2, 3)."


def _at_least_ones(name: str, value: Any) -> str | None:
    if value and all(isinstance(one, int) and one >= 1 for one in value):
        return None
    return f"{name} {tuple(value)} must hold numbers of at least 1, such as (1, 8)."


_RUNS = Resumed.TRAINING | Resumed.DIAGNOSIS | Resumed.COLLECTION
_WITHOUT_DIAGNOSIS = Resumed.TRAINING | Resumed.EVALUATION | Resumed.COLLECTION
_DIAGNOSES = "no other command than `diagnose` reads it"
_NOT_SAMPLED = Resumed.DIAGNOSIS | Resumed.COLLECTION
_SAMPLED = "`diagnose` and `collect` do not read it"


@dataclasses.dataclass(frozen=True)
class Eval:
    """How weights are measured on held-out questions."""

    every: int = key(
        0,
        "iterations; 0: before and after only",
        not_negative,
        unread_with=_NOT_MEASURED,
        may_change=Resumed.EVALUATION | Resumed.DIAGNOSIS | Resumed.COLLECTION,
        because="training alone reads it",
    )
    keep_best: str = key(
        "",
        "number of the evaluation, such as pass@1: the checkpoint with its highest value stays beside the newest ones; "
        "-mean_length, or -loss of held-out rows: with the lowest; empty: none",
        may_change=ALL,
        because="saving changes nothing",
    )
    num_samples: int = key(
        8,
        "a question, for pass@k",
        at_least_one,
        at_most(_MOST_SAMPLES, "is too large"),
        may_change=_NOT_SAMPLED,
        because=_SAMPLED,
    )
    temperature: float = key(0.6, "of these samples", not_negative, may_change=_NOT_SAMPLED, because=_SAMPLED)
    top_p: float = key(0.95, "of these samples", mass, may_change=_NOT_SAMPLED, because=_SAMPLED)
    k: tuple[int, ...] = key((1, 8), "of pass@k", _at_least_ones, may_change=_NOT_SAMPLED, because=_SAMPLED)
    oracle: bool = key(
        False,
        "`evaluate --refine` also refines what the grader calls wrong, as a column of its own",
        may_change=_RUNS,
        because="`evaluate` alone reads it",
    )
    texts_per_slot: int = key(
        8,
        "that `evaluate` and `diagnose` write together; what is killed meanwhile is done again",
        at_least_one,
        may_change=ALL,
        because="how much is sampled together, and done again after a kill",
    )

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        if not _at_least_ones(name, self.k) and 1 <= self.num_samples < max(self.k):
            yield f"{name}.k {max(self.k)} needs as many samples; {name}.num_samples is {self.num_samples}."

    def training_violations(self, name: str) -> Iterator[str]:
        """Yields what training alone has against them; an evaluation keeps no checkpoint."""
        if _at_least_ones(name, self.k):
            return
        known = (*best_checkpoint.metrics(self.k, self.num_samples), best_checkpoint.LOSS)
        if text := best_checkpoint.check(self.keep_best, known):
            yield f"{name}.keep_best {text}"
        if self.keep_best and not self.every:
            yield f"{name}.keep_best {self.keep_best!r} compares evaluations, but {name}.every is 0; set it, to 50 say."


def _kinds(name: str, value: Any) -> str | None:
    if value and set(value) <= {*CRITIQUES, "none"}:
        return None
    return (
        f"{name} {tuple(value)} must be kinds of critiques; use some of {', '.join((*CRITIQUES, 'none'))}, as "
        f'--config.{name}=\'("indicative", "cot")\'.'
    )


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Which training questions no sample solves, and which critiques help there."""

    num_questions: int = key(
        0,
        "of the training questions, the first ones; 0: all",
        not_negative,
        may_change=_WITHOUT_DIAGNOSIS,
        because=_DIAGNOSES,
    )
    num_responses: int = key(
        4,
        "a question fails persistently if none of them passes",
        at_least_one,
        may_change=_WITHOUT_DIAGNOSIS,
        because=_DIAGNOSES,
    )
    kinds: tuple[str, ...] = key(
        CRITIQUES,
        "of critiques; none: refinements see none",
        _kinds,
        may_change=ALL,
        because=f"{_DIAGNOSES}, which adds a kind more to those that are there",
    )
