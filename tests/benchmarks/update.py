"""How fast the update learns and how much it holds, against other programs and against what the machine can do.

    python tests/benchmarks/update.py [--json=FILE] [--peer='NAME=COMMAND' ...] [--only=NAME,...] [--pairs=3]
                                      [--remat=none] [--shape=tiny]

Random float32 weights of SmolLM2-135M's shape, one device. Each number is the median of `--pairs` measurements, with
the least and the greatest; what is compared is measured in turn, so a ratio is that of neighbours in time.

    step         a whole GRPO step (grpo_step.py) of 4 x 4 rows, prompts of 64 tokens and 64 new ones: its time and the
                 most memory that its process held, against peers'
    realistic    the same with responses of 20 to 64 tokens, and half of the groups without a difference in reward; the
                 peers, which compute all rows at full length, as they are in `step`
    machine      model FLOPs of an update (training/flops.py) in a second, against those of a large matrix product
    memory       what the compiled output layer, loss and gradients, needs beside arguments and results, against whole
                 logits, and how that grows with the vocabulary; of distillation from a teacher likewise
    growth       time and temporaries of an update against tokens, vocabulary, depth and width of a small model: the
                 exponent of the power law that fits best

`--only` takes beginnings of the rows' names, such as `step` or `machine,growth/tokens`. `--remat` is what our own steps
compute again in the backward pass, as the configuration's key; a peer's is part of its command.

A peer's COMMAND is a shell command, run again for each pair in an environment of its own. In it {rows}, {prompts},
{generations}, {prompt_len}, {new_tokens} and {json} are filled in. It reports the seconds of a step, as `median_step_s`
or `step`, and the most GiB that it held, as `ru_maxrss_gib` or `peak_rss_gb`: in the JSON file, at any depth of its
objects, or in a JSON object on its last line. The peers that targets are set for are `trl` and `tunix`.

Exits with 1 where a target is missed.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from grpo_step import shape
from report import peer_step, progress, row, table
from workloads import (
    FLAT,
    OF_LOGITS,
    OF_MATRIX_RATE,
    OF_PEER_MEMORY,
    REALISTIC_TARGETS,
    STEP_TARGETS,
    UPDATES,
    UpdateWorkload,
)

from cgrpo_jax import ratios, sharding
from cgrpo_jax.models import logprobs, top_logits
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import TrainRow
from cgrpo_jax.runtime import processes
from cgrpo_jax.training import flops, optimizer, train_step

TOP = 20  # tokens that distillation compares
_STEP = pathlib.Path(__file__).with_name("grpo_step.py")


@dataclasses.dataclass
class Bench:
    """How it is measured.

    Attributes:
      work: what is computed.
      shape: its name.
      remat: what is computed again in the backward pass.
      pairs: measurements of each number.
      peers: name to command.
      wanted: whether rows whose names begin so are asked for.
      made: the updates so far; a second one of the same shape would compile nothing, and not know what it needs.
    """

    work: UpdateWorkload
    shape: str
    remat: str
    pairs: int
    peers: dict[str, str]
    wanted: Callable[[str], bool]
    made: dict[tuple[params_lib.ModelConfig, int], "Update"] = dataclasses.field(default_factory=dict)

    def update(self, config: params_lib.ModelConfig, groups: int) -> "Update":
        """Returns an update of a model with so many groups, which has run twice."""
        if (config, groups) not in self.made:
            self.made[config, groups] = one = Update(config, self.work, groups=groups, remat=self.remat)
            one()  # the first call's state lies as it was drawn, this one's as an update leaves it
        return self.made[config, groups]


# --- whole steps --------------------------------------------------------------------------------------------------


def steps(bench: Bench) -> Iterator[dict]:
    """Steps where all rows train, and realistic ones.

    Comes first: what this process holds, a peer's count of its own memory begins with.
    """
    work = bench.work
    kinds = {"step": STEP_TARGETS, "realistic": REALISTIC_TARGETS}
    kinds = {name: targets for name, targets in kinds.items() if bench.wanted(name)}
    peers = {
        peer: command
        for peer, command in bench.peers.items()
        if any(bench.wanted(f"{kind}/{peer}") or bench.wanted(f"step/memory/{peer}") for kind in kinds)
    }
    seconds, held = {name: [] for name in (*kinds, *peers)}, {name: [] for name in (*kinds, *peers)}
    for pair in range(bench.pairs if kinds else 0):
        progress(f"steps: {pair + 1} of {bench.pairs}")
        commands = {kind: own_command(bench, realistic=kind == "realistic") for kind in kinds} | peers
        for name, command in commands.items():
            one, gib = peer_step(name, command, **work.sizes)
            seconds[name].append(one)
            held[name].append(gib)
    rows = f"{work.prompts} x {work.generations} rows"
    what = {
        "step": f"{rows}, {work.prompt} + {work.new} tokens, remat {bench.remat}",
        "realistic": f"{rows}, {work.prompt} + {work.shortest} to {work.new} tokens, half of the groups dropped",
    }
    for kind, targets in kinds.items():
        yield row(kind, seconds[kind], what[kind], unit="s")
        for peer in peers:
            ratios = [theirs / ours for theirs, ours in zip(seconds[peer], seconds[kind], strict=True)]
            yield row(f"{kind}/{peer}", ratios, f"{what[kind]}; against {peer}", target=targets.get(peer))
        yield row(f"{kind}/memory", held[kind], f"{what[kind]}; most of the process", unit="GiB")
        for peer in peers if kind == "step" else ():
            shares = [ours / theirs for theirs, ours in zip(held[peer], held[kind], strict=True)]
            target = OF_PEER_MEMORY if peer in targets else None
            yield row(f"{kind}/memory/{peer}", shares, f"{what[kind]}; share of {peer}'s", target=target, most=True)


def own_command(bench: Bench, *, realistic: bool) -> str:
    """Returns the command of our own steps, which are run as a peer's are."""
    words = [sys.executable, str(_STEP), f"--shape={bench.shape}", f"--remat={bench.remat}"]
    command = shlex.join(words + ["--realistic"] * realistic) + " --json={json}"
    return f"PYTHONPATH={shlex.quote(':'.join(filter(None, sys.path)))} {command}"


