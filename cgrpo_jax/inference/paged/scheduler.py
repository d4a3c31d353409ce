"""Which continuation is written next where texts have pages, and what of which prompt enters in each call: no arrays.

A text is placed as soon as a slot and pages for its prompt are free. Of its beginning, full pages that other texts hold
are its own as well, and the last, if it is not full, is copied. What is left of the prompt enters in parts, in the
order of the texts. Pages for what it samples come call by call. Where they are few, a call takes fewer steps; where
there are none for one step, the text that was placed last in its group is set back: it gives its pages up and waits
again, with what it has sampled as part of its prompt.

A call may be asked for before it is known what the last has sampled. Then a text has pages for the most tokens that
it can have by now, and none is set back before that is known.

A decision depends on the requests and on what has been sampled, so all processes decide the same.
"""

import collections
import dataclasses

import numpy as np

from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.paged.call_sizes import row_counts, token_counts
from cgrpo_jax.inference.paged.pool import PagePool
from cgrpo_jax.inference.request_queue import Request, RequestQueue
from cgrpo_jax.records import Stage

_REAL_SHARE = 0.7  # of the tokens that a call takes of prompts, where fewer would not do


@dataclasses.dataclass(eq=False)
class Text:
    """A continuation that has been placed, or was, and is set back.

    Attributes:
      request, number: which of whose continuations it is.
      serial: texts that came later have higher ones.
      context: `[P]` int32, its prompt and what it had sampled when it was set back.
      group, slot: where it is.
      pages: that it holds, in the order of its positions.
      copied: the page that holds the end of its beginning, until that is copied; held as well.
      length: tokens that it is known to have in its pages, once it has begun: all but the newest.
      ahead: the most that it may have gained besides, in calls of which that is not known yet.
      shared: tokens of its context that it found in pages of others, or copied.
      begun: whether it decodes, or did until it was set back.
      again: whether it was set back before, so that what enters of it is no new prompt.
    """

    request: Request
    number: int
    serial: int
    context: np.ndarray
    group: int = -1
    slot: int = -1
    pages: list[int] = dataclasses.field(default_factory=list)
    copied: int | None = None
    length: int = 0
    ahead: int = 0
    shared: int = 0
    begun: bool = False
    again: bool = False

    @property
    def most(self) -> int:
        """The most tokens that it can have in its pages."""
        return len(self.request.prompt_ids) + self.request.max_length - 1


@dataclasses.dataclass
class _Rest:
    """What of a text's prompt has yet to enter: from `start` on."""

    text: Text
    start: int

    @property
    def left(self) -> int:
        return len(self.text.context) - 1 - self.start


@dataclasses.dataclass(frozen=True)
class Part:
    """Tokens of a prompt that enter in a call: from `start` up to `end`."""

    text: Text
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class PagedCall:
    """What the next call does, which decodes at most `steps` tokens of each text.

    Attributes:
      steps: 1 where prompts enter.
      tokens: of prompts that it takes at most, of each data group; 0: none enters.
      parts: what enters, by group.
      begin: texts that decode from this call on; those with `copied` have that page copied first.
      decoding: all that decode, unless they have ended in a call that is not recorded yet.
      set_back: texts that are taken out of their slots before.
      texts: that have a slot, of all data groups.
      rows: slots that it computes, of each data group: those that decode come first.
    """

    steps: int
    tokens: int
    parts: tuple[tuple[Part, ...], ...]
    begin: tuple[Text, ...]
    decoding: tuple[Text, ...]
    set_back: tuple[Text, ...]
    texts: int
    rows: int


class _Group:
    """The pages and texts of a data group.

    Attributes:
      texts: in the order in which they were placed.
      rest: what of prompts has yet to enter, in that order.
      held: pages of the prompt of which more continuations wait here.
    """

    def __init__(self, pages: Pages, slots: range):
        self.pool = PagePool(number=pages.number, size=pages.size)
        self.slots = slots
        self.texts: list[Text] = []
        self.rest: collections.deque[_Rest] = collections.deque()
        self.held: list[int] = []
        self.held_of: Request | None = None

    @property
    def free_slots(self) -> list[int]:
        taken = {text.slot for text in self.texts}
        return [slot for slot in self.slots if slot not in taken]

    @property
    def next_to_enter(self) -> int:
        """How many of the texts come before the first whose prompt has yet to enter."""
        return self.texts.index(self.rest[0].text) if self.rest else len(self.texts)

    def wanted_by(self, text: Text, steps: int) -> int:
        """Returns how many pages a text lacks for so many tokens more than it may have."""
        return max(0, self.pool.of(min(text.length + text.ahead + steps, text.most)) - len(text.pages))

    def wanted(self, steps: int) -> int:
        """Returns how many pages all texts lack for so many tokens more of each."""
        return sum(self.wanted_by(text, steps) for text in self.texts)

    def let_go_of_prompt(self) -> bool:
        """Releases the pages held for continuations to come; returns whether there were any."""
        held, self.held, self.held_of = self.held, [], None
        self.pool.release(held)
        return bool(held)

    def remove(self, text: Text) -> None:
        """Releases all that a text holds."""
        self.texts.remove(text)
        self.rest = collections.deque(one for one in self.rest if one.text is not text)
        self.pool.release(text.pages)
        if text.copied is not None:
            self.pool.release([text.copied])
        text.pages, text.copied = [], None


