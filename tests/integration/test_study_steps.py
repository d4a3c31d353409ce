"""The recipes of single arms of the studies (configs/studies/steps.py), each in miniature."""

import json

import pytest
import recipe_miniature
import tiny_run
from paths import CONFIGS

from cgrpo_jax import recipe
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Author, Stage
from cgrpo_jax.runs import cli, recipes

STEPS = CONFIGS / "studies" / "steps.py"
SMALL = {key: value for key, value in recipe_miniature.SMALL.items() if not key.startswith("collect.")}


def run(workdir, given, **changes):
    """Runs a recipe, and returns the numbers of its steps by their names."""
    changes = SMALL | {"model.init": tiny_run.start(), "num_iterations": 1} | changes
    argv = [f"--recipe={STEPS}:{given}", *tiny_run.arguments(workdir, changes)]
    cli.run(recipe.main, require=("config", "workdir", "recipe"), flags=recipe.FLAGS, trains=False, argv=argv)
    return {one["step"]: one for one in json.loads((workdir / "results.json").read_text())}


def texts_of(folder):
    return [row.rollout for path in sorted(folder.rglob("*.parquet")) for row in rollouts.read(path)]


def test_sft_learns_the_solutions_that_the_solver_has_written(tmp_path):
    found = run(tmp_path / "a", "kind=sft")
    solved = [one for one in texts_of(tmp_path / "a" / "solved") if one.stage == Stage.REFINEMENT]
    assert len(solved) == 4 and {one.author for one in solved} == {Author.SOLUTION}  # one of each question
    assert all(one.reward == 1 for one in solved)
    assert found["learnt"]["updates"] == 1 and found["learnt"]["eval_after"]["pass@1"] is not None


def test_a_critic_that_errs_says_what_was_said_of_other_responses(tmp_path):
    found = run(tmp_path / "a", "kind=errors,share=1.0", **{"collect.num_questions": 12})
    said = {one.text for one in texts_of(tmp_path / "a" / "others") if one.stage == Stage.CRITIQUE}
    refined = [one for one in texts_of(tmp_path / "a" / "policy") if one.stage == Stage.REFINEMENT]
    shown = {one.parent.shown for one in refined}
    assert said and shown and shown <= said
    assert found["policy"]["eval_after"]["pass@1"] is not None


def test_a_critic_of_its_own_lessons_is_frozen_beside_the_policy(tmp_path):
    found = run(tmp_path / "a", "kind=critic,updates=2")
    critiques = [one for one in texts_of(tmp_path / "a" / "policy") if one.stage == Stage.CRITIQUE]
    assert critiques and Author.CRITIC in {one.author for one in critiques}
    assert found["policy"]["eval_after"]["pass@1"] is not None


def test_a_refiner_of_fewer_lessons_refines_for_the_policy(tmp_path):
    run(tmp_path / "a", "kind=refiner,updates=2", **{"critique.kind": "indicative_gt"})
    refined = [one for one in texts_of(tmp_path / "a" / "policy") if one.stage == Stage.REFINEMENT]
    assert refined and {one.author for one in refined} == {Author.REFINER}


@pytest.mark.parametrize("kind", ["indicative", "none"])
def test_critiques_are_counted_by_what_they_fix(tmp_path, kind):
    found = run(tmp_path / "a", f"kind=critiques,critique={kind}")
    rows = found["rows"]
    assert rows["responses"] == 12 * 4 and 0 <= rows["fix_rate"]["value"] <= 1
    assert rows["refinements"] == rows["responses"] - round(rows["pass@1"]["value"] * 48)
    assert rows["critiques"] == (0 if kind == "none" else rows["refinements"])


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match="kind 'all' is none of sft, errors, critic, refiner, critiques"):
        recipes.load(f"{STEPS}:kind=all")
