"""Configuration files, written for a test."""

BASE = "from cgrpo_jax.runs.base import get_config as get_config\n"


def write_configs(folder, **files):
    configs = folder / "configs"
    configs.mkdir(parents=True)
    for name, text in ({"base": BASE} | files).items():
        (configs / f"{name}.py").write_text(text)
    return configs


def derived(line, returns="config", base="from configs import base"):
    body = ["config = base.get_config()", line, f"return {returns}"]
    return "\n    ".join([f"{base}\ndef get_config():", *body])
