"""What an engine has counted."""

import dataclasses


@dataclasses.dataclass
class Stats:
    """Totals of an engine since its last `take_stats`.

    Attributes:
      tokens: tokens sampled.
      prompt_tokens: prompt tokens prefilled; neither what was shared nor what was set back is counted again.
      shared_tokens: prompt tokens that were copied instead.
      prefills: prompts prefilled, whole or in part.
      slot_steps: slots times decoding steps; with pages only those that have a text, of which memory says how many.
      slot_steps_waiting, tokens_waiting: the same, and the tokens sampled, while requests waited for a slot.
      seconds: of all steps.
      set_back: texts that gave up their pages to older ones, and were written on later.
      reentered_tokens: tokens that entered of these afterwards, sampled ones among them; in none of the other counts.
    """

    tokens: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    prefills: int = 0
    slot_steps: int = 0
    slot_steps_waiting: int = 0
    tokens_waiting: int = 0
    seconds: float = 0.0
    set_back: int = 0
    reentered_tokens: int = 0

    @property
    def occupancy(self) -> float:
        """Share of the slot-steps that sampled a token, while requests waited."""
        return self.tokens_waiting / self.slot_steps_waiting if self.slot_steps_waiting else 1.0
