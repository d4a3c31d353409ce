"""The pages of a data group, on the host: which are free, how many texts hold each, and what they begin with.

A page is held by each text that has it, and free again, at once, when the last of them lets go. What a page holds of a
prompt is known as long as someone holds it, so that whoever begins alike takes the same page.
"""

import collections
from collections.abc import Sequence

import numpy as np

_NOTHING = 0  # the page before the first: page 0, which no text has


class PagePool:
    """Pages 1 to `number` - 1 of `size` positions; page 0 belongs to no text.

    Args:
      number: pages, page 0 among them.
      size: positions of a page.

    Attributes:
      most: the most pages that were held at a time.

    Example:
      pool = PagePool(number=5, size=4)
      first = pool.allocate(2)              # [1, 2]
      pool.enter([7, 8, 9, 7, 1, 2], first)  # page 1 holds 7 8 9 7, page 2 begins with 1 2
      pool.beginning([7, 8, 9, 7, 5])       # ([1], None): the first page can be shared
      pool.beginning([7, 8, 9, 7, 1, 2])    # ([1], 2): and the second can be copied
    """

    def __init__(self, *, number: int, size: int):
        self.number, self.size, self.most = number, size, 0
        self._free = list(range(number - 1, 0, -1))
        self._holders = np.zeros(number, int)
        # Pages by the page before them and the tokens that they begin with; and the keys under which each is known.
        self._known: dict[tuple[int, bytes], int] = {}
        self._keys: dict[int, list[tuple[int, bytes]]] = collections.defaultdict(list)

    @property
    def free(self) -> int:
        """How many pages no text holds."""
        return len(self._free)

    @property
    def held(self) -> int:
        """How many pages someone holds."""
        return self.number - 1 - self.free

    def of(self, positions: int) -> int:
        """Returns how many pages so many positions take."""
        return -(-positions // self.size)

    def allocate(self, number: int) -> list[int]:
        """Returns so many free pages, each held once.

        Raises:
          ValueError: there are not as many.
        """
        if number > self.free:
            raise ValueError(f"{number} pages are asked for, {self.free} of {self.number - 1} are free.")
        pages = [self._free.pop() for _ in range(number)]
        self._holders[pages] = 1
        self.most = max(self.most, self.held)
        return pages

    def hold(self, pages: Sequence[int]) -> None:
        """Records that one more holds pages that are held.

        Raises:
          ValueError: one of them is free.
        """
        self._check_held(pages)
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Records that one less holds pages; those that none holds are free, and what they held is forgotten.

        Raises:
          ValueError: one of them is free already.
        """
        self._check_held(pages)
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                for key in self._keys.pop(page, ()):
                    del self._known[key]
                self._free.append(page)

    def _check_held(self, pages: Sequence[int]) -> None:
        if free := [page for page in pages if not self._holders[page]]:
            raise ValueError(f"pages {free} are free: no text holds them.")

    # --- what pages begin with --------------------------------------------------------------------------------------

    def enter(self, tokens: Sequence[int] | np.ndarray, pages: Sequence[int]) -> None:
        """Records that pages hold a beginning of that many tokens, or will before anyone reads them.

        What is known of another page already stays so.
        """
        before = _NOTHING
        for page, part in zip(pages, self._parts(tokens), strict=False):
            if (key := (before, part)) not in self._known:
                self._known[key] = page
                self._keys[page].append(key)
            before = page

    def beginning(self, tokens: Sequence[int] | np.ndarray) -> tuple[list[int], int | None]:
        """Returns which pages hold what a text begins with.

        Returns:
          (pages that are full of it, from the first on; the page that holds all that is left after these, if this
          fills no page and one does)
        """
        pages, before = [], _NOTHING
        for part in self._parts(tokens):
            page = self._known.get((before, part))
            if page is None:
                break
            if len(part) < self.size * _BYTES:
                return pages, page
            pages.append(page)
            before = page
        return pages, None

    def _parts(self, tokens: Sequence[int] | np.ndarray) -> list[bytes]:
        array = np.asarray(tokens, np.int32)
        return [array[first : first + self.size].tobytes() for first in range(0, len(array), self.size)]


_BYTES = np.dtype(np.int32).itemsize
