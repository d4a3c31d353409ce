"""A report as files: one page that opens from a disk without a network, and for large runs its texts beside it.

The page is assembled from `assets/`. What a run wrote reaches it as data alone, and its content security policy lets
no script run but the page's own, which it names by its hash.
"""

import base64
import dataclasses
import datetime
import hashlib
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import jinja2
from markupsafe import Markup

from cgrpo_jax.errors import UserError
from cgrpo_jax.report import groups as groups_lib
from cgrpo_jax.report import lessons, payload, selection, task
from cgrpo_jax.report.groups import Asked, Group
from cgrpo_jax.report.run_folder import RunFolder
from cgrpo_jax.runtime import files

ASSETS = pathlib.Path(__file__).parent / "assets"
STYLES = ("vendor/uPlot-1.6.32.css", "report.css")
SCRIPTS = ("vendor/htm-preact-3.1.1.js", "vendor/uPlot-1.6.32.js")
SCRIPTS += ("store.js", "format.js", "export.js", "charts.js", "overview.js", "outcomes.js", "tokens.js", "group.js")
SCRIPTS += ("measured.js", "questions.js", "app.js")
INLINE_BYTES = 3 << 20  # of compressed texts; more lie beside the page


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
      path: the page.
      bytes: of it.
      shards, shard_bytes: files beside it.
      shown, total: groups that are shown whole, and all.
      reasons: of each kind of group, how many there are, and how many are shown (`selection.Selection`).
      faults: what could not be read or shown, a sentence each.
    """

    path: pathlib.Path
    bytes: int
    shards: int
    shard_bytes: int
    shown: int
    total: int
    reasons: dict[str, tuple[int, int]]
    faults: Sequence[str]


def write(runs: Sequence[RunFolder], out: pathlib.Path, *, max_groups: int, seed: int = 0) -> Written:
    """Writes a report of runs; a file of that name is replaced, and so are its texts beside it.

    Args:
      runs: what it is about.
      out: the page; `NAME_texts/` beside it has what does not fit in.
      max_groups: groups with their texts.
      seed: of the sample among the others.

    Raises:
      UserError: the report can't be written.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder; give a file for the page, such as {out / 'report.html'}.")
    found: list[Group] = []
    damaged: list[str] = []
    asked: dict[str, Asked] = {}
    for number, run in enumerate(runs):
        groups, questions = groups_lib.read(run, number=number, faults=damaged)
        found += groups
        asked |= questions
    chosen = selection.choose(found, max_groups=max_groups, seed=seed)
    texts = payload.texts(runs, found, chosen)
    more = payload.beside(runs, [*damaged, *texts.faults], first=len(texts.shards))
    shards, places, faults = [*texts.shards, *more.shards], texts.places, [*damaged, *texts.faults, *more.faults]
    beside = sum(map(len, shards)) > INLINE_BYTES
    search = range(len(shards), len(shards) + len(texts.search)) if beside else range(0)
    folder = out.with_name(f"{out.stem}_texts")
    by_run = [[group for group in found if group.run == number] for number in range(len(runs))]
    about = payload.of_runs(runs, found) | {
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "shards": len(shards) + len(search),
        "folder": folder.name if beside else "",
        "shown": len(places),
        "reasons": chosen.reasons,
        "faults": faults,
        "lesson": texts.lesson,
        "critiques": texts.critiques,
        "examples": texts.examples,
        "took": [one.took for one in texts.learned],
        "steps": [
            lessons.solved_by_step(one.steps, own, asked) for one, own in zip(texts.learned, by_run, strict=True)
        ],
        "unseen": [_unseen(run, one, own, asked) for run, one, own in zip(runs, texts.learned, by_run, strict=True)],
        "rows": more.rows,
        "measured": more.measured,
        "search": list(search),
        "sums": more.sums,
    }
    failed = {at: one for learned in texts.learned for at, one in learned.failed.items()}
    text = _page(
        title=", ".join(run.name for run in runs),
        about=payload.as_json(about),
        index=payload.packed(payload.as_json(payload.index(found, asked, places, texts.said, failed))),
        shards=[] if beside else shards,
    )
    # As JavaScript has them: what is packed as a text, the others as they are.
    values = [*(f'"{one}"' for one in shards), *texts.search] if beside else []
    with files.checked(out):
        _write_shards(folder, values)
        with files.whole_file(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    size = sum(len(one.encode()) for one in values)
    return Written(out, len(text.encode()), len(values), size, len(places), len(found), chosen.reasons, faults)


def _unseen(run: RunFolder, learned: lessons.Lessons, groups: Sequence[Group], asked: Mapping[str, Asked]) -> list:
    own = {group.problem: asked[group.problem].question for group in groups}
    return lessons.solved_by_unseen(task.unseen(run, own), learned.steps, groups)


def _page(*, title: str, about: str, index: str, shards: Sequence[str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, undefined=jinja2.StrictUndefined
    )
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    if "</script" in script.lower():
        raise AssertionError("a script of the page would end early")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        title=title,
        styles=Markup("\n".join((ASSETS / name).read_text(encoding="utf-8") for name in STYLES)),
        script=Markup(script),
        script_hash=digest,
        about=Markup(about),  # JSON without "<"
        index=index,
        shards=shards,
    )


def _write_shards(folder: pathlib.Path, values: Sequence[str]) -> None:
    """Replaces the texts beside a page; a folder that holds anything else stays as it is.

    Args:
      folder: beside the page.
      values: of its files, in JavaScript.

    Raises:
      UserError: it holds something else.
    """
    if folder.exists():
        others = [one.name for one in folder.iterdir() if not (one.name.startswith("texts_") and one.suffix == ".js")]
        if others:
            raise UserError(f"{folder} holds {others[0]}, which is of no report; give another --out.")
        shutil.rmtree(folder)
    if values:
        folder.mkdir(parents=True)
    for number, value in enumerate(values):
        (folder / f"texts_{number:03d}.js").write_text(f"cgrpoTexts({number}, {value});\n", encoding="utf-8")
