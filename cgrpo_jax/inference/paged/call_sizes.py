"""How much a call over pages may take: each size is a program of its own."""

_LEAST = 64  # the part of all tokens that a call takes at the least of prompts
_FEWER = (1, 2, 4)  # how many slots a call may compute: all, half of them, a fourth
_FEWEST = 16  # what fewer rows than these take of a matrix unit is no less


def token_counts(tokens: int, groups: int) -> tuple[int, ...]:
    """Returns how many tokens of prompts a call may take of each data group, the most first.

    Where prompts come one by one, a group without one computes in vain. So that each of G groups has one, G times as
    many must be there at a time, each of them for longer: the least is `tokens / (4 G^2)`, and a 64th.

    Args:
      tokens: the most.
      groups: data groups.

    Example:
      token_counts(512, 1) == (512, 128), token_counts(512, 2) == (512, 128, 32), token_counts(512, 4) == (512, 32, 8)
    """
    least = max(1, tokens // _LEAST, tokens // (4 * groups**2))
    return tuple(sorted({tokens, min(tokens, 4 * least), least}, reverse=True))


def row_counts(num_slots: int) -> tuple[int, ...]:
    """Returns how many slots of a data group a call may compute, the most first.

    Example:
      row_counts(120) == (120, 60, 30), row_counts(16) == (16,)
    """
    fewer = {-(-num_slots // part) for part in _FEWER}
    return tuple(sorted({num_slots, *(number for number in fewer if number >= _FEWEST)}, reverse=True))
