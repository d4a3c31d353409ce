"""The quickstart in miniature: one-step chains, a model that gets some right, a run that takes a second or two.

`start` teaches the model once; every run begins from its weights. All stages share one prompt width, one length and few
rows a call, so that runs of different methods share nearly all of their compiled programs.
"""

import atexit
import dataclasses
import fcntl
import functools
import itertools
import json
import os
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import paths

from cgrpo_jax import sharding, train
from cgrpo_jax.datasets import rollouts as rollouts_lib
from cgrpo_jax.inference import generators
from cgrpo_jax.models import lora, params
from cgrpo_jax.records import Stage, TrainState
from cgrpo_jax.runs import build_model, critic_weights
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.settings import run_settings
from cgrpo_jax.training import checkpoint, train_step
from cgrpo_jax.training import optimizer as optimizer_lib

QUICKSTART = paths.CONFIGS / "quickstart.py"
SMALL = {
    "seed": 2,  # with which every iteration has answers that fail and answers that pass
    "model.embed_dim": 64,
    "model.mlp_dim": 128,
    "model.num_heads": 2,
    "model.num_kv_heads": 2,
    "model.num_layers": 1,
    "model.max_context": 64,
    "data.chain_length": 1,
    "data.num_train": 12,
    "data.num_eval": 8,
    "data.num_held_out": 8,
    "data.hard_share": 0.25,
    "warm_start.num_updates": 0,
    "warm_start.chain_lengths": (1,),
    "num_iterations": 2,
    "questions_per_iteration": 4,
    "num_responses": 4,
    "engine.num_slots": 4,
    "engine.prompt_bucket": 48,
    "max_prompt_length": 16,
    "max_response_length": 16,
    "critic.max_length": 16,
    "critic.max_prompt_length": 48,
    "refine.max_prompt_length": 48,
    "packing.length": 64,
    "optimizer.learning_rate": 2e-4,
    "optimizer.schedule": "constant",  # so that a run may go on for longer
    "optimizer.warmup_updates": 0,
    "checkpoints.every": 1,
    "trackers": (),
}
# What the wall clock and the process decide, not the seed.
UNREPEATABLE = ("time/", "tokens_per_second/", "update/flops_per_second", "step_time", "num_compilations")


def config(changes=None, /, **more):
    """Returns the miniature's configuration with further changes, a dict for dotted keys."""
    c = config_lib.load(QUICKSTART)
    c.update_from_flattened_dict(SMALL | (changes or {}) | more)
    return config_lib.freeze(c)


def arguments(workdir, changes=None, /, **more):
    """Returns the command line that `train`, `evaluate` or `sample` takes for it: a file, and flags for the changes."""
    flags = [f"--config.{key}={value}" for key, value in ((changes or {}) | more).items()]
    return [f"--config={file()}", f"--workdir={workdir}", *flags]


@functools.cache
def shared() -> pathlib.Path:
    """Returns a folder that the processes share which run tests together."""
    if folder := os.environ.get("CGRPO_TEST_SHARED"):  # set in conftest.py
        return pathlib.Path(folder)
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


@functools.cache
def file() -> pathlib.Path:
    """Returns the miniature's configuration file; written once by each process."""
    path = shared() / f"tiny{os.getpid()}.py"
    path.write_text(
        "from configs import quickstart\n\n\ndef get_config():\n    c = quickstart.get_config()\n"
        f"    c.update_from_flattened_dict({SMALL!r})\n    return c\n"
    )
    return path


@functools.cache
def start() -> str:
    """Returns a run's folder whose weights solve about half of the chains, critique and refine.

    It is made once, by the first of the processes that run tests together.
    """
    folder = str(shared() / "start")
    # Runs in other processes find the programs that were compiled here.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(shared() / "programs"))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    with open(shared() / "start.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(os.path.join(folder, "summary.json")):
            train.main(config({"warm_start.num_updates": 300, "data.num_eval": 0}, num_iterations=0), folder)
    return folder


def run(workdir, changes=None, /, **more) -> pathlib.Path:
    """Trains from `start`'s weights and returns the run's folder."""
    train.main(config({"model.init": start()} | (changes or {}), **more), str(workdir))
    return pathlib.Path(workdir)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in pathlib.Path(path).read_text().split("\n")[:-1]]


def metrics(workdir) -> list[dict]:
    return lines(pathlib.Path(workdir) / "metrics.jsonl")


def rollouts(workdir) -> list[list]:
    """Returns the rows of each file of rollouts, in the order of the iterations."""
    return [rollouts_lib.read(path) for path in sorted((pathlib.Path(workdir) / "rollouts").iterdir())]


