"""Whether any run can have a configuration: what the types of its values do not say."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cgrpo_jax.datasets.problems import MADE_UP
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import keys, old_keys
from cgrpo_jax.runs.critic_training_section import CriticTraining
from cgrpo_jax.runs.distillation_section import Distil
from cgrpo_jax.runs.objective_section import Objective
from cgrpo_jax.runs.refinement_sections import Refine
from cgrpo_jax.runs.schema import FINETUNING_ALONE, NOT_FINETUNING, TRAINING_ALONE, Config

# The allowed combinations of keys, of refinements, objective, distillation, and critics that learn; others are refused.
NEEDS = (*Refine.NEEDS, *Objective.NEEDS, *Distil.NEEDS, *CriticTraining.NEEDS)
# Whatever is generated: prompts of critiques that `finetune` writes again.
_READ_OF_ROLLOUTS = ("critic.sees",)
_UNREAD_WHERE = {name: known.unread_where for name, known, _ in keys.items(Config())}


def check(config: Config, *, trains: bool = True, finetunes: bool = False) -> None:
    """Checks a configuration by itself: without its models, its data and the machine.

    Args:
      config: the configuration.
      trains: whether it is to train, and so to teach something.
      finetunes: whether it is to learn from rows, whose number is not known yet, and not from what it generates.

    Raises:
      UserError: values, or combinations of values, that no run can have: all of them at once.
    """
    found = list(violations(config, trains=trains, finetunes=finetunes))
    keys.raise_together("problems in the configuration", found)


def check_generates(config: Config, *, command: str) -> None:
    """Raises a `UserError` for a configuration of `finetune`, where a command is of runs that generate.

    Args:
      config: the configuration.
      command: which, such as `plan`.
    """
    for name, _, default in keys.items(Config()):
        if name.startswith("finetune.") and (given := config_lib.value(config, name)) != default:
            raise UserError(
                f"{name} {given!r} is of cgrpo finetune, and cgrpo {command} is of cgrpo train, which generates: leave "
                "finetune.* at its defaults. What finetune needs, the phase update of cgrpo plan says of the same "
                "model, mesh, packing.* and optimizer.*."
            )


def violations(config: Config, *, trains: bool = True, finetunes: bool = False) -> Iterator[str]:
    """Yields all that no run can have, each in one line: what was given, what is allowed, what to do.

    Arguments are those of `check`.
    """
    values = {}
    for name, known, value in keys.items(config):
        values[name] = value
        if text := keys.wrong(name, known, value):
            yield text
    for need in NEEDS:
        if need.of_training and (finetunes or not trains):
            continue
        if text := _unmet(need, values, config.critique_kinds()):
            yield text
    for name, section in keys.sections(config):
        if hasattr(section, "violations"):
            yield from section.violations(name)
        if trains and hasattr(section, "training_violations"):
            yield from section.training_violations(name)
    yield from config.violations()
    if trains and not finetunes:
        yield from config.training_violations()


def _unmet(need: keys.Need, values: Mapping[str, Any], kinds: Iterable[str]) -> str | None:
    """Returns what is wrong with the values of all keys by a row of a table, of all kinds of critique, or None.

    What training does not read is not refused: an arm without refinements keeps the other arms' values.
    """
    if unread_here(need.key, values) or unread_here(need.other, values):
        return None
    of_each_kind = [dict(values) | {"critique.kind": kind} for kind in sorted(kinds)]
    return next((text for one in of_each_kind if (text := need.unmet(one))), None)


def unread(config: Config, changed: Mapping[str, Any], *, finetunes: bool = False) -> Iterator[str]:
    """Yields which keys training would ignore, of those that a command line has changed, and why.

    Args:
      config: the configuration.
      changed: the keys and their values; a default asks for nothing.
      finetunes: whether it learns from rows, or from what it generates.
    """
    values = {name: value for name, _, value in keys.items(config)}
    for name, _, default in keys.items(Config()):
        if name not in changed or changed[name] == default:
            continue
        if finetunes and name == "data.num_train" and config.data.kind in MADE_UP:
            continue  # held-out questions are made up beside the others
        if {name, name.partition(".")[0]} & {*(NOT_FINETUNING if finetunes else FINETUNING_ALONE)}:
            command = "cgrpo finetune does not read it" if finetunes else "cgrpo finetune alone reads it"
            yield f"{name} {changed[name]!r} changes nothing: {command}; leave it out."
            continue
        if finetunes and name in _READ_OF_ROLLOUTS:
            continue
        if finetunes and name == "num_iterations" and config.finetune.epochs:
            why = f"while finetune.epochs is {config.finetune.epochs}; leave it out, or set finetune.epochs to 0."
            yield f"{name} {changed[name]!r} changes nothing {why}"
            continue
        if with_these := unread_here(name, values):
            why = " and ".join(f"{other} is {values[other]!r}" for other in with_these)
            first = next(iter(with_these))
            yield f"{name} {changed[name]!r} changes nothing while {why}; leave it out, or set {first}."


def never_read(*configs: Mapping[str, Any]) -> frozenset[str]:
    """Returns the keys that training reads with none of these configurations, as `config.to_json` returns them.

    One of an earlier version is read through the table of `old_keys`; what a key that it lacks decides is read.
    """
    found = frozenset(_UNREAD_WHERE)
    for config in configs:
        flat = config_lib.flatten(old_keys.translate(config))
        values = {key: config_lib.tuples(value) for key, value in flat.items()}
        found &= {name for name in found if unread_here(name, values)}
    return found


def unread_here(name: str, values: Mapping[str, Any]) -> Mapping[str, Sequence[Any]] | None:
    """Returns with what training ignores a key where all keys have these values; None where it reads it."""
    for with_these in _UNREAD_WHERE[name]:
        if all(other in values and values[other] in some for other, some in with_these.items()):
            return with_these
    return None


def unread_without_training(changed: Mapping[str, Any]) -> Iterator[str]:
    """Yields which keys training alone reads, of those that a command line has changed."""
    for name in changed:
        if name.partition(".")[0] in TRAINING_ALONE:
            yield f"{name} {changed[name]!r} changes nothing: training alone reads it; leave it out."
