"""`cgrpo recipe` in miniature: one that takes little, killed before one of its writes and resumed.

`tests/benchmarks/recipes.py` does so with all.
"""

import json
import os
import random

import pytest
import recipe_miniature
from entry_points import refused
from recipe_miniature import Killed, Writes, differences, moment, run

SEED = os.environ.get("CGRPO_TEST_SEED", "")  # of the recipe, and of the moment; .ci/run gives the commit


def kill():
    raise Killed


@pytest.mark.parametrize("name", [random.Random(SEED).choice(recipe_miniature.QUICK)])
def test_a_recipe_is_killed_and_resumed(name, tmp_path, capsys):
    with Writes() as whole:
        learnt = run(name, tmp_path / "whole")
    assert list(learnt) == recipe_miniature.learning(tmp_path / "whole") and all(learnt.values())
    shown = capsys.readouterr().out
    assert "held-out " in shown or "collected " in shown
    at = moment(name, whole.number, SEED)
    with pytest.raises(Killed), Writes(at, kill):
        run(name, tmp_path / "killed")
    assert not (tmp_path / "killed" / "results.json").exists()
    run(name, tmp_path / "killed")
    assert differences(tmp_path / "whole", tmp_path / "killed") == [], f"killed before write {at} of {whole.number}"
    steps = json.loads((tmp_path / "whole" / "results.json").read_text())
    _, err = refused(capsys, run, "cft" if name == "sft" else "sft", tmp_path / "whole")
    assert "holds another recipe" in err and len(steps) >= 3
