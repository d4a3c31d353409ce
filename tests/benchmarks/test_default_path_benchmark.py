"""The default configuration beside an older commit: keys by their older names, and what a report makes of runs."""

import json
import runpy
import sys
import types

import default_path
import ml_collections
import pytest
from default_path import Run


def test_a_tree_of_any_age_gets_the_keys_by_its_own_names(tmp_path, monkeypatch):
    written = default_path.write_config(tmp_path / "run.py", {"num_iterations": 3})

    def read(**defaults):
        base = types.ModuleType("configs.base")
        base.get_config = lambda: ml_collections.ConfigDict(defaults).lock()
        package = types.ModuleType("configs")
        package.base = base
        monkeypatch.setitem(sys.modules, "configs", package)
        scope = runpy.run_path(str(written))
        scope["get_config"].__globals__["VALUES"] = {"optimizer.learning_rate": 5e-4, "num_iterations": 3}
        return scope["get_config"]().to_dict()

    today = read(optimizer={"learning_rate": 0.1}, num_iterations=9)
    assert today == {"optimizer": {"learning_rate": 5e-4}, "num_iterations": 3}
    before = read(optimizer="adamw", learning_rate=0.1, num_iterations=9)
    assert before == {"optimizer": "adamw", "learning_rate": 5e-4, "num_iterations": 3}
    with pytest.raises(KeyError, match="learning_rate"):
        read(num_iterations=9)


def test_the_quickstarts_values_are_those_that_are_no_defaults():
    found = default_path.values()
    assert found["model.embed_dim"] == 192 and found["data.kind"] == "chains"
    assert "seed" not in found and "objective.initial_ratio" not in found


def test_a_run_is_read_without_its_first_iterations(tmp_path):
    rows = [{"step_time": t, "num_tokens": 10 * n, "num_compilations": 20 + n} for n, t in enumerate((9, 8, 2, 1, 3))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [{"warm": 1}, *rows]))
    assert default_path.read(tmp_path) == Run(seconds=2, tokens=40, programs=24)


@pytest.mark.parametrize(
    "after, met", [(Run(1.01, 100, 20), True), (Run(1.1, 100, 20), False), (Run(1.0, 90, 21), False)]
)
def test_it_is_slower_or_compiles_more_or_neither(after, met):
    rows = {one["name"]: one for one in default_path.report([(Run(1.0, 100, 20), after)] * 3, most=1.02)}
    assert (rows["step/ratio"]["met"] and rows["programs"]["met"]) == met
    assert rows["step/ratio"]["value"] == after.seconds and rows["tokens/ratio"]["value"] == after.tokens / 100
    assert rows["programs"]["workload"] == f"{after.programs} after 20"


def test_what_the_compiler_counts_is_compared_program_by_program():
    def program(name, **more):
        return {"name": name, "flops": 100.0, "bytes": 50.0, "held": 10.0} | more

    before = [program("jit(prefill)"), program("jit(apply)")]
    rows = default_path.counted(before, [before[0], program("jit(apply)", bytes=52.0)], most=1.02)
    found = {one["name"]: (one["value"], one["met"]) for one in rows}
    assert found.pop("bytes/2") == (1.04, False) and set(found.values()) == {(1.0, True)} and len(found) == 5
    with pytest.raises(SystemExit, match=r"other programs: before jit\(prefill\), jit\(apply\); after jit\(apply\)"):
        default_path.counted(before, before[1:], most=1.02)
