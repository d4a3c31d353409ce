"""The benchmark of the page of a large run, on small numbers."""

import report_page

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.records import Stage


def test_a_run_is_made_up_and_its_page_is_measured(tmp_path):
    report_page.write_run(tmp_path / "run", iterations=2, questions=3, responses=2, tokens=20)
    rows = rollouts.read(tmp_path / "run" / "rollouts" / rollouts.file_name(1))
    assert len(rows) == 3 * 3 * 2 and {len(row.rollout.token_ids) for row in rows} == {20}
    assert sum(row.train_row is not None for row in rows) == 3 * (2 + 1)
    assert [row.rollout.stage for row in rows].count(Stage.REFINEMENT) == 6
    made = report_page.make_page(tmp_path / "run", tmp_path / "report.html")
    size = report_page.sizes(tmp_path / "report.html")
    assert made["cpu"] > 0 and made["memory"] > 0.05
    assert 0 < size["metadata"] < size["page"] < 1 and size["beside"] == 0
