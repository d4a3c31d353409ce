"""Recipes: commands that follow one another, each with keys of its own, from one configuration.

    from cgrpo_jax.runs.recipes import Step


    def get_steps(num_responses: int = 8):
        return [
            Step("samples", "collect", {"collect.num_responses": num_responses, "collect.num_critiques": 0}),
            Step("learnt", "finetune", {"finetune.rows": "{samples}", "finetune.stages": ("response",)}),
            Step("after", "evaluate", weights="learnt"),
        ]

A value may name the folder of an earlier step in braces. What the arguments of `get_steps` are, the command line says
after the file: `--recipe=configs/recipes/raft.py:num_responses=4`.
"""

import ast
import dataclasses
import inspect
import json
import pathlib
import re
import runpy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base, keys, load_questions, load_rows, resume_policy, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.export_source import MODELS
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import digests, files, places
from cgrpo_jax.runtime.json_files import read_json_object

TRAINS = ("train", "finetune")
COMMANDS = (*TRAINS, "collect", "evaluate", "convert")
START = "start"  # the step that is put first where lessons make the weights that all start from
_MAY_CHANGE = {
    "train": resume_policy.TRAINING,
    "finetune": resume_policy.TRAINING,
    "collect": resume_policy.COLLECTION,
    "evaluate": resume_policy.EVALUATION,
    "convert": resume_policy.EVALUATION,
}


@dataclasses.dataclass(frozen=True)
class Step:
    """A command of a recipe.

    Attributes:
      name: of the step, and of its folder in the recipe's.
      command: one of `COMMANDS`.
      keys: of the configuration, by dotted names, that the step sets; `{NAME}` in a string, or in one of several, is
        the folder of that earlier step.
      weights: the step whose weights it reads, starts from or exports; empty: those that the configuration starts from.
      stream: of random numbers; with another one `collect` draws other texts.
      of: what `convert` exports, a name of `export_source.MODELS`.
    """

    name: str
    command: str
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = ""
    stream: int = 0
    of: str = "policy"


@dataclasses.dataclass(frozen=True)
class Planned:
    """A step with all that it needs.

    Attributes:
      step: which.
      folder: that it writes.
      weights: folder of the run whose weights it reads; its own where that is none.
      config: what its command is given.
    """

    step: Step
    folder: pathlib.Path
    weights: pathlib.Path
    config: Config

    def is_done(self) -> bool:
        """Returns whether the step has ended: what a command writes last is there."""
        return (self.folder / (digests.FILE if self.step.command == "convert" else "summary.json")).exists()

    def summary(self) -> dict[str, Any]:
        """Returns the numbers that the step's command has written; none of `convert`.

        Raises:
          UserError: the file is damaged.
        """
        if self.step.command == "convert":
            return {}
        fix = f"remove {self.folder}, and give the same command again"
        return read_json_object(self.folder / "summary.json", missing=fix, broken=fix)

    def kept_rows(self) -> dict[str, int]:
        """Returns how many rows of each question `finetune` learns, of those that were collected; empty without any.

        Raises:
          UserError: the file is damaged.
        """
        path = RunDir(self.folder).kept_rows
        fix = f"remove {self.folder}, and give the same command again"
        return read_json_object(path, missing=fix, broken=fix) if path.exists() else {}

    @property
    def pass_threshold(self) -> float:
        """The reward from which a response is right."""
        return self.config.pass_threshold


# --- a recipe's file ----------------------------------------------------------------------------------------------


