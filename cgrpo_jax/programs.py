"""The programs that a run of a configuration compiles, with the shapes that it calls them with: none of it runs here.

Sizes are the largest that can come: prompts, responses, critiques and refinements at their full lengths, all questions
failed by all responses, so that each is critiqued once and refined, and no row dropped before the update.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cgrpo_jax import assemble, forward, generate, lora, packing, sharding, update
from cgrpo_jax import model as model_lib
from cgrpo_jax.model import ModelConfig

PHASES = ("prefill", "decode", "critique", "reference", "reshard", "update")
_EOS_IDS = (0, 1)  # any two: a comparison with each


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Arrays that stay on the devices from one program to the next.

    Attributes:
      kind: weights, optimizer, kv_cache, or temporaries (gradients).
      shapes: pytree of `jax.ShapeDtypeStruct`s with shardings.
    """

    kind: str
    shapes: Any

    @property
    def bytes(self) -> int:
        """Bytes on one device."""
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(self.shapes)
        )


@dataclasses.dataclass(frozen=True)
class Call:
    """One program, as training calls it.

    Attributes:
      name: what it is reported as; calls of one name are parts of one program.
      phase: one of `PHASES`.
      function: jitted.
      args, keywords: its arguments, shapes in the place of arrays.
      own: names of the buffers that are among its arguments and results.
      beside: names of those that are on the devices meanwhile, and are not.
      times: how often it runs in one run of what it is reported as.
      per_iteration: how often that runs in an iteration; 0 if in evaluations only.
      trips: how often a loop in it runs that ends on data; None if there is none.
      pieces: in how many equal parts, one after another, it does its work.
    """

    name: str
    phase: str
    function: Callable
    args: tuple
    keywords: Mapping[str, Any]
    own: tuple[str, ...]
    beside: tuple[str, ...]
    times: int = 1
    per_iteration: int = 1
    trips: int | None = None
    pieces: int = 1


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run compiles, what lies on its devices, and the tokens that an iteration samples."""

    calls: tuple[Call, ...]
    buffers: Mapping[str, Buffer]
    sampled_tokens: int


def of(config, mesh: Mesh, policy: ModelConfig, critic: ModelConfig | None, *, one_piece: bool = False) -> Programs:
    """Returns the programs of a run.

    Args:
      config: the configuration.
      mesh: of real or of described devices.
      policy, critic: shapes of the models; no critic unless it is a frozen one.
      one_piece: give programs that work in pieces as those of one piece, by which their cost is counted.
    """
    parts = _Parts(config, mesh, policy, critic, one_piece)
    calls = [*parts.generating(), *parts.evaluating(), *parts.scoring(), *parts.resharding(), *parts.updating()]
    return Programs(tuple(calls), parts.buffers, parts.sampled_tokens)


def shallow(config: ModelConfig, depth: int) -> ModelConfig:
    """Returns the model with fewer layers, of both kinds still if it has local ones."""
    local = (True,) + (False,) * (depth - 1) if any(config.local_layers) else ()
    return dataclasses.replace(config, num_layers=depth, local_layers=local)


class _Parts:
    """A configuration's shapes, and what they make together."""

    def __init__(self, config, mesh: Mesh, policy: ModelConfig, critic: ModelConfig | None, one_piece: bool):
        self.config, self.mesh, self.policy, self.critic, self.one_piece = config, mesh, policy, critic, one_piece
        self.dtype = assemble.compute_dtype(config, mesh)
        self.groups = sharding.num_groups(mesh)
        self.optimizer = assemble.optimizer(config)
        self.adapters = assemble.lora_settings(config)
        self.sampled_tokens = 0
        full = model_lib.param_shapes(policy)
        self.weights = self.placed(policy, full)
        trained = self.placed(policy, lora.adapter_shapes(policy, self.adapters)) if self.adapters else self.weights
        self.state = update.state_shapes(trained, self.optimizer)
        self.base = lora.Base(self.weights, self.adapters.scale) if self.adapters else None
        self.buffers = {
            "trained": Buffer("weights", (self.state.params, self.state.step)),
            "optimizer": Buffer("optimizer", self.state.opt_state),
        }
        if self.base:
            self.buffers["base"] = Buffer("weights", self.weights)
        self.generation, self.sampler = self.placed(policy, full, generating=True), "generation"
        if not self.base and generate.reads_alike(self.weights, mesh=mesh, dtype=self.dtype):
            self.generation, self.sampler = self.weights, "trained"
        else:
            self.buffers["generation"] = Buffer("weights", self.generation)
        if config.kl_coef and not self.base:  # adapters start at 0: their base is the reference
            self.buffers["reference"] = Buffer("weights", self.placed(policy, full, generating=True))
        if critic:
            shapes = self.placed(critic, model_lib.param_shapes(critic), generating=True)
            self.buffers["critic"] = Buffer("weights", shapes)
        self.kept = tuple(self.buffers)  # through the whole of an iteration

    def placed(self, model: ModelConfig, shapes: dict, *, generating: bool = False) -> dict:
        """Returns weights as training has them, or as generation reads them."""
        if generating:
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(self.dtype)), shapes)
        layout = sharding.GENERATION if generating else sharding.TRAINING
        return sharding.placed(model_lib.axes_like(model, shapes), shapes, self.mesh, layout=layout)

    def array(self, shape: tuple[int, ...], dtype, spec: PartitionSpec = sharding.WHOLE) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def rows(self, *shape: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        return self.array(shape, dtype, sharding.BY_ROWS)

    def call(self, name: str, phase: str, function: Callable, args: tuple, *, own: tuple[str, ...], **more) -> Call:
        keywords = more.pop("keywords", {})
        # Training lets go of the weights that generate before it scores and updates.
        kept = [n for n in self.kept if n != "generation" or phase not in ("reference", "update")]
        return Call(name, phase, function, args, keywords, own, tuple(n for n in kept if n not in own), **more)

    # --- generation ---------------------------------------------------------------------------------------------

    def generating(self) -> list[Call]:
        c = self.config
        responses = c.questions_per_iteration * c.num_responses
        calls = self.stage("", "", c.max_prompt_length, c.max_response_length, responses, c.num_responses)
        refines = c.refine == "policy"
        critiques = responses * c.num_critiques if refines or c.critique_when == "all" else 0
        refinements = critiques * c.refinements_per_critique if refines else 0
        if c.critique == "cot" and critiques:
            if c.reward_source == "critic":  # which reads refinements too
                critiques += refinements * c.num_critiques
            prefix = "critic_" if self.critic else "critique_"
            calls += self.stage(
                prefix, "critique", c.max_critique_prompt_length, c.max_critique_length, critiques, 1,
                by_critic=self.critic is not None,
            )  # fmt: skip
        if refinements:
            each = c.refinements_per_critique
            calls += self.stage("refine_", "", c.max_refinement_prompt_length, c.max_response_length, refinements, each)
        return calls

    def evaluating(self) -> list[Call]:
        """Returns the programs of an evaluation: greedy responses to different questions, and samples."""
        c, e = self.config, self.config.eval
        if not (c.data.eval or c.data.kind == "chains" and c.data.num_eval):
            return []
        # A file's questions are not counted here: there are enough to fill a call.
        questions = c.data.num_eval or self.groups * c.max_rows
        lengths = (c.max_prompt_length, c.max_response_length)
        greedy = dict(temperature=0.0, top_p=1.0, top_k=0)
        calls = self.stage("eval_", "", *lengths, questions, 1, evaluation=greedy)
        if max(e.k) > 1:
            sampling = dict(temperature=e.temperature, top_p=e.top_p, top_k=0)
            each = e.num_samples
            calls += self.stage("eval_sample_", "", *lengths, questions * each, each, evaluation=sampling)
        return calls

    def stage(
        self,
        prefix: str,
        phase: str,
        prompt: int,
        length: int,
        num_rows: int,
        each: int,
        *,
        by_critic: bool = False,
        evaluation: Mapping[str, Any] | None = None,
    ) -> list[Call]:
        """Returns the two programs that write `num_rows` rows, `each` a prompt, in calls of the largest size.

        Those of an evaluation, given its sampling, are no part of an iteration.
        """
        c = self.config
        model = self.critic if by_critic else self.policy
        weights = self.buffers["critic"].shapes if by_critic else self.generation
        samples = min(each, c.max_rows)
        sizes = generate.call_sizes(num_rows // each, num_samples=samples, max_rows=c.max_rows, num_groups=self.groups)
        Q, times = max(sizes), len(sizes) * -(-each // samples)
        P = min(-(-prompt // c.prompt_bucket) * c.prompt_bucket, model.max_context)
        sampling = evaluation or dict(temperature=c.temperature, top_p=c.top_p, top_k=c.top_k)
        settings = generate.Settings(model, self.mesh, _EOS_IDS, samples, length, **sampling)
        seed = self.array((), jnp.uint32)

        def prompts(Q: int) -> tuple:
            live_B, index_B6 = self.rows(Q * samples, dtype=jnp.bool_), self.rows(Q * samples, 6)
            return weights, self.rows(Q, P), self.rows(Q), live_B, seed, seed, index_B6

        args, keywords = prompts(Q), {"settings": settings}
        state = jax.tree.map(
            lambda leaf, spec: self.array(leaf.shape, leaf.dtype, spec),
            jax.eval_shape(generate.prefill, *args, **keywords),
            generate.decoding_specs(settings),
        )
        cache = f"{prefix}cache"
        self.buffers[cache] = Buffer(
            "kv_cache", (state.cache.prompt_k, state.cache.prompt_v, state.cache.k, state.cache.v)
        )
        own = ("critic" if by_critic else self.sampler, cache)
        if evaluation:
            times = 0
        else:
            self.sampled_tokens += num_rows * length
        more = dict(keywords=keywords, own=own, per_iteration=times)
        at_once = forward.prompts_at_once(Q // self.groups, P)
        pieces = Q // self.groups // at_once
        if self.one_piece:
            args = prompts(at_once * self.groups)
        return [
            self.call(f"{prefix}prefill", phase or "prefill", generate.prefill, args, pieces=pieces, **more),
            self.call(
                f"{prefix}decode", phase or "decode", generate.decode, (weights, state), trips=length - 1, **more
            ),
        ]

    # --- scoring, resharding, updating ----------------------------------------------------------------------------

    def num_rows(self) -> int:
        """Rows that the questions of an iteration leave to learn from."""
        c = self.config
        found = {"none": 0, "solution": 1}.get(c.refine, c.num_responses * c.num_critiques * c.refinements_per_critique)
        return c.questions_per_iteration * (c.num_responses + min(c.num_refinements, found))

    def batches(self, num_rows: int) -> int:
        """Packed batches that so many rows of full length take."""
        c, shape = self.config, assemble.pack_shape(self.config)
        per_token_row = max(1, shape.pack_length // (c.max_prompt_length + c.max_response_length - 1))
        per_part = min(per_token_row * shape.num_token_rows, shape.num_slots)
        return -(-num_rows // (per_part * self.groups))

    def batch(self):
        shape, length = assemble.pack_shape(self.config), self.config.max_response_length
        one = packing.fill([], 1, shape.num_token_rows, shape.pack_length, shape.num_slots, length)
        return jax.tree.map(lambda x: self.rows(self.groups * len(x), *x.shape[1:], dtype=x.dtype), one)

    def scoring(self) -> list[Call]:
        c = self.config
        keywords = dict(config=self.policy, temperature=c.temperature, dtype=self.dtype, mesh=self.mesh)
        times, calls = self.batches(self.num_rows()), []
        if c.old_logp == "trainer":
            own = ("trained", "base") if self.base else ("trained",)
            calls.append(self.scored("old_logp", "update", self.state.params, self.base, own, keywords, times))
        if c.kl_coef:
            if self.base:
                calls.append(self.scored("reference", "reference", self.weights, None, ("base",), keywords, times))
            else:
                weights = self.buffers["reference"].shapes
                more = keywords | {"layout": sharding.GENERATION}
                calls.append(self.scored("reference", "reference", weights, None, ("reference",), more, times))
        return calls

    def scored(self, name, phase, params, base, own, keywords, times) -> Call:
        keywords = {"layout": sharding.TRAINING} | keywords
        args = (params, self.batch(), base)
        return self.call(name, phase, update.score, args, own=own, keywords=keywords, per_iteration=times)

    def resharding(self) -> list[Call]:
        if self.sampler == "trained":  # nothing to do
            return []
        keywords = dict(config=self.policy, mesh=self.mesh, dtype=self.dtype)
        own = ("trained", "base", "generation") if self.base else ("trained", "generation")
        args = (self.state.params, self.base)
        return [self.call("reshard", "reshard", generate.lay_out, args, keywords=keywords, own=own)]

    def updating(self) -> list[Call]:
        c, params = self.config, self.state.params
        self.buffers["gradients"] = Buffer("temporaries", params)
        count = self.array((), jnp.float32)
        counts = dict.fromkeys(("rows", "tokens", "nll_tokens", "questions"), count)
        keywords = dict(
            config=self.policy, settings=assemble.loss_settings(c), remat=c.remat, dtype=self.dtype, mesh=self.mesh
        )
        args = (params, params, self.batch(), counts, self.base)
        own = ("trained", "gradients", "base") if self.base else ("trained", "gradients")
        times = self.batches(self.num_rows() // c.updates_per_batch)
        return [
            self.call(
                "update", "update", update.accumulate, args, keywords=keywords, own=own, times=times,
                per_iteration=c.updates_per_batch,
            ),
            self.call(
                "update", "update", update.apply, (self.state, params), keywords={"optimizer": self.optimizer},
                own=("trained", "optimizer", "gradients"), per_iteration=c.updates_per_batch,
            ),
        ]  # fmt: skip
