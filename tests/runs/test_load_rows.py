"""The rows of a run: which are read, drawn, left out and refused, and the order of its updates."""

import dataclasses
import json
import pathlib

import chain_prompts
import chat_tokenizer
import made_rollouts
import pytest
import rollout_cases
import tiny_run

from cgrpo_jax import sharding
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import load_rows, validate
from cgrpo_jax.runs import settings as settings_lib
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.row_losses import rco_targets

SHAPE = PackShape(num_token_rows=1, pack_length=64, num_slots=4, from_rows=True)
OWN = {"data.kind": "jsonl", "max_response_length": 32, "finetune.rows_per_update": 2}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return chain_prompts.make(chat_tokenizer.make(tmp_path_factory.mktemp("chatml") / "model"))


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(*texts, prompt="a"):
    return [{"prompt": prompt, "completion": text} for text in texts]


def load(prompts, train, changes=None, /, *, max_context=128, **more):
    config = tiny_run.config(OWN | {"data.train": train} | (changes or {}), **more)
    return load_rows.load_rows(config, prompts, shape=SHAPE, max_context=max_context, seed=config.seed)


def targets(units, prompts):
    return [prompts.tokenizer.decode(row.target_ids) for unit in units for row in unit.rows]


def test_files_are_read_in_their_order(prompts, tmp_path):
    names = ",".join(written(tmp_path / f"{n}.jsonl", *answers(f"{n}a", f"{n}b")) for n in (2, 1))
    held = written(tmp_path / "held.jsonl", *answers("c"))
    rows = load(prompts, names, {"finetune.eval_rows": held})
    assert targets(rows.training, prompts) == ["2a", "2b", "1a", "1b"]
    assert targets(rows.held_out, prompts) == ["c"] and [len(one.target_ids) for one in rows.measured] == [2]
    assert rows.said[0].startswith("training rows: 4, ") and rows.said[1].startswith("held-out rows: 1, ")


def test_verdict_problems_are_said_to_be_left_out(prompts, tmp_path, capsys):
    rows = [
        rollouts.Row(rollout_cases.rollout(rollout_cases.RowIndex(n), "5", reward=1.0), one)
        for n, one in enumerate(rollout_cases.PROBLEMS)
    ]
    rollouts.write(
        tmp_path / rollouts.file_name(0), [*rows, rollout_cases.verdict()], iteration=0, spell=rollout_cases.spell
    )
    assert len(load(prompts, str(tmp_path), {"finetune.stages": ("response",)}).training) == 2
    assert f"{tmp_path}: 1 rows of verdict problems are left out" in capsys.readouterr().err


def test_rows_in_the_place_of_a_made_up_tasks(prompts, tmp_path):
    rows = written(tmp_path / "rows.jsonl", *answers("x", "y"))
    made_up = {"data.kind": "chains", "data.train": ""}
    assert targets(load(prompts, "", made_up | {"finetune.rows": rows}).training, prompts) == ["x", "y"]
    with pytest.raises(UserError, match="'chains' makes up questions, not rows; set finetune.rows"):
        load(prompts, "", made_up)


def test_what_is_too_long_is_an_error_or_left_out(prompts, tmp_path):
    file = written(tmp_path / "rows.jsonl", *answers("x", "y" * 40, "z"), *answers("w", prompt="q" * 50))
    with pytest.raises(
        UserError, match=r"rows.jsonl, line 2: has 41 tokens to learn, more than max_response_length 32;"
    ):
        load(prompts, file)
    rows = load(prompts, file, {"finetune.on_long": "skip"})
    assert targets(rows.training, prompts) == ["x", "z"] and rows.said[0].endswith("2 too long and left out")
    with pytest.raises(UserError, match="none, 2 too long aside"):
        load(prompts, written(tmp_path / "long.jsonl", *answers("y" * 40, "x" * 50)), {"finetune.on_long": "skip"})


def test_a_row_longer_than_the_models_context_is_too_long(prompts, tmp_path):
    file = written(tmp_path / "rows.jsonl", *answers("x", "z"), *answers("w" * 5, prompt="q" * 20))
    why = r'line 3: has \d+ \+ 6 tokens, more than the 24 of the model\'s context; shorten the row, or set .* "skip"'
    with pytest.raises(UserError, match=why):
        load(prompts, file, max_context=24)
    rows = load(prompts, file, {"finetune.on_long": "skip"}, max_context=24)
    assert targets(rows.training, prompts) == ["x", "z"] and rows.said[0].endswith("1 too long and left out")


