"""What each test computes, and a limit on what a unit test may."""

import collections
import os
import time

import pytest


class Meter:
    """Seconds since it was made: of the processor, or of the clock where these are fewer.

    A busy machine hardly changes the processor's. But those of another process count when it has been waited for, also
    for the tests before that it has worked for.
    """

    def __init__(self):
        self._processor, self._clock = sum(os.times()[:4]), time.monotonic()

    def seconds(self) -> float:
        return min(sum(os.times()[:4]) - self._processor, time.monotonic() - self._clock)


class CpuLimit:
    """A plugin of pytest: a unit test whose call and own fixtures compute for longer than `seconds` fails.

    What a fixture of a module or of the session computes belongs to no test. With `--cpu=N` the N tests that computed
    longest are listed at the end, and what each folder took.
    """

    def __init__(self, seconds: float, listed: int | None):
        self.seconds, self.listed = seconds, listed
        self._meter, self._shared, self._in_shared = Meter(), 0.0, False
        self._spent: dict[str, tuple[float, float]] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self):
        self._meter, self._shared = Meter(), 0.0
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function" or self._in_shared:
            return (yield)
        meter, self._in_shared = Meter(), True
        try:
            return (yield)
        finally:
            self._shared += meter.seconds()
            self._in_shared = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when != "call":
            return report
        own = max(0.0, self._meter.seconds() - self._shared)
        report.user_properties.append(("cpu", (own, self._shared)))
        if report.passed and item.get_closest_marker("unit") and own > self.seconds:
            report.outcome = "failed"
            report.longrepr = (
                f"{item.nodeid} took {own:.1f} s of processor time, a unit test {self.seconds:g} s at most: make it "
                "smaller, let a fixture of the module compute what its tests share, or move it to tests/integration"
            )
        return report

    def pytest_runtest_logreport(self, report):
        for name, seconds in report.user_properties:
            if name == "cpu":
                self._spent[report.nodeid] = seconds

    def pytest_terminal_summary(self, terminalreporter):
        if self.listed is None:
            return
        folders = collections.defaultdict(list)
        for test, seconds in self._spent.items():
            folders[os.path.dirname(test.partition("::")[0])].append(sum(seconds))
        terminalreporter.section("processor seconds")
        for test, (own, shared) in sorted(self._spent.items(), key=lambda one: -one[1][0])[: self.listed]:
            terminalreporter.write_line(f"{own:7.2f} +{shared:6.2f}  {test}")
        for folder, seconds in sorted(folders.items()):
            terminalreporter.write_line(f"{sum(seconds):7.1f}  {folder}, {len(seconds)} tests")
