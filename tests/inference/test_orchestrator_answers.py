"""What coroutines wait for beside texts: grades, read at a fixed tick, and remote answers, when they come."""

import dataclasses
import threading
import types
from concurrent import futures

import jax
import pytest
import slow_grading
from fake_engine import FakeEngine, key_of
from scripted_stages import ask, run, solve, texts

from cgrpo_jax.errors import GradingError, UserError
from cgrpo_jax.inference import orchestrator
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.rewards import mathematics
from cgrpo_jax.runtime import processes

# --- grades -------------------------------------------------------------------------------------------------------


class Graded(grader_lib.Grader):
    """Grades "right" as right; `delay` of its answers come only a while after they were asked for."""

    def __init__(self, slow=False):
        super().__init__("exact")
        self.slow, self.asked, self.threads = slow, [], []

    def submit(self, response, answer, **_):
        self.asked.append(response)
        done = futures.Future()

        def finish():
            done.set_result(grader_lib.Grade(float(response == answer), response, "compared"))

        if self.slow:
            self.threads.append(threading.Timer(0.03, finish))
            self.threads[-1].start()
        else:
            finish()
        return grader_lib.Pending(done.result)


def problem(answer="right", **fields):
    return Problem(0, "a question", answer, **fields)


def test_grades_are_in_order():
    async def graded(*responses):
        return [grade.score for grade in await orchestrator.grade(responses, problem())]

    coroutines = [graded("right", "wrong", "right"), graded(), graded("wrong")]
    assert run(*coroutines, grader=Graded()) == [[1.0, 0.0, 1.0], [], [0.0]]


def test_the_grader_is_given_the_problem(monkeypatch):
    given, grader = [], Graded()
    submit = grader.submit
    monkeypatch.setattr(grader, "submit", lambda *row, **rest: given.append(rest) or submit(*row, **rest))

    async def graded():
        return await orchestrator.grade(["right"], problem(grader="exact", columns={"level": 3}))

    run(graded(), grader=grader)
    expected = {"kind": "exact", "prompt": "a question", "columns": {"level": 3}, "thinking_opened": False}
    assert given == [expected]


def graded_schedule(slow):
    engine, grader = FakeEngine(steps=lambda i: 1 + (i.question + i.stage) % 3, num_slots=2), Graded(slow)

    async def between():
        await orchestrator.grade(["right"], problem())

    run(*[solve(engine, q, between=between) for q in range(4)], engines=[engine], grader=grader)
    return [(event[0], *(key_of(event[1].indices[0]) if len(event) > 1 else ())) for event in engine.events]


@pytest.mark.parametrize("ticks", [1, 3])
def test_the_schedule_does_not_depend_on_how_long_grading_takes(monkeypatch, ticks):
    monkeypatch.setattr(orchestrator, "_GRADE_TICKS", ticks)
    assert graded_schedule(slow=False) == graded_schedule(slow=True)


@pytest.mark.parametrize("number", [1, 3])
def test_grades_are_read_a_fixed_number_of_ticks_after_they_were_asked_for(monkeypatch, number):
    """Question 0 asks when its text ends; question 1 keeps the engine busy meanwhile."""
    monkeypatch.setattr(orchestrator, "_GRADE_TICKS", number)
    engine, ticks, read = FakeEngine(steps=lambda i: 1 + 6 * i.question), [], []

    async def graded():
        await ask(engine, 0)
        asked = len(ticks)
        await orchestrator.grade(["right"], problem())
        read.append(len(ticks) - asked)

    for slow in (False, True):
        run(graded(), texts(ask(engine, 1)), engines=[engine], grader=Graded(slow), on_tick=ticks.append)
    assert read == [number] * 2


def test_engines_go_on_while_grades_are_worked_on():
    engine = FakeEngine(steps=lambda i: 1 + 3 * i.question)
    grader = Graded(slow=True)

    async def graded():
        await ask(engine, 0)
        before = engine.events.count(("step",))
        await orchestrator.grade(["right"], problem())
        return engine.events.count(("step",)) - before

    steps, _ = run(graded(), texts(ask(engine, 1)), engines=[engine], grader=grader)
    assert steps == orchestrator._GRADE_TICKS


