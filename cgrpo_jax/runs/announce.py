"""What a start says, a line for each step as it is done: machine, model, questions, folder, compiled programs."""

import math

import jax

from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.runs.build_model import Model
from cgrpo_jax.runs.load_questions import Questions
from cgrpo_jax.runs.model_source import ModelSource
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runtime import console, processes


def machine(mesh: jax.sharding.Mesh) -> None:
    """Says which devices there are, and how the mesh divides them."""
    devices = mesh.devices
    sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    several = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    console.say(f"devices: {devices.size} x {devices.flat[0].device_kind}{several}, mesh: {sizes}")


def model(made: Model, source: ModelSource, *, trained: bool) -> None:
    """Says which model is trained or asked, how large it is, and whose tokenizer it has.

    Args:
      made: the model.
      source: where it comes from before any training.
      trained: whether a checkpoint of the run is read instead.
    """
    where = "trained by the run" if trained else source.init or source.weights or "drawn at random"
    size = _size(params_lib.num_params(made.config))
    console.say(
        f"model: {size} parameters, {where}; context {made.config.max_context} tokens, computed in {made.dtype}; "
        f"tokenizer {made.tokenizer_source}, {made.tokenizer.vocab_size} tokens"
    )


def critic(settings: RunSettings, *, rate: float) -> None:
    """Says that a critic is trained beside the policy: whose weights, how many, by which loss and at which peak rate.

    Args:
      settings: of a run whose critic is.
      rate: the peak of its schedule.
    """
    learning = settings.critic_learning
    assert learning, "one is trained"
    training, adapters, shape = learning.training, learning.learner.adapters, settings.critic or settings.policy
    count = params_lib.num_params(shape)
    if adapters:
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(lora.adapter_shapes(shape, adapters)))
    whose = {
        "policy": "the policy's own weights",
        "adapter": "an adapter on the policy's weights",
        "model": f"the weights of {settings.stages.critic_folder}",
    }[training.weights]
    console.say(
        f"critic: trained beside the policy: {whose}, {_size(count)} parameters, by {training.loss} (beta "
        f"{training.beta:g}, verdicts weigh {training.verdict_weight:g}), {learning.learner.updates_per_batch} updates "
        f"an iteration, learning rate {rate:g}"
    )


def questions(found: Questions, *, max_prompt_length: int) -> None:
    """Says how many questions there are, and how many were left out and why."""
    kept = {"training": len(found.training), "held-out": len(found.held_out)}
    console.say("questions: " + ", ".join(f"{number} {kind}" for kind, number in kept.items() if number))
    for kind, number in found.skipped.items():
        if number:
            limit = f"max_prompt_length {max_prompt_length}"
            console.say(f"{number} {kind} questions are longer than {limit} and were left out")
    if found.left_out:
        console.say(found.left_out)


def compiled(*, number: int, read: int, seconds: float, kept: bool) -> None:
    """Says what was compiled, and where programs are kept.

    Args:
      number: programs compiled or read.
      read: those of them that an earlier run had kept.
      seconds: that it took.
      kept: whether programs are kept.
    """
    where = f"kept in {processes.programs_folder()}" if kept else "not kept (compute.keep_programs)"
    console.say(f"compiled {number - read} programs and read {read} in {seconds:.0f} s; {where}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count < 1e9 else f"{count / 1e9:.2f} billion"
