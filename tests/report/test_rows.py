import collections
import dataclasses

import numpy as np
import pytest
import report_runs
import rollout_cases

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.evaluation import estimators
from cgrpo_jax.records import Stage
from cgrpo_jax.report import rows, run_folder


@pytest.fixture
def run(tmp_path):
    return run_folder.read(report_runs.write(tmp_path / "a", iterations=4, questions=4))


def test_rows_are_those_of_the_rollouts(run):
    sums, faults = rows.Sums(), []
    found = dict(rows.read(run, sums, faults))
    tokens = collections.Counter()
    for path in run.files:
        columns, read = found[rollouts.iteration_of(path)], rollouts.read(path)
        names = [rows.STAGES[stage] for stage in columns["stage"]]
        assert names == [row.rollout.stage.name.lower() for row in read]
        assert columns["question"] == [row.rollout.index.question for row in read]
        assert columns["tokens"] == [len(row.rollout.token_ids) for row in read]
        assert columns["reward"] == [row.rollout.reward for row in read]
        fates = [columns["fates"][fate] for fate in columns["fate"]]
        for fate, row in zip(fates, read, strict=True):
            trained = "trained" if row.train_row is not None and not row.dropped else row.dropped
            assert fate == ("rejected" if row.is_rejected else trained)
        for row in read:
            tokens[row.rollout.stage.name.lower()] += len(row.rollout.token_ids)
    assert faults == [] and sums.tokens == tokens


def test_tokens_that_a_rule_says_are_not_counted_as_written(run, tmp_path):
    path = tmp_path / rollouts.file_name(0)
    read = [row for row in rollouts.read(run.files[0]) if row.rollout.stage == Stage.CRITIQUE]
    assert len(read) > 1
    ruled = dataclasses.replace(read[0], rollout=read[0].rollout.replace(author="rule", parent=None))
    others = [dataclasses.replace(row, rollout=row.rollout.replace(parent=None)) for row in read[1:]]
    rollouts.write(path, [ruled, *others], iteration=0, spell=rollout_cases.spell)
    sums = rows.Sums()
    list(rows.read(dataclasses.replace(run, files=[path]), sums, []))
    written = sum(len(row.rollout.token_ids) for row in others)
    assert sums.tokens == {"response": 0, "critique": written, "refinement": 0}


def test_what_critiques_gain_is_counted_by_their_length(run):
    sums = rows.Sums()
    list(rows.read(run, sums, []))
    refined = [row.rollout for path in run.files for row in rollouts.read(path)]
    refined = [one for one in refined if one.stage == Stage.REFINEMENT]
    found = sums.gains()
    assert sum(one["number"] for one in found) == len(refined) > 10
    right = sum(one.reward for one in refined)
    assert sum(one["number"] * one["share"] for one in found) == pytest.approx(right)
    assert [one["tokens"] for one in found] == sorted(one["tokens"] for one in found)


def test_parts_by_length_and_their_intervals_are_as_counted_by_hand():
    sums = rows.Sums(critiques=[(np.array([5] * 10), np.arange(10) < 3), (np.array([50] * 10), np.arange(10) < 8)])
    short, long = sums.gains()
    assert (short["tokens"], short["number"], short["share"]) == (5, 10, 0.3)
    assert (short["low"], short["high"]) == estimators.wilson(3, 10) and long["share"] == 0.8
    assert rows.Sums().gains() == []


def test_a_damaged_file_is_left_out_and_said_once(run):
    run.files[1].write_bytes(b"PAR1")
    faults = []
    assert sorted(one for one, _ in rows.read(run, rows.Sums(), faults)) == [0, 2, 3]
    list(rows.read(run, rows.Sums(), faults))
    assert len(faults) == 1 and run.files[1].name in faults[0]
