"""The made-up libraries and their tasks: what a task needs is there, is seen in training, and is in one message."""

import collections
import json
import re
import runpy

import graded
import paths
import pytest

from cgrpo_jax.datasets import mixture
from cgrpo_jax.rewards.sandbox import modules
from cgrpo_jax.rewards.sandbox.grade import grade
from cgrpo_jax.rewards.sandbox.values import MAX_SAID

pytestmark = graded.MARKS

MADE = runpy.run_path(str(paths.CONFIGS / "studies" / "private_libraries.py"))
LIBRARIES, PARTS = MADE["LIBRARIES"], MADE["parts"]()
ROWS = {part: [MADE["row"](task) for task in tasks] for part, tasks in PARTS.items()}
MAX_CHARS = 170  # of a solution with its fence: the longest are 57 tokens of Qwen2.5, of 96 that there may be


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    MADE["main"](str(folder))
    return folder


def of_libraries(written):
    return {one.name: modules.read([written / "lib" / f"{one.name}.py"]) for one in LIBRARIES}


def test_there_are_enough_tasks_and_none_twice():
    assert len(PARTS["train"]) >= 200 and len(PARTS["test"]) >= 100
    assert len(PARTS["control"]) >= 50 and len(PARTS["tune"]) >= 100
    questions = [row["question"] for rows in ROWS.values() for row in rows]
    assert len(set(questions)) == len(questions)
    solutions = [row["solution"] for rows in ROWS.values() for row in rows]
    assert len(set(solutions)) == len(solutions)


def test_libraries_are_of_one_part_alone():
    used = {part: {task.library.name for task in tasks} for part, tasks in PARTS.items()}
    assert used["train"] == used["test"] == {one.name for one in LIBRARIES if one.part == "train"}
    assert not used["control"] & used["train"] and not used["tune"] & (used["train"] | used["control"])
    assert len(used["tune"]) == 2 and len(used["control"]) == 1


def test_what_a_held_out_task_needs_is_in_five_training_tasks_at_least():
    seen = collections.Counter((task.library.name, name) for task in PARTS["train"] for name in task.methods)
    needed = {(task.library.name, name) for task in PARTS["test"] for name in task.methods}
    assert len(needed) == 15 and min(seen[one] for one in needed) >= 5


@pytest.mark.parametrize("seed", range(3))
def test_what_a_held_out_task_needs_is_drawn_four_times_in_a_run(seed):
    """Of 80 draws 15 methods have six each on average; no division of 9,000 had five of each with all three seeds."""
    train = PARTS["train"]
    drawn = [
        train[at]
        for step in range(20)
        for at in mixture.batch_indices(seed=seed, step=step, batch_size=4, num_problems=len(train))
    ]
    seen = collections.Counter((task.library.name, name) for task in drawn for name in task.methods)
    needed = {(task.library.name, name) for task in PARTS["test"] for name in task.methods}
    assert len(drawn) == 80 and min(seen[one] for one in needed) >= 4


def test_no_held_out_task_is_a_training_task_but_for_a_number():
    train, test = ({re.sub(r"[0-9]+", "#", task.question) for task in PARTS[part]} for part in ("train", "test"))
    assert not train & test and len(test) >= 100


def test_what_tunes_is_divided_likewise():
    train, test = MADE["tune_parts"](PARTS["tune"]).values()
    assert len(train) == 150 and len(test) == 70
    assert {task.question for task in train + test} == {task.question for task in PARTS["tune"]}
    masked = [{re.sub(r"[0-9]+", "#", task.question) for task in some} for some in (train, test)]
    assert not masked[0] & masked[1]
    needed = {(task.library.name, name) for task in test for name in task.methods}
    assert needed == {(task.library.name, name) for task in train for name in task.methods}


