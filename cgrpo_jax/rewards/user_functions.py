"""A user's own reward function, named "FILE.py:name" or "package.module:name", with the signature that TRL calls.

    def reward(prompts, completions, completion_ids=None, **columns) -> list[float | None]:
        return [float(text.strip().endswith(answer)) for text, answer in zip(completions, columns["answer"])]

It gets all responses to a question that are graded together in one call, in order: lists of equal length, one entry a
response. `answer` is the gold answer; the other columns are the row's own. Of a chat, a prompt of messages holds all
turns, a prompt of text the question alone. It runs in worker processes, which keep its module's state between calls.

What it raises ends the run. `None` and what is no finite number are no reward: such a response is left out. The same
holds for all responses of a call that takes longer than the time limit of a response times their number.

A reward model behind an endpoint is such a function, as one of several rewards beside the one that decides; here of an
endpoint that answers a list of texts with `{"scores": [...]}`:

    import json, urllib.request

    def preferred(prompts, completions, **columns):
        texts = [f"{prompt} {text}" for prompt, text in zip(prompts, completions)]
        request = urllib.request.Request("http://localhost:8000/score", json.dumps({"texts": texts}).encode())
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["scores"]

    rewards=("math", "preference.py:preferred"), reward_weights=(1.0, 0.1), grader.timeout=60

Departures: TRL has no time limit, and also passes `trainer_state`; here there is none. `completion_ids` is None. `None`
counts as 0 in TRL.
"""

import asyncio
import functools
import importlib
import importlib.util
import inspect
import math
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards.answers import Grade

Turn = tuple[str, str]  # of a chat: a role and a text
_MOST_SAID = 300  # characters of an exception
DECLINED = "the reward function gave None"  # to say, as with TRL, that it is not meant for this response
_NOT_COLUMNS = ("prompt", "completion", "completion_ids", "prompts", "completions")


def is_name(kind: str) -> bool:
    """Does a kind name a function? "FILE.py:name" and "package.module:name" do."""
    where, colon, name = kind.rpartition(":")
    return bool(colon and where and name.isidentifier())


def short_name(kind: str) -> str:
    """Returns what metrics call a kind of grader: of a function its name, as TRL does.

    Example:
      >>> short_name("mine/style.py:short"), short_name("math")
      ('short', 'math')
    """
    return kind.rpartition(":")[2] if is_name(kind) else kind


def resolved(kind: str) -> str:
    """The name with its file's absolute path, since a worker may run elsewhere.

    Raises:
      UserError: there is no such file.
    """
    where, _, name = kind.rpartition(":")
    if not where.endswith(".py"):
        return kind
    path = pathlib.Path(where).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"grader '{kind}': there is no file {str(path)!r}; use FILE.py:name or package.module:name.")
    return f"{path}:{name}"


@functools.lru_cache
def load(kind: str) -> Callable:
    """Imports the function, in a worker."""
    where, _, name = kind.rpartition(":")
    if where.endswith(".py"):
        path = pathlib.Path(where)
        sys.path.insert(0, str(path.parent))  # as for a script, whose neighbours it may import
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} can't be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, not a function")
    return function


def start(kind: str) -> None:
    """Initialises a worker: imports the function before any time limit runs. Whatever fails, fails again later."""
    problem_with(kind)


def problem_with(kind: str) -> str:
    """Why a function can't be used, "" if it can. To be called in a worker."""
    try:
        load(kind)
    except BaseException as error:  # noqa: BLE001 - a module may even exit
        return f"{type(error).__name__}: {error}"
    return ""


def score(
    kind: str,
    responses: Sequence[str],
    answer: str,
    prompt: str | Sequence[Turn],
    columns: Mapping[str, Any],
    messages: bool,
) -> list[Grade] | str:
    """Returns the grades of responses to one question, or what the function raised. To be called in a worker.

    Args:
      kind: its name.
      responses: what the model wrote.
      answer: the gold answer, its column `answer`.
      prompt: the question, or the turns of a chat, of which it is the last. Messages hold all turns, a text only it.
      columns: the row's other columns.
      messages: pass prompts and completions as lists of messages, as TRL does with conversational data. A function
        whose `completions` are annotated as lists of lists gets messages anyway.

    Returns:
      A grade for each response; what `_said` says where the function raises, or returns something else than a number
      or None for each response.
    """
    function = load(kind)
    try:
        return _score(function, responses, answer, prompt, columns, messages)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the user's code
        return _said(error, function)


def _score(
    function: Callable,
    responses: Sequence[str],
    answer: str,
    prompt: str | Sequence[Turn],
    columns: Mapping[str, Any],
    messages: bool,
) -> list[Grade]:
    turns = [("user", prompt)] if isinstance(prompt, str) else prompt
    prompts, completions = [turns[-1][1]] * len(responses), list(responses)
    if messages or _wants_messages(function):
        prompts = [[{"role": role, "content": text} for role, text in turns] for _ in responses]
        completions = [[{"role": "assistant", "content": text}] for text in responses]
    rest = {name: value for name, value in columns.items() if name not in _NOT_COLUMNS} | {"answer": answer}
    arguments = {name: [value] * len(responses) for name, value in rest.items()}
    arguments |= {"log_extra": _ignore, "log_metric": _ignore}
    arguments |= {"prompts": prompts, "completions": completions, "completion_ids": None}
    accepted = _accepted(function, arguments)
    try:
        inspect.signature(function).bind(**accepted)
    except TypeError as error:
        raise TypeError(f"{error}; it may take {', '.join(sorted(arguments))}") from None
    rewards = function(**accepted)
    if inspect.isawaitable(rewards):
        rewards = asyncio.run(_wait_for(rewards))
    if rewards is None or isinstance(rewards, str | bytes) or not isinstance(rewards, Iterable):
        raise TypeError(f"it returned {rewards!r:.40}, not a list of {len(responses)} rewards, one for each completion")
    rewards = list(rewards)
    if len(rewards) != len(responses):
        raise ValueError(f"it returned {len(rewards)} rewards for {len(responses)} responses")
    return [_graded(reward) for reward in rewards]


def _graded(reward) -> Grade:
    if reward is None:
        return Grade(0.0, None, DECLINED, failed=True)
    value = float(reward)
    if not math.isfinite(value):
        return Grade(0.0, None, f"the reward function gave {value}", failed=True)
    return Grade(value, None, f"the reward function gave {value:g}")


def _said(error: BaseException, function: Callable) -> str:
    """An exception in one line, with the innermost line of the function's own file, else of any but this one."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")[:_MOST_SAID]
    places = [place for place in traceback.extract_tb(error.__traceback__) if place.filename != __file__]
    code = getattr(inspect.unwrap(function), "__code__", None)
    own = [place for place in places if code and place.filename == code.co_filename] or places
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text


def _accepted(function: Callable, arguments: dict) -> dict:
    """Those arguments that a function takes: TRL's take any, others need not."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    return {parameter.name: arguments[parameter.name] for parameter in parameters if parameter.name in arguments}


def _wants_messages(function: Callable) -> bool:
    parameter = inspect.signature(function).parameters.get("completions")
    return parameter is not None and str(parameter.annotation).replace("typing.", "").lower().startswith("list[list[")


def _ignore(*_, **__) -> None:
    """Takes the place of TRL's loggers."""


async def _wait_for(awaitable):
    return await awaitable
