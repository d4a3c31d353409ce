"""The base configuration, for files of this folder: every key is in cgrpo_jax/runs/schema.py, and `--help` lists them.

from configs import base

def get_config():
    config = base.get_config()
    config.objective.gamma = 0.2
    return config
"""

from cgrpo_jax.runs.base import get_config as get_config
