"""A model that grades by a rubric, behind an OpenAI-compatible endpoint.

A gold answer is the rubric (`rubrics.rubric`): criteria that each can be seen to hold or not, with weights, pitfalls
and tests of programs. What is judged, and how:

  - `explicit`: each criterion is ruled on, and the reward is the weighted share of what holds;
  - `implicit`: one score from 1 to 10 with the whole rubric in view, as (score - 1) / 9 (RaR, arXiv 2507.17746);
  - with evidence, after Agent-as-a-Judge (arXiv 2410.10934): each criterion is asked about in a context of its own. The
    judge says which calls of the response's program it would like to see, they are run, and it quotes the line that
    decides before it rules.

A reference counts as a criterion of weight 1: the judge says twice which text is better, with positions swapped, so
that a judge that prefers the first is worth as much as one that can't decide. Of several judgements the mean counts.
One that can't be read is neither a yes nor a no: it is left out, and where none is left there is no grade.
"""

import collections
import functools
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol

from cgrpo_jax.rewards.answers import Grade
from cgrpo_jax.rewards.rubrics import prompts, replies
from cgrpo_jax.rewards.rubrics import rubric as rubric_lib
from cgrpo_jax.rewards.rubrics.callbacks import Done, Found, Request, bug, gather, or_failed
from cgrpo_jax.rewards.rubrics.programs import MAX_CALLS, Programs
from cgrpo_jax.rewards.rubrics.rubric import Rubric, Ruling
from cgrpo_jax.rewards.thinking import after_thinking

MODES = ("explicit", "implicit")
_UNREADABLE = "its reply can't be read"


class Reply(Protocol):
    """What became of a request: `inference.chat_client.Answer`."""

    @property
    def text(self) -> str | None: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def failure(self) -> str | None: ...


class Endpoint(Protocol):
    """A model that is asked in the background: `inference.chat_client.ChatClient`."""

    @property
    def counts(self) -> collections.Counter: ...
    def submit(self, *args, **keywords) -> futures.Future: ...


_Rulings = Mapping[int, Ruling]  # by the places of items; a reference has the place after the last