# --- the update against its machine -------------------------------------------------------------------------------


def machine(bench: Bench) -> Iterator[dict]:
    """FLOPs of the update, and its parts."""
    work = bench.work
    if not bench.wanted("machine"):
        return
    progress("machine: compiling")
    one = bench.update(work.config, work.prompts)
    multiply, layer, gradients = matrix_timer(work.matrix), output_timer(work), one.gradient_timer()
    found: dict[str, list] = {name: [] for name in ("share", "rate", "matrix", "update", "gradients", "output")}
    for pair in range(bench.pairs):
        rate = 2 * work.matrix**3 / multiply()
        seconds = one()
        for name, value in (
            ("share", one.flops / seconds / rate),
            ("rate", one.flops / seconds / 1e9),
            ("matrix", rate / 1e9),
            ("update", seconds),
            ("gradients", gradients()),
            ("output", layer()),
        ):
            found[name].append(value)
        progress(f"machine: {pair + 1} of {bench.pairs}, {found['rate'][-1]:.1f} of {rate / 1e9:.1f} GFLOP/s")
    what = f"{work.prompts} x {work.generations} rows, {work.prompt} + {work.new} tokens, remat {bench.remat}"
    sizes = f"{work.matrix} x {work.matrix} matrices, float32"
    yield row("machine/share", found["share"], f"{what}; of the matrix rate", target=OF_MATRIX_RATE)
    yield row("machine/rate", found["rate"], f"{what}; {one.flops / 1e9:.4g} model GFLOP", unit="GFLOP/s")
    yield row("machine/matrix", found["matrix"], sizes, unit="GFLOP/s")
    yield row("machine/update", found["update"], what, unit="s")
    yield row("machine/gradients", found["gradients"], f"{what}; without the optimiser", unit="s")
    yield row("machine/output", found["output"], f"{what}; forward and backward of the output layer alone", unit="s")


