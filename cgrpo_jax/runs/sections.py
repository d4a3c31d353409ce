"""The sections of a configuration that say how a run asks, samples and grades. Lengths are in tokens."""

import ast
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Literal

from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards import grader, thinking
from cgrpo_jax.rewards import judge as judge_lib
from cgrpo_jax.rewards.rubrics import rubric
from cgrpo_jax.rewards.sandbox import gold
from cgrpo_jax.runs.endpoint_section import Endpoint
from cgrpo_jax.runs.keys import (
    ALL,
    at_least_one,
    key,
    mass,
    not_negative,
    one_of,
    positive,
    refused,
    section,
    template,
)
from cgrpo_jax.runtime import places


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """What a run saves."""

    every: int = key(
        50, "iterations; the last is always saved", at_least_one, may_change=ALL, because="saving changes nothing"
    )
    keep: int = key(2, "newest ones that stay", at_least_one, may_change=ALL, because="saving changes nothing")


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What a run writes to rollouts/: every text of an iteration, and what became of it."""

    every: int = key(
        1, "iterations between files; 0 writes none", not_negative, may_change=ALL, because="writing changes nothing"
    )


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Where the trackers keep a run (`trackers`)."""

    project: str = key("cgrpo_jax", "of W&B and trackio", may_change=ALL, because="it is a name")
    group: str = key("", "of W&B and trackio, such as a study's name", may_change=ALL, because="it is a name")


@dataclasses.dataclass(frozen=True)
class Profile:
    """What is traced into WORKDIR/profile."""

    steps: tuple[int, ...] = key(
        (), "iterations, from 0: --config.profile.steps=3,4", may_change=ALL, because="tracing changes nothing"
    )


def template_arguments(value: str) -> dict[str, Any]:
    """Returns the arguments of a chat template that the value of a key gives.

    Example:
      >>> template_arguments('{"enable_thinking": False}'), template_arguments("")
      ({'enable_thinking': False}, {})

    Raises:
      UserError: it is no dictionary whose keys are names.
    """
    found: Any = None
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            found = read(value or "{}")
            break
    if not isinstance(found, dict) or not all(isinstance(name, str) and name.isidentifier() for name in found):
        raise UserError(f"{value!r} is no dictionary of names; write one such as '{{\"enable_thinking\": False}}'.")
    return found


def arguments_rule(name: str, value: str) -> str | None:
    """The value is one of `template_arguments`."""
    text = refused(template_arguments, value)
    return text and f"{name} {text}"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What the models are asked. An empty template is the default of critiques/texts.py."""

    system: str = key("", "system message; of a chat that begins with one, its own stands instead; empty: none")
    question: str = key("{question}", "what the policy is asked", template("question", has_default=False))
    critique: str = key("", "what a critic is asked", template("question", "response"))
    critique_with_answer: str = key(
        "", "likewise, where it sees the gold answer", template("question", "response", "answer")
    )
    critique_with_solution: str = key(
        "",
        "likewise, where it sees a reference solution and the gold answer",
        template("question", "response", "answer", "solution"),
    )
    refine: str = key(
        "",
        "what a refinement answers; {question} in it is what the policy was asked; it may leave {response} out",
        template("question", "critique"),
    )
    refine_without_critique: str = key("", "likewise, where there is no critique", template("question", "response"))
    hint: str = key("", "what asks for a hint", template("question", "answer"))
    refine_with_hint: str = key("", "what a refinement answers that sees a hint alone", template("question", "hint"))
    teacher: str = key(
        "",
        "what a teacher (distil) scores a response after; it may leave {response} out; empty: prompts.refine",
        template("question", "critique"),
        unread_with={"distil.kind": ("none",)},
    )
    template_arguments: str = key(
        "",
        "of the model's chat template, such as '{\"enable_thinking\": False}'; empty: none",
        arguments_rule,
    )
    on_long_question: str = key("skip", "a question beyond max_prompt_length: skip, error", one_of("skip", "error"))


def _strings(name: str, value: Any) -> str | None:
    if not all(isinstance(stop, str) for stop in value):
        return f"{name} {tuple(value)} must hold strings; quote them."
    if not all(value):
        return f"{name} {tuple(value)} holds an empty string, after which every text ends; leave it out."
    return None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the stages of an iteration draw tokens."""

    temperature: float = key(1.0, "of all stages of an iteration", positive("gives no exploration", "1.0"))
    top_p: float = key(1.0, 'below 1 it needs objective.old_logp "trainer"', mass)
    top_k: int = key(0, 'above 0 it needs objective.old_logp "trainer"', not_negative)
    stop: tuple[str, ...] = key((), "strings after which a text ends, besides the end-of-turn tokens", _strings)


