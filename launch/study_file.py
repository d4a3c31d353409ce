"""A study file: what it must name, and what it may; what is wrong with it is one line. Used by study.py.

`get_study()` returns a dict of

- `config`: the configuration file;
- `settings`: dicts of `name`, `label`, `overrides`, `headline_only` (it runs headline arms alone). Further `config` and
  `seeds`, how many, in the place of the study's, and `minutes`: what a `run` and its `warm_start` take of this machine;
- `arms`: dicts of `name`, `label`, `sees` (what the critic does), `overrides`, `headline`, `seeds`. Further `recipe`,
  as for `cgrpo recipe`, with `result`, its step whose numbers count; `against`, from other arms to what the paper says
  of this one beside them: `above`, `below`, or an empty string; `times`, its minutes beside a plain run's;
- `entropy`: names of the arms whose entropy is plotted.

Further `warm_start`, False where no run starts from another's weights; `columns` of the table, in the form of
`study_report.COLUMNS`, and `measured`, which says what these are (of a recipe without `result` they are of the numbers
of its steps); and for a page of results `question`, `paper` (what it says) and `decides`, the column by which arms are
compared. A column's path may begin with `metrics`: ("metrics", "entropy", "last") is the mean of a metric over the last
tenth of the iterations; `first` and `all` are likewise.
"""

import math
import pathlib
import runpy
from collections.abc import Mapping
from typing import Any

import runner

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib

SIGNS = ("above", "below", "")
SPANS = ("first", "last", "all")

KEYS = {
    "study": {"config", "settings", "arms", "entropy"},
    "settings": {"name", "label", "overrides", "headline_only"},
    "arms": {"name", "label", "sees", "overrides", "headline", "seeds"},
}


def load(path: str) -> dict:
    """Returns the study of a study file.

    Raises:
      UserError: there is no such file, it fails to run, or a part of what it returns is of another kind.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"study file {path} does not exist; give one like configs/studies/arithmetic.py")
    try:
        with config_lib.configs_found(pathlib.Path(path).resolve()):
            study = runpy.run_path(path)["get_study"]()
        runner.expect("get_study()", study, Mapping, f"a dict of {', '.join(sorted(KEYS['study']))}")
        for kind, keys in KEYS.items():
            runner.expect(kind, study if kind == "study" else study[kind], (Mapping, list, tuple), "a list of dicts")
            for item in [study] if kind == "study" else study[kind]:
                runner.expect(f"one of {kind}", item, Mapping, "a dict")
                if missing := sorted(keys - item.keys()):
                    raise KeyError(f"{', '.join(missing)} in {item.get('name', 'get_study()')}")
        _check_kinds(study)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".replace("KeyError:", "it lacks").replace("UserError: ", "")
        raise UserError(f"study file {path} fails to load: {what}; see configs/studies/arithmetic.py") from error
    return study


def _check_kinds(study: Mapping) -> None:
    """Raises a `UserError` if a part of the study is of another kind than the code that follows takes."""
    runner.expect("config", study["config"], (str, pathlib.Path), "a path")
    runner.expect("entropy", study["entropy"], (list, tuple), "a list of names of arms")
    runner.expect("measured", study.get("measured", ""), str, "a text, of what the columns are")
    runner.expect("columns", study.get("columns", ()), (list, tuple), "a list of columns of the table")
    for column in study.get("columns", ()):
        _check_column(column)
    for key in ("question", "paper", "decides"):
        runner.expect(key, study.get(key, ""), str, "a text")
    for item in [*study["settings"], *study["arms"]]:
        for key in ("name", "label", "sees", "result"):
            if key in item:
                runner.expect(f"a {key}", item[key], str, "a string")
        runner.expect_overrides(item["name"], item["overrides"])
        runner.expect(
            f"{item['name']}'s recipe", item.get("recipe", ""), str, "a file, with its arguments after a colon"
        )
    for setting in study["settings"]:
        _check_setting(setting)
    for arm in study["arms"]:
        runner.expect(f"{arm['name']}'s seeds", arm["seeds"], (list, tuple, range), "a list of numbers, such as [0, 1]")
        for seed in arm["seeds"]:
            runner.expect(f"one of {arm['name']}'s seeds", seed, int, "a whole number")
    _check_comparisons(study)
    _check_minutes(study)


def _check_setting(setting: Mapping) -> None:
    """Raises a `UserError` if what a setting has in the place of the study's is of another kind."""
    name, seeds = setting["name"], setting.get("seeds", 1)
    runner.expect(f"{name}'s config", setting.get("config", ""), (str, pathlib.Path), "a path")
    runner.expect(f"{name}'s minutes", setting.get("minutes", {}), Mapping, "a dict of run and warm_start")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise UserError(f"{name}'s seeds is {seeds!r:.60}, not a number of seeds such as 3")