class Update:
    """An update that can be repeated: called, it returns its seconds.

    Args:
      config: the model.
      work: lengths of prompts and responses, responses of a prompt.
      groups: prompts, each with its responses in a token row of its own.
      remat: as `train_step.update` takes it.

    Attributes:
      flops: of its model, known once it has been called.
      temporaries: bytes, of the greatest program that the first call compiled.
    """

    def __init__(self, config: params_lib.ModelConfig, work: UpdateWorkload, *, groups: int, remat: str):
        self.config, self.mesh = config, sharding.one_device()
        self.optimizer = optimizer.make_optimizer(learning_rate=1e-6)
        shapes = sharding.placed(params_lib.logical_axes(config), params_lib.param_shapes(config), self.mesh)
        params = params_lib.init_params(config, seed=0, shardings=sharding.shardings_of(shapes))
        self.state = optimizer.init_state(params, self.optimizer)
        self.rows = random_rows(config.vocab_size, work, groups=groups)
        self.keywords = dict(
            config=config,
            settings=train_step.LossSettings(max_length=work.new),
            shape=shape(work, num_token_rows=groups),
            num_questions=groups,
            remat=remat,
            dtype="float32",
            mesh=self.mesh,
        )
        self.flops = 0.0
        client = self.mesh.devices.flat[0].client
        known = client.live_executables()
        self()
        # Whatever the programs of an update are called, these are they.
        new = [program.get_compiled_memory_stats() for program in client.live_executables() if program not in known]
        self.temporaries = max(stats.temp_size_in_bytes for stats in new)

    def __call__(self) -> float:
        began = time.monotonic()
        self.state, stats = train_step.update(self.state, self.rows, optimizer=self.optimizer, **self.keywords)
        jax.block_until_ready(self.state)
        seconds = time.monotonic() - began
        self.flops = flops.of_update(
            self.config, tokens=stats["packed_tokens"], targets=stats["targets"], pairs=stats["attention_pairs"]
        )
        return seconds

    def gradient_timer(self) -> Callable[[], float]:
        """Returns what measures the seconds of the gradients alone."""
        return timer(lambda: train_step.accumulate_gradients(self.state.params, self.rows, **self.keywords)[0])


def random_rows(vocab: int, work: UpdateWorkload, *, groups: int) -> list[TrainRow]:
    """Returns the rows of groups in which half of the responses are right."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(groups):
        prompt = rng.integers(0, vocab, work.prompt, dtype=np.int32)
        for n in range(work.generations):
            target = rng.integers(0, vocab, work.new, dtype=np.int32)
            logp = np.full(work.new, -np.log(vocab), np.float32)
            rows.append(TrainRow(prompt, target, logp, 0.5 if n % 2 else -0.5))
    return rows


def timer(call: Callable) -> Callable[[], float]:
    """Returns what measures the seconds of a call."""

    def measure() -> float:
        began = time.monotonic()
        jax.block_until_ready(call())
        return time.monotonic() - began

    measure()  # compiles
    return measure


def matrix_timer(size: int) -> Callable[[], float]:
    """Returns what measures the seconds of a product of square matrices."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    multiply = jax.jit(jnp.matmul)
    measure = timer(functools.partial(multiply, jnp.asarray(a), jnp.asarray(b)))
    return lambda: min(measure() for _ in range(4))  # what the machine can do, not what it did while something else ran


def output_timer(work: UpdateWorkload) -> Callable[[], float]:
    """Returns what measures the seconds of the output layer of an update."""
    number = work.prompts * work.generations * work.new
    rng = np.random.default_rng(0)
    hidden_ND = jnp.asarray(rng.standard_normal((number, work.config.embed_dim), np.float32))
    unembed_VD = jnp.asarray(rng.standard_normal((work.config.vocab_size, work.config.embed_dim), np.float32))
    target_N = jnp.asarray(rng.integers(0, work.config.vocab_size, number, dtype=np.int32))
    program = jax.jit(jax.value_and_grad(blockwise_loss, argnums=(0, 1)))
    return timer(lambda: program(hidden_ND, unembed_VD, target_N, jnp.ones(number)))


