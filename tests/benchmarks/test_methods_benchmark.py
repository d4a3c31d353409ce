"""Methods in miniature: which are run again, and what counts as a fault."""

import json

import methods

GOOD = {"updates": 10, "loss_apart": 0.1, "slope_apart": 0.2}


def test_methods_are_kept_and_not_done_again(tmp_path, monkeypatch, capsys):
    done, results = [], {"gspo": GOOD | {"loss_apart": 1.5}, "nurl": GOOD | {"slope_apart": 2.0}}

    def measure(name, workdir, iterations):
        done.append((name, iterations))
        return results.get(name, GOOD)

    monkeypatch.setattr(methods, "measure", measure)
    command = [f"--workdir={tmp_path}", f"--json={tmp_path / 'out.json'}"]
    assert methods.main([*command, "--methods=dapo,luffy"]) == 0
    assert methods.main([*command, "--methods=dapo,gspo,nurl"]) == 1
    assert done == [("dapo", 10), ("luffy", 10), ("gspo", 10), ("nurl", 10)]
    said = capsys.readouterr().out
    assert "gspo: a loss is not its equation's, by 1.5 times what is allowed" in said
    assert "nurl: a gradient is not its equation's, by 2 times what is allowed" in said
    assert methods.main([*command, "--methods=dapo", "--iterations=3"]) == 0  # other settings: it is done again
    assert done[-1] == ("dapo", 3) and json.loads((tmp_path / "out.json").read_text()).keys() == {
        *("dapo", "luffy", "gspo", "nurl"),
    }
