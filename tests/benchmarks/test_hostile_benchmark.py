"""Hostile folders, endpoints and templates, in small numbers."""

import json

import hostile
import hostile_templates
import pytest


def test_a_template_is_a_pure_function_of_seed_and_number():
    texts = [hostile_templates.text_of(number, "0") for number in range(0, 1000, 7)]
    assert [hostile_templates.text_of(number, "0") for number in range(0, 1000, 7)] == texts
    assert len(set(texts)) > 130 and hostile_templates.text_of(999, "1") != hostile_templates.text_of(999, "0")


def test_a_run_finds_no_fault_and_is_not_computed_again(tmp_path, monkeypatch, capsys):
    command = [f"--json={tmp_path}/out.json", "--share=2"]
    assert hostile.main(command) == 0, capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())
    assert {row["kind"]: row["cases"] for row in rows} == {"folder": 12, "server": 2, "template": 20}
    assert all(row["refused"] and not row["faults"] and 0 < row["mib"] < 1000 for row in rows)
    monkeypatch.setattr(hostile, "part_of", lambda *_: pytest.fail("computed again"))
    assert hostile.main(command) == 0


@pytest.mark.parametrize("fault", ["raises", "says", "prints", "dies", "is slow"])
def test_faults_are_seen(monkeypatch, tmp_path, fault):
    (tmp_path / "hostile.py").write_text(worker_with(fault))
    monkeypatch.setattr(hostile, "__file__", str(tmp_path / "hostile.py"))
    if fault == "is slow":
        monkeypatch.setattr(hostile, "SECONDS", 0.1)
        monkeypatch.setattr(hostile, "FACTOR", 1.0)
    with hostile.Process("template", "0") as process:
        found = hostile.part_of("template", [0], process)
    assert len(found["faults"]) == 1, found


def worker_with(fault):
    """Returns a worker whose only case has a fault."""
    body = {
        "raises": "raise KeyError('x')",
        "says": "return ['two\\nlines']",
        "prints": "os.write(2, b'thread panicked')",
        "dies": "os._exit(3)",
        "is slow": "time.sleep(0.3)",
    }[fault]
    return f"""
import os, sys, time
sys.path.insert(0, {str(hostile.ROOT)!r})
sys.path.insert(0, {str(hostile.ROOT / "tests" / "benchmarks")!r})
import hostile

class Worker:
    def __init__(self, seed):
        import pathlib, tempfile
        self.folder = pathlib.Path(tempfile.mkdtemp())

    def try_template(self, number):
        {body}
        return []

hostile.Worker = Worker
hostile.work("template", "0")
"""
