"""Makes up small Python libraries, as every company has some, and tasks over them that need what only they know.

    python configs/studies/private_libraries.py --out=runs/private

`lib/` holds the libraries, `train.jsonl` and `test.jsonl` tasks over three of them, `control.jsonl` tasks over one that
no training task uses, and `tune.jsonl` tasks over two others, by which a prompt and a learning rate are chosen and no
result is reported; the same are divided into `tune_train.jsonl` and `tune_test.jsonl`. The same version writes the same
files.

A library is one class with a keyword-only argument and five methods with one each, all in units; what a method returns
follows from a rule that nobody outside can guess. So a task can't be solved without the library, and its question has
its name alone. Whatever a program asks for that is not there, the error says what there is, with its arguments, as good
libraries do: one message names all that any of its tasks needs.
"""

import argparse
import itertools
import json
import pathlib
import random
import re
import statistics
from collections.abc import Iterator
from typing import NamedTuple

NUM_TRAIN = 210  # tasks over the libraries that are trained on; the other 120 are held out
NUM_TUNE = 150  # of the 220 over the two libraries that no result is reported of
_SPLITS = 22161  # seed of the division: in 80 draws, with seeds 0 to 2, each method is needed by at least four tasks


class Method(NamedTuple):
    """A method: its name, its argument, what it returns in words, and the rule, in `x`, the object's, and `y`."""

    name: str
    argument: str
    returns: str
    rule: str


class Library(NamedTuple):
    """A library: its name, its class with its argument, such an object in words, methods, and which tasks it is for."""

    name: str
    kind: str
    argument: str
    thing: str
    methods: tuple[Method, ...]
    part: str


LIBRARIES = (
    Library("tarnworks", "Basin", "litres", "a basin of {x} litres", (
        Method("seep_over", "days", "the litres that {thing} loses by seepage in {y} days", "x * y * 3 // 50 + y"),
        Method("lime_dose", "hardness", "the grams of lime for {thing} at hardness {y}", "x // 4 + 7 * y"),
        Method("frost_guard", "degrees", "the watts that keep {thing} from freezing at {y} degrees of frost",
               "2 * x + y * y"),
        Method("pump_toll", "metres", "the cents that it costs to pump {thing} up by {y} metres", "x * y // 3 + 11"),
        Method("reed_count", "herons", "the reeds to plant around {thing} for {y} herons", "x % 9 + 5 * y"),
    ), "train"),
    Library("loomfare", "Bolt", "ells", "a bolt of cloth of {x} ells", (
        Method("dye_bath", "shades", "the litres of dye for {thing} in {y} shades", "x * y // 2 + 13"),
        Method("selvage_loss", "cuts", "the inches that {thing} loses at its edges after {y} cuts", "3 * y + x // 7"),
        Method("moth_cover", "months", "the pence that it costs to insure {thing} against moths for {y} months",
               "x + 9 * y"),
        Method("fold_height", "layers", "the millimetres that {thing} is high when it is folded into {y} layers",
               "y * 4 + x % 11"),
        Method("press_time", "irons", "the minutes that {y} irons take to press {thing}", "x * 6 // (y + 1) + 2"),
    ), "train"),
    Library("orchardia", "Grove", "trees", "an orchard of {x} trees", (
        Method("hive_need", "blooms", "the beehives for {thing} with {y} blooms a branch", "x // 6 + 2 * y + 1"),
        Method("frost_smoke", "hours", "the smoke pots that warm {thing} for {y} hours", "x * y // 5 + 3"),
        Method("crate_sum", "baskets", "the crates that {thing} fills with {y} baskets a tree", "x * y // 8 + y"),
        Method("prune_wage", "workers", "the shillings that {y} workers get for pruning {thing}", "2 * x + 17 * y"),
        Method("graft_yield", "scions", "the new trees that {thing} gives from {y} scions", "x % 13 + 4 * y"),
    ), "train"),
    Library("ferrykit", "Barge", "tons", "a barge of {x} tons", (
        Method("lock_wait", "gates", "the minutes that {thing} waits at {y} gates", "x // 3 + 8 * y"),
        Method("tow_crew", "miles", "the horses that pull {thing} over {y} miles", "x * y // 40 + 2"),
        Method("ballast_up", "inches", "the stones that trim {thing} by {y} inches", "x % 7 + 6 * y"),
        Method("berth_due", "nights", "the pennies that {thing} pays for {y} nights at the quay", "x * y // 4 + 19"),
        Method("tar_coat", "planks", "the buckets of tar for {thing} with {y} loose planks", "x // 9 + 3 * y"),
    ), "control"),
    Library("kilnbook", "Oven", "bricks", "an oven of {x} bricks", (
        Method("ash_carry", "firings", "the pails of ash that {thing} leaves after {y} firings", "x // 5 + 4 * y"),
        Method("glaze_run", "pots", "the spoons of glaze for {y} pots in {thing}", "x % 8 + 7 * y"),
        Method("soak_span", "cones", "the minutes that {thing} is held at {y} cones", "2 * x + 5 * y * y"),
        Method("draft_pull", "vents", "the inches of draught of {thing} with {y} vents", "x * y // 6 + 1"),
        Method("wood_store", "weeks", "the logs that {thing} burns in {y} weeks", "x * y // 2 + 12"),
    ), "tune"),
    Library("belltower", "Chime", "bells", "a chime of {x} bells", (
        Method("rope_length", "floors", "the feet of rope that {thing} takes over {y} floors", "x * y + 21"),
        Method("peal_fee", "ringers", "the groats that {y} ringers get for ringing {thing}", "3 * y + x // 2"),
        Method("crack_risk", "winters", "the cracks to expect in {thing} after {y} winters", "x * y // 9 + 1"),
        Method("tune_shaving", "cents", "the ounces to file off {thing} for {y} cents", "x % 6 + 8 * y"),
        Method("clapper_oil", "weeks", "the drops of oil for {thing} in {y} weeks", "5 * x + y"),
    ), "tune"),
)  # fmt: skip

