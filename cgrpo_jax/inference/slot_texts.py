"""The host's record of the text in each slot: what has been sampled, and where a stop string ends it."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from cgrpo_jax.inference.slots import Report


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What one row sampled: tokens (end-of-turn included), their log-probabilities, and whether it was cut off."""

    token_ids: np.ndarray
    logp: np.ndarray
    truncated: bool


@dataclasses.dataclass
class SoFar:
    """What has been sampled of a text: its tokens, and their log-probabilities."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] = dataclasses.field(default_factory=list)


class SlotTexts:
    """The text of each slot.

    Args:
      num_slots: of all data groups.
      eos_ids: tokens that end a text.
      stop: a text ends after any of these strings, which it keeps; needs `decode`.
      decode: token ids to text.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        eos_ids: Sequence[int],
        stop: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
    ):
        if stop and decode is None:
            raise ValueError(f"stop strings {list(stop)} need `decode`; give what turns token ids into text.")
        self.num_slots = num_slots
        self._eos_ids, self._stop, self._decode = eos_ids, stop, decode
        self._texts = [SoFar() for _ in range(num_slots)]
        self._stopped = np.zeros(num_slots, bool)

    def begin(self, slot: int, so_far: SoFar | None = None) -> None:
        """Begins a text in a slot: an empty one, or what another slot had of it."""
        self._texts[slot] = so_far or SoFar()

    def of(self, slot: int) -> SoFar:
        """Returns what the text in a slot has."""
        return self._texts[slot]

    def read(self, slot: int, report: Report) -> tuple[int, Sampled | None]:
        """Adds what a tick has sampled in a slot.

        Returns:
          (number of tokens that the text has gained; the text if it has ended, else None)
        """
        text = self._texts[slot]
        new = int(report.sampled_S[slot]) - len(text.tokens)
        text.tokens += report.tokens_CS[:new, slot].tolist()
        text.logp += report.logp_CS[:new, slot].tolist()
        ended, cut = not report.live_S[slot], self._stopped_at(text.tokens, new)
        if cut is not None:
            self._stopped[slot] = not ended
            new -= len(text.tokens) - cut
            del text.tokens[cut:], text.logp[cut:]
        if not ended and cut is None:
            return new, None
        truncated = cut is None and text.tokens[-1] not in self._eos_ids
        return new, Sampled(np.array(text.tokens, np.int32), np.array(text.logp, np.float32), truncated)

    def take_stopped(self) -> np.ndarray:
        """Returns in which slots a string has ended the text that the devices still go on with, and forgets it."""
        stopped, self._stopped = self._stopped, np.zeros_like(self._stopped)
        return stopped

    def _stopped_at(self, tokens: Sequence[int], new: int) -> int | None:
        """Returns how many tokens a text has when it holds a stop string for the first time; None if it holds none."""
        if not self._stop or not new:
            return None
        first = len(tokens) - new
        start = max(0, first - max(len(stop.encode()) for stop in self._stop))  # a token has a byte at least
        if not self._has_stop(tokens[start:]):
            return None
        return next(end for end in range(first + 1, len(tokens) + 1) if self._has_stop(tokens[start:end]))

    def _has_stop(self, tokens: Sequence[int]) -> bool:
        assert self._decode is not None  # where there are stop strings
        text = self._decode(tokens)
        return any(stop in text for stop in self._stop)
