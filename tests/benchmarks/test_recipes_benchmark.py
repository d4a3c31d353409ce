"""Recipes in miniature: which are run again, and what counts as a fault."""

import contextlib
import json
import signal
import types

import pytest
import recipes

KILLED = {"before_write": 3, "of": 9, "status": -signal.SIGKILL, "differences": []}
GOOD = {"rows": {"learnt": {"number": 4, "first": []}}, "kills": [KILLED]}


def test_recipes_are_kept_and_not_done_again(tmp_path, monkeypatch, capsys):
    done = []
    differ, survived = KILLED | {"differences": ["learnt: weights"]}, KILLED | {"status": 0}
    results = {"rco": GOOD | {"kills": [KILLED, differ]}, "sft": GOOD | {"kills": [survived]}}

    def measure(name, workdir, seed, kills):
        done.append((name, seed))
        return results.get(name, GOOD | {"kills": kills * [KILLED]})

    monkeypatch.setattr(recipes, "measure", measure)
    command = [f"--workdir={tmp_path}", f"--json={tmp_path / 'out.json'}"]
    assert recipes.main([*command, "--recipes=raft,cft"]) == 0
    assert recipes.main([*command, "--recipes=raft,rco,sft"]) == 1
    assert done == [("raft", 0), ("cft", 0), ("rco", 0), ("sft", 0)]
    said = capsys.readouterr().out
    assert "raft: 4 rows in learnt; killed before write 3 of 9" in said
    assert "rco: killed and resumed it differs in learnt: weights" in said
    assert "sft: it was not killed (status 0)" in said
    assert recipes.main([*command, "--recipes=raft", "--seed=1"]) == 0  # another moment: it is done again
    assert recipes.main([*command, "--recipes=raft", "--seed=1", "--kills=2"]) == 0  # so it is for more kills
    assert "raft: 4 rows in learnt; killed before write 3 of 9, 3 of 9" in capsys.readouterr().out
    assert recipes.main([*command, "--recipes=raft", "--seed=1"]) == 0 and len(done) == 6
    assert done[-1] == ("raft", 1) and json.loads((tmp_path / "out.json").read_text()).keys() == {
        *("raft", "cft", "rco", "sft"),
    }


@pytest.mark.parametrize(
    "rows, fault",
    [({}, "raft: no step learnt any rows"), ({"a": {"number": 0, "first": []}}, "raft: a learnt no rows")],
)
def test_a_recipe_that_learns_no_rows_is_a_fault(rows, fault):
    assert recipes.faults("raft", GOOD) == []
    assert recipes.faults("raft", GOOD | {"rows": rows}) == [fault]


def test_what_was_run_whole_before_is_run_again(tmp_path, monkeypatch):
    """The command of a folder that has ended does nothing: no rows, and no writes before which to kill."""

    def run(name, workdir):
        assert not workdir.exists()
        workdir.mkdir()
        return {"learnt": [{"context": "2+3?"}]}

    monkeypatch.setattr(recipes.recipe_miniature, "run", run)
    monkeypatch.setattr(recipes, "Writes", lambda: contextlib.nullcontext(types.SimpleNamespace(number=5)))
    monkeypatch.setattr(recipes, "numbers", lambda workdir: [{"step": "learnt", "task": "chains-1"}])
    for _ in range(2):
        found = recipes.measure("raft", tmp_path / "raft", 0, kills=0)
        assert found["rows"] == {"learnt": {"number": 1, "first": [{"context": "2+3?"}]}}
