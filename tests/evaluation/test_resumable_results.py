"""The folder of results: what it takes for the same, what it refuses, and what a killed process left in it."""

import json

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation.resumable_results import FORMAT, Results, part_size

ABOUT = {
    "started": "2026-01-01T00:00:00",
    "weights": "runs/a, step 3",
    "config": {"seed": 0, "engine": {"num_slots": 4}},
}


def opened(folder, **changes):
    results = Results(folder, may_change=["engine.num_slots"])
    with results.open(ABOUT | changes):
        pass
    return results


def test_the_same_may_go_on(tmp_path):
    assert Results(tmp_path / "new").started() is None
    opened(tmp_path)
    results = opened(tmp_path, config={"seed": 0, "engine": {"num_slots": 8}})  # where it runs may change
    assert results.started() == ABOUT["started"]


def test_results_from_before_their_lines_changed_do_not_go_on(tmp_path):
    opened(tmp_path)
    about = json.loads((tmp_path / "about.json").read_text())
    assert about.pop("format") == FORMAT
    (tmp_path / "about.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=f"format: None -> {FORMAT}"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weights": "runs/a, step 4"}, "weights: runs/a, step 3 -> runs/a, step 4"),
        ({"config": {"seed": 1, "engine": {"num_slots": 4}}}, "seed: 0 -> 1"),
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


@pytest.mark.parametrize("name", ["samples.jsonl", "step_00000000.parquet"])
def test_lines_of_nobody_knows_what(tmp_path, name):
    (tmp_path / name).write_text("{}\n")
    with pytest.raises(UserError, match=f"has {name} but no about.json; give another --out"):
        opened(tmp_path)


def test_of_many_such_files_a_few_are_named(tmp_path):
    for number in range(5):
        (tmp_path / f"step_{number}.parquet").write_text("")
    with pytest.raises(UserError, match="has step_0.parquet, step_1.parquet, step_2.parquet and 2 more but no about"):
        opened(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": 3, "started": ""}'])
def test_a_damaged_description(tmp_path, text):
    (tmp_path / "about.json").write_text(text)
    with pytest.raises(UserError, match="about.json can't be read"):
        opened(tmp_path)


def test_two_at_once(tmp_path):
    with Results(tmp_path).open(ABOUT), pytest.raises(UserError, match="another run is writing"):
        opened(tmp_path)


def lines(*numbers, ungraded=()):
    return [{"number": number, "ungraded": int(number in ungraded)} for number in numbers]


def numbers(results, name="samples"):
    return [line["number"] for line in results.lines(name)]


def test_resuming_cuts_back_to_whole_parts(tmp_path):
    results = opened(tmp_path)
    assert results.resume("samples", size=2, numbers=range(5)) == 0
    results.append("samples", lines(0, 1, 2))
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"num')
    assert results.resume("samples", size=2, numbers=range(5)) == 2
    assert numbers(results) == [0, 1]
    results.append("samples", lines(2, 3, 4))
    assert results.resume("samples", size=2, numbers=range(5)) == 5  # the last part is whole with one
    assert [line["number"] for line in results.lines("samples", 1, 3)] == [1, 2]


@pytest.mark.parametrize(
    "now, kept",
    [([1, 4, 7, 8], [1, 4, 7, 8]), ([1, 4, 6, 7, 8], [1, 4]), ([1, 4, 8], [1, 4]), ([1, 4, 7], [1, 4]), ([], [])],
)
def test_lines_of_other_questions_go(tmp_path, now, kept):
    results = opened(tmp_path)
    results.append("cot", lines(1, 4, 7, 8))
    assert results.resume("cot", size=2, numbers=now) == len(kept)
    assert numbers(results, "cot") == kept


def test_ungraded_texts_are_graded_once_more_and_again_when_all_is_done(tmp_path, caplog):
    results = opened(tmp_path)

    def resume():
        return results.resume("samples", size=2, numbers=range(8))

    results.append("samples", lines(*range(6), ungraded=[3, 5]))
    assert resume() == 2 and numbers(results) == [0, 1]
    said = f"{tmp_path / 'samples.jsonl'}: 2 texts have no verdict; resuming from line 3, to grade them."
    assert [record.message for record in caplog.records] == [said]
    results.append("samples", lines(2, 3, 4, 5, 6, 7, ungraded=[3])[:5])
    assert resume() == 6  # had its chance
    results.append("samples", lines(6, 7, ungraded=[6]))
    assert resume() == 2  # all is there: the user may have fixed the grader
    results.append("samples", lines(2, 3, 4, 5, 6, 7, ungraded=[7]))
    assert resume() == 6
    results.append("samples", lines(6, 7))
    assert resume() == 8 and len(caplog.records) == 3


def test_text_may_hold_any_separator(tmp_path):
    results = opened(tmp_path)
    texts = ["a\nb\r\nc", "\u2028\x0b\x0c\x1e\x85"]
    results.append("samples", [line | {"text": text} for line, text in zip(lines(0, 1), texts, strict=True)])
    assert results.resume("samples", size=1, numbers=range(2)) == 2
    assert [line["text"] for line in results.lines("samples")] == texts


def test_a_damaged_line_is_named(tmp_path):
    results = opened(tmp_path)
    (tmp_path / "samples.jsonl").write_text("{}\nnonsense\n{}\n")
    with pytest.raises(UserError, match="samples.jsonl, line 2 is not JSON"):
        list(results.lines("samples"))
    with pytest.raises(UserError, match="samples.jsonl, line 1 is not JSON"):
        (tmp_path / "samples.jsonl").write_text("nonsense\n")
        results.resume("samples", size=1, numbers=range(3))
    assert list(results.lines("nothing")) == []


def test_the_size_of_a_part():
    assert part_size(total_slots=64, texts_per_slot=8, texts=256) == 2
    assert part_size(total_slots=64, texts_per_slot=8, texts=1) == 512
    assert part_size(total_slots=4, texts_per_slot=1, texts=256) == 1
