import dataclasses
import types

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import initial_state
from cgrpo_jax.runs.initial_state import Progress, check_progress
from cgrpo_jax.runtime.digests import Damaged

FULL = Progress(
    iteration=3,
    num_tokens=2**40,
    seconds=1.5,
    all_failed_start=0.25,
    eval_before={"pass@1": 0.5, "mean_length": float("nan")},
    unsolved_before=[0, 7],
    best={"step": 2, "metric": "pass@1", "value": 0.5},
    base_step=0,
    inputs={"the training questions": "e3b0"},
)


def test_what_a_run_keeps_is_readable():
    check_progress(3, dataclasses.asdict(FULL))
    check_progress(0, dataclasses.asdict(Progress()))
    check_progress(2, {"iteration": 2, "num_tokens": 0, "seconds": 0.0, "questions": "e3b0"})  # of earlier versions


BAD = {
    "iteration": [4, True, "3", None, 3.0, -1],
    "num_tokens": [-1, 2**63, 1.5, "1"],
    "seconds": [float("nan"), float("inf"), -1.0, "1", None, 10**400],
    "all_failed_start": ["0", [0.5], float("nan")],
    "eval_before": [[0.5], {"pass@1": "0.5"}, {"pass@1": [1]}],
    "unsolved_before": [3, [0.5], [-1], {"0": 1}],
    "skipped_in_a_row": [None, -1, 0.5],
    "best": [{}, {"step": 2}, {"step": "2", "metric": "pass@1", "value": 0.5}, [2]],
    "evaluation_due": [0, None, "no"],
    "base_step": [-1, "0", 0.5],
    "inputs": [None, [], {"a": 1}],
    "extra_questions": [None, -1, 1.5],
    "critic_skipped_in_a_row": [None, -1, 1.5],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD.items() for value in values])
def test_what_is_none_of_it_is_named(name, value):
    said = "it is of iteration 4" if value == 4 else f"its {name} can't be "
    with pytest.raises(Damaged, match=said):
        check_progress(3, dataclasses.asdict(FULL) | {name: value})


def test_what_is_missing_or_unknown():
    assert {field.name for field in dataclasses.fields(Progress)} == BAD.keys()
    with pytest.raises(Damaged, match="its seconds is missing"):
        check_progress(3, {"iteration": 3, "num_tokens": 1})
    with pytest.raises(Damaged, match="'later' is nothing that this version knows"):
        check_progress(3, dataclasses.asdict(FULL) | {"later": 1})


@pytest.mark.parametrize("was", ["chains 1", "an unknown one"])
def test_a_run_does_not_go_on_with_another_version_of_its_task(was):
    inputs = {"the training questions": "e3b0"}
    begun = dataclasses.asdict(FULL) | {"inputs": inputs | ({"the task": was} if was[0] == "c" else {})}
    opened = types.SimpleNamespace(
        run=types.SimpleNamespace(path="runs/x"), inputs=inputs | {"the task": "chains 2"}, earlier_inputs={}
    )
    with pytest.raises(UserError, match=f"^runs/x began with another version of its task: {was}, not chains 2; resume"):
        initial_state._progress(begun, opened)
    opened.inputs = begun["inputs"]
    assert initial_state._progress(begun, opened).inputs == begun["inputs"]


def test_rows_that_an_earlier_version_hashed_otherwise_are_the_same_rows():
    def resumed(digest):
        opened = types.SimpleNamespace(
            run=types.SimpleNamespace(path="runs/x"),
            inputs={initial_state.TRAINING_ROWS: "now", "the task": "chains 2"},
            earlier_inputs={initial_state.TRAINING_ROWS: "then"},
        )
        inputs = opened.inputs | {initial_state.TRAINING_ROWS: digest}
        return initial_state._progress(dataclasses.asdict(FULL) | {"inputs": inputs}, opened).inputs, opened.inputs

    for digest in ("now", "then"):
        found, now = resumed(digest)
        assert found == now  # the next checkpoint has this version's
    with pytest.raises(UserError, match="changed since runs/x began: the training rows; restore the files"):
        resumed("others")


@pytest.mark.parametrize("held_out", [[], ["a question"]])
def test_weights_are_made_to_generate_where_questions_are_held_out_alone(monkeypatch, held_out):
    made = []
    monkeypatch.setattr(initial_state.start_weights, "initial_params", lambda *args, **kwargs: {"w": 1})
    monkeypatch.setattr(initial_state.start_weights, "base_step", lambda config: None)
    monkeypatch.setattr(initial_state.learner_lib, "init_state", lambda params, **kwargs: params)
    model = types.SimpleNamespace(to_generate=lambda params: made.append(params) or params)
    learner = types.SimpleNamespace(adapters=None, has_reference=False, optimizer=None, offload_optimizer=False)
    opened = types.SimpleNamespace(
        config=types.SimpleNamespace(warm_start=types.SimpleNamespace(num_updates=0)),
        model=model,
        run=None,
        settings=types.SimpleNamespace(learner=learner, critic_learning=None),
        questions=types.SimpleNamespace(held_out=held_out),
        inputs={},
    )
    going = {"clock": None, "going_on": lambda: None}
    found = initial_state.start(opened, evaluate=lambda params: ({"pass@1": 0.5}, [False]), **going)
    assert len(made) == len(held_out) and found.progress.eval_before == ({"pass@1": 0.5} if held_out else None)