def load(given: str) -> list[Step]:
    """Returns the steps of a recipe's file, whose arguments may follow after a colon.

    Args:
      given: such as `raft.py`, or `raft.py:num_responses=4,max_per_question=1`; one that is a tuple may be given
        several times.

    Raises:
      UserError: there is no such file or argument, it fails to run, or does not return steps.
    """
    name, _, arguments = given.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(f"recipe file {path} does not exist; give one such as configs/recipes/raft.py.")
    try:
        function = runpy.run_path(str(path)).get("get_steps")
    except Exception as error:
        raise UserError(f"recipe file {path} fails to load: {type(error).__name__}: {error}; fix the file.") from error
    if not callable(function):
        raise UserError(f"recipe file {path} has no function get_steps(); define one that returns a list of Step.")
    values = _arguments(function, arguments, path)
    try:
        steps = function(**values)
    except UserError as error:
        raise UserError(f"recipe {given}: {error}") from error
    except Exception as error:
        raise UserError(f"recipe file {path} fails: {type(error).__name__}: {error}; fix the file.") from error
    if not isinstance(steps, list) or not steps or not all(isinstance(one, Step) for one in steps):
        raise UserError(f"get_steps() of {path} returned {steps!r:.60}; return a list of Step.")
    return steps


def _arguments(function: Callable[..., Any], given: str, path: pathlib.Path) -> dict[str, Any]:
    """Returns the arguments that a command line gives to `get_steps`, each of the type of its default."""
    known = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    found: dict[str, Any] = {}
    for pair in filter(None, given.split(",")):
        name, equals, text = pair.partition("=")
        if name not in known or not equals:
            allowed = ", ".join(f"{name}={default!r}" for name, default in known.items()) or "none"
            raise UserError(f"recipe {path.name} has no argument {pair!r}; its arguments are {allowed}.")
        default = known[name]
        if isinstance(default, tuple):
            found[name] = (*found.get(name, ()), text)
        elif isinstance(default, str):
            found[name] = text
        else:
            found[name] = _number(f"recipe {path.name}: {name}", text, default)
    return found


def _number(what: str, text: str, default: Any) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise UserError(f"{what} is {text!r}; give a value such as {default!r}.")
    return value


# --- from steps to configurations ---------------------------------------------------------------------------------


def plan(steps: Sequence[Step], config: Config, workdir: str | pathlib.Path, *, runs: bool = True) -> list[Planned]:
    """Returns the steps with their configurations, checked as their commands check them, before anything is run.

    Where the configuration has lessons (`warm_start`), a step that gives them alone is put first, and all others start
    from its weights.

    Args:
      steps: of the recipe.
      config: what all of them share.
      workdir: the recipe's folder, in which each step has its own.
      runs: whether the steps must be such as can run; a report is also of those that a later version would refuse.

    Raises:
      UserError: a step refers to none before it, or what it would be given is refused by its command.
    """
    folder = places.place(workdir)
    if config.warm_start.num_updates:
        steps = [Step(START, "train", {"num_iterations": 0, "data.num_eval": 0}), *steps]
    done: dict[str, Planned] = {}
    for step in steps:
        _check(step, done)
        done[step.name] = _planned(step, config, folder / step.name, done)
    mistakes = (f"step {one.step.name}: {text}" for one in done.values() for text in _mistakes(one))
    keys.raise_together("problems in the recipe", list(mistakes) if runs else [])
    return list(done.values())


def _check(step: Step, done: Mapping[str, Planned]) -> None:
    """Raises a `UserError` where a step by itself, or what it says of those before it, can't be."""
    where = f"step {step.name!r} of the recipe"
    if not re.fullmatch(r"[A-Za-z]\w*", step.name) or step.name in done:
        raise UserError(f"{where} needs a name of its own, of letters, digits and _ (there is {', '.join(done)}).")
    if step.command not in COMMANDS:
        raise UserError(f"{where} has command {step.command!r}; use one of {', '.join(COMMANDS)}.")
    trained = [name for name, one in done.items() if one.step.command in TRAINS]
    if (step.weights or step.command == "convert") and step.weights not in trained:
        raise UserError(
            f"{where} takes the weights of {step.weights!r}, which no step before it trains "
            f"({', '.join(trained) or 'none does'})."
        )
    allowed = MODELS if step.command == "convert" else ("policy",)
    if step.of not in allowed:
        raise UserError(f"{where} is of {step.of!r}; of {step.command} it can be {' or '.join(allowed)}.")
    made_by = done.get(step.weights)
    if step.of == "critic" and not (made_by and made_by.step.command == "train" and made_by.config.critic.train):
        raise UserError(f"{where} exports the critic of {step.weights!r}, which trains none (critic.train).")


