"""Whether any run can have a configuration: what the types of its values do not say."""

from collections.abc import Iterator

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import keys
from cgrpo_jax.runs.schema import Config


def check(config: Config) -> None:
    """Checks a configuration by itself: without its models, its data and the machine.

    Raises:
      UserError: values, or combinations of values, that no run can have: all of them at once.
    """
    found = list(violations(config))
    if len(found) == 1:
        raise UserError(found[0])
    if found:
        raise keys.ConfigErrors(f"{len(found)} problems in the configuration", found)


def violations(config: Config) -> Iterator[str]:
    """Yields all that no run can have, each in one line: what was given, what is allowed, what to do."""
    for name, known, value in keys.items(config):
        if text := keys.wrong(name, known, value):
            yield text
    for name, section in keys.sections(config):
        if hasattr(section, "violations"):
            yield from section.violations(name)
    yield from config.violations()
