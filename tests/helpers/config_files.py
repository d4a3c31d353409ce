"""Configuration files, written for a test."""

BASE = """
from ml_collections import config_dict

def get_config():
    config = config_dict.ConfigDict(dict(
        lr=1e-6, num_responses=7, task="arithmetic", clip_initial=True, buckets=(64, 128), scales=(0.5, 1.0),
        optimizer=dict(b1=0.9, b2=0.95), critic=config_dict.placeholder(str), names=["a"]))
    return config.lock()
"""


def write_configs(folder, **files):
    configs = folder / "configs"
    configs.mkdir(parents=True)
    for name, text in ({"base": BASE} | files).items():
        (configs / f"{name}.py").write_text(text)
    return configs


def derived(line, returns="config"):
    body = ["config = base.get_config()", line, f"return {returns}"]
    return "\n    ".join(["from configs import base\ndef get_config():", *body])