@dataclasses.dataclass(frozen=True)
class Engine:
    """The engine that samples all stages."""

    num_slots: int = key(
        64,
        "texts that a data group (one coordinate of replica and fsdp) decodes at once; 0: as many as cache.gib holds",
        not_negative,
        may_change=ALL,
        because="sampling does not depend on how many texts are sampled at a time",
    )
    prompt_bucket: int = key(
        64,
        "prompts are padded to this, twice this, four times this, ...",
        at_least_one,
        may_change=ALL,
        because="padding changes no log-probability",
    )
    prompt_tokens: int = key(
        512,
        "with pages: tokens of prompts that enter in a step beside the texts, at most",
        at_least_one,
        may_change=ALL,
        because="sampling does not depend on when a prompt enters",
    )
    decode_chunk: int = key(
        64,
        "tokens per text, after which the host looks again even if no text has ended",
        at_least_one,
        may_change=ALL,
        because="sampling does not depend on when the host looks",
    )
    overlap: str = key(
        "auto",
        "whether the devices have the next call before the host reads the last: on, off; auto: on, "
        "except on CPUs and where sampling.stop ends texts",
        one_of("auto", "on", "off"),
        may_change=ALL,
        because="sampling does not depend on when the host looks",
    )


@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the texts that are being written."""

    gib: float = key(
        0.0,
        "GiB per device, where engine.num_slots is 0: as many slots as it holds; or of pages, which otherwise hold "
        "num_slots of the longest texts",
        not_negative,
        may_change=ALL,
        because="sampling does not depend on how many texts are sampled at a time",
    )
    kind: str = key(
        "contiguous",
        "contiguous: each text has room for the longest; paged: each has pages as it needs them, and memory says how "
        "many texts there are (compiled for TPUs, never run on one)",
        one_of("contiguous", "paged"),
        may_change=ALL,
        because="sampling does not depend on where keys and values lie",
    )
    page_size: int = key(
        64,
        "positions of a page",
        at_least_one,
        may_change=ALL,
        because="sampling does not depend on where keys and values lie",
    )
    dtype: str = key(
        "",
        "float32, bfloat16, int8, which takes half of bfloat16; empty: compute.dtype",
        one_of("", "float32", "bfloat16", "int8"),
    )


def _grader(name: str, value: str) -> str | None:
    if places.is_bucket(value):
        return f"{name} {value} is in a bucket; a function is read from a disk: copy its file there."
    text = refused(grader.check_kind, value)
    return text and f"{name}: {text}"


@dataclasses.dataclass(frozen=True)
class Grader:
    """What decides whether a response is right."""

    kind: str = key(
        "math",
        "of problems whose data names none: math, numeric, choice, exact, trace, code, judge, or your own function "
        "with the signature of TRL's, FILE.py:name or package.module:name",
        _grader,
        is_path=True,
    )
    timeout: float = key(5.0, "seconds per row", positive("leaves no time", "5.0"))
    num_workers: int = key(
        2, "processes", at_least_one, may_change=ALL, because="a grade does not depend on who gives it"
    )
    tolerance: float = key(1e-6, "of numeric, relative", not_negative)
    thinking: Literal["after", "anywhere"] = key(
        "after",
        "where answers count: after the thinking (</think>), or anywhere in a response; your function gets all of it",
        one_of(*thinking.MODES),
    )
    numpy: bool = key(False, "programs of code, and their tests, may import NumPy")
    messages: bool = key(False, "your function gets lists of messages, as TRL's do with conversational data, not texts")


@dataclasses.dataclass(frozen=True)
class Code:
    """What programs find that grader.kind code runs."""

    modules: tuple[str, ...] = key(
        (),
        'modules of your own that programs may import: ("lib/hydro.py", "lib/pumps"), files or folders of Python',
        is_path=True,
    )


def _universal(name: str, value: str) -> str | None:
    if not value:
        return None
    found = rubric.read(value, only_pitfalls=True)
    if found is None:
        return (
            f"{name} {value[:60]!r} is no rubric: {rubric.fault(value, only_pitfalls=True)}; give a list of criteria."
        )
    if found.reference:
        return f"{name} {value[:60]!r} has a reference, which is of one question alone; leave it out."
    if not all(gold.readable(item.program) for item in found.items if item.program):
        return f"{name} {value[:60]!r} has a program whose tests can't be read; see cgrpo_jax/rewards/sandbox."
    return None


@dataclasses.dataclass(frozen=True)
class Judge:
    """The model of grader.kind judge, which goes through rubrics."""

    endpoint: Endpoint = section(Endpoint)
    mode: Literal["explicit", "implicit"] = key(
        "explicit",
        "explicit: it rules on each criterion, whose weights make the reward; implicit: it gives one score, 1 to 10, "
        "with the rubric in view",
        one_of(*judge_lib.MODES),
    )
    evidence: bool = key(
        False,
        "each criterion by itself: calls of the response's program are run, and it quotes what decides, then rules",
    )
    num_judgements: int = key(1, "of all that it is asked; their mean counts", at_least_one)
    temperature: float = key(0.0, "of its replies; above 0 where num_judgements is above 1", not_negative)
    universal: str = key(
        "",
        "criteria that stand behind those of every rubric, spelt as a rubric: JSON, or one a line; empty: none",
        _universal,
    )
    max_retries: int = key(2, "of a reply that can't be read", not_negative)
    max_length: int = key(1024, "tokens of a reply", at_least_one)

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        if self.num_judgements > 1 and not self.temperature:
            yield (
                f"{name}.num_judgements {self.num_judgements} at {name}.temperature 0 are {self.num_judgements} times "
                f"the same; set {name}.temperature, to 1 say."
            )
        if self.evidence and self.mode == "implicit":
            yield (
                f'{name}.evidence is of each criterion, but {name}.mode "implicit" asks for one score; set {name}.mode '
                f'to "explicit", or {name}.evidence to False.'
            )