def test_a_grade_that_hangs_is_a_zero_that_is_counted(monkeypatch):
    monkeypatch.setattr(mathematics, "grade", slow_grading.grade)

    async def graded(*responses):
        return await orchestrator.grade(responses, problem("1"))

    engine = FakeEngine(steps=lambda i: 3)
    with grader_lib.Grader("math", num_workers=2, timeout=1.0) as grader:
        shared = Orchestrator(grader)
        (first, second, _) = shared.run(
            [graded("1", "hang", "1"), graded("1"), texts(ask(engine, 0))], engines=[engine]
        )
        assert [grade.score for grade in first + second] == [1.0, 0.0, 1.0, 1.0]
        assert first[1].timed_out and "timed out after 1 s" in first[1].reason
        assert shared.timeouts == 1 and 0.5 < shared.grade_seconds < 30
        assert shared.run([graded("1")])[0][0].score == 1.0
        assert shared.timeouts == 0 and shared.grade_seconds < 0.5  # of the last run alone


# --- remote answers -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Reply:
    text: str


def test_remote_answers_are_handed_out_when_they_come_while_engines_go_on(monkeypatch):
    """The answer comes at the third tick; the other coroutine's text takes eight, and nothing sleeps."""
    monkeypatch.setattr(orchestrator.futures, "wait", lambda *_, **__: pytest.fail("an engine has work"))
    engine, pending, seen = FakeEngine(steps=lambda i: 8), futures.Future(), []

    async def caller():
        reply = await orchestrator.await_future(lambda: pending)
        seen.append(engine.events.count(("step",)))
        return reply

    def tick(progress):
        if engine.events.count(("step",)) == 3:
            pending.set_result(Reply("ok"))

    assert run(caller(), texts(ask(engine, 0)), engines=[engine], on_tick=tick) == [{"text": "ok"}, [0]]
    assert seen == [4]  # read at the end of the next tick


def test_remote_answers_come_in_any_order_and_wake_who_waits():
    pending = [futures.Future() for _ in range(3)]
    order = iter([2, 0, 1])

    async def caller(number):
        return (await orchestrator.await_future(lambda: pending[number]))["text"]

    def answer():
        for number in order:
            pending[number].set_result(Reply(str(number)))

    timer = threading.Timer(0.05, answer)
    ticks = []

    async def start():
        timer.start()

    assert run(start(), *[caller(i) for i in range(3)], on_tick=ticks.append) == [None, "0", "1", "2"]
    assert len(ticks) < 5  # it slept till then


def test_who_waits_for_an_answer_can_be_stopped(monkeypatch):
    """An endpoint may be silent for long: SIGTERM is looked for meanwhile."""
    monkeypatch.setattr(orchestrator, "_POLL_SECONDS", 0.01)
    ticks = []

    async def caller():
        await orchestrator.await_future(futures.Future)

    def tick(progress):
        ticks.append(progress)
        if len(ticks) == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(caller(), on_tick=tick)


def test_other_processes_do_not_ask(monkeypatch):
    """Process 1 takes the answer that process 0 shares, when process 0 has it."""
    monkeypatch.setattr(processes, "is_first", lambda: False)
    shared = iter([[None, []], [None, []], [None, [[0, {"text": "from process 0"}]]]])
    monkeypatch.setattr(processes, "share", lambda value: [next(shared), value])

    async def caller():
        return await orchestrator.await_future(lambda: pytest.fail("only process 0 asks"))

    assert run(caller()) == [{"text": "from process 0"}]


def broken():
    raise OSError("no more threads")


def never_answered():
    future = futures.Future()
    future.set_exception(OSError("no more threads"))
    return future


