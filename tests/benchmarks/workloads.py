"""What generation.py and update.py compute, and what is possible there: sizes, lengths, the steps that these take."""

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

from cgrpo_jax.models import params as params_lib


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes of all measurements.

    Attributes:
      config: the model.
      prompt, new: tokens of each, where all rows are alike.
      batches: (prompts, samples of each), where all rows are alike.
      texts, num_slots: of the uneven lengths.
      usual, longest, long_share: least and greatest length of most texts, length of the others, and their share.
      samples: of a prompt, in the variant whose texts share prompts.
      questions, responses, critique: of an iteration in stages; tokens of a critique.
    """

    config: params_lib.ModelConfig
    prompt: int = 64
    new: int = 64
    batches: tuple[tuple[int, int], ...] = ((4, 4), (16, 4))
    texts: int = 512
    num_slots: int = 64
    usual: tuple[int, int] = (20, 60)
    longest: int = 256
    long_share: float = 0.05
    samples: int = 8
    questions: int = 64
    responses: int = 7
    critique: int = 30


def _shape(vocab: int, layers: int, width: int, heads: int, kv_heads: int, mlp: int) -> params_lib.ModelConfig:
    return params_lib.ModelConfig(
        vocab_size=vocab,
        num_layers=layers,
        embed_dim=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        mlp_dim=mlp,
    )


WORKLOADS = {
    "smollm2-135m": Workload(_shape(49152, 30, 576, 9, 3, 1536)),
    "tiny": Workload(_shape(128, 1, 16, 2, 1, 32), 8, 8, ((1, 2), (2, 2)), 16, 4, (2, 6), 16, 0.125, 4, 10, 2, 3),
}
# The least ratio to each peer: on the two batches, and on uneven lengths.
TARGETS = ({"trl": 2.5, "tunix": 1.8}, {"trl": 2.2, "tunix": 1.5})
UNEVEN_TARGETS = {"trl": 6.0}
OF_PERMITTED, OCCUPANCY, OF_MACHINE = 0.9, 0.9, 0.75


@dataclasses.dataclass(frozen=True)
class UpdateWorkload:
    """Sizes of update.py's measurements.

    Attributes:
      config: the model.
      prompt, new: tokens of each.
      prompts, generations: of a step.
      shortest: of responses of uneven length, which are from this to `new` tokens long.
      matrix: rows and columns of the matrices whose product says what the machine can do.
      output: tokens, vocabulary and width of the output layer whose memory is compared.
      small, factors: the model from which growth is measured, and by what its sizes are multiplied.
    """

    config: params_lib.ModelConfig
    small: params_lib.ModelConfig
    prompt: int = 64
    new: int = 64
    prompts: int = 4
    generations: int = 4
    shortest: int = 20
    matrix: int = 2048
    output: tuple[int, int, int] = (8192, 151936, 1024)
    factors: tuple[int, ...] = (1, 2, 4)

    @property
    def sizes(self) -> dict[str, int]:
        """As peers are told them."""
        return dict(prompts=self.prompts, generations=self.generations, prompt_len=self.prompt, new_tokens=self.new)


UPDATES = {
    "smollm2-135m": UpdateWorkload(WORKLOADS["smollm2-135m"].config, _shape(8192, 4, 256, 4, 2, 768)),
    "tiny": UpdateWorkload(
        WORKLOADS["tiny"].config, _shape(128, 1, 16, 2, 1, 32), 8, 8, 2, 2, 4, 64, (64, 1024, 16), (1, 2)
    ),
}
# The least ratio to each peer: where all rows train, and where lengths are uneven and half of the groups are dropped.
STEP_TARGETS, REALISTIC_TARGETS = {"trl": 2.2, "tunix": 1.9}, {"trl": 4.0, "tunix": 3.5}
OF_MATRIX_RATE = 0.75
# The most that a step may hold of what a peer's does, the output layer of what whole logits need, and a token at four
# times the vocabulary of what it needs there.
OF_PEER_MEMORY, OF_LOGITS, FLAT = 0.5, 0.1, 1.1


def lengths(work: Workload, *, seed: int) -> list[int]:
    """Returns the length of each text: most usual, a share of them the longest, in random order."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(work.usual[0], work.usual[1] + 1, work.texts)
    drawn[rng.permutation(work.texts)[: round(work.long_share * work.texts)]] = work.longest
    return drawn.tolist()