# --- memory of the output layer -----------------------------------------------------------------------------------


def blockwise_loss(hidden_ND, unembed_VD, target_N, advantage_N):
    """The policy-gradient loss by the project's output layer."""
    return -jnp.sum(advantage_N * logprobs.linear_logprobs(hidden_ND, unembed_VD, target_N)[0])


def whole_loss(hidden_ND, unembed_VD, target_N, advantage_N):
    """The same from all logits at once."""
    logp_NV = jax.nn.log_softmax(hidden_ND @ unembed_VD.T)
    return -jnp.sum(advantage_N * jnp.take_along_axis(logp_NV, target_N[:, None], axis=1)[:, 0])


def distilled_loss(hidden_ND, unembed_VD, target_N, advantage_N):
    """The distance from a teacher that says the same of all tokens, by 20 tokens that are found and all others."""
    id_NC = top_logits.linear_top_tokens(hidden_ND, unembed_VD, num_tokens=TOP)
    logits_NG = top_logits.linear_group_logits(hidden_ND, unembed_VD, id_NC)
    teacher_NG = jnp.full(logits_NG.shape, -jnp.log(TOP + 1))
    return jnp.sum(advantage_N * ratios.distance(logits_NG, teacher_NG, "reverse_kl"))


def whole_distilled_loss(hidden_ND, unembed_VD, target_N, advantage_N):
    """The same from all logits at once."""
    logits_NV = hidden_ND @ unembed_VD.T
    id_NC, row_N1 = jax.lax.top_k(logits_NV, TOP)[1], jnp.arange(len(hidden_ND))[:, None]
    rest_N = jax.nn.logsumexp(logits_NV.at[row_N1, id_NC].set(-jnp.inf), axis=1)
    logits_NG = jnp.concatenate([logits_NV[row_N1, id_NC], rest_N[:, None]], axis=1)
    teacher_NG = jnp.full(logits_NG.shape, -jnp.log(TOP + 1))
    return jnp.sum(advantage_N * ratios.distance(logits_NG, teacher_NG, "reverse_kl"))


