"""The base configuration: `get_config()`, which a configuration's file starts from.

The defaults themselves are in the fields of schema.py and of the sections, each beside its rules.

from cgrpo_jax.runs import base

def get_config():
    config = base.get_config()
    config.objective.gamma = 0.2
    return config
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from ml_collections import config_dict

from cgrpo_jax.runs.schema import Config


def get_config() -> config_dict.ConfigDict:
    """Returns the defaults: Critique-GRPO as in the paper, on a model and data that a configuration must name.

    `python -m cgrpo_jax.train --help` lists every key.
    """
    return thaw(Config())


def thaw(section: Any, names: Collection[str] | None = None) -> config_dict.ConfigDict:
    """Returns a configuration, or a section of one, whose values can be changed, but which takes no other keys.

    Args:
      section: the configuration or section.
      names: the keys and sections of it that are wanted; None: all.
    """
    fields = [field.name for field in dataclasses.fields(section)]
    values = {name: getattr(section, name) for name in fields if names is None or name in names}
    inner = {name: thaw(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}
    return config_dict.ConfigDict(inner).lock()
