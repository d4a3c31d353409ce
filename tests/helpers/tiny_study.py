"""A study of recipes (configs/studies) in miniature: one arm and seed, few questions, updates and iterations."""

import json
import pathlib
import sys

import recipe_miniature
import tiny_run
from paths import CONFIGS, ROOT

sys.path.insert(0, str(ROOT / "launch"))  # as `python launch/study.py` has it
import study as study_lib  # noqa: E402

# What each recipe's arguments are, smaller; they follow those that the study gives.
ARGUMENTS = {
    "critique_finetuning": "questions=4,responses=2,solutions=8,critiques=2,updates=2",
    "trained_critics": "questions=4,responses=2,critiques=2,refinements=1,updates=2,iterations=1",
}
# What the studies' own steps set is not set beside them.
SMALL = {
    key: value
    for key, value in recipe_miniature.SMALL.items()
    if key not in ("collect.num_questions", "finetune.epochs")
}
MORE = {
    "critique_finetuning": {},
    "self_training": {"finetune.epochs": 1, "collect.num_questions": 4, "eval.k": (1, 2), "eval.num_samples": 2},
    "trained_critics": {"num_responses": 2, "questions_per_iteration": 2, "finetune.rows_per_update": 2},
}


def write(name: str, arm: str, folder: pathlib.Path) -> pathlib.Path:
    """Writes the miniature of an arm of a study as a study file, which starts from the miniature's weights."""
    study = study_lib.load(str(CONFIGS / "studies" / f"{name}.py"))
    (found,) = (one for one in study["arms"] if one["name"] == arm)
    overrides = SMALL | {"model.init": tiny_run.start()} | MORE[name]
    given = ARGUMENTS.get(name)
    if name == "self_training":  # so that each round has rows, whatever the policy solves
        rows = folder / "original.jsonl"
        rows.write_text("".join(f"{json.dumps(one)}\n" for one in recipe_miniature.rows_given("sft")))
        given = f"original={rows}"
    recipe = f"{found['recipe']},{given}"
    arms = [found | {"overrides": overrides, "recipe": recipe, "seeds": [2]}]
    settings = [study["settings"][0] | {"overrides": {}}]
    changed = study | {"config": str(tiny_run.file()), "arms": arms, "settings": settings, "warm_start": False}
    path = folder / f"{name}.py"
    path.write_text(f"def get_study():\n    return {changed!r}\n")
    return path
