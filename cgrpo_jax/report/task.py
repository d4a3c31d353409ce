"""What a run is about, for those who know neither its task nor its model, in sentences.

of_run(run)["graded"]        # "right where its program passes every test; it is run in a sandbox"
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from cgrpo_jax.datasets.problems import MADE_UP, MadeUp
from cgrpo_jax.datasets.tasks import arithmetic, arithmetic_lessons, snippet_lessons, snippets
from cgrpo_jax.errors import UserError
from cgrpo_jax.report import details
from cgrpo_jax.report.run_folder import RunFolder

MOST_NAMED = 24  # facts, or words, that the warm start never shows
_EXAMPLE = 600  # characters of each text of an example

_ASKED = {"chains": arithmetic.ASKED, "snippets": snippets.ASKED}
_TAUGHT = {"chains": arithmetic_lessons.TAUGHT, "snippets": snippet_lessons.TAUGHT}
# Of a task's source, the names in a question of what its warm start never shows.
_UNSEEN: dict[str, Callable[[MadeUp], Callable[[str], list[str]]]] = {
    "chains": lambda source: functools.partial(arithmetic.unseen, held_out=source.held_out_facts()),
    "snippets": lambda source: functools.partial(snippets.unseen, held_out=source.glossary().held_out),
}
_GRADED = {
    "trace": "right where everything after its last “Answer:” equals the gold answer, white space aside",
    "exact": "right where the line after its last “Answer:”, else its last box, equals the gold answer",
    "numeric": "right where the number that it ends in equals the gold answer",
    "choice": "right where the letter that it chooses is the gold answer",
    "math": "right where its final answer is mathematically equal to the gold answer (math-verify)",
    "code": "right where its program passes every test; it is run in a sandbox",
    "judge": "judged by a model, by the question's rubric",
}


def of_run(run: RunFolder) -> dict[str, str]:
    """Returns what a run is about: `asked`, its questions; `graded`, when a response is right; `start`, what its model
    had learned before the first iteration; `model`, the same in a few words.
    """
    values = run.facts.values
    graded = _GRADED.get(values["grader.kind"], f"graded by the user's own function {values['grader.kind']}")
    if graded.startswith("right"):
        graded += "; its reward is 1 then, else 0"
    if run.facts.pass_threshold != 1:
        graded += f"; it passes with a reward of {run.facts.pass_threshold:g} or more"
    return {"asked": _asked(values), "graded": graded, "start": _start(values), "model": _model(values)}


def example(detail: Mapping[str, Any]) -> dict[str, str]:
    """Returns a question with its gold answer and, where the data have one, its worked solution.

    Args:
      detail: of a group, as of `details.of_groups`.
    """
    texts = {name: detail[name] or "" for name in ("question", "answer", "solution")}
    return {name: details.shortened(text, _EXAMPLE) for name, text in texts.items()}


def unseen(run: RunFolder, questions: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns what the warm start never showed (or hardly: `warm_start.rare_rate`), and which questions need it.

    Args:
      run: its task; nothing is found where it is not made up, or had no warm start.
      questions: by `problem_id`. A text that is no question of the task, as one that is cut short, needs nothing.

    Returns:
      Of each name, such as `7*8=56` or `dofu (*7)`, the problems that need it.
    """
    values, found = run.facts.values, dict[str, list[str]]()
    if values["data.kind"] not in MADE_UP or not values["warm_start.num_updates"]:
        return found
    source = _source(values)
    names_in = _UNSEEN[source.kind](source)
    for problem, question in questions.items():
        try:
            names = names_in(question)
        except UserError:
            continue
        for name in names:
            found.setdefault(name, []).append(problem)
    return found


def _source(values: Mapping[str, Any]) -> MadeUp:
    return MadeUp(values["data.kind"], values["data.seed"], 0, 0, 1, 0.0, values["data.num_held_out"])


def _asked(values: Mapping[str, Any]) -> str:
    numbers = ((values["data.num_train"], "to train on"), (values["data.num_eval"], "held out"))
    counted = " and ".join(f"{number:,} {words}" for number, words in numbers if number)
    if values["data.kind"] in MADE_UP:
        return f"{_ASKED[values['data.kind']]}. Of such questions {counted} were made"
    return f"Questions of {values['data.train'] or 'rows that were collected'}{f', {counted}' if counted else ''}"


def _model(values: Mapping[str, Any]) -> str:
    named = values["model.folder"] or values["model.init"] or values["model.architecture"]
    found = named or f"{values['model.num_layers']} layers of width {values['model.embed_dim']}"
    if not (values["model.folder"] or values["model.init"]):
        found += ", drawn at random"
    return found + (", then taught by a warm start" if values["warm_start.num_updates"] else "")


def _start(values: Mapping[str, Any]) -> str:
    """Returns what the model had learned before its first iteration."""
    if values["model.folder"]:
        begun = f"It starts with the weights of {values['model.folder']}"
    elif values["model.init"]:
        begun = f"It starts with the weights of the run {values['model.init']}"
    else:
        begun = "Its weights were drawn at random"
    updates, rows = values["warm_start.num_updates"], values["warm_start.rows_per_update"]
    if not updates:
        return f"{begun}, and nothing was taught before the first iteration."
    lessons = f"{updates * rows:,} lessons: {_TAUGHT[values['data.kind']]}"
    return f"{begun}; a warm start of {updates:,} updates then taught it {lessons}. {_held_out(values)}".rstrip()


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _held_out(values: Mapping[str, Any]) -> str:
    """Returns what no lesson of a warm start holds, and how many questions need it; empty for nothing."""
    number, share = values["data.num_held_out"], values["warm_start.rare_rate"]
    if not number:
        return ""
    source = _source(values)
    if source.kind == "chains":
        names = [f"{left}{op}{right}" for left, op, right in sorted(source.held_out_facts())]
        what = f"{number} products"
    else:
        names = [f"{word} ({op}{n})" for word, (op, n) in sorted(source.glossary().held_out.items())]
        what = f"{number} words"
    listed = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
    shown = f"only {_percent(share)} of the lessons in solving hold" if share else "no lesson held"
    return (
        f"But {shown} these {what}: {listed}. Of the questions {_percent(values['data.hard_share'])} need one of them."
    )
