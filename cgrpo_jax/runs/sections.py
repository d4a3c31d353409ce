"""The sections of a configuration that say how a run asks, samples, grades, critiques and refines.

Symbols in brackets are the paper's (arXiv 2506.03106). Lengths are in tokens.
"""

import ast
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Literal

from cgrpo_jax.critiques import schedule
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import chat_protocol
from cgrpo_jax.rewards import grader, thinking
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
    share,
    template,
)

CRITIQUES = ("indicative", "indicative_gt", "execution", "cot")
_NOT_REFINED = {"refine.kind": ("none",)}
_NOT_WRITTEN = {"critique.kind": ("indicative", "indicative_gt", "execution", "none"), "critique.schedule": ((),)}
_NOT_EXECUTED = {"critique.kind": ("indicative", "indicative_gt", "cot", "none"), "critique.schedule": ((),)}


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


def _arguments(name: str, value: str) -> str | None:
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
        "what a refinement answers; {question} in it is what the policy was asked",
        template("question", "response", "critique"),
    )
    refine_without_critique: str = key("", "likewise, where there is no critique", template("question", "response"))
    template_arguments: str = key(
        "",
        "of the model's chat template, such as '{\"enable_thinking\": False}'; empty: none",
        _arguments,
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
    decode_chunk: int = key(
        64,
        "tokens per text, after which the host looks again even if no text has ended",
        at_least_one,
        may_change=ALL,
        because="sampling does not depend on when the host looks",
    )


@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the texts that are being written."""

    gib: float = key(
        0.0,
        "GiB per device, where engine.num_slots is 0: as many slots as it holds",
        not_negative,
        may_change=ALL,
        because="sampling does not depend on how many texts are sampled at a time",
    )
    dtype: str = key(
        "",
        "float32, bfloat16, int8, which takes half of bfloat16; empty: compute.dtype",
        one_of("", "float32", "bfloat16", "int8"),
    )


def _grader(name: str, value: str) -> str | None:
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
class Judge:
    """The model of grader.kind judge, which goes through checklists."""

    endpoint: Endpoint = section(Endpoint)
    max_retries: int = key(2, "of a reply that can't be read", not_negative)
    max_length: int = key(1024, "tokens of a reply", at_least_one)


def _temperature(name: str, value: float) -> str | None:
    if value >= 0 or value == -1:
        return None
    return f"{name} {value} is no temperature; use 0 or more, or -1 for that of sampling.temperature."


@dataclasses.dataclass(frozen=True)
class Critic:
    """Who writes critiques of critique.kind cot."""

    kind: Literal["policy", "folder", "endpoint"] = key(
        "policy",
        "policy: the policy critiques itself; folder: a frozen model; endpoint: a model behind one",
        one_of("policy", "folder", "endpoint"),
    )
    folder: str = key("", "Hugging Face folder of a frozen critic", is_path=True)
    endpoint: Endpoint = section(Endpoint)
    sees: Literal["nothing", "answer", "solution"] = key(
        "nothing",
        "what it sees beside question and response: nothing; answer; solution, the data's own, and the answer",
        one_of("nothing", "answer", "solution"),
        unread_with=_NOT_WRITTEN,
    )
    temperature: float = key(
        -1.0,
        "of critiques; 0: the most likely tokens; -1: sampling.temperature",
        _temperature,
        unread_with=_NOT_WRITTEN,
    )
    top_p: float = key(0.0, "of critiques; 0: sampling.top_p", share, unread_with=_NOT_WRITTEN)
    template_arguments: str = key(
        "",
        "as prompts.template_arguments, of a critic; empty: none, of the policy as its own critic the policy's",
        _arguments,
    )
    max_length: int = key(
        1024, "tokens of a critique, its thinking included; 0: from its model's context", not_negative
    )
    max_prompt_length: int = key(9216, "tokens of what it is asked; 0: likewise", not_negative)

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        for kind, given, where in (
            ("folder", self.folder, "folder"),
            ("endpoint", self.endpoint.url, "endpoint.url"),
        ):
            if self.kind == kind and not given:
                yield f'{name}.kind "{kind}" needs {name}.{where}; give it, or set {name}.kind to "policy".'
            if self.kind != kind and given:
                said = chat_protocol.masked(given) if kind == "endpoint" else given
                yield (
                    f'{name}.{where} {said!r} is given, but {name}.kind is "{self.kind}"; set {name}.kind to "{kind}", '
                    f"or leave {name}.{where} empty."
                )
        if self.kind == "endpoint" and self.template_arguments:
            yield (
                f"{name}.template_arguments {self.template_arguments!r} is given, but the endpoint renders its chat "
                f"template itself; set them where it is served, and leave {name}.template_arguments empty."
            )


def _schedule(name: str, value: Any) -> str | None:
    return refused(schedule.check, value, (*CRITIQUES, "none"))


@dataclasses.dataclass(frozen=True)
class Critique:
    """The words about responses that refinements see."""

    kind: str = key(
        "cot", "indicative, indicative_gt, execution, cot; none: refine without a critique", one_of(*CRITIQUES, "none")
    )
    schedule: tuple[tuple[int, str], ...] = key(
        (), 'other kinds from given iterations on: ((0, "indicative_gt"), (100, "cot"))', _schedule
    )
    when: str = key("refining", "refining: of what is refined; all: of all responses", one_of("refining", "all"))
    num_per_response: int = key(1, "critiques of a response", at_least_one)
    max_retries: int = key(
        2,
        "of a cot critique whose verdict is malformed or disagrees with the grader",
        not_negative,
        unread_with=_NOT_WRITTEN,
    )
    step_checker: str = key(
        "equations",
        "of execution: equations, or chain, which knows the steps that the question asks for",
        one_of("equations", "chain"),
    )
    reveals_value: bool = key(
        True,
        "of execution; False: the wrong step, or the failing test, without what is expected",
        unread_with=_NOT_EXECUTED,
    )


@dataclasses.dataclass(frozen=True)
class Refine:
    """What becomes of failed responses."""

    kind: str = key(
        "policy",
        "policy: it refines; solution: insert the data's own instead (an ablation); none: plain GRPO",
        one_of("policy", "solution", "none"),
    )
    max_pass: float = key(
        0.0, "refine a question if at most this share of its responses pass", share, unread_with=_NOT_REFINED
    )
    per_critique: int = key(1, "refinements of a critique", at_least_one, unread_with=_NOT_REFINED)
    num_kept: int = key(1, "[k] refinements kept per question", at_least_one, unread_with=_NOT_REFINED)
    max_prompt_length: int = key(
        10240, "tokens of what a refinement answers; 0: from the model's context", not_negative
    )
    drop_critique_mentions: bool = key(
        False, "drop refinements that mention the critique before selection", unread_with=_NOT_REFINED
    )