class PageScheduler:
    """The queue, and the texts and pages of each data group.

    Args:
      num_groups, num_slots: data groups, and the most texts of each; slot s is one of group `s // num_slots`.
      pages: of a data group.
      length: the most tokens of a prompt with its continuation.

    Attributes:
      num_set_back: texts that were set back so far.
    """

    def __init__(self, *, num_groups: int, num_slots: int, pages: Pages, length: int):
        self.num_groups, self.num_slots, self.pages, self.length = num_groups, num_slots, pages, length
        self.num_set_back = 0
        self._queue = RequestQueue(num_groups)
        self._groups = [_Group(pages, range(g * num_slots, (g + 1) * num_slots)) for g in range(num_groups)]
        self._slots: list[Text | None] = [None] * (num_groups * num_slots)
        self._returned: list[Text] = []  # texts set back, the first to come first
        self._serial = 0

    @property
    def waiting(self) -> int:
        """Continuations that have no slot."""
        return self._queue.waiting + len(self._returned)

    @property
    def live(self) -> int:
        """Continuations that have one."""
        return sum(len(group.texts) for group in self._groups)

    def waiting_by_stage(self) -> dict[Stage, int]:
        """Returns the continuations that wait, by their stage."""
        waiting = collections.Counter(self._queue.waiting_by_stage())
        waiting.update(text.request.stage for text in self._returned)
        return dict(waiting)

    def add(self, request: Request) -> None:
        """Puts a request into the queue."""
        self._queue.add(request)

    def occupant(self, slot: int) -> tuple[Request, int] | None:
        """Returns whose continuation decodes in a slot, and which; None if none does."""
        return (text.request, text.number) if (text := self._slots[slot]) and text.begun else None

    def text(self, slot: int) -> Text:
        """Returns the text in a slot that has one."""
        assert (text := self._slots[slot]) is not None
        return text

    def free(self, slot: int) -> None:
        """Records that the continuation in a slot has ended: its pages are free at once."""
        text = self.text(slot)
        self._slots[slot] = None
        self._groups[text.group].remove(text)

    def begun(self) -> list[Text]:
        """Returns the texts that decode."""
        return [text for group in self._groups for text in group.texts if text.begun]

    def record(self, call: PagedCall, sampled_S: np.ndarray) -> None:
        """Records how many tokens the texts that decoded in a call had sampled after it; calls come in their order."""
        for text in call.decoding:
            text.ahead -= call.steps
            if self._slots[text.slot] is text:
                text.length = len(text.request.prompt_ids) - 1 + int(sampled_S[text.slot])

    def held(self) -> list[int]:
        """Returns how many pages each data group holds."""
        return [group.pool.held for group in self._groups]

    # --- the next call ----------------------------------------------------------------------------------------------

    def next_call(self, chunk: int) -> PagedCall | None:
        """Places what can be placed and returns what the next call does.

        Args:
          chunk: the most steps.

        Returns:
          the call; None where a text may have to be set back, which calls that are not recorded yet would tell
        """
        self._place(chunk)
        self._let_go_of_prompts()
        if (covered := self._cover(1 if any(group.rest for group in self._groups) else chunk)) is None:
            return None
        steps, set_back = covered
        tokens = self._tokens()
        before = [group.next_to_enter for group in self._groups]
        parts = tuple(self._parts(group, tokens) for group in self._groups)
        begin = [text for group, at in zip(self._groups, before, strict=True) for text in self._begin(group, at)]
        decoding = tuple(self.begun())
        for text in decoding:
            text.ahead += steps
        most = max(sum(text.begun for text in group.texts) for group in self._groups)
        rows = next(number for number in reversed(row_counts(self.num_slots)) if number >= most)
        return PagedCall(steps, tokens, parts, tuple(begin), decoding, tuple(set_back), self.live, rows)

    def copied(self, text: Text) -> None:
        """Records that the call that copies the last page of a text's beginning has been made."""
        if text.copied is not None:
            self._groups[text.group].pool.release([text.copied])
            text.copied = None

    def _place(self, chunk: int) -> None:
        """Places texts until none waits, or no group has a slot and pages for the next beside `chunk` steps."""
        full: set[int] = set()  # groups without pages for what comes next
        while True:
            room = [0 if g in full else len(group.free_slots) for g, group in enumerate(self._groups)]
            if self._returned:
                able = [g for g in range(self.num_groups) if room[g]]
                if not able:
                    return
                group = max(able, key=lambda g: self._groups[g].pool.free)
                if self._enter(self._returned[0], group, chunk):
                    del self._returned[0]
                else:
                    full.add(group)
                continue
            if (group := self._queue.next(room)) is None:
                return
            begun = self._queue.begun[group]
            text = Text(begun.request, begun.number, self._serial, begun.request.prompt_ids)
            if not self._enter(text, group, chunk):
                full.add(group)
                continue
            self._serial += 1
            self._queue.take(group)
            self._hold_prompt(text)

    def _enter(self, text: Text, g: int, chunk: int) -> bool:
        """Gives a text a slot and the pages of its context in a group; returns whether there were enough."""
        group, whole = self._groups[g], len(text.context) - 1
        shared, last = group.pool.beginning(text.context[:whole])
        wanted = group.pool.of(whole + 1) - len(shared)
        # Each text that is there may soon want pages for a whole call: else one would be placed to be set back at once.
        if wanted + group.pool.of(chunk) * len(group.texts) > group.pool.free:
            return not group.texts and group.let_go_of_prompt() and self._enter(text, g, chunk)
        group.pool.hold([*shared, *([] if last is None else [last])])
        text.pages = [*shared, *group.pool.allocate(wanted)]
        text.group, text.slot, text.copied, text.length, text.begun = g, group.free_slots[0], last, whole, False
        group.texts.append(text)
        self._slots[text.slot] = text
        start = len(shared) * self.pages.size
        text.shared = start if last is None else whole
        if text.shared < whole:
            group.rest.append(_Rest(text, start))
        group.pool.enter(text.context[:whole], text.pages)
        return True

    def _hold_prompt(self, text: Text) -> None:
        """Holds the pages of a text's prompt for those of its request that come next in its group."""
        group, whole = self._groups[text.group], len(text.context) - 1
        if group.held_of is not text.request:
            group.let_go_of_prompt()
            group.held, group.held_of = text.pages[: group.pool.of(whole)], text.request
            if text.copied is not None:  # what others copy is where it comes from
                group.held[-1] = text.copied
            group.pool.hold(group.held)

    def _let_go_of_prompts(self) -> None:
        """Releases the pages of prompts of which no more texts wait where they are held."""
        for g, group in enumerate(self._groups):
            begun = self._queue.begun.get(g)
            if begun is None or begun.request is not group.held_of:
                group.let_go_of_prompt()

    def _cover(self, steps: int) -> tuple[int, list[Text]] | None:
        """Gives all texts pages for the next steps; texts are set back only where one step lacks pages.

        Returns:
          (how many steps, at most those given; the texts that were set back); None as for `next_call`
        """
        back: list[Text] = []
        guessed = any(text.ahead for text in self.begun())
        for group in self._groups:
            while group.wanted(1) > group.pool.free:
                if group.let_go_of_prompt():
                    continue
                if guessed:
                    return None
                back.append(self._set_back(group))
        while any(group.wanted(steps) > group.pool.free for group in self._groups):
            steps //= 2
        for group in self._groups:
            for text in group.texts:
                text.pages += group.pool.allocate(group.wanted_by(text, steps))
        self._returned = sorted({*self._returned, *back}, key=lambda text: text.serial)
        self.num_set_back += len(back)
        return steps, back

    def _set_back(self, group: _Group) -> Text:
        """Takes the text that came last out of its slot; no other has pages that it would yet have filled."""
        text = group.texts[-1]
        assert len(group.texts) > 1, "one text alone has pages enough: the engine takes no longer ones"
        self._slots[text.slot] = None
        group.remove(text)
        text.again = True
        return text

    def _tokens(self) -> int:
        """Returns how many tokens of prompts the next call takes of each group; 0: none."""
        left = [sum(one.left for one in group.rest) for group in self._groups]
        if not any(left):
            return 0
        sizes = token_counts(self.pages.tokens, self.num_groups)
        if not self.begun():
            # Nothing gains a token meanwhile: as few calls as can be, the last no larger than need be.
            return next((size for size in reversed(sizes) if size >= max(left)), sizes[0])
        # The most of which enough is real; where none is, fewer are computed in vain with few.
        real = (size for size in sizes if sum(min(n, size) for n in left) >= _REAL_SHARE * size * self.num_groups)
        return next(real, sizes[-1])

    def _parts(self, group: _Group, tokens: int) -> tuple[Part, ...]:
        """Takes so many tokens of prompts, at most, from what has yet to enter."""
        parts: list[Part] = []
        while group.rest and tokens and len(parts) < self.pages.prompts:
            first = group.rest[0]
            number = min(tokens, first.left)
            parts.append(Part(first.text, first.start, first.start + number))
            first.start, tokens = first.start + number, tokens - number
            if not first.left:
                group.rest.popleft()
        return tuple(parts)

    def _begin(self, group: _Group, before: int) -> list[Text]:
        """Returns the texts that decode from now on: all before the first that has yet to enter after this call.

        A page is copied before anything enters, so a text with such a page is among the first `before`: those that did
        not wait for what enters in this call.
        """
        begin = []
        for i, text in enumerate(group.texts[: group.next_to_enter]):
            if not text.begun and (text.copied is None or i < before):
                text.begun = True
                begin.append(text)
        return begin