def test_the_watchdog_sees_every_row_that_is_read(prompts, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(load_rows.watchdog, "alive", lambda: seen.append(1))
    rows = load(prompts, written(tmp_path / "rows.jsonl", *answers("x", "y", "z")))
    read = len(seen)
    load_rows._digest(rows.training)
    assert read >= 3 and len(seen) == read + 3


def test_the_digest_of_rows_is_of_the_units_that_they_are(prompts, tmp_path):
    units = load(prompts, written(tmp_path / "rows.jsonl", *answers("x", "y"))).training
    joined = dataclasses.replace(units[0], rows=(*units[0].rows, *units[1].rows))
    digests = {load_rows._digest(one) for one in (units, [joined], units[::-1])}
    assert len(digests) == 3 and load_rows._digest(list(units)) in digests
    earlier = [load_rows._digest(one, with_sizes=False) for one in (units, [joined])]
    assert earlier == [load_rows._digest(units)] * 2  # of units of one row it is the same


def test_a_pair_that_no_token_row_holds_is_an_error(prompts, tmp_path):
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b" * 28, "rejected": "c" * 28}]
    file = written(tmp_path / "rows.jsonl", *pairs)
    with pytest.raises(UserError, match=r"line 2: is a pair of \d+ \+ 29 \+ 29 tokens, more than one token row of 64;"):
        load(prompts, file, {"finetune.loss": "dpo"})


def test_fewer_rows_than_an_update_needs(prompts, tmp_path):
    with pytest.raises(UserError, match="finetune.rows_per_update 2 is more than the 1 rows that there are; lower it"):
        load(prompts, written(tmp_path / "rows.jsonl", *answers("x")))


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({"finetune.epochs": 3}, "finetune.epochs 3; 20 rows, finetune.rows_per_update 8 of them an update"),
        ({"finetune.epochs": 0, "num_iterations": 8}, "num_iterations 8, as finetune.epochs is 0; 20 rows"),
    ],
)
def test_a_warm_up_leaves_updates_to_learn_in(changes, length):
    def check(warmup, num_updates=8):
        changed = {"optimizer.warmup_updates": warmup, "finetune.rows_per_update": 8} | changes
        load_rows.check_warm_up(tiny_run.config(changed), num_updates=num_updates, num_rows=20)

    check(7)
    check(8, num_updates=0)
    with pytest.raises(UserError, match="optimizer.warmup_updates 8 leaves none of the run's 8 updates .*" + length):
        check(8)