_SOURCE = '''\
"""{name}: made up."""

_HAS = "{has}"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(f"{name} has no {{name!r}}. It has: {{_HAS}}")


def _only(what, name, args, given):
    if args or set(given) != {{name}}:
        got = [repr(one) for one in args] + [f"{{key}}=..." for key in given]
        raise TypeError(f"{{what}} takes {{name}}=... alone, not ({{', '.join(got)}}). {name} has: {{_HAS}}")
    return given[name]


class {kind}:
    def __init__(self, *args, **given):
        self._x = _only("{kind}", "{argument}", args, given)

    def __getattr__(self, name):
        raise AttributeError(f"{kind} has no {{name!r}}. {name} has: {{_HAS}}")
'''
_METHOD = """
    def {name}(self, *args, **given):
        x, y = self._x, _only("{name}", "{argument}", args, given)
        return {rule}
"""


def has(library: Library) -> str:
    """Returns what every error of a library lists: a call of each method, of an object made of x, with y."""
    made = f"{library.name}.{library.kind}({library.argument}=x)"
    return "; ".join(f"{made}.{one.name}({one.argument}=y)" for one in library.methods) + "."


def source(library: Library) -> str:
    """Returns the text of a library's module."""
    head = _SOURCE.format(name=library.name, kind=library.kind, argument=library.argument, has=has(library))
    return head + "".join(_METHOD.format(**one._asdict()) for one in library.methods)


class Task(NamedTuple):
    """A task: the methods that it needs, what is asked, what a solution returns, and the arguments of its tests."""

    library: Library
    methods: tuple[str, ...]
    signature: str
    asked: str
    body: str
    calls: tuple[tuple, ...]

    @property
    def question(self) -> str:
        """What the model sees."""
        asked = f"Write `solve({self.signature})`, which returns {self.asked}."
        return f"Use the Python library `{self.library.name}`. {asked}"

    @property
    def solution(self) -> str:
        """A program that passes its tests."""
        return f"import {self.library.name}\n\ndef solve({self.signature}):\n    return {self.body}"


def _worded(library: Library, method: Method, x: object, y: object) -> str:
    return method.returns.format(thing=library.thing.format(x=x), y=y)


def _called(library: Library, method: Method, x: object, y: object) -> str:
    return f"{library.name}.{library.kind}({library.argument}={x}).{method.name}({method.argument}={y})"


def _value(method: Method, x: int, y: int) -> int:
    return eval(method.rule, {"x": x, "y": y})


def _of_method(library: Library, method: Method, rng: random.Random) -> Iterator[Task]:
    """Yields the tasks that need one method."""

    def task(signature: str, asked: str, body: str, *calls: tuple) -> Task:
        return Task(library, (method.name,), signature, asked, body, calls)

    def x() -> int:
        return rng.randint(20, 90)

    def y() -> int:
        return rng.randint(2, 12)

    def worded(x: object, y: object) -> str:
        return _worded(library, method, x, y)

    def called(x: object, y: object) -> str:
        return _called(library, method, x, y)

    yield task("n, m", worded("n", "m"), called("n", "m"), (x(), y()), (x(), y()), (x(), y()))
    for size in rng.sample(range(20, 90), 5):
        yield task("m", worded(size, "m"), called(size, "m"), (2,), (5,), (11,))
    for amount in rng.sample(range(2, 13), 5):
        yield task("n", worded("n", amount), called("n", amount), (25,), (48,), (83,))
    yield task(
        "sizes, m", f"the sum of {worded('n', 'm')}, over all n in the list sizes",
        f"sum({called('n', 'm')} for n in sizes)", ([30, 41], 3), ([22, 57, 80], 6), ([], 4),
    )  # fmt: skip
    yield task(
        "n, amounts", f"a list of {worded('n', 'm')}, for each m in the list amounts",
        f"[{called('n', 'm')} for m in amounts]", (35, [2, 7]), (64, [3, 4, 10]), (50, []),
    )  # fmt: skip
    yield task(
        "a, b, m", f"the larger of {worded('a', 'm')}, and the same for b in the place of a",
        f"max({called('a', 'm')}, {called('b', 'm')})", (30, 71, 4), (88, 23, 9), (45, 52, 2),
    )  # fmt: skip
    yield task("n, m, k", f"k times {worded('n', 'm')}", f"k * {called('n', 'm')}", (33, 5, 2), (60, 8, 3), (79, 3, 10))
    yield task(
        "n, m, k", f"how much more {worded('n', 'k')} is than the same for m in the place of k",
        f"{called('n', 'k')} - {called('n', 'm')}", (40, 2, 9), (67, 5, 12), (82, 4, 6),
    )  # fmt: skip
    yield task("n, m", f"twice {worded('n', 'm')}", f"2 * {called('n', 'm')}", (x(), y()), (x(), y()), (x(), y()))
    calls = (20, 2), (90, 12), (41, 5), (62, 3), (75, 7)
    limit = statistics.median(_value(method, n, m) for n, m in calls)
    yield task("n, m", f"{worded('n', 'm')}, but {limit} at most", f"min({called('n', 'm')}, {limit})", *calls)


