"""The base configuration, for files of this folder; `cgrpo train --help` lists every key.

Defaults and rules are in cgrpo_jax/runs: keys without a section in schema.py, sections in sections.py,
refinement_sections.py, objective_section.py, distillation_section.py, training_sections.py and model_sections.py.

from configs import base

def get_config():
    config = base.get_config()
    config.objective.gamma = 0.2
    return config
"""

from cgrpo_jax.runs.base import get_config as get_config