@pytest.mark.parametrize("submit", [broken, never_answered])
def test_asking_that_fails_on_process_0_fails_on_all(monkeypatch, submit):
    shared = []
    monkeypatch.setattr(processes, "share", lambda value: shared.append(value) or [value])

    async def caller():
        await orchestrator.await_future(submit)

    with pytest.raises(OSError, match="no more threads"):
        run(caller())
    assert shared == [[None, [[0, None]]]]  # the other processes hear of it before this one ends
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "share", lambda value: [[None, [[0, None]]], value])
    with pytest.raises(UserError, match="^asking an endpoint failed on process 0; its own message says why"):
        run(caller())


def test_processes_divide_the_grading(monkeypatch):
    """Process 1 of 2 grades every second row, and takes the others from process 0."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    given = []

    def share(own):
        given.append(own)
        grades = [[[0.0, "first", "", False, True], [0.0, "third", "", True, False]]]
        return [[[grades, ""], []], own]

    monkeypatch.setattr(processes, "share", share)
    grader = Graded()
    shared = Orchestrator(grader)

    async def graded():
        return await orchestrator.grade(["a", "right", "c"], problem())

    (grades,) = shared.run([graded()])
    assert grader.asked == ["right"] and given == [[[[[(1.0, "right", "compared", False, False)]], ""], []]]
    assert [grade.extracted for grade in grades] == ["first", "right", "third"]
    assert [grade.score for grade in grades] == [0.0, 1.0, 0.0]
    assert (shared.timeouts, shared.failures) == (1, 1)

    # Where the grader of this process fails, the others hear of it in the place of what it would have shared.
    def broken():
        raise RuntimeError("no worker starts")

    monkeypatch.setattr(grader, "submit", lambda *_, **__: types.SimpleNamespace(result=broken))
    with pytest.raises(RuntimeError, match="no worker starts"):
        shared.run([graded()])
    assert given[1:] == [[[[], None], []]]

    # And where that of process 0 does, this one ends with a line that says so.
    monkeypatch.setattr(processes, "share", lambda own: [[[[], None], []], own])
    monkeypatch.setattr(
        grader, "submit", lambda *_, **__: types.SimpleNamespace(result=lambda: grader_lib.Grade(1.0, "right", ""))
    )
    with pytest.raises(UserError, match="^grading failed on process 0; its own message says why"):
        shared.run([graded()])


def test_grades_and_answers_of_a_tick_are_shared_together(monkeypatch):
    shared, pending = [], futures.Future()
    pending.set_result(Reply("ok"))
    monkeypatch.setattr(processes, "share", lambda own: shared.append(own) or [own])

    async def graded():
        return [grade.score for grade in await orchestrator.grade(["right"], problem())]

    async def caller():
        return await orchestrator.await_future(lambda: pending)

    assert run(graded(), caller(), grader=Graded()) == [[1.0], {"text": "ok"}]
    assert shared == [[[[[(1.0, "right", "compared", False, False)]], ""], [[0, {"text": "ok"}]]]]


@pytest.mark.parametrize("at", ["submit", "send"])
def test_what_fails_as_grading_begins_fails_on_all_processes(monkeypatch, at):
    """This process can't start its workers, say: it goes on with the others to where grades are read."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shared, grader, engine = [], Graded(), FakeEngine(steps=lambda i: 9)
    monkeypatch.setattr(processes, "share", lambda value: shared.append(value) or [value, [[[], ""], []]])

    def broken(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(grader, at, broken)

    async def graded():
        await orchestrator.grade(["right", "wrong"], problem())

    with pytest.raises(OSError, match="no more processes"):
        run(graded(), texts(ask(engine, 1)), engines=[engine], grader=grader)
    assert shared == [[[[], None], []]] and engine.events.count(("step",)) == orchestrator._GRADE_TICKS


@pytest.mark.parametrize("here", [0, 1])
def test_a_function_gets_whole_questions_also_on_several_processes(monkeypatch, tmp_path, here):
    """Process 0 takes the first and the third question, process 1 the second; each in one call, in order."""
    ranks = [[2.0, 0.0, 1.0], [0.0, 1.0, 2.0], [1.0, 0.0]]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: here)

    def share(own):
        """The other process gives its share: the grades of its questions, in order."""
        other = [[[rank, None, "", False, False] for rank in group] for group in ranks]
        other = [[] if i % 2 == here else group for i, group in enumerate(other)]
        return [own, [[other, ""], []]] if here == 0 else [[[other, ""], []], own]

    monkeypatch.setattr(processes, "share", share)
    file = tmp_path / "ranks.py"
    file.write_text(
        "def rank(completions, **columns):\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as file: file.write(''.join(completions) + '\\n')\n"
        "    return [float(sorted(completions).index(one)) for one in completions]\n"
    )

    async def graded(*responses):
        return [grade.score for grade in await orchestrator.grade(responses, problem(grader=f"{file}:rank"))]

    with grader_lib.Grader("exact", num_workers=1, timeout=30.0) as grader:
        assert run(graded(*"cab"), graded(*"def"), graded(*"hg"), grader=grader) == ranks
    calls = (tmp_path / "calls").read_text().split()
    assert calls == (["cab", "hg"] if here == 0 else ["def"])


