"""Critiques that change their kind in the course of a run."""

import pytest
import refusals
import tiny_run

from cgrpo_jax.critiques import schedule as schedule_lib
from cgrpo_jax.records import Stage

SCHEDULE = ((2, "indicative"), (4, "cot"))


def test_kinds_by_iteration():
    found = [schedule_lib.kind_at(k, critique="none", schedule=SCHEDULE) for k in range(6)]
    assert found == ["none", "none", "indicative", "indicative", "cot", "cot"]
    assert schedule_lib.kind_at(7, critique="none", schedule=()) == "none"
    assert schedule_lib.kinds(critique="none", schedule=SCHEDULE) == {"none", "indicative", "cot"}
    assert schedule_lib.kinds(critique="none", schedule=((0, "cot"),)) == {"cot"}
    assert schedule_lib.kinds(critique="none", schedule=()) == {"none"}


@pytest.mark.parametrize(
    "schedule, message",
    [
        ("((1,),)", "critique.schedule: (1,) is not (first iteration, kind), such as (100, 'cot')"),
        ("('cot',)", "critique.schedule: 'cot' is not (first iteration, kind)"),
        ("((-1,'cot'),)", "critique.schedule: (-1, 'cot') is not"),
        ("((1,'socratic'),)", "critique.schedule: 'socratic' is unknown; use one of indicative, indicative_gt"),
        ("((4,'cot'),(2,'none'))", "critique.schedule begins at iterations [4, 2]; write each once, in their order"),
        ("((2,'cot'),(2,'none'))", "critique.schedule begins at iterations [2, 2]"),
    ],
)
def test_bad_schedules(tmp_path, capsys, schedule, message):
    assert message in refusals.refused(capsys, tmp_path / "run", {"critique.schedule": schedule})


def test_a_critique_to_come_is_planned_for(tmp_path, capsys):
    """Room for it is checked at the start, not in the middle of the run."""
    changes = {"critique.kind": "indicative", "critique.schedule": "((1,'cot'),)", "critic.max_length": 20}
    said = refusals.refused(capsys, tmp_path / "run", {"packing.length": 128} | changes)
    assert "critic.max_prompt_length + critic.max_length is 48 + 20" in said


def test_a_run_goes_from_rules_to_written_critiques(tmp_path, monkeypatch):
    seen = tiny_run.watch(monkeypatch)
    changes = {"critique.kind": "none", "critique.schedule": ((1, "indicative"), (2, "cot")), "refine.max_pass": 1.0}
    tiny_run.run(tmp_path, changes, num_iterations=3, **{"data.num_eval": 0})
    written = {generator.iteration for row, generator in seen.written if row.stage == Stage.CRITIQUE}
    assert written == {2}
    rows = [row for row in tiny_run.samples(tmp_path) if row["refinement"]]
    critiques = {step: {row["critique"] for row in rows if row["step"] == step} for step in (0, 1)}
    assert critiques[0] == {None} and len(critiques[1]) == 1 and not critiques[1] & {None, ""}
