import base64
import gzip
import json

import pytest
import report_runs

from cgrpo_jax.evaluation import estimators
from cgrpo_jax.report import groups, payload, run_folder, selection


@pytest.fixture
def run(tmp_path):
    return run_folder.read(report_runs.write(tmp_path / "a", iterations=4, questions=3))


def unpacked(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_curves_are_the_rows_of_the_metrics(run):
    (said,) = payload.of_runs([run])["runs"]
    for name, values in said["metrics"].items():
        assert values == [pytest.approx(row[name]) if name in row else None for row in run.metrics]
    assert said["method"]["gamma"] == 0.01 and said["changed"]["objective.gamma"] == "0.01"


def test_held_out_accuracy_has_wilsons_interval_where_the_number_of_questions_is_known(run):
    found = payload.held_out(run)
    assert [one["iteration"] for one in found] == [0, 2, 4]
    right = report_runs.HELD_OUT * found[0]["pass@1"]
    assert right == 51 and found[0]["interval"] == estimators.wilson(51, report_runs.HELD_OUT)
    assert found[-1]["pass@1"] == 120 / report_runs.HELD_OUT


def test_an_impossible_share_has_no_interval(run):
    run.summary["eval_before"]["pass@1"] = 7.0
    assert "interval" not in payload.held_out(run)[0]


def test_arms_are_what_differs_besides_the_seed(tmp_path):
    changes = ({}, {}, {"refine.kind": "none"})
    folders = [tmp_path / str(n) for n in range(3)]
    for seed, (folder, change) in enumerate(zip(folders, changes, strict=True)):
        report_runs.write(folder, iterations=1, questions=1, seed=seed, changes=change)
    said = payload.of_runs(run_folder.read_all(folders))
    assert said["arms"] == ["refine.kind=policy", "refine.kind=none"]
    assert [one["arm"] for one in said["runs"]] == [0, 0, 1] and [one["seed"] for one in said["runs"]] == [0, 1, 2]


def test_the_index_leads_to_the_texts_of_each_group(run):
    found, asked = groups.read(run)
    chosen = selection.choose(found, max_groups=5)
    shards, places, faults = payload.shards([run], found, chosen)
    index = payload.index(found, asked, places)
    assert faults == [] and sorted(places) == chosen.chosen
    for at, group in enumerate(found):
        if at not in places:
            assert index["shard"][at] == -1
            continue
        shown = unpacked(shards[index["shard"][at]])[index["at"][at]]
        assert (shown["iteration"], shown["question_index"]) == (group.iteration, group.question)
        assert index["problems"][index["problem"][at]][0] == group.problem
        rewards = [row["reward"] for row in shown["rows"] if row["stage"] == "response"]
        assert index["rewards"][at] == rewards == list(group.rewards)


def test_large_texts_are_parted(run, monkeypatch):
    found, _ = groups.read(run)
    monkeypatch.setattr(payload, "SHARD_BYTES", 2000)
    shards, places, _ = payload.shards([run], found, selection.choose(found, max_groups=12))
    assert len(shards) > 1 and sum(len(unpacked(shard)) for shard in shards) == 12 == len(places)


def test_json_in_a_page_ends_no_script_and_is_valid_unicode():
    text = payload.as_json({"</script>": "<!-- \ud83d \u2028"})
    assert "<" not in text and text.isprintable() and text.encode()
    assert json.loads(text) == {"</script>": "<!-- ? \u2028"}