class Judge:
    """Grades responses in the background.

    Example:
      with ChatClient("http://localhost:8000/v1", model="Qwen/Qwen3-8B", name="judge") as endpoint:
        judge = Judge(endpoint)
        judge.submit("Prove ...", "By Pythagoras, ...", '["cites Pythagoras", "treats c = 0"]').result()
        # Grade(score=0.5, extracted="1 of 2", reason="met: 1; not met: 2\\n- Not met: treats c = 0.", timed_out=False)

    Args:
      endpoint: whom it asks.
      programs: runs programs of responses; needed for rubrics with programs, and with evidence.
      mode: a name of `MODES`.
      evidence: of `explicit`, whether each criterion is ruled on by itself, with evidence.
      num_judgements: of everything that is asked.
      temperature: of the replies; a further attempt at one that can't be read has 1 where this is 0.
      universal: a rubric whose items, which may all be pitfalls, stand behind those of every other; "" for none.
      max_length: tokens that a reply may have.
      max_retries: further attempts at a reply that can't be read.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        programs: Programs | None = None,
        mode: str = "explicit",
        evidence: bool = False,
        num_judgements: int = 1,
        temperature: float = 0.0,
        universal: str = "",
        max_length: int = 1024,
        max_retries: int = 2,
    ):
        self._endpoint, self._programs = endpoint, programs
        self._max_length, self._max_retries = max_length, max_retries
        self._mode, self._evidence = mode, evidence
        self._num_judgements, self._temperature = num_judgements, temperature
        found = rubric_lib.read(universal, only_pitfalls=True) if universal else None
        self._universal = found.items if found else ()
        self._lock, self._counts = threading.Lock(), collections.defaultdict[str, float](int)

    @property
    def counts(self) -> collections.Counter:
        """The endpoint's counts since the start, see `chat_client.ChatClient.counts`; and its "unreadable" replies.

        Also "spread_sum", the standard deviations of the judgements of items that were judged more than once, and
        "spread_items", how many these are; and "calls_run" as evidence.
        """
        counts: Any = self._endpoint.counts  # of which some are no whole numbers
        with self._lock:
            counts.update({"unreadable": 0} | self._counts)
        return counts

    def submit(self, question: str, response: str, answer: str) -> futures.Future[Grade]:
        """Starts to grade one response by the rubric `answer`; the future gets a `Grade`, never an exception.

        Where an endpoint gave no answer, or none that can be read, the grade has `failed`.
        """
        rubric, response = rubric_lib.read(answer), after_thinking(response).strip()
        result: futures.Future = futures.Future()
        result.set_running_or_notify_cancel()
        if rubric is None:
            result.set_result(Grade(0.0, None, f"gold answer {answer[:80]!r} can't be read"))
            return result
        if not response:
            result.set_result(Grade(0.0, None, "no answer found"))
            return result
        rubric = Rubric((*rubric.items, *self._universal), rubric.reference)
        case = prompts.Case(question, response)

        def finish(found: Sequence[Found], graded: Callable[[Rubric, Sequence[Found]], Grade]) -> None:
            try:
                grade = graded(rubric, found)
            except Exception as error:  # noqa: BLE001 - as in _ask
                grade = _no_grade(Found(None, bug(error)))
            result.set_result(grade)

        requests = [self._tested(case, place, item.program) for place, item in enumerate(rubric.items) if item.program]
        if self._mode == "implicit":
            whole = functools.partial(finish, graded=self._graded_whole)
            gather(requests, or_failed(whole, lambda found: self._score(case, rubric, found, whole)))
        else:
            requests += self._judged(case, rubric) + self._compared(case, rubric)
            gather(requests, functools.partial(finish, graded=self._graded))
        return result

    def check(self, question: str, response: str, criteria: Sequence[str]) -> futures.Future[Found]:
        """Starts to ask which criteria a text meets, its thinking included, for how it was written counts as well.

        The future gets a `Found`, whose value has them in order; without a reply it is None, and `failure` says why.
        """
        result: futures.Future = futures.Future()
        result.set_running_or_notify_cancel()
        read = functools.partial(replies.read_verdicts, number=len(criteria))
        case = prompts.Case(question, response)
        prompt = prompts.to_check(case, [rubric_lib.Item(text) for text in criteria])
        self._ask(prompt, read, result.set_result)
        return result

    def compare(self, question: str, response: str, reference: str) -> futures.Future[Grade]:
        """Starts to ask whether a response is better than a reference, 1, or worse, 0, with no other item in view.

        The grade's score is the mean over both orders and all judgements; where none of these was given, or can be
        read, it has `failed`, and its reason says of what.

        Args:
          question: that both answer.
          response: what the model wrote; what follows its thinking is compared. One that says nothing is worse.
          reference: a text as it is.
        """
        response = after_thinking(response).strip()
        result: futures.Future = futures.Future()
        result.set_running_or_notify_cancel()
        if not response:
            result.set_result(Grade(0.0, None, "it says nothing"))
            return result

        def finish(found: Sequence[Found]) -> None:
            shares = [one.value[0].share for one in found if one.value is not None]
            self._note_spread(shares)
            result.set_result(Grade(statistics.fmean(shares), None, "compared") if shares else _no_grade(found[0]))

        gather(self._compared(prompts.Case(question, response), Rubric((), reference)), finish)
        return result

    # --- what is asked ----------------------------------------------------------------------------------------------

    def _tested(self, case: prompts.Case, place: int, tests: str) -> Request:
        """Runs the tests of an item."""
        return lambda done: self._run(lambda one: one.test(case.response, tests), done, lambda ruling: {place: ruling})

    def _compared(self, case: prompts.Case, rubric: Rubric) -> list[Request]:
        """Asks which is better, the response or the reference, each in both orders: one half is each worth."""
        if not rubric.reference:
            return []
        place, response, reference = len(rubric.items), case.response, rubric.reference

        def worth(own: str, text: str) -> float | None:
            said = replies.read_comparison(text)
            return None if said is None else {"same": 0.5, own: 1.0}.get(said, 0.0)

        def compare(number: int, done: Done) -> None:
            def both(found: Sequence[Found]) -> None:
                failed = next((one for one in found if one.value is None), None)
                mean = failed or Found({place: Ruling(sum(one.value for one in found) / 2)})
                done(mean)

            orders = (("a", response, reference), ("b", reference, response))
            asked = [
                functools.partial(
                    self._ask, prompts.to_compare(case, first, second), functools.partial(worth, own), number=number
                )
                for own, first, second in orders
            ]
            gather(asked, both)

        return [functools.partial(compare, number) for number in range(self._num_judgements)]

    def _judged(self, case: prompts.Case, rubric: Rubric) -> list[Request]:
        """Asks about the items that a model judges: about all at once, or, with evidence, about each by itself."""
        places = rubric.judged
        if not places:
            return []
        if self._evidence:
            names = self._programs.defined(case.response) if self._programs else futures.Future()
            return [
                functools.partial(self._rule, case, rubric, place, names, number)
                for place in places
                for number in range(self._num_judgements)
            ]

        def read(text: str) -> _Rulings | None:
            verdicts = replies.read_verdicts(text, number=len(places))
            if verdicts is None:
                return None
            return {place: Ruling(float(ok)) for place, ok in zip(places, verdicts, strict=True)}

        prompt = prompts.to_check(case, [rubric.items[place] for place in places])
        return [functools.partial(self._ask, prompt, read, number=number) for number in range(self._num_judgements)]

    def _rule(
        self, case: prompts.Case, rubric: Rubric, place: int, names: futures.Future, number: int, done: Done
    ) -> None:
        """Rules on one item with evidence: which calls to run, what came of them, the line that decides, a verdict."""
        item = rubric.items[place]

        def call(defined: Found) -> None:
            if not defined.value:
                rule(Found([]))
                return
            prompt = prompts.for_calls(case, item, defined.value, most=MAX_CALLS)
            self._ask(prompt, replies.read_calls, or_failed(done, run), number=number)

        def run(calls: Found) -> None:
            self._run(lambda programs: programs.observe(case.response, calls.value), or_failed(done, rule))

        def rule(observed: Found) -> None:
            def read(text: str) -> _Rulings | None:
                ruling = replies.read_ruling(text, shown=[case.response, *observed.value])
                return None if ruling is None else {place: Ruling(float(ruling[0]), evidence=ruling[1])}

            with self._lock:
                self._counts["calls_run"] += len(observed.value)
            self._ask(prompts.to_rule(case, item, observed.value), read, done, number=number)

        self._run(lambda _: names, or_failed(done, call))

    def _score(
        self, case: prompts.Case, rubric: Rubric, found: Sequence[Found], done: Callable[[list[Found]], None]
    ) -> None:
        """Asks for one score of a response, after its programs were run."""
        if failed := [one for one in found if one.value is None]:
            done(failed)
            return
        tested = {place: ruling.share > 0.5 for one in found for place, ruling in one.value.items()}
        prompt = prompts.to_score(case, rubric, tested)
        numbers = range(self._num_judgements)
        gather([functools.partial(self._ask, prompt, replies.read_score, number=number) for number in numbers], done)

    # --- asking -----------------------------------------------------------------------------------------------------

    def _run(
        self, start: Callable[[Programs], futures.Future], done: Done, value: Callable[[Any], Any] = lambda found: found
    ) -> None:
        """Runs something of the response's program; calls `done` with what came of it."""

        def arrived(future: futures.Future) -> None:
            try:
                outcome = future.result()
                failed = outcome.failure is not None
                found = Found(None if failed else value(outcome.value), outcome.failure or "", outcome.timed_out)
            except Exception as error:  # noqa: BLE001 - as in _ask
                found = Found(None, bug(error))
            done(found)

        if self._programs is None:
            done(Found(None, "it was given nothing that runs programs"))
            return
        start(self._programs).add_done_callback(arrived)

    def _ask(self, prompt: str, read: Callable[[str], Any], done: Done, *, number: int = 0, attempt: int = 0) -> None:
        """Asks until a reply can be read; calls `done` with what was read, or None, and why."""

        def arrived(future: futures.Future) -> None:
            # What a callback raises is lost, and the caller would wait for `done` for ever.
            try:
                found = self._read(future.result(), read)
                again = found.failure == _UNREADABLE and attempt < self._max_retries
                if again:
                    self._ask(prompt, read, done, number=number, attempt=attempt + 1)
            except Exception as error:  # noqa: BLE001 - a grade less, not the end of the run
                found, again = Found(None, bug(error)), False
            if not again:
                done(found)

        self._endpoint.submit(
            prompt,
            max_tokens=self._max_length,
            temperature=self._temperature or float(attempt > 0),
            top_p=1.0,
            seed=number * (self._max_retries + 1) + attempt,
        ).add_done_callback(arrived)

    def _read(self, reply: Reply, read: Callable[[str], Any]) -> Found:
        """Returns what a reply says, or None and why it says nothing."""
        if reply.failure is not None or reply.text is None:
            return Found(None, reply.failure or "")
        value = read(after_thinking(reply.text, opened=reply.truncated))  # cut off, it may never have ended to think
        if value is not None:
            return Found(value)
        with self._lock:
            self._counts["unreadable"] += 1
        return Found(None, _UNREADABLE)

    # --- grades -----------------------------------------------------------------------------------------------------

    def _graded(self, rubric: Rubric, found: Sequence[Found]) -> Grade:
        """The grade of a response whose items were ruled on."""
        rulings = []
        for place in range(len(rubric.items) + bool(rubric.reference)):
            some = [one.value[place] for one in found if one.value is not None and place in one.value]
            if not some:
                return _no_grade(next(one for one in found if one.value is None))
            self._note_spread([ruling.share for ruling in some])
            rulings.append(_mean(some, rubric, place))
        return rubric_lib.grade(rubric, rulings, timed_out=any(one.timed_out for one in found))

    def _graded_whole(self, rubric: Rubric, found: Sequence[Found]) -> Grade:
        """The grade of a response that was scored as a whole."""
        scores = [one.value for one in found if one.value is not None]
        if not scores:
            return _no_grade(found[0])
        self._note_spread([(score - 1) / 9 for score in scores])
        mean = statistics.fmean(scores)
        of = f", the mean of {len(scores)} scores" if len(scores) > 1 else ""
        return Grade((mean - 1) / 9, f"{mean:g} of 10", f"scored {mean:g} of 10 with the rubric in view{of}")

    def _note_spread(self, judgements: Sequence[float]) -> None:
        if len(judgements) > 1:
            with self._lock:
                self._counts["spread_sum"] += statistics.pstdev(judgements)
                self._counts["spread_items"] += 1


def _mean(rulings: Sequence[Ruling], rubric: Rubric, place: int) -> Ruling:
    """The mean of the rulings on an item, with the evidence of the first that costs the response reward."""
    share = statistics.fmean(ruling.share for ruling in rulings)
    good = 1.0 if place >= len(rubric.items) or rubric.items[place].weight > 0 else 0.0
    against = [ruling.evidence for ruling in rulings if ruling.share != good]
    return Ruling(share, len(rulings), next(filter(None, against), ""))


def _no_grade(found: Found) -> Grade:
    timed_out = found.failure == "timeout"
    return Grade(0.0, None, f"judge failed: {found.failure}", timed_out=timed_out, failed=True)