def _planned(step: Step, config: Config, folder: pathlib.Path, done: Mapping[str, Planned]) -> Planned:
    values: dict[str, Any] = {}
    if step.name != START and START in done:
        values |= {"warm_start.num_updates": 0}
        if "model.folder" not in step.keys:
            values |= {"model.init": str(done[START].folder)}
    weights = folder
    if step.weights:
        weights = done[step.weights].folder
        given = done[step.weights].config
        # What its weights are of: its model, and a critic that is trained beside it.
        critic = {"critic"} if given.critic.train and step.command not in TRAINS else set()
        values |= config_lib.flatten(base.thaw(given, {"model", *critic}).to_dict())
        if step.command in TRAINS:
            values |= {"model.init": str(weights)}  # a run's folder, which describes its model too
    if step.stream:
        values |= {"seed": (config.seed + 7919 * step.stream) % 2**32}
    values |= {key: _with_folders(value, done) for key, value in step.keys.items()}
    known = config_lib.flatten(base.get_config().to_dict())
    for key in values:
        if key not in known:
            close = config_lib.suggestion(key, list(known))
            raise UserError(f"step {step.name!r} of the recipe sets {key}, which is no key{close}; fix the recipe.")
    try:
        found = config_lib.replaced(config, values)
    except (TypeError, ValueError) as error:
        raise UserError(f"step {step.name!r} of the recipe: {str(error).splitlines()[0]}; fix the recipe.") from error
    _check_given(step, config, known)
    return Planned(step, folder, weights, found)


def _check_given(step: Step, config: Config, known: Mapping[str, Any]) -> None:
    """Refuses a key of critic, collection or learning that the configuration sets, and the recipe to something else.

    Not `critique.kind`, which configurations of training have: what a step sets it to is said as the step begins.
    """
    for key, wanted in step.keys.items():
        given = config_lib.value(config, key)
        is_own = key.startswith(("collect.", "finetune.", "critic."))
        if is_own and given not in (known[key], config_lib.tuples(wanted)) and given != wanted:
            raise UserError(
                f"--config.{key}={given} changes nothing: step {step.name!r} of the recipe sets it to {wanted!r}; "
                "leave it out, or give the recipe's argument."
            )


def _with_folders(value: Any, done: Mapping[str, Planned]) -> Any:
    if isinstance(value, tuple):
        return tuple(_with_folders(one, done) for one in value)
    if not isinstance(value, str):
        return value
    return re.sub(r"\{(\w+)\}", lambda at: str(done[at[1]].folder) if at[1] in done else at[0], value)


def _mistakes(one: Planned) -> list[str]:
    """Returns why the command of a step would refuse what it is given."""
    command, config = one.step.command, one.config
    found = list(validate.violations(config, trains=command in TRAINS, finetunes=command == "finetune"))
    asks_held_out = command == "evaluate" or (command == "collect" and config.collect.questions == "held_out")
    if asks_held_out and load_questions.of_finetuning(config) is None:
        found.append(
            f"there are no held-out questions to {command}: set data.eval, of made-up questions data.num_eval."
        )
    if command in TRAINS and one.step.weights and config.lora.rank:
        found.append("it starts from weights of a run, which has adapters (lora.rank); train all weights.")
    if one.step.name == START and config.lora.rank:
        found.append(
            "lessons (warm_start.num_updates) before a recipe would leave adapters (lora.rank), which no other step "
            "starts from; train all weights, or set warm_start.num_updates to 0."
        )
    if command == "finetune":
        found += _no_rows(config)
    return found


