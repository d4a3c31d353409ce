"""What the page of a large run costs: seconds and memory of its making, bytes, and how fast it answers in a browser.

    python tests/benchmarks/report_page.py FOLDER [--iterations=100] [--questions=128] [--responses=7] [--tokens=1000]

FOLDER/run is made up where it is not there yet, about 40 MB an iteration at full size: every response is critiqued and
refined, each text has `--tokens` tokens of a vocabulary of words, one refinement a question is kept and scored by the
trainer. FOLDER/report.html is made by the command, in a process of its own, and opened where Chromium is installed.

    cpu, wall, memory    of `cgrpo report`; the most are 180 s (wall, on a quiet machine) and 2 GB
    metadata             the index, and every row without its text, compressed: 40 MB at most
    first file           the page, 5 MB at most; texts lie beside it
    first paint          2 s at most; a filter, until it is drawn, 0.2 s at most
    search               its first hit 0.5 s, all texts 1 s; another search afterwards 0.2 s
Exits with 1 where a target is missed.
"""

import argparse
import html.parser
import json
import pathlib
import random
import re
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import tokenizers
from report import progress, row, table
from tokenizers import decoders, pre_tokenizers, trainers

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage, TrainRow
from cgrpo_jax.runs import base
from cgrpo_jax.runs import config as config_lib

TEXTS = 400  # that are different; rows share them
PROBLEMS = 4096
_CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


