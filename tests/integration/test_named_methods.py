"""Each method of configs/methods in miniature: it runs, and its weights move as its loss says."""

import importlib.util
import itertools

import numpy as np
import paths
import pytest
import share
import tiny_run
from tiny_run import metrics, rollouts, run

from cgrpo_jax.records import Stage

FILES = {path.stem: path for path in sorted((paths.CONFIGS / "methods").glob("*.py"))}
SAME = ("ladder_1", "ladder_2")  # as r1_grpo and dr_grpo
OTHER_MODELS = ("weak_to_strong",)  # see test_refiner_runs
# What a miniature has in the place of the paper's sizes. A rule writes critiques: the policy's own take longer.
SMALL = {
    "data.num_eval": 0,
    "num_iterations": 2,
    "critique.kind": "execution",
    "num_responses": 4,
    "refine.num_kept": 1,
    "optimizer.updates_per_batch": 1,
}
HINT = {
    "critique.kind": "hint",
    "prompts.hint": "{question}\nThe answer is {answer}.\nCheck.",
    "prompts.refine_with_hint": "{question}\nCritique: {hint}\nTry again.",
    "refine.num_kept": 3,
}
MORE = {"nurl": HINT, "rltf_sd": {"refine.num_kept": 4}, "gspo": {"optimizer.updates_per_batch": 4}}