def samples(workdir) -> list[dict]:
    """Returns of each question of each iteration a response, the first that was refined if one was, and what became
    of it."""
    return [sample for step, rows in enumerate(rollouts(workdir)) for sample in _samples(step, rows)]


def _samples(step, rows) -> list[dict]:
    found = []
    for (_, problem), group in itertools.groupby(rows, lambda row: (row.rollout.index.question, row.problem)):
        texts = [row.rollout for row in group]
        responses = [row for row in texts if row.stage == Stage.RESPONSE]
        refinements = {row.index.response: row for row in reversed(texts) if row.stage == Stage.REFINEMENT}
        first = next((row for row in responses if row.index.response in refinements), responses[0])
        refinement = refinements.get(first.index.response)
        critique = refinement.parent if refinement and refinement.parent.stage == Stage.CRITIQUE else None
        found.append(
            {
                "step": step,
                "problem": problem.index,
                "turns": problem.turns,
                "question": problem.question,
                "answer": problem.answer,
                "response": first.whole_text,
                "reward": _reward(first),
                "rewards": [_reward(row) for row in responses],
                "critique": critique and critique.whole_text,
                "refinement": refinement and refinement.whole_text,
                "refinement_reward": refinement and _reward(refinement),
            }
        )
    return sorted(found, key=lambda sample: sample["refinement"] is None)


def _reward(row) -> float | None:
    return None if row.ungraded else row.reward


def repeatable(workdir) -> list[dict]:
    """Returns the metrics that the same seed gives again, exactly."""
    return [{k: v for k, v in row.items() if not k.startswith(UNREPEATABLE)} for row in metrics(workdir)]


def state(workdir, cfg) -> tuple[int, list[np.ndarray]]:
    """Returns the newest checkpoint's step and all its arrays."""
    step, restored = restore(workdir, cfg)
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(restored)]


def restore(workdir, cfg) -> tuple[int, TrainState]:
    """Returns the newest checkpoint's step and state."""
    settings = run_settings(cfg, sharding.one_device())
    learner, adapters = settings.learner, settings.learner.adapters
    trained = lora.adapter_shapes(settings.policy, adapters) if adapters else params.param_shapes(settings.policy)
    policy = build_model.load_policy(cfg, settings)
    placed = policy.placed(trained)
    template = optimizer_lib.state_shapes(placed, learner.optimizer, offload=learner.offload_optimizer)
    if learning := settings.critic_learning:
        own = build_model.load_own_critic(cfg, settings, policy)
        template = dataclasses.replace(template, critic=critic_weights.state_shapes(template, own, learning))
    with checkpoint.Checkpoints(pathlib.Path(workdir) / "checkpoints") as checkpoints:
        step, restored, _ = checkpoints.restore_latest(template)
    return step, restored


def template():
    """Returns the shapes of the miniature's weights."""
    return params.param_shapes(run_settings(config(), sharding.one_device()).policy)


@dataclasses.dataclass
class Seen:
    """What passed through a run: every rollout sampled, its generator, and the rows of every update.

    Rollouts are in the order of their iterations, stages, attempts and indices, not in that of their making.
    """

    written: list
    updates: list

    @property
    def rollouts(self):
        return [row for row, _ in sorted(self.written, key=_place)]

    @property
    def generators(self):
        return [generator for _, generator in sorted(self.written, key=_place)]

    @property
    def prompts(self):
        """The rollouts' prompts as text."""
        return [
            generator.prompts.tokenizer.decode(row.prompt_ids) for row, generator in sorted(self.written, key=_place)
        ]

    def of(self, stage):
        return [row for row in self.rollouts if row.stage == stage]

    def asked(self, stage):
        return [text for text, row in zip(self.prompts, self.rollouts, strict=True) if row.stage == stage]


def _place(written):
    row, generator = written
    return generator.iteration, row.stage, row.index.attempt, *dataclasses.astuple(row.index)


def watch(monkeypatch) -> Seen:
    """Returns what will pass through the runs of a test, evaluations aside."""
    start()  # whose warm start is none of these
    seen = Seen([], [])
    write, apply = generators.Generator.write, train_step.update

    async def watch_write(self, *args, **kw):
        rows = await write(self, *args, **kw)
        if self.iteration < 2**31:  # not an evaluation
            seen.written += [(row, self) for row in rows]
        return rows

    def watch_update(state, rows, **kw):
        seen.updates.append(list(rows))
        return apply(state, rows, **kw)

    monkeypatch.setattr(generators.Generator, "write", watch_write)
    monkeypatch.setattr(train_step, "update", watch_update)
    return seen