def batched_steps(lengths: Sequence[int], num_slots: int) -> int:
    """Returns the steps of batches in order of arrival, each as long as its longest text.

    Example:
      batched_steps([5, 1, 2, 3], num_slots=2) == 5 + 3
    """
    return sum(max(lengths[first : first + num_slots]) for first in range(0, len(lengths), num_slots))


def listed_steps(lengths: Sequence[int], num_slots: int) -> int:
    """Returns the steps of list scheduling: whichever slot is free first takes the text that came first.

    Example:
      listed_steps([5, 1, 2, 3], num_slots=2) == 6  # 5 in one slot; 1, 2 and 3 in the other
    """
    free_at = [0] * num_slots
    for length in lengths:
        heapq.heappush(free_at, heapq.heappop(free_at) + length)
    return max(free_at)


def permitted_gain(
    lengths: Sequence[int], num_slots: int, *, step_seconds: float, prefill_seconds: float, prefills: int
) -> float:
    """Returns how many times faster list scheduling is than batches, where all slots wait for each prefill."""
    fixed = prefills * prefill_seconds
    batched, listed = (steps(lengths, num_slots) * step_seconds for steps in (batched_steps, listed_steps))
    return (batched + fixed) / (listed + fixed)


@dataclasses.dataclass(frozen=True)
class CollectWorkload:
    """Sizes of collect_speed.py's measurements.

    Attributes:
      config: the model.
      questions, per_file: that are asked, and of a file.
      words: least and greatest number of a question.
      responses, critiques, refinements: of a question, of a response, after a critique.
      response, critique: tokens that a response or refinement, and a critique, may have.
      prompts: tokens of the longest prompt that responses, critiques and refinements have.
      end_share: of the vocabulary that ends a text: of random weights, about one in so many tokens is the last.
      num_slots, prompt_bucket: of the engine.
    """

    config: params_lib.ModelConfig
    questions: int = 32
    per_file: int = 16
    words: tuple[int, int] = (30, 50)
    responses: int = 4
    critiques: int = 1
    refinements: int = 1
    response: int = 128
    critique: int = 64
    prompts: tuple[int, int, int] = (128, 512, 768)
    end_share: float = 1 / 64
    num_slots: int = 32
    prompt_bucket: int = 64


COLLECTIONS = {
    "smollm2-135m": CollectWorkload(WORKLOADS["smollm2-135m"].config),
    "tiny": CollectWorkload(_shape(512, 1, 16, 2, 1, 32), 4, 2, (4, 8), 2, 1, 1, 12, 8, (64, 512, 768), 1 / 8, 4),
}
OF_ENGINE = 0.97  # the least of the engine's rate that a collection has


@dataclasses.dataclass(frozen=True)
class FinetuneWorkload:
    """Sizes of finetune_speed.py's measurements.

    Attributes:
      config: the model.
      chats: in all; an update learns `per_update` of them.
      question, answer: median number of words of each.
      spread: standard deviation of the lengths' logarithms.
      longest: words that either may have.
      pack: token rows, and tokens of each, of our packed batches.
      packed: tokens of the row that a peer packs an update into: as many as `per_update` chats have.
      warmup, updates: that are not measured, and those after them, which are one pass over the chats.
    """

    config: params_lib.ModelConfig
    chats: int = 128
    question: int = 40
    answer: int = 80
    spread: float = 0.45
    longest: int = 200
    per_update: int = 16
    pack: tuple[int, int] = (1, 512)  # the longest chat has 417 tokens
    packed: int = 3328
    warmup: int = 2
    updates: int = 8

    @property
    def sizes(self) -> dict[str, int | str]:
        """As programs are told them."""
        sizes = {"per_update": self.per_update, "packed": self.packed, "warmup": self.warmup, "updates": self.updates}
        return sizes | {"pack": ",".join(map(str, self.pack))}


FINETUNES = {
    "smollm2-135m": FinetuneWorkload(WORKLOADS["smollm2-135m"].config),
    "tiny": FinetuneWorkload(
        _shape(512, 1, 16, 2, 1, 32), 8, 4, 8, 0.45, 12, per_update=4, pack=(1, 256), packed=256, warmup=1, updates=2
    ),
}
FINETUNE_TARGET = 2.5  # the least ratio to each peer
SAME_LOSS = 0.02  # the most that the losses before the first update may differ, of different rows of the same chats
