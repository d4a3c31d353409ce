"""The page of all studies, from made-up JSON: differences, what they say of the paper, the order, what is committed."""

import json
import sys

import paths
import pytest

from cgrpo_jax.errors import UserError

sys.path.insert(0, str(paths.ROOT / "launch"))  # as `python launch/study.py` has it
import study as study_lib  # noqa: E402
import study_list  # noqa: E402
import study_page  # noqa: E402
import study_report  # noqa: E402
import study_results  # noqa: E402
from study_page import AGAINST, AS, UNDECIDED, UNSAID, Difference  # noqa: E402


def made_up(name="one", place=0, sign="above", values=None, runs=6, **more):
    """Returns the JSON of a study of two arms; `values` are those of the second at seeds 0 to 2, the first has 0.5."""
    values = (0.6, 0.7, 0.8) if values is None else values
    rows = [
        {"setting": "chains", "arm": arm, "seed": seed, "run": f"runs/{name}{arm}{seed}", "machine_seconds": 1800.0,
         "numbers": {"pass@1": value, "tokens (k)": 2000}}
        for arm, some in (("grpo", (0.5, 0.5, 0.5)), ("critique", values)) for seed, value in enumerate(some)
    ]  # fmt: skip
    arm = {"sees": "nothing", "against": {}, "overrides": {}}
    return {
        "study": name,
        "version": 1,
        "question": "Is it so?",
        "paper": "Table 9: 42.66, 47.08.",
        "decides": "pass@1",
        "columns": [
            {"name": "pass@1", "unit": 1, "digits": 3},
            {"name": "tokens (k)", "unit": 1000, "digits": 0},
        ],
        "measured": "pass@1 greedy.",
        "settings": [{"name": "chains", "label": "Chains"}],
        "arms": [
            arm | {"name": "grpo", "label": "GRPO"},
            arm | {"name": "critique", "label": "Critiques", "against": {"grpo": sign}},
        ],
        "registered": {"commit": "abc1234", "time": "2026-01-01T00:00:00+00:00", "files": ["a.py"], "changed": []},
        "tasks": ["chains 2"],
        "predicted_minutes": 90.0,
        "runs": runs,
        "cost": {"machine_seconds": 10800.0, "cpu_seconds": 18000.0, "cpus": [2], "commits": ["def5678"],
                 "first_start": "2026-01-02T00:00:00+00:00"},
        "rows": rows,
        "place": place,
    } | more  # fmt: skip


def test_a_difference_is_of_pairs_of_seeds_with_students_interval():
    found = study_page.difference({0: 0.6, 1: 0.7, 2: 0.8, 3: 0.0}, {0: 0.5, 1: 0.5, 2: 0.5})
    assert found is not None and found.seeds == 3
    half = 4.302653 * 0.1 / 3**0.5  # t of 2 degrees of freedom, deviation of 0.1, 0.2, 0.3
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.2 - half, abs=1e-6), pytest.approx(0.2 + half, abs=1e-6))
    # The seeds' own level does not count: both arms of a seed start from the same weights.
    paired = study_page.difference({0: 0.1, 1: 0.9}, {0: 0.0, 1: 0.8})
    assert paired is not None and paired.low == pytest.approx(0.1) and paired.high == pytest.approx(0.1)
    assert study_page.difference({0: 0.5}, {0: 0.25}) == Difference(0.25, None, None, 1)
    assert study_page.difference({0: 0.5}, {1: 0.25}) is None


@pytest.mark.parametrize(
    ("low", "high", "sign", "found"),
    [
        (0.01, 0.3, "above", AS),
        (0.01, 0.3, "below", AGAINST),
        (-0.3, -0.01, "above", AGAINST),
        (-0.3, -0.01, "below", AS),
        (-0.01, 0.3, "above", UNDECIDED),
        (0.0, 0.3, "above", UNDECIDED),
        (0.0, 0.0, "above", UNDECIDED),
        (None, None, "above", UNDECIDED),
        (0.01, 0.3, "", UNSAID),
        (None, None, "", UNSAID),
    ],
)
def test_the_interval_decides_what_is_said_of_the_paper(low, high, sign, found):
    assert study_page.verdict(Difference(0.1, low, high, 3), sign) == found


def test_a_study_has_its_table_its_differences_and_a_sentence():
    text = study_page.page([made_up(values=(0.78, 0.8, 0.82))])
    assert "| GRPO | nothing | 3 | 0.500 (0.500-0.500) | 2 (2-2) |" in text
    assert "| Critiques | nothing | 3 | 0.800 (0.780-0.820) | 2 (2-2) |" in text
    assert "| Critiques | GRPO | +0.300 | +0.250 to +0.350 | 3 | above | as the paper |" in text
    assert "**Is it so?** As the paper: Critiques beside GRPO.\n\nThe paper: Table 9: 42.66, 47.08." in text
    assert "| [one](#one) | 0 | 1 | 0 | 6 of 6 | 3.0 | abc1234 |" in text
    assert "Registered: abc1234. 6 of 6 runs, 3.0 hours of the machine (expected 1.5), 5.0 hours of CPU time" in text
    assert "on 2 cores; code of def5678; task chains 2." in text and "## Left out" not in text