def _no_rows(config: Config) -> list[str]:
    c = config.finetune
    if not c.rows and c.loss == "nll" and set(c.stages) == {"critique"}:
        return ["it learns critiques, and data.train is of questions; set finetune.rows to critiques that are given."]
    return [] if load_rows.place(config) else [f"no rows to learn from: {load_rows.why_no_place(config)}."]


# --- the recipe's folder ------------------------------------------------------------------------------------------


def kept_of(planned: Sequence[Planned]) -> dict[str, Any]:
    """Returns what a recipe's folder keeps of it: each step's name, command, weights, `of` and configuration."""
    return {
        "steps": [
            {
                "name": one.step.name,
                "command": one.step.command,
                "weights": one.step.weights,
                "of": one.step.of,
                "config": config_lib.to_json(one.config),
            }
            for one in planned
        ]
    }


def open_folder(planned: Sequence[Planned], workdir: str | pathlib.Path) -> bool:
    """Notes a recipe in its folder, or checks that the folder is of the same; returns whether it was noted before.

    Raises:
      UserError: the folder holds another recipe, or can't be written.
    """
    path, now = places.place(workdir) / "recipe.json", kept_of(planned)
    with files.checked(path):
        there = path.is_file()
        if not there:
            files.write_atomically(path, json.dumps(now, indent=1) + "\n")
            return False
    fix = "restore it from a copy, or give another --workdir"
    old = read_json_object(path, missing=fix, broken=fix)
    if found := changed(old.get("steps", []), now["steps"], done={one.step.name for one in planned if one.is_done()}):
        raise UserError(
            f"{path.parent} holds another recipe ({'; '.join(found[:3])}); give another --workdir, or the command "
            "that it was started with."
        )
    with files.checked(path):  # how long the steps that are left go on may have changed; they end as it says now
        files.write_atomically(path, json.dumps(now, indent=1) + "\n")
    return True


def changed(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], *, done: Collection[str]) -> list[str]:
    """Returns in what a recipe differs from the one that a folder keeps, but for what may change, a text each.

    Args:
      old, new: `steps` of `kept_of`.
      done: names of the steps that have ended.
    """
    keys_of = ("name", "command", "weights", "of")
    names = [[tuple({"of": "policy", **one}[key] for key in keys_of) for one in some] for some in (old, new)]
    if names[0] != names[1]:
        shown = [", ".join(f"{one[0]}{' of the critic' * (one[-1] == 'critic')}" for one in some) for some in names]
        return [f"its steps: {shown[0]} -> {shown[1]}"]
    return [
        f"{after['name']}{', which is done' if after['name'] in done else ''}: {text}"
        for before, after in zip(old, new, strict=True)
        for text in config_lib.differences(
            before["config"], after["config"], _may_change(after, is_done=after["name"] in done)
        )
    ]


def _may_change(step: Mapping[str, Any], *, is_done: bool) -> tuple[str, ...]:
    """Returns the keys of a step that may change: how long it learns only until it is done, as others read its weights.

    `num_iterations` is not how long `finetune` learns, where `finetune.epochs` says so.
    """
    fixed: dict[str, tuple[str, ...]] = {"train": ("num_iterations",), "finetune": ("finetune.epochs",)}
    if not step["config"]["finetune"]["epochs"]:
        fixed["finetune"] += ("num_iterations",)
    length = fixed.get(step["command"], ()) if is_done else ()
    return tuple(key for key in _MAY_CHANGE[step["command"]] if key not in length)


def said(one: Planned) -> str:
    """Returns what a step does, in a line: its command, its weights, and the keys that the recipe sets."""
    given = ", ".join(f"{key}={value}" for key, value in one.step.keys.items())
    of = f" from {one.step.weights}" if one.step.weights else ""
    if one.step.command == "convert":
        of = f" the {one.step.of} of {one.step.weights}"
    return f"{one.step.name}: {one.step.command}{of}{f' with {given}' if given else ''}"
