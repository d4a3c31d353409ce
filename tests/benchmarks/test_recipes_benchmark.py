"""Recipes in miniature: which are run again, and what counts as a fault."""

import json
import signal

import recipes

KILLED = {"before_write": 3, "of": 9, "status": -signal.SIGKILL}
GOOD = {"rows": {"learnt": {"number": 4, "first": []}}, "killed": KILLED, "differences": []}


def test_recipes_are_kept_and_not_done_again(tmp_path, monkeypatch, capsys):
    done = []
    results = {"rco": GOOD | {"differences": ["learnt: weights"]}, "sft": GOOD | {"killed": KILLED | {"status": 0}}}

    def measure(name, workdir, seed):
        done.append((name, seed))
        return results.get(name, GOOD)

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
    assert done[-1] == ("raft", 1) and json.loads((tmp_path / "out.json").read_text()).keys() == {
        *("raft", "cft", "rco", "sft"),
    }