def test_no_one_number_is_right_for_all_tests_and_a_limit_is_reached_and_not_reached():
    limits = 0
    for row in (row for rows in ROWS.values() for row in rows):
        expected = [one.rpartition(" == ")[2] for one in json.loads(row["answer"])["asserts"]]
        assert len(set(expected)) > 1, row["question"]
        if limit := re.search(r"but (\d+) at most", row["question"]):
            limits += 1
            assert 0 < expected.count(limit[1]) < len(expected), row["question"]
    assert limits == sum(len(one.methods) for one in LIBRARIES)


def test_a_question_has_the_librarys_name_and_nothing_of_its_contents():
    for task in (task for tasks in PARTS.values() for task in tasks):
        names = {task.library.kind, *(name for one in task.library.methods for name in (one.name, f"{one.argument}="))}
        assert task.library.name in task.question
        assert not [name for name in names if re.search(rf"\b{name}", task.question)], task.question


def test_targets_are_short():
    assert max(len(row["solution"]) for rows in ROWS.values() for row in rows) <= MAX_CHARS


def test_the_same_files_are_written_again(written, tmp_path):
    MADE["main"](str(tmp_path))
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 6 + len(LIBRARIES)
    for path in files:
        assert (tmp_path / path).read_bytes() == (written / path).read_bytes()


@pytest.mark.parametrize("library", [one.name for one in LIBRARIES])
def test_every_solution_passes_its_tests_in_the_sandbox(written, library):
    """In one program: a sandbox for each of the 660 would take half a minute of CI."""
    programs, asserts, names = [], [], []
    for number, row in enumerate(row for rows in ROWS.values() for row in rows if row["library"] == library):
        tests, name = json.loads(row["answer"]), f"solve_{number}"
        assert tests["names"] == ["solve"] and len(tests["asserts"]) >= 3
        programs.append(row["solution"].strip("`").removeprefix("python").replace("solve(", f"{name}("))
        asserts += [one.replace("solve(", f"{name}(") for one in tests["asserts"]]
        names.append(name)
    answer = json.dumps({"asserts": asserts, "names": names})
    program = "\n".join(programs)
    assert grade(program, answer, 60.0, modules=of_libraries(written)[library])[2] == f"passes all {len(asserts)} tests"
    assert grade(program, answer, 60.0)[0] == 0.0  # it takes the library


def test_a_row_as_it_is_passes(written):
    row = ROWS["tune"][0]
    assert grade(row["solution"], row["answer"], 20.0, modules=of_libraries(written)[row["library"]])[0] == 1.0


@pytest.mark.parametrize(
    "attempt",
    [
        "from tarnworks import Reservoir",
        "import tarnworks\nx = tarnworks.reservoir(40)",
        "import tarnworks\nx = tarnworks.Basin(40)",
        "import tarnworks\nx = tarnworks.Basin(size=40)",
        "import tarnworks\nx = tarnworks.Basin(litres=40).seepage(days=3)",
        "import tarnworks\nx = tarnworks.Basin(litres=40).seep_over(3)",
    ],
)
def test_one_message_names_all_that_a_task_needs(written, attempt):
    program = f"{attempt}\n\n\ndef solve(n):\n    return 0"
    answer = json.dumps({"asserts": ["assert solve(1) == 1"], "names": ["solve"]})
    _, _, reason = grade(program, answer, 20.0, modules=of_libraries(written)["tarnworks"])
    assert MADE["has"](LIBRARIES[0]) in reason and "tarnworks.Basin(litres=x).seep_over(days=y)" in reason


def test_messages_are_shown_whole():
    assert max(len(MADE["has"](one)) for one in LIBRARIES) < MAX_SAID - 150


def test_what_a_method_returns_depends_on_both_numbers():
    for library in LIBRARIES:
        for one in library.methods:
            values = {(x, y): eval(one.rule, {"x": x, "y": y}) for x in range(20, 90) for y in range(2, 12)}
            assert len({values[x, 5] for x in range(20, 90)}) > 2 and len({values[40, y] for y in range(2, 12)}) > 2
