import base64
import dataclasses
import gzip
import json

import pytest
import report_runs

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.evaluation import estimators
from cgrpo_jax.report import groups, payload, run_folder, selection


@pytest.fixture
def run(tmp_path):
    return run_folder.read(report_runs.write(tmp_path / "a", iterations=4, questions=3))


def unpacked(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_curves_are_the_rows_of_the_metrics(run):
    (said,) = payload.of_runs([run], groups.read(run)[0])["runs"]
    for name, values in said["metrics"].items():
        assert values == [pytest.approx(row[name]) if name in row else None for row in run.metrics]
    assert said["method"]["gamma"] == 0.001 and said["changed"]["objective.gamma"] == "0.001"


def test_the_share_that_teaches_nothing_is_of_the_advantages_that_were_trained(run):
    found, _ = groups.read(run)
    dead = []
    for path in run.files:
        by_question = {}
        for row in rollouts.read(path):
            by_question.setdefault(row.rollout.index.question, []).append(row.train_row and row.train_row.advantage)
        dead.append(sum(not any(one) for one in by_question.values()) / len(by_question))
    assert payload.dead(run, found) == pytest.approx(dead) and 0 < sum(dead) < len(dead)
    assert payload.dead(run, []) == [None] * 4
    unrefined = dataclasses.replace(run, facts=dataclasses.replace(run.facts, refine="none"))
    assert payload.dead(unrefined, []) == pytest.approx([row["frac_reward_zero_std"] for row in run.metrics])


def test_questions_that_others_were_drawn_for_do_not_count_as_teaching_nothing(run):
    found, _ = groups.read(run)
    out = [dataclasses.replace(one, drawn_on=one.dead) for one in found]
    assert payload.dead(run, out) == [0.0] * 4


def test_held_out_accuracy_has_wilsons_interval_where_the_number_of_questions_is_known(run):
    found = payload.held_out(run)
    assert [one["iteration"] for one in found] == [0, 2, 4]
    right = report_runs.HELD_OUT * found[0]["pass@1"]
    assert right == 51 and found[0]["interval"] == estimators.wilson(51, report_runs.HELD_OUT)
    assert found[-1]["pass@1"] == 120 / report_runs.HELD_OUT


def test_an_impossible_share_has_no_interval(run):
    run.summary["eval_before"]["pass@1"] = 7.0
    assert "interval" not in payload.held_out(run)[0]


def test_a_run_that_learns_rows_has_done_what_its_epochs_plan(tmp_path):
    changes = {"num_iterations": 100, "finetune.epochs": 1, "finetune.rows_per_update": 4}
    folder = report_runs.write(tmp_path / "a", iterations=2, questions=1, changes=changes)
    (folder / "metrics.jsonl").write_text('{"step": 0, "epoch": 0.5}\n{"step": 1, "epoch": 1.0}\n')
    (said,) = payload.of_runs([run_folder.read(folder)], [])["runs"]
    assert (said["planned"], said["done"], said["ended"]) == (2, 2, True)


def test_arms_are_what_differs_besides_the_seed(tmp_path):
    changes = ({}, {}, {"refine.kind": "none"})
    folders = [tmp_path / str(n) for n in range(3)]
    for seed, (folder, change) in enumerate(zip(folders, changes, strict=True)):
        report_runs.write(folder, iterations=1, questions=1, seed=seed, changes=change)
    said = payload.of_runs(run_folder.read_all(folders), [])
    assert said["arms"] == ["refine.kind=policy", "refine.kind=none"]
    assert [one["arm"] for one in said["runs"]] == [0, 0, 1] and [one["seed"] for one in said["runs"]] == [0, 1, 2]


def test_the_index_leads_to_the_texts_of_each_group(run):
    found, asked = groups.read(run)
    chosen = selection.choose(found, max_groups=5)
    texts = payload.texts([run], found, chosen)
    shards, places, faults = texts.shards, texts.places, texts.faults
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
    texts = payload.texts([run], found, selection.choose(found, max_groups=12))
    shards, places = texts.shards, texts.places
    assert len(shards) > 1 and sum(len(unpacked(shard)) for shard in shards) == 12 == len(places)


def test_json_in_a_page_ends_no_script_and_is_valid_unicode():
    text = payload.as_json({"</script>": "<!-- \ud83d \u2028"})
    assert "<" not in text and text.isprintable() and text.encode()
    assert json.loads(text) == {"</script>": "<!-- ? \u2028"}


def test_the_lesson_is_the_token_that_a_critique_has_helped_most_with(tmp_path):
    run = run_folder.read(report_runs.write(tmp_path / "b", iterations=5, questions=6))
    found, _ = groups.read(run)
    texts = payload.texts([run], found, selection.choose(found, max_groups=30))
    gains = {}
    for path in run.files:
        for number, row in enumerate(rollouts.read(path)):
            refined = row.train_row is not None and row.train_row.refined and not row.dropped
            if refined and row.rollout.reward == 1 and row.trainer_logp is not None:
                gained = row.rollout.logp - row.trainer_logp
                where = rollouts.iteration_of(path), row.rollout.index.question, number, int(gained.argmax())
                gains[where] = gained.max()
    assert texts.lesson is not None and len(gains) > 1
    at, row, token = texts.lesson
    assert (found[at].iteration, found[at].question, row, token) == max(gains, key=gains.__getitem__)


def test_without_the_trainers_probabilities_there_is_no_such_token(tmp_path):
    run = run_folder.read(report_runs.write(tmp_path / "b", iterations=2, questions=3, trainer=False))
    found, _ = groups.read(run)
    assert payload.texts([run], found, selection.choose(found, max_groups=9)).lesson is None


def test_the_rows_of_every_group_and_what_was_measured_lie_beside_the_texts(run, monkeypatch):
    report_runs.measure(run.path)
    monkeypatch.setattr(payload, "SHARD_BYTES", 2000)
    found = payload.beside([run, run], [], first=7)
    shards = {7 + number: unpacked(shard) for number, shard in enumerate(found.shards)}
    assert found.rows.keys() == {f"{number}/{iteration}" for number in range(2) for iteration in range(4)}
    for name, (shard, place) in found.rows.items():
        path = run.files[int(name.partition("/")[2])]
        assert len(shards[shard][place]["stage"]) == len(rollouts.read(path))
    ((first, second),) = shards[found.measured]
    assert first == second and first["evaluation"]["weights"] == "checkpoints, step 6"
    assert len({shard for shard, _ in found.rows.values()} | {found.measured}) == len(shards) > 2
    assert found.sums[0]["tokens"]["response"] > found.sums[0]["tokens"]["critique"] > 0


def test_what_a_run_was_started_with_is_said(run):
    (said,) = payload.of_runs([run], [])["runs"]
    assert said["starts"][0]["commit"] == "1a2b3c4+" and said["starts"][0]["command"] == "cgrpo train --config.seed=0"


def test_of_a_run_whose_texts_are_not_shown_no_tokenizer_is_wanted(tmp_path):
    folder = report_runs.write(tmp_path / "a", iterations=1, questions=2)
    (folder / "model" / "tokenizer.model").unlink()
    run = run_folder.read(folder)
    found, _ = groups.read(run)
    assert payload.texts([run], found, selection.choose(found, max_groups=0)).faults == []
    (fault,) = payload.texts([run], found, selection.choose(found, max_groups=1)).faults
    assert "tokenizer can't be read" in fault
