"""The cells of the notebook, one after another, with the quickstart in miniature and two iterations."""

import json

import paths
import tiny_run

NOTEBOOK = paths.CONFIGS / "examples" / "quickstart.ipynb"


def test_all_cells_run_and_the_two_critiques_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = [one for one in json.loads(NOTEBOOK.read_text())["cells"] if one["cell_type"] == "code"]
    assert all(one["outputs"] == [] and one["execution_count"] is None for one in cells)  # nobody's machine is in it
    names = {}
    changes = tiny_run.SMALL | {"model.init": tiny_run.start(), "num_iterations": 2}
    for cell in cells:
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names["CHANGES"], names["FOLDER"] = changes, tmp_path
    said = capsys.readouterr().out
    assert "critique by a rule" in said and "advantage" in said
    for name in ("execution", "indicative"):
        assert names[name]["iterations"] == 2
        assert f"{names[name]['eval_after']['pass@1']:.2f}" in said.partition("before   after")[2]
    assert names["written"].total == 16 and (tmp_path / "report.html").stat().st_size > 100_000