def write_tokenizer(folder: pathlib.Path) -> None:
    """Writes a tokenizer of words of one to four syllables."""
    rng = random.Random(0)
    syllables = [a + b + c for a in "bdfglmnprst" for b in "aeiou" for c in ("", "n", "r", "s")]
    words = ["".join(rng.choices(syllables, k=rng.choice((1, 1, 2, 2, 3, 4)))) for _ in range(6000)]
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<end>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator([" ".join(words)] * 3, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": _CHAT}))


class Maker:
    """Rows of iterations, in which the policy gets better.

    Args:
      tokenizer: of their texts.
      responses, tokens: of a question, and of a text.
    """

    def __init__(self, tokenizer, *, responses: int, tokens: int):
        self._responses, self._rng = responses, np.random.default_rng(0)
        size = tokenizer.vocab_size
        spelled = [tokenizer.spell([one]) for one in range(size)]
        usable = [one for one in range(size) if spelled[one].isascii() and one != tokenizer.end_of_turn_id]
        share = 1 / np.arange(1, len(usable) + 1)
        ids = self._rng.choice(usable, (TEXTS, tokens), p=share / share.sum()).astype(np.int32)
        ids[:, -1] = tokenizer.end_of_turn_id
        self._spelled = np.array(spelled, object)
        self._texts = [(row, self.spell(row[:-1])) for row in ids]
        self._prompts = [row[:40] for row in ids]

    def spell(self, ids: np.ndarray) -> str:
        """Returns the text of tokens."""
        return "".join(self._spelled[ids])

    def iteration(self, skill: float, questions: int) -> list[rollouts.Row]:
        """Returns the rows of an iteration, of whose responses about the share `skill` is right."""
        found: list[rollouts.Row] = []
        for q in range(questions):
            number = int(self._rng.integers(PROBLEMS))
            prompt = self._prompts[number % TEXTS]
            asked = f"{self.spell(prompt)} ({number})"
            found += self._group(q, Problem(number, asked, str(number)), prompt, skill * (0.5 + number % 7 / 6))
        return found

    def _group(self, q: int, problem: Problem, prompt: np.ndarray, skill: float) -> list[rollouts.Row]:
        responses = [
            self._text(RowIndex(q, response=n), prompt, reward=float(self._rng.random() < skill))
            for n in range(self._responses)
        ]
        critiques, refinements = [], []
        for one in responses:
            index = one.index.replace(stage=Stage.CRITIQUE)
            quoted = np.concatenate([prompt, one.token_ids])
            verdict = bool(one.reward) if self._rng.random() < 0.9 else not one.reward
            critiques.append(self._text(index, quoted, parent=one, verdict=verdict))
            quoted = np.concatenate([quoted, critiques[-1].token_ids])
            index = index.replace(stage=Stage.REFINEMENT)
            reward = float(one.reward or self._rng.random() < 0.4)
            refinements.append(self._text(index, quoted, parent=critiques[-1], reward=reward))
        kept = max(refinements, key=lambda one: one.reward)
        trained = [*responses, kept]
        mean = sum(one.reward for one in trained) / len(trained)
        placed = {id(one): place for place, one in enumerate(trained)}
        found = []
        for one in [*responses, *critiques, *refinements]:
            if one.stage == Stage.CRITIQUE:
                found.append(rollouts.Row(one, problem))
            elif id(one) not in placed:
                found.append(rollouts.Row(one, problem, "math", dropped="not_selected"))
            else:
                advantage = one.reward - mean
                train_row = TrainRow(prompt, one.token_ids, one.logp, advantage, refined=one is kept)
                scored = one.logp - self._rng.exponential(0.02, len(one.logp)).astype(np.float32)
                dropped = "" if advantage else "zero_advantage"
                more = {"train_row": train_row, "place": placed[id(one)], "trainer_logp": scored, "dropped": dropped}
                found.append(rollouts.Row(one, problem, "math", **more))
        return found

    def _text(self, index: RowIndex, prompt: np.ndarray, **fields) -> Rollout:
        ids, text = self._texts[self._rng.integers(TEXTS)]
        sure = self._rng.random(len(ids)) < 2 / 3
        scale = np.where(sure, 0.01, 1.0)
        logp = -self._rng.exponential(scale).astype(np.float32)
        graded = {"extracted": str(int(self._rng.integers(1000)))} if "reward" in fields else {}
        return Rollout(index, Author.POLICY, 1, prompt, ids, logp, text=text, **graded, **fields)


def write_run(folder: pathlib.Path, *, iterations: int, questions: int, responses: int, tokens: int) -> None:
    """Writes the folder of a run, an iteration after another; those that are there stay."""
    write_tokenizer(folder / "model")
    config = base.get_config()
    config.update_from_flattened_dict(
        {"num_iterations": iterations, "questions_per_iteration": questions, "num_responses": responses}
    )
    config.update_from_flattened_dict({"critique.kind": "cot", "objective.old_logp": "trainer", "refine.which": "all"})
    (folder / "config.json").write_text(json.dumps(config_lib.to_json(config_lib.freeze(config))))
    (folder / "rollouts").mkdir(exist_ok=True)
    maker = Maker(load_tokenizer(folder / "model"), responses=responses, tokens=tokens)
    metrics = []
    for step in range(iterations):
        skill = 0.1 + 0.7 * step / iterations
        path = folder / "rollouts" / rollouts.file_name(step)
        if not path.exists():
            rollouts.write(path, maker.iteration(skill, questions), iteration=step, spell=maker.spell)
            progress(f"iteration {step}: {path.stat().st_size / 1e6:.1f} MB")
        numbers = {"reward": skill, "entropy": 0.5 - 0.3 * step / iterations, "refine/success": 0.4, "step_time": 60.0}
        metrics.append({"step": step, "num_tokens": (step + 1) * 3 * questions * responses * tokens} | numbers)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in metrics))


