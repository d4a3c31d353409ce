"""Folders of made-up runs with all that a report shows, written by the package's own writers, without a model."""

import dataclasses
import json
import pathlib
import random
import shutil

import numpy as np
import paths

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.evaluation import diagnosis, summary
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex, Stage, TrainRow
from cgrpo_jax.runs import config as config_lib

TOKENIZER = pathlib.Path(rollouts.__file__).parents[1] / "assets" / "arithmetic"
HELD_OUT = 128


@dataclasses.dataclass(frozen=True)
class Texts:
    """What the texts of a made-up run say; `{n}` is the right answer, `{m}` a wrong one."""

    question: str = "{a}*{b}"
    right: str = "{a}*{b}={n}. Answer: {n}"
    wrong: str = "{a}*{b}={m}. Answer: {m}"
    critique: str = "{a}*{b} is {n}, not {m}. Conclusion: wrong [END]"
    refined: str = "{a}*{b}={n}. Answer: {n}"
    answer: str = "{n}"


def write(
    folder, *, iterations=6, questions=8, problems=12, seed=0, trainer=True, texts=None, changes=None, ended=True
):
    """Writes the folder of a run that learns a multiplication table, and returns it.

    Args:
      folder: to be made.
      iterations, questions, problems: how many are done; questions of each; of how many different ones.
      seed: of what is drawn.
      trainer: whether the trainer's log-probabilities are recorded.
      texts: what is written, a `Texts`.
      changes: of the configuration, by dotted keys.
      ended: whether it has a summary.
    """
    folder, texts = pathlib.Path(folder), texts or Texts()
    (folder / "rollouts").mkdir(parents=True)
    config = config_lib.load(paths.CONFIGS / "quickstart.py")
    given = {"seed": seed, "num_iterations": iterations, "num_responses": 4, "critique.kind": "cot"}
    given |= {"objective.old_logp": "trainer" if trainer else "sampler", "data.num_eval": HELD_OUT}
    config.update_from_flattened_dict(given | (changes or {}))
    (folder / "config.json").write_text(json.dumps(config_lib.to_json(config_lib.freeze(config)), indent=2) + "\n")
    started = {"time": "2026-11-30T12:00:00", "command": f"cgrpo train --config.seed={seed}", "commit": "1a2b3c4+"}
    (folder / "starts.jsonl").write_text(json.dumps(started | {"version": "0.1.0", "devices": "2 x cpu"}) + "\n")
    shutil.copytree(TOKENIZER, folder / "model")
    maker = _Maker(random.Random(seed), texts, trainer, problems, load_tokenizer(TOKENIZER))
    rows = [maker.iteration(step, iterations, questions, folder) for step in range(iterations)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if ended:
        ended_with = {
            "eval_before": {"pass@1": 51 / HELD_OUT, "pass@8": 0.8},
            "eval_after": {"pass@1": 120 / HELD_OUT, "pass@8": 1.0},
            "eval_questions": HELD_OUT,
            "iterations": iterations,
            "updates": iterations,
            "num_tokens": rows[-1]["num_tokens"],
            "seconds": 12.5 * iterations,
            "unsolved_before": 20,
            "unsolved_before_solved_after": 0.75,
            "best": None,
        }
        (folder / "summary.json").write_text(json.dumps(ended_with, indent=2) + "\n")
    return folder


@dataclasses.dataclass
class _Maker:
    rng: random.Random
    texts: Texts
    trainer: bool
    num_problems: int
    tokenizer: object
    tokens: int = 0

    def iteration(self, step, iterations, questions, folder):
        skill = (step + 0.5) / iterations
        rows, counts = [], {"right": 0, "wrong": 0, "mixed": 0, "rescued": 0, "rewards": []}
        for q in range(questions):
            number = self.rng.randrange(self.num_problems)
            rows += self._group(q, number, skill if number % 5 else skill * 0.15, step, counts)
        path = folder / "rollouts" / rollouts.file_name(step)
        rollouts.write(path, rows, iteration=step, spell=self.tokenizer.spell)
        return self._metrics(step, rows, counts, questions)

    def _group(self, q, number, skill, step, counts):
        a, b = 2 + number // 8, 2 + number % 8
        words = {"a": a, "b": b, "n": a * b, "m": a * b + 1 + number % 3}
        problem = Problem(
            number,
            self.texts.question.format(**words),
            self.texts.answer.format(**words),
            solution=f"{a} times {b} is {a * b}",
        )
        at = RowIndex(question=q)
        prompt = self.tokenizer.encode(problem.question) if self._known(problem.question) else [1, 2, 3]
        passes = [self.rng.random() < skill for _ in range(4)]
        responses = []
        for n, ok in enumerate(passes):
            text = (self.texts.right if ok else self.texts.wrong).format(**words)
            graded = {"extracted": str(words["n" if ok else "m"]), "feedback": "" if ok else "another answer"}
            graded |= {"reward": float(ok), "truncated": not ok and self.rng.random() < 0.1}
            responses.append(self._text(at.replace(response=n), text, prompt, step, **graded))
        counts["rewards"] += passes
        kind = "right" if all(passes) else "mixed" if any(passes) else "wrong"
        counts[kind] += 1
        critiques, refinements = [], []
        if kind == "wrong":
            for one in responses:
                critiques += (written := self._critique(at, one, words, prompt, step))
                saved = self.rng.random() < 0.45
                text = (self.texts.refined if saved else self.texts.wrong).format(**words)
                where = at.replace(response=one.index.response, stage=Stage.REFINEMENT)
                refinements.append(
                    self._text(
                        where,
                        text,
                        [*prompt, 5, 6],
                        step,
                        parent=written[-1][0],
                        reward=float(saved),
                        extracted=str(words["n"]),
                    )
                )
        kept = max(refinements, key=lambda one: one.reward, default=None)
        counts["rescued"] += bool(kept and kept.reward)
        group = [*responses, *([kept] if kept is not None else [])]
        mean = sum(one.reward for one in group) / len(group)
        found = [self._row(one, problem, one.reward - mean, place, prompt) for place, one in enumerate(responses)]
        found += [rollouts.Row(one, problem, is_rejected=rejected) for one, rejected in critiques]
        for one in refinements:
            if one is kept:
                found.append(self._row(one, problem, one.reward - mean, 4, prompt))
            else:
                found.append(rollouts.Row(one, problem, "trace", dropped="not_selected"))
        return found

    def _critique(self, at, response, words, prompt, step):
        where = at.replace(response=response.index.response, stage=Stage.CRITIQUE)
        rejected = []
        if self.rng.random() < 0.3:
            text = "Conclusion: right [END]"
            rejected.append((self._text(where, text, [*prompt, 7], step, parent=response, verdict=True), True))
        where = where.replace(attempt=len(rejected))
        text = self.texts.critique.format(**words)
        text = f"{text} {text}" if response.index.response % 2 else text  # of two lengths
        last = self._text(where, text, [*prompt, 7], step, parent=response, verdict=False)
        return [*rejected, (last.replace(rejected=tuple(one for one, _ in rejected)), False)]

    def _known(self, text):
        return len(text) < 1000 and self.tokenizer.decode(self.tokenizer.encode(text)) == text

    def _text(self, index, text, prompt, step, **fields):
        ids = self.tokenizer.encode(text) if self._known(text) else list(range(5, 9))
        ids = np.array([*ids, self.tokenizer.end_of_turn_id], np.int32)
        self.tokens += len(ids)
        logp = np.array([-self.rng.expovariate(3) for _ in ids], np.float32)
        return Rollout(index, Author.POLICY, step, np.array(prompt, np.int32), ids, logp, text=text, **fields)

    def _row(self, one, problem, advantage, place, prompt):
        refined = one.stage == Stage.REFINEMENT
        moved = [self.rng.expovariate(0.6) if refined else self.rng.gauss(0, 0.002) for _ in one.token_ids]
        scored = np.minimum(one.logp - np.abs(moved) if refined else one.logp + moved, 0).astype(np.float32)
        row = TrainRow(
            np.array(prompt, np.int32), one.token_ids, one.logp, float(np.float32(advantage)), refined=refined
        )
        dropped = "" if row.advantage else "zero_advantage"
        return rollouts.Row(
            one,
            problem,
            "trace",
            train_row=row,
            place=place,
            trainer_logp=scored if self.trainer else None,
            dropped=dropped,
        )

    def _metrics(self, step, rows, counts, questions):
        wrong = counts["wrong"]
        noise = lambda scale: self.rng.gauss(0, scale)  # noqa: E731
        row = {
            "step": step,
            "reward": float(np.mean(counts["rewards"])),
            "group_reward": float(np.mean(counts["rewards"])) + 0.02,
            "frac_reward_zero_std": (counts["right"] + wrong) / questions,
            "frac_all_right": counts["right"] / questions,
            "frac_all_wrong": wrong / questions,
            "entropy": max(0.02, 0.6 - 0.05 * step + noise(0.03)),
            "ratio": 1 + noise(0.001),
            "grad_norm": 1 + abs(noise(0.4)),
            "skipped_updates": 0,
            "completions/mean_length": 12 + noise(0.3),
            "completions/clipped_ratio": 0.02,
            "refine/attempted": 4 * wrong,
            "critic/valid": min(1, 0.6 + 0.05 * step),
            "critic/false_right_rate": 0.2,
            "critic/malformed_rate": 0.05,
            "num_tokens": self.tokens,
            "tokens_trained": sum(len(one.rollout.token_ids) for one in rows if one.train_row),
            "step_time": 10 + noise(0.5),
            "time/rollout": 7 + noise(0.3),
            "time/update": 3 + noise(0.2),
            "grade/failures": 0,
            "grade/timeouts": 0,
        }  # fmt: skip
        if wrong:
            row |= {
                "refine/success": 0.45,
                "refine/questions_rescued": counts["rescued"] / wrong,
                "refine/mentions_critique": 0.0,
                "refined/prob": min(0.9, 0.2 + 0.1 * step),
                "refined/shaped_ratio": min(0.95, 0.5 + 0.06 * step),
                "refined/entropy": 0.5,
                "refined/frac_tokens": 0.1,
            }
        if step % 2:
            row |= {
                "eval/pass@1": round(min(0.95, 0.4 + 0.08 * step) * HELD_OUT) / HELD_OUT,
                "eval/pass@8": 0.95,
                "eval/questions": HELD_OUT,
            }
        return row


def measure(folder, *, samples=4, seed=0):
    """Writes what `evaluate --refine` and `diagnose` leave in a run's folder, of made-up texts, and returns its lines.

    Of five questions the first is right, the second is fixed, the third broken, the fourth still wrong, the fifth kept.
    """
    rng = random.Random(seed)
    outcomes = [(1, True, None), (0, False, 1), (1, False, 0), (0, False, 0), (0, True, None)]
    lines = []
    for number, (greedy, verdict, refined) in enumerate(outcomes):
        rewards = [float(rng.random() < 0.5) for _ in range(samples)]
        line = {"number": number, "source": "tables", "id": f"{number:016x}", "problem": number}
        line |= {"question": f"{number}*9", "answer": str(9 * number)}
        line |= {"greedy": f"First, try. Wait, check it. {9 * number}", "greedy_reward": float(greedy)}
        line |= {"greedy_length": 9, "greedy_truncated": False}
        line |= {"critique": "Look again.", "verdict": verdict, "refined_ungraded": False}
        line |= {"refined_reward": float(greedy if refined is None else refined)}
        if refined is not None:
            line |= {"refinement": f"Answer: {9 * number}", "refinement_reward": float(refined)}
        line |= {"samples": [f"Sample {n}" for n in range(samples)], "rewards": rewards, "lengths": [9] * samples}
        lines.append(line | {"truncated": [False] * samples, "votes": None, "ungraded": 0})
    found = summary.summarize(lines, ks=(1, samples), pass_threshold=1.0, seed=0)
    _results(folder / "evaluation", {"samples": lines}, {"weights": "checkpoints, step 6"} | found)
    responses = [{"number": n, "rewards": [0.0, float(n == 2)], "ungraded": 0} for n in range(4)]
    responses = [one | {"responses": [f"response {n} of {one['number']}" for n in range(2)]} for one in responses]
    kinds = {"execution": [_criticised(n, passes=n < 3) for n in (0, 1, 3)], "cot": [_criticised(0, passes=False)]}
    found = diagnosis.summarize(responses, kinds, pass_threshold=1.0)
    _results(folder / "diagnosis", {"responses": responses, **kinds}, {"weights": "the same"} | found)
    return lines


def _criticised(number, *, passes):
    critiques = [{"response": n, "critique": 0, "text": f"critique {n}", "verdict": bool(n)} for n in range(2)]
    refined = [{"response": 0, "critique": 0, "text": "refined", "reward": float(passes), "extracted": None}]
    question = {"number": number, "id": f"{number:016x}", "question": f"{number}*7", "answer": str(7 * number)}
    return question | {"critiques": critiques, "refinements": refined, "ungraded": 0}


def _results(folder, lines, found):
    folder.mkdir()
    (folder / "about.json").write_text("{}\n")
    for name, some in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
    (folder / "summary.json").write_text(json.dumps(found) + "\n")