def output_temporaries(loss: Callable, tokens: int, vocab: int, width: int) -> int:
    """Returns the bytes that a loss and its gradients need beside arguments and results; nothing is computed."""
    shapes = (
        ((tokens, width), jnp.float32),
        ((vocab, width), jnp.float32),
        ((tokens,), jnp.int32),
        ((tokens,), jnp.float32),
    )
    args = [jax.ShapeDtypeStruct(*one) for one in shapes]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def memory(bench: Bench) -> Iterator[dict]:
    """The output layer's temporaries."""
    tokens, vocab, width = bench.work.output
    what = f"output layer, loss and gradients, {tokens} tokens, V = {vocab}, D = {width}, float32"
    if bench.wanted("memory/share"):
        progress("memory: compiling")
        ours, whole = (output_temporaries(loss, tokens, vocab, width) for loss in (blockwise_loss, whole_loss))
        yield row("memory/output", [ours / 2**30], f"{what}; temporaries", unit="GiB")
        yield row("memory/share", [ours / whole], f"{what}; of those of whole logits", target=OF_LOGITS, most=True)
    if bench.wanted("memory/flat"):
        large, small = (bytes_a_token(tokens, v, width) for v in (vocab, vocab // 4))
        named = f"bytes that a token more needs: {large:.0f} at V = {vocab}, {small:.0f} at {vocab // 4}"
        yield row("memory/flat", [large / small], named, target=FLAT, most=True)
    if bench.wanted("memory/distil"):
        progress("memory: compiling distillation")
        losses = distilled_loss, whole_distilled_loss
        ours, whole = (output_temporaries(loss, tokens, vocab, width) for loss in losses)
        named = f"distillation, {what}"
        yield row("memory/distil", [ours / 2**30], f"{named}; temporaries", unit="GiB")
        yield row("memory/distil_share", [ours / whole], f"{named}; of whole logits'", target=OF_LOGITS, most=True)
        large, small = (bytes_a_token(tokens, v, width, loss=distilled_loss) for v in (vocab, vocab // 4))
        named = f"bytes that a token more needs: {large:.0f} at V = {vocab}, {small:.0f} at {vocab // 4}"
        yield row("memory/distil_flat", [large / small], named, target=FLAT, most=True)


def bytes_a_token(tokens: int, vocab: int, width: int, *, loss: Callable = blockwise_loss) -> float:
    """Returns by how much the temporaries of a loss of the project's output layer grow with a token."""
    most, half = (output_temporaries(loss, number, vocab, width) for number in (tokens, tokens // 2))
    return (most - half) / (tokens - tokens // 2)


# --- growth -------------------------------------------------------------------------------------------------------


def grown(config: params_lib.ModelConfig, groups: int, what: str, factor: int) -> tuple[params_lib.ModelConfig, int]:
    """Returns a model and a number of groups with one of their sizes multiplied."""
    names = {
        "tokens": (),
        "vocabulary": ("vocab_size",),
        "depth": ("num_layers",),
        "width": ("embed_dim", "num_heads", "num_kv_heads", "mlp_dim"),
    }[what]
    config = dataclasses.replace(config, **{name: factor * getattr(config, name) for name in names})
    return config, groups * factor if what == "tokens" else groups


def growth(bench: Bench) -> Iterator[dict]:
    """What an update costs against each of its sizes."""
    work, base = bench.work, bench.work.small
    for what in ("tokens", "vocabulary", "depth", "width"):
        if not bench.wanted(f"growth/{what}"):
            continue
        progress(f"growth/{what}: compiling")
        updates = [bench.update(*grown(base, 1, what, factor)) for factor in work.factors]
        found = []
        for pair in range(bench.pairs):
            found.append([one() for one in updates])
            progress(f"growth/{what}: {pair + 1} of {bench.pairs}, {listed(found[-1])} s")
        sizes = [one.temporaries / 2**20 for one in updates]
        name = (
            f"{what} x {listed(work.factors)} of {base.num_layers} layers, D = {base.embed_dim}, V = {base.vocab_size}"
        )
        times = listed(np.median(found, axis=0))
        yield row(f"growth/{what}", [exponent(work.factors, one) for one in found], f"{name}: {times} s", unit="power")
        yield row(
            f"growth/{what}/memory", [exponent(work.factors, sizes)], f"{name}: {listed(sizes)} MiB", unit="power"
        )


def exponent(factors: Sequence[float], values: Sequence[float]) -> float:
    """Returns the p of the `factor^p` that fits values best.

    Example:
      exponent([1, 2, 4], [3, 12, 48]) == 2
    """
    return float(np.polyfit(np.log(factors), np.log(values), 1)[0])


def listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


# In this order; the name of each is what its rows' names begin with.
SECTIONS = (steps, machine, memory, growth)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--only", default="", metavar="NAME,...")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--shape", choices=tuple(UPDATES), default="smollm2-135m")
    given = parser.parse_args(arguments)
    only = given.only.split(",")

    def wanted(name: str) -> bool:
        return any(name.startswith(one) or one.startswith(f"{name}/") for one in only)

    peers = dict(peer.partition("=")[::2] for peer in given.peer)
    processes.start()  # as `train` does: how memory is kept is part of what is measured
    bench = Bench(UPDATES[given.shape], given.shape, given.remat, given.pairs, peers, wanted)
    found = [one for section in SECTIONS for one in section(bench) if any(one["name"].startswith(n) for n in only)]
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(one["met"] is False for one in found))


if __name__ == "__main__":
    sys.exit(main())