def test_the_recipe_learns_from_few_rows():
    config = config_lib.freeze(config_lib.load(pathlib.Path(__file__).parents[2] / "configs" / "sft.py"))
    c = config.finetune
    num_updates = -(-20 * c.epochs // c.rows_per_update)
    assert c.rows_per_update <= 20
    load_rows.check_warm_up(config, num_updates=num_updates, num_rows=20)
    validate.check(config, finetunes=True)


def test_what_a_question_has_too_many_of_is_drawn_without_repeats(prompts, tmp_path):
    file = written(tmp_path / "rows.jsonl", *answers(*"xyxyzw"), *answers("x", prompt="b"))
    limited = {"finetune.max_per_question": 2}
    drawn = [targets(load(prompts, file, limited, seed=seed).training, prompts) for seed in range(8)]
    assert all(len(one) == 3 and one[-1] == "x" and len({*one[:2]}) == 2 for one in drawn)
    assert len({tuple(one) for one in drawn}) > 1  # the seed draws them
    assert drawn[0] == targets(load(prompts, file, limited, seed=0).training, prompts)
    assert len(load(prompts, file, {"finetune.max_per_question": 9}).training) == 5


def collected(folder, prompts, *texts):
    """Writes right responses to the question "a"."""
    folder.mkdir()
    made = made_rollouts.Made(prompts.tokenizer)
    for number, text in enumerate(texts):
        made.response(number, 1.0, text)
    rollouts.write(folder / rollouts.file_name(0), made.rows, iteration=0, spell=prompts.tokenizer.spell)
    return str(folder)


@pytest.mark.parametrize("most, number", [(0, 3), (2, 2), (9, 3)])
def test_of_collected_rows_different_ones_are_learnt_and_of_ones_own_all(prompts, tmp_path, most, number):
    """RAFT learns all different right ones; self-training limits what it collects, not the original data."""
    rollouts_alone = collected(tmp_path / "rows", prompts, *"xyxyzx")
    own = written(tmp_path / "own.jsonl", *answers(*"uvuv"))
    changes = {"finetune.stages": ("response",), "finetune.max_per_question": most}
    for train, mine in ((rollouts_alone, []), (f"{own},{rollouts_alone}", list("uvuv"))):
        rows = load(prompts, train, changes)
        found = targets(rows.training, prompts)
        assert found[: len(mine)] == mine and len(found) - len(mine) == number
        assert len({*found[len(mine) :]}) == number and {*found[len(mine) :]} <= {*"xyz"}
        alike = "3 collected ones left out that are the same as others"
        assert rows.said[0].endswith(alike) == (most == 0)


def test_rows_of_a_question_after_other_contexts_are_not_the_same(prompts, tmp_path):
    one = [{"role": "user", "content": "a"}]
    more = [{"role": "system", "content": "s"}, *one]
    chats = [{"messages": [*turns, {"role": "assistant", "content": "x"}]} for turns in (one, more, one)]
    units = list(load(prompts, written(tmp_path / "rows.jsonl", *chats)).training)
    units = [dataclasses.replace(unit, question="a") for unit in units]
    kept = [unit.where.rpartition(" ")[2] for unit in load_rows._drawn(units, 9, seed=0)]
    assert kept in (["1", "2"], ["2", "3"])


def test_rco_compares_critiques_of_one_response(prompts, tmp_path):
    """One by itself is left out: there is nothing to compare it with."""
    rows = [
        {"prompt": p, "completion": str(n), "utility": u} for n, (p, u) in enumerate([("a", 1), ("b", 1), ("a", 0)])
    ]
    found = load(prompts, written(tmp_path / "rows.jsonl", *rows), {"finetune.loss": "rco", "finetune.beta": 0.5})
    (expected,) = rco_targets([[1.0, 0.0]], beta=0.5)
    assert targets(found.training, prompts) == ["0", "2"]
    assert [unit.rows[0].advantage for unit in found.training] == pytest.approx(expected.tolist())
    with pytest.raises(UserError, match="none with two critiques of one response"):
        load(prompts, written(tmp_path / "one.jsonl", *rows[:2]), {"finetune.loss": "rco"})


def test_an_epoch_is_a_permutation_and_pairs_are_numbered(prompts, tmp_path):
    pairs = [{"prompt": str(n), "chosen": "b", "rejected": "c"} for n in range(5)]
    rows = load(prompts, written(tmp_path / "rows.jsonl", *pairs), {"finetune.loss": "dpo"})
    drawn = [rows.batch(seed=3, step=step, batch_size=2) for step in range(5)]
    contexts = [unit[0].context_ids.tobytes() for batch in drawn for unit in batch]
    assert len({*contexts[:5]}) == len({*contexts[5:]}) == 5 and contexts[:5] != contexts[5:]
    for batch in drawn:  # though the third may hold one pair twice
        assert [[row.pair for row in unit] for unit in batch] == [[1, -1], [2, -2]]
    again = rows.batch(seed=3, step=4, batch_size=2)
    assert [row.context_ids.tolist() for unit in again for row in unit] == [
        row.context_ids.tolist() for unit in drawn[4] for row in unit
    ]


@pytest.mark.parametrize(("epochs", "expected"), [(1, 4), (3, 11), (0, 7)])
def test_how_many_updates_epochs_are(epochs, expected):
    config = tiny_run.config({"finetune.epochs": epochs, "finetune.rows_per_update": 3, "num_iterations": 7})
    decided = settings_lib.of_finetuning(config, settings_lib.run_settings(config, sharding.one_device()), num_rows=11)
    assert decided.num_iterations == expected and decided.questions_per_iteration == 3
    assert decided.learner.shape.from_rows and decided.learner.updates_per_batch == 1 and not decided.learner.compares
    assert decided.learner.loss.temperature == 1 and not decided.learner.has_reference
