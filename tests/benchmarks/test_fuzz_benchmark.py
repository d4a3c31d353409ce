"""The random and mutated responses, in small numbers."""

import json

import fuzz_graders
import pytest

from cgrpo_jax.rewards import comparisons
from cgrpo_jax.rewards.answers import Grade


def test_a_string_is_a_pure_function_of_seed_kind_and_number():
    texts = {(kind, n): fuzz_graders.text_of("0", kind, n) for kind in ("numeric", "code") for n in range(60)}
    assert all(fuzz_graders.text_of("0", *which) == text for which, text in texts.items())
    assert len(set(texts.values())) > 100
    assert fuzz_graders.text_of("1", "numeric", 1) != texts["numeric", 1]
    long = {number for (_, number), text in texts.items() if len(text) >= fuzz_graders.LENGTH}
    assert long == {0, 50}


def test_a_run_is_kept_and_not_computed_again(tmp_path, monkeypatch, capsys):
    command = [f"--json={tmp_path}/out.json", "--share=0.6", f"--kinds={','.join(fuzz_graders.ALONE)}"]
    assert fuzz_graders.main(command) == 0, capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["kind"] for row in rows] == sorted(fuzz_graders.ALONE)
    assert all(row["strings"] == 60 and not row["faults"] and set(row["long"]) == {"0", "50"} for row in rows)
    monkeypatch.setattr(fuzz_graders, "part_of", lambda *_: pytest.fail("computed again"))
    assert fuzz_graders.main(command) == 0


def test_programs_and_mathematics():
    assert fuzz_graders.main(["--share=0.3", "--kinds=math,code"]) == 0


def test_faults_are_seen(monkeypatch, capsys):
    def numeric(response, answer):
        if "x" in response:
            raise ValueError("no digit")
        return 0.0, None, "not equal"

    monkeypatch.setitem(comparisons.COMPARE, "numeric", numeric)
    assert fuzz_graders.main(["--share=1", "--kinds=numeric"]) == 1
    assert "ValueError: no digit" in capsys.readouterr().out


def test_a_string_that_times_out_is_a_fault_and_a_program_is_none(monkeypatch):
    late = Grade(0.0, None, "timed out after 10 s", timed_out=True)
    monkeypatch.setattr(fuzz_graders, "graded", lambda kind, text, number, grader: (10.0, late))
    part = fuzz_graders.part_of("math", [0, 7], "0")
    assert part["timeouts"] == 2 and part["long"] == {}
    assert [(one["number"], one["fault"]) for one in part["faults"]] == [(0, late.reason), (7, late.reason)]
    assert fuzz_graders.part_of("code", [0, 7], "0")["faults"] == []


def test_of_a_string_both_ends_are_shown():
    assert fuzz_graders.shown("x\ud800") == r"'x\ud800'"
    text = fuzz_graders.shown("a" * 50_000 + "é" * 50_000)
    assert text == "'" + "a" * 120 + "' ... '" + r"\xe9" * 120 + "', 100,000 characters"


def test_a_string_that_takes_far_longer_than_others_is_a_fault(monkeypatch):
    monkeypatch.setattr(fuzz_graders, "graded", lambda kind, text, number, grader: (3.0, None))
    part = {"long": {"0": 0.01, "50": 0.02, "100": 3.0}}
    median, slow = fuzz_graders.too_slow("numeric", [part], "0")
    assert median == 0.02 and [one["number"] for one in slow] == [100]