def _of_two(library: Library, first: Method, second: Method, rng: random.Random) -> Iterator[Task]:
    """Yields the tasks that need two methods."""
    calls = (28, 3), (53, 7), (85, 10)

    def varies(x: int) -> bool:
        return len({_value(first, x, y) - _value(second, x, y) for _, y in calls}) > 1

    size = next(x for x in rng.sample(range(20, 90), 70) if varies(x))  # no one number is right for all tests
    for word, sign, thing in (("plus", "+", "n"), ("minus", "-", size)):
        asked = f"{_worded(library, first, thing, 'm')}, {word} {_worded(library, second, thing, 'm')}"
        body = f"{_called(library, first, thing, 'm')} {sign} {_called(library, second, thing, 'm')}"
        signature, given = ("n, m", calls) if thing == "n" else ("m", tuple(call[1:] for call in calls))
        yield Task(library, (first.name, second.name), signature, asked, body, given)


def tasks(library: Library) -> list[Task]:
    """Returns all tasks over a library."""
    rng = random.Random(library.name)
    found = [task for method in library.methods for task in _of_method(library, method, rng)]
    return found + [
        task for pair in itertools.combinations(library.methods, 2) for task in _of_two(library, *pair, rng)
    ]


def row(task: Task) -> dict[str, str]:
    """Returns a task as a row of data: its question, its tests as the gold answer, a solution, and what it is over."""
    names: dict = {}
    module: dict = {}
    exec(source(task.library), module)
    library = type("Module", (), {"__getattr__": lambda _, name: module[name]})()
    exec(task.solution.partition("\n")[2], names | {task.library.name: library}, names)
    solve = names["solve"]
    solve.__globals__.update({task.library.name: library})
    asserts = [f"assert solve({', '.join(map(repr, call))}) == {solve(*call)!r}" for call in task.calls]
    return {
        "question": task.question,
        "answer": json.dumps({"asserts": asserts, "names": ["solve"]}),
        "solution": f"```python\n{task.solution}\n```",
        "library": task.library.name,
        "methods": " ".join(task.methods),
    }


def parts() -> dict[str, list[Task]]:
    """Returns the tasks of each file: train, test, control, tune; none of test is one of train but for its numbers."""
    found: dict[str, list[Task]] = {"train": [], "control": [], "tune": []}
    for library in LIBRARIES:
        found[library.part] += tasks(library)
    rng = random.Random(_SPLITS)
    train, test = _divided(found["train"], NUM_TRAIN, rng)
    for some in (train, test, found["control"], found["tune"]):
        rng.shuffle(some)
    return found | {"train": train, "test": test}


def tune_parts(tune: list[Task]) -> dict[str, list[Task]]:
    """Returns the tasks of tune as those of two more files: to train on, and held out."""
    train, test = _divided(list(tune), NUM_TUNE, random.Random(_SPLITS))
    return {"tune_train": train, "tune_test": test}


def _divided(some: list[Task], number: int, rng: random.Random) -> tuple[list[Task], list[Task]]:
    """Returns so many tasks, and the others; those that differ in numbers alone stay together."""
    rng.shuffle(some)
    alike: dict[str, list[Task]] = {}
    for task in some:
        alike.setdefault(without_numbers(task.question), []).append(task)
    first: list[Task] = []
    others: list[Task] = []
    for group in alike.values():
        (first if len(first) + len(group) <= number else others).extend(group)
    return first, others


def without_numbers(question: str) -> str:
    """Returns a question with its numbers masked: tasks that differ in these alone have the same."""
    return re.sub(r"\d+", "#", question)


def main(out: str) -> None:
    """Writes the libraries and the tasks."""
    folder = pathlib.Path(out)
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        (folder / "lib" / f"{library.name}.py").write_text(source(library), encoding="utf-8")
    found = parts()
    for name, some in (found | tune_parts(found["tune"])).items():
        lines = [json.dumps(row(task)) + "\n" for task in some]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the files")
    main(parser.parse_args().out)
