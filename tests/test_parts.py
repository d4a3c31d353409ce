"""The folder of results: what it takes for the same, what it refuses, and what a killed process left in it."""

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.parts import Results, part_size

ABOUT = {"started": "2026-01-01T00:00:00", "weights": "runs/a, step 3", "config": {"seed": 0, "num_slots": 4}}


def opened(folder, **changes):
    results = Results(folder, may_change=["num_slots"])
    with results.open(ABOUT | changes):
        pass
    return results


def test_the_same_may_go_on(tmp_path):
    assert Results(tmp_path / "new").started() is None
    opened(tmp_path)
    results = opened(tmp_path, config={"seed": 0, "num_slots": 8})  # where it runs may change
    assert results.started() == ABOUT["started"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weights": "runs/a, step 4"}, "weights: runs/a, step 3 -> runs/a, step 4"),
        ({"config": {"seed": 1, "num_slots": 4}}, "seed: 0 -> 1"),
        ({"refine": True}, "refine: None -> True"),
    ],
)
def test_other_results_are_not_mixed(tmp_path, changes, message):
    opened(tmp_path)
    before = (tmp_path / "about.json").read_text()
    with pytest.raises(UserError, match="holds results of something else") as caught:
        opened(tmp_path, **changes)
    assert message in str(caught.value) and "give another --out" in str(caught.value)
    assert (tmp_path / "about.json").read_text() == before


def test_lines_of_nobody_knows_what(tmp_path):
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="has samples.jsonl but no about.json; give another --out"):
        opened(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": 3, "started": ""}'])
def test_a_damaged_description(tmp_path, text):
    (tmp_path / "about.json").write_text(text)
    with pytest.raises(UserError, match="about.json can't be read"):
        opened(tmp_path)


def test_two_at_once(tmp_path):
    with Results(tmp_path).open(ABOUT), pytest.raises(UserError, match="another run is writing"):
        opened(tmp_path)


def test_resuming_cuts_back_to_whole_parts(tmp_path):
    results = opened(tmp_path)
    assert results.resume("samples", size=2, total=5) == 0
    results.append("samples", [{"number": i} for i in range(3)])
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"num')
    assert results.resume("samples", size=2, total=5) == 2
    assert list(results.lines("samples")) == [{"number": 0}, {"number": 1}]
    results.append("samples", [{"number": i} for i in range(2, 5)])
    assert results.resume("samples", size=2, total=5) == 5  # the last part is whole with one
    assert list(results.lines("samples", 1, 3)) == [{"number": 1}, {"number": 2}]
    with pytest.raises(UserError, match="has 5 lines, more than the 4 questions"):
        results.resume("samples", size=2, total=4)


def test_text_may_hold_any_separator(tmp_path):
    results = opened(tmp_path)
    texts = ["a\nb\r\nc", "\u2028\x0b\x0c\x1e\x85"]
    results.append("samples", [{"text": text} for text in texts])
    assert results.resume("samples", size=1, total=2) == 2
    assert [line["text"] for line in results.lines("samples")] == texts


def test_a_damaged_line_is_named(tmp_path):
    results = opened(tmp_path)
    (tmp_path / "samples.jsonl").write_text("{}\nnonsense\n{}\n")
    with pytest.raises(UserError, match="samples.jsonl, line 2 is not JSON"):
        list(results.lines("samples"))
    assert list(results.lines("nothing")) == []


def test_the_size_of_a_part():
    assert part_size(total_slots=64, texts_per_slot=8, texts=256) == 2
    assert part_size(total_slots=64, texts_per_slot=8, texts=1) == 512
    assert part_size(total_slots=4, texts_per_slot=1, texts=256) == 1