def values_of(name):
    spec = importlib.util.spec_from_file_location(name, FILES[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VALUES


def changes_of(name):
    keep = {key: value for key, value in values_of(name).items() if key != "data.solution_key"}
    return keep | {key: value for key, value in SMALL.items() if key in keep or key in ALWAYS} | MORE.get(name, {})


ALWAYS = ("data.num_eval", "num_iterations", "critique.kind", "num_responses", "optimizer.updates_per_batch")


@pytest.mark.parametrize("name", share.of(sorted(FILES.keys() - {*SAME, *OTHER_MODELS})))
def test_a_method_in_miniature(name, tmp_path, monkeypatch):
    seen = tiny_run.watch(monkeypatch)
    changes = changes_of(name)
    folder = run(tmp_path, changes)
    first, second = metrics(folder)
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in (first, second)) and first != second
    refines = changes["refine.kind"] != "none"
    assert all(("refine/attempted" in row) == refines for row in (first, second))
    rows = [row for update in seen.updates for row in update]
    groups = groups_of(tiny_run.rollouts(folder))
    refined = [sum(one.rollout.stage == Stage.REFINEMENT for one in group) for group in groups]
    sizes = [len(group) for group in groups]
    assert any(row.refined for row in rows) == refines == any(refined)
    if name in ("critique_grpo_release", "luffy"):
        assert set(refined) == {1}  # of every question, also of those that all responses pass
    if name in ("critique_grpo_release", "nurl"):
        assert set(sizes) == {4}
    if name == "nurl":
        assert set(refined) == {0, 3}
        assert all("Critique: " in text and "Tried: " not in text for text in seen.asked(Stage.REFINEMENT))
    if name == "rltf_sd":
        assert set(refined) == {4}
        for group in groups:
            first_turn = np.mean([one.rollout.reward for one in group if one.rollout.stage == Stage.RESPONSE])
            for one in group:
                assert one.train_row.advantage == pytest.approx(one.rollout.reward - first_turn, abs=1e-6)
    if name == "dapo":
        dropped = {one.dropped for group in groups for one in group if one.rollout.truncated}
        assert dropped <= {"truncated", "zero_advantage"}


def groups_of(files):
    """Returns the rows of each question that stand in its group, of all iterations."""
    found = []
    for rows in files:
        for _, group in itertools.groupby(rows, lambda row: row.rollout.index.question):
            found.append([row for row in group if row.place is not None])
    return found


def test_replaced_responses_are_kept_in_the_rollouts(tmp_path):
    folder = run(tmp_path, changes_of("nurl"), num_iterations=1)
    (rows,) = rollouts(folder)
    replaced = [row for row in rows if row.dropped == "replaced"]
    kept = [row for row in rows if row.rollout.stage == Stage.REFINEMENT and row.place is not None]
    assert len(replaced) == len(kept) > 0 and all(row.train_row is None for row in replaced)


@pytest.mark.parametrize("corruption", ["inverted", "shuffled"])
def test_critiques_that_are_wrong_on_purpose(tmp_path, monkeypatch, corruption):
    seen = tiny_run.watch(monkeypatch)
    changes = {"data.num_eval": 0, "critique.corruption": corruption}
    folder = run(tmp_path, changes, num_iterations=1)
    (rows,) = rollouts(folder)
    critiques = [row.rollout for row in rows if row.rollout.stage == Stage.CRITIQUE]
    assert critiques and all(one.shown is not None and one.verdict is False for one in critiques)
    asked = seen.asked(Stage.REFINEMENT)
    assert len(asked) == len(critiques)
    assert all(("Conclusion: right" in text) == (corruption == "inverted") for text in asked)


@pytest.mark.parametrize("level", ["token", "sequence_mask"])
def test_rows_of_an_int8_cache_are_weighed_by_what_the_sampler_did_otherwise(tmp_path, monkeypatch, level):
    seen = tiny_run.watch(monkeypatch)
    changes = {"data.num_eval": 0, "cache.dtype": "int8", "objective.tis_cap": 2.0, "objective.tis_level": level}
    folder = run(tmp_path, changes, num_iterations=1)
    (row,) = metrics(folder)
    assert 0 < row["sampling/sampling_logp_difference/mean"] < row["sampling/sampling_logp_difference/max"]
    assert 0.5 < row["sampling/effective_sample_size"] < 1 and 0 <= row["sampling/frac_capped"] < 1
    ratios = [row[f"sampling/importance_sampling_ratio/{name}"] for name in ("min", "mean", "max")]
    assert ratios == sorted(ratios) and ratios[0] < 1 < ratios[2]
    sampled = {one.token_ids.tobytes(): one.logp for one in seen.of(Stage.RESPONSE)}
    for one in seen.updates[0]:
        if not one.refined:
            np.testing.assert_array_equal(one.sampler_logp, sampled[one.target_ids.tobytes()])
            assert not np.array_equal(one.old_logp, one.sampler_logp)


def test_several_rewards(tmp_path):
    """What passes and is refined is the gate's; the other reward moves the weights where that is equal."""
    file = tmp_path / "style.py"
    file.write_text(
        "def short(prompts, completions, **columns):\n"
        "    return [sum(map(ord, text)) % 7 / 7 for text in completions]\n"
    )
    changes = {"data.num_eval": 0, "refine.kind": "none", "grader.kind": "trace"}
    plain = run(tmp_path / "plain", changes, num_iterations=1)
    more = {"rewards": ("trace", f"{file}:short"), "reward_weights": (1.0, 0.1)}
    both = run(tmp_path / "both", changes | more, num_iterations=1)
    (before,), (after,) = metrics(plain), metrics(both)
    assert after["reward"] == after["rewards/trace/mean"] == before["reward"]
    assert 0 < after["rewards/short/mean"] < 1 and after["rows_trained"] >= before["rows_trained"]
    (rows,) = rollouts(both)
    for group in groups_of([rows]):
        total = [one.rollout.reward + 0.1 * one.rollout.rewards[0][1] for one in group]
        for one, value in zip(group, total, strict=True):
            assert one.grader == "trace" and one.rollout.rewards[0][0].endswith("style.py:short")
            assert one.rollout.rewards[0][1] == pytest.approx(sum(map(ord, one.rollout.text)) % 7 / 7)
            assert one.train_row.advantage == pytest.approx(value - np.mean(total), abs=1e-6)


def test_a_run_of_many_new_values_resumes_as_if_it_had_not_stopped(tmp_path):
    changes = {
        "data.num_eval": 0,
        "refine.which": "all",
        "refine.max_pass": 1.0,
        "refine.select": "random",
        "refine.group": "replace",
        "critique.corruption": "shuffled",
        "critique.corrupted_share": 0.5,
        "objective.initial_ratio": "sequence",
        "objective.tis_cap": 2.0,
        "objective.aggregate": "sequence_mean",
    }
    whole = run(tmp_path / "whole", changes)
    run(tmp_path / "parts", changes, num_iterations=1)
    parts = run(tmp_path / "parts", changes)
    assert tiny_run.repeatable(parts) == tiny_run.repeatable(whole)
    texts = [[(row.rollout.text, row.rollout.shown, row.dropped) for row in rows] for rows in rollouts(whole)]
    assert texts == [[(row.rollout.text, row.rollout.shown, row.dropped) for row in rows] for rows in rollouts(parts)]
    shown = [row.rollout.shown for rows in rollouts(whole) for row in rows if row.rollout.stage == Stage.CRITIQUE]
    assert any(shown) and not all(shown)