def test_what_a_function_raises_on_one_process_ends_all_with_the_same_words(monkeypatch):
    monkeypatch.setattr(processes, "share", lambda own: [own, [[[], "grader 'f.py:f' raised ValueError"], []]])

    async def graded():
        await orchestrator.grade(["right"], problem())

    with pytest.raises(GradingError, match="^grader 'f.py:f' raised ValueError$"):
        run(graded(), grader=Graded())

    def raises():
        raise GradingError("here")

    grader, shared = Graded(), []
    monkeypatch.setattr(grader, "submit", lambda *_, **__: grader_lib.Pending(raises))
    monkeypatch.setattr(processes, "share", lambda own: shared.append(own) or [own])
    with pytest.raises(GradingError, match="^here$"):
        run(graded(), grader=grader)
    assert shared == [[[[], "here"], []]]  # the other processes hear of it before this one ends


# --- graders that fail --------------------------------------------------------------------------------------------


class Failing(grader_lib.Grader):
    """Has no verdict on responses with "fail" in them."""

    def submit(self, response, answer, **options):
        if "fail" in response:
            return grader_lib.Pending(lambda: grader_lib.Grade(0.0, None, "the sandbox broke", failed=True))
        return super().submit(response, answer, **options)


async def grades_of(question, *responses, **fields):
    return await orchestrator.grade(responses, Problem(question, "a question", "right", **fields))


def test_failures_are_counted_and_said_once(caplog):
    shared = Orchestrator(Failing("exact"))
    for _ in range(2):
        shared.run([grades_of(q, "right", "fail", "fail") for q in range(8)])
        assert (shared.failures, shared.timeouts) == (16, 0)
    (record,) = caplog.records
    assert "grader 'exact' gave no verdict: the sandbox broke; counted in grade/failures" in record.getMessage()
    shared.run([grades_of(0, "right")])
    assert shared.failures == 0


def test_a_grader_that_fails_on_all_responses_ends_the_run():
    """Empty responses say nothing of it."""
    said = r"grader 'exact' gave no verdict on any of 8 responses \(the sandbox broke\); see that it works"
    with pytest.raises(GradingError, match=said):
        Orchestrator(Failing("exact")).run([grades_of(q, "fail", "", "<think>hm", "fail") for q in range(6)])


def test_few_failures_or_those_of_few_questions_end_no_run():
    """A question may be at fault, whose responses would be asked for again by a run that goes on."""
    shared = Orchestrator(Failing("exact"))
    shared.run([grades_of(q, *["fail"] * 20) for q in range(3)])
    assert shared.failures == 60
    shared = Orchestrator(Failing("exact"))
    shared.run([grades_of(q, "fail") for q in range(7)])
    with pytest.raises(GradingError):  # a run of few questions ends at its next iteration
        shared.run([grades_of(q, "fail") for q in range(7)])


def test_each_kind_must_work_by_itself():
    rows = [grades_of(q, "right", "fail", "fail") for q in range(6)]
    rows += [grades_of(q, "fail", "fail", grader="trace") for q in range(6)]
    with pytest.raises(GradingError, match="grader 'trace' gave no verdict"):
        Orchestrator(Failing("exact")).run(rows)