def make_page(run: pathlib.Path, out: pathlib.Path) -> dict[str, float]:
    """Makes the page with the command; returns its seconds and its memory (GB)."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", "cgrpo_jax.report", str(run), f"--out={out}"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.monotonic() - started, "memory": after.ru_maxrss * 1024 / 1e9}


class _Scripts(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: dict[str, str] = {}
        self._name = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._name = dict(attrs).get("id") or "" if tag == "script" else ""

    def handle_data(self, data):
        if self._name:
            self.found[self._name] = self.found.get(self._name, "") + data


def sizes(out: pathlib.Path) -> dict[str, float]:
    """Returns the bytes of the page, of what lies beside it, and of what of both is metadata (MB)."""
    scripts = _Scripts(out.read_text(encoding="utf-8")).found
    about = json.loads(scripts["about"])
    beside = {int(re.sub(r"\D", "", path.name)): path for path in out.with_name(f"{out.stem}_texts").glob("*.js")}
    shards = {place[0] for place in about["rows"].values()}
    rows = [beside[one].stat().st_size if beside else len(scripts[f"texts-{one}"]) for one in shards]
    files = [path.stat().st_size for path in beside.values()]
    metadata = len(scripts["about"]) + len(scripts["index"]) + sum(rows)
    return {"page": out.stat().st_size / 1e6, "beside": sum(files) / 1e6, "metadata": metadata / 1e6}


_FILTER = """async (name) => {
  const chip = [...document.querySelectorAll(".chip")].find((one) => one.textContent.startsWith(name));
  if (!chip) return null;
  const started = performance.now();
  chip.click();
  await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
  return (performance.now() - started) / 1000;
}"""
# Seconds until something is found, and until all texts have been searched and the list is drawn.
_SEARCH = """async (text) => {
  const box = document.querySelector("#search"), count = document.querySelector(".count");
  const drawn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const started = performance.now(), since = () => (performance.now() - started) / 1000;
  let first = null;
  box.value = text;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  do {
    await drawn();
    if (first === null && !count.textContent.startsWith("0 ")) first = since();
  } while (count.getAttribute("aria-busy") === "true");
  return [first ?? since(), since()];
}"""
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"


def in_browser(out: pathlib.Path) -> dict[str, list[float]]:
    """Returns seconds of the first paint, of each filter switched on and off, and of searches of all texts."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        progress("no Chromium: the page is not opened")
        return {}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(180_000)
        page.goto(out.absolute().as_uri())
        page.wait_for_selector("#questions .entry")
        paint = page.evaluate(_PAINT)
        page.wait_for_selector(".detail .card")
        names = ("rescued", "never solved", "critic wrong", "all right", "mixed", "unsolved this time", "with texts")
        filters = [page.evaluate(_FILTER, name) for name in names for _ in range(2)]
        word = page.locator(".card.response").locator(".text, .tokens").first.inner_text()[:12]
        first, searched = page.evaluate(_SEARCH, word)
        again = [page.evaluate(_SEARCH, text)[1] for text in ("response that nothing says", word[:6])]
        browser.close()
    filters = [one for one in filters if one is not None]
    return {
        "first paint": [paint],
        "filter": filters,
        "first hit": [first],
        "search": [searched],
        "search again": again,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    for name, number in (("iterations", 100), ("questions", 128), ("responses", 7), ("tokens", 1000)):
        parser.add_argument(f"--{name}", type=int, default=number)
    given = parser.parse_args()
    run, out = given.folder / "run", given.folder / "report.html"
    numbers = {name: getattr(given, name) for name in ("iterations", "questions", "responses", "tokens")}
    write_run(run, **numbers)
    made, size, seen = make_page(run, out), sizes(out), in_browser(out)
    what = "{iterations} x {questions} x 3 x {responses} rows of {tokens} tokens".format(**numbers)
    found = [
        row("report/cpu", [made["cpu"]], what, unit="s"),
        row("report/wall", [made["wall"]], what, unit="s", target=180, most=True),
        row("report/memory", [made["memory"]], what, unit="GB", target=2, most=True),
        row("report/metadata", [size["metadata"]], what, unit="MB", target=40, most=True),
        row("report/first file", [size["page"]], what, unit="MB", target=5, most=True),
        row("report/beside", [size["beside"]], what, unit="MB"),
    ]
    limits = {"first paint": 2.0, "filter": 0.2, "first hit": 0.5, "search": 1.0, "search again": 0.2}
    for name, values in seen.items():
        found.append(row(f"report/{name}", values, what, unit="s", target=limits[name], most=True))
    print(table(found))
    if any(one["met"] is False for one in found) or max(seen.get("filter", [0.0])) > limits["filter"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