def test_what_is_against_the_paper_stands_first_and_a_shared_run_counts_once():
    studies = [
        made_up("unsaid", 0, sign=""),
        made_up("agrees", 1, values=(0.78, 0.8, 0.82)),
        made_up("undecided", 2, values=(0.4, 0.5, 0.6)),
        made_up("contradicts", 3, values=(0.3, 0.31, 0.32)),
    ]
    shared = [row | {"run": "runs/shared"} for row in studies[0]["rows"][:1]]
    studies[0]["rows"][:1] = shared
    studies[1]["rows"][:1] = shared
    text = study_page.page(studies)
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["contradicts", "undecided", "agrees", "unsaid"]
    assert "Against the paper: Critiques beside GRPO." in text and "Undecided: Critiques beside GRPO." in text
    assert "Nothing that the paper says is compared here." in text
    assert f"{(4 * 6 - 1) * 0.5:.1f} hours of the machine in all" in text


def test_registration_after_the_fact_and_what_was_left_out_are_said():
    late = made_up("late", runs=9)
    late["registered"]["time"] = "2026-01-03T00:00:00+00:00"
    changed = made_up("changed", 1)
    changed["registered"]["changed"] = ["a.py"]
    unregistered = made_up("unregistered", 2)
    unregistered["registered"] = {"commit": "", "time": "", "files": [], "changed": []}
    waiting = made_up("waiting", 3) | {"rows": []}
    text = study_page.page([late, changed, unregistered, waiting])
    assert "abc1234, after its first run had begun" in text and "abc1234, changed since: a.py" in text
    assert "Registered: by no commit." in text
    assert "- late: 3 of 9 runs. Is it so?" in text and "- waiting: 6 of 6 runs. Is it so?" in text
    assert "## waiting" not in text


def test_a_setting_of_which_one_arm_has_run_is_compared_with_nothing():
    study = made_up()
    study["rows"] = study["rows"][:3]
    assert study_page.comparisons(study) == []
    text = study_page.page([study])
    assert "Differences" not in text and "| GRPO |" in text and "| Critiques |" not in text


def test_the_page_is_of_the_files_of_a_folder_in_the_order_of_their_list(tmp_path, capsys):
    for name, place in (("a", 1), ("b", 0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(made_up(name, place)))
    assert [one["study"] for one in study_page.read(tmp_path)] == ["b", "a"]
    (tmp_path / "order.py").write_text(
        "def get_order():\n    return ['studies/a.py', 'studies/b.py', 'studies/z.py']\n"
    )
    given = {"study": "", "workdir": "", "jobs": 2, "only": "", "report": False, "page": True}
    given |= {"results": str(tmp_path), "order": str(tmp_path / "order.py")}
    study_lib.main(**given)
    assert (tmp_path / "README.md").read_text() == study_page.page(study_page.read(tmp_path))
    assert "left off" not in capsys.readouterr().out
    before = (tmp_path / "README.md").read_text()
    for name in ("renamed", "dropped"):
        (tmp_path / f"{name}.json").write_text(json.dumps(made_up(name)))
    study_lib.main(**given)
    assert (tmp_path / "README.md").read_text() == before
    out = capsys.readouterr().out
    assert "left off the page, as no listed study has them: dropped.json, renamed.json in" in out
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(
        UserError, match="c.json is no study's: it lacks arms, columns, cost, decides, measured, paper, place"
    ):
        study_page.read(tmp_path)
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UserError, match="c.json"):
        study_page.read(tmp_path)
    with pytest.raises(UserError, match="does not exist; run the studies first"):
        study_page.write(tmp_path / "nothing")


def lacking(study, *path):
    """Returns a made-up study without a key, which a path leads to."""
    one = json.loads(json.dumps(study))
    at = one
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return one


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (lacking(made_up(), "question"), "it lacks question"),
        (lacking(made_up(), "cost", "cpus"), "it lacks cost.cpus"),
        (lacking(made_up(), "arms", 1, "label"), r"it lacks arms\[1\].label"),
        (lacking(made_up(), "rows", 2, "machine_seconds"), r"it lacks rows\[2\].machine_seconds"),
        (lacking(made_up(), "registered", "time"), "it lacks registered.time"),
        (made_up(runs="6"), "runs is '6'"),
        (made_up(place=True), "place is True"),
        (made_up(predicted_minutes=float("nan")), "predicted_minutes is nan"),
        (made_up(rows={}), "rows is {}"),
        (made_up(values=("much", 1, 1)), r"rows\[3\].numbers.pass@1 is 'much'"),
        (made_up(columns=[{"name": "pass@1", "unit": 0, "digits": 3}]), r"columns\[0\].unit is 0"),
        (made_up(decides="pass@2"), "decides is 'pass@2', which is no column"),
        (made_up(arms=[made_up()["arms"][1]]), "an arm's against is 'grpo', which is no arm"),
    ],
)
def test_a_file_that_the_page_cannot_be_of_is_named_with_its_key(tmp_path, study, message):
    (tmp_path / "one.json").write_text(json.dumps(study))
    with pytest.raises(UserError, match=f"one.json is no study's: {message}; restore it from a copy"):
        study_page.read(tmp_path)


def test_the_committed_page_is_that_of_the_committed_numbers():
    folder = study_results.RESULTS
    names = [path.stem for path in study_list.paths_of(study_list.ORDER)]
    assert (folder / study_page.NAME).read_text() == study_page.page(study_page.read(folder, names))
    assert study_page.unlisted(folder, names) == []


def test_spans_are_means_over_tenths_of_what_was_trained(tmp_path):
    rows = [{"rows_trained": 4 * (step != 19), "entropy": step * (step != 19), "loss": step} for step in range(20)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = study_report.spans(tmp_path, ["entropy", "loss", "nothing"])
    assert found == {
        "entropy": {"first": 0.0, "last": 18.0, "all": 9.0},  # 19 iterations have trained rows: a tenth is one
        "loss": {"first": 0.5, "last": 18.5, "all": 9.5},
    }