def _check_comparisons(study: Mapping) -> None:
    """Raises a `UserError` if an arm is compared with none of the study, or by no column."""
    names, columns = [arm["name"] for arm in study["arms"]], [column[0] for column in study.get("columns", ())]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two arms are named {twice[0]}; give each a name of its own")
    for arm in study["arms"]:
        runner.expect(f"{arm['name']}'s against", arm.get("against", {}), Mapping, "a dict from arms to above or below")
        for other, sign in arm.get("against", {}).items():
            if other not in names or other == arm["name"]:
                raise UserError(f"{arm['name']} is against {other!r}, which is no other arm; use one of {names}")
            if sign not in SIGNS:
                raise UserError(f"{arm['name']} against {other} is {sign!r}, not one of {SIGNS}")
    if study.get("decides") and study["decides"] not in columns:
        raise UserError(f"decides is {study['decides']!r}, which is no column; use one of {columns}")
    for name, path, *_ in study.get("columns", ()):
        if path[0] == "metrics" and (len(path) != 3 or path[2] not in SPANS):
            raise UserError(f"column {name}'s path is {path!r}, not such as ('metrics', 'entropy', 'last')")


def _check_minutes(study: Mapping) -> None:
    """Raises a `UserError` if what runs take is no number of minutes."""
    for setting in study["settings"]:
        if other := sorted(setting.get("minutes", {}).keys() - {"run", "warm_start"}):
            raise UserError(f"{setting['name']}'s minutes have {other[0]!r}, which is neither run nor warm_start")
        for run in ("run", "warm_start"):
            _check_positive(f"{setting['name']}'s minutes of a {run}", setting.get("minutes", {}).get(run, 1.0))
    for arm in study["arms"]:
        _check_positive(f"{arm['name']}'s times", arm.get("times", 1.0))


def _check_positive(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{what} is {value!r:.60}, not a number above 0")


def _check_column(column: Any) -> None:
    """Raises a `UserError` unless a column is as those of `study_report.COLUMNS`."""
    wanted = "a column, such as ('pass@1', ('after', 'mean', 'pass@1', 'value'), 1, 3): name, path, unit, digits"
    runner.expect("one of columns", column, (list, tuple), wanted)
    if len(column) != 4:
        raise UserError(f"one of columns is {column!r:.60}, not {wanted}")
    name, path, unit, digits = column
    runner.expect("the name of a column", name, str, "a string")
    runner.expect(f"column {name}'s path", path, (list, tuple), "a list of keys, of which a step's name is the first")
    for key in path:
        runner.expect(f"a key of column {name}'s path", key, str, "a string")
    if isinstance(unit, bool) or not isinstance(unit, int | float) or not unit or not math.isfinite(unit):
        raise UserError(f"column {name}'s unit is {unit!r:.60}, not a number by which values are divided, such as 1")
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 0:
        raise UserError(f"column {name}'s digits are {digits!r:.60}, not a whole number from 0")
