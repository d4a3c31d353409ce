"""The exceptions that a user's mistake, or a signal, raises."""


class UserError(ValueError):
    """A mistake that the user can fix: the message is one line that says what was given, what is allowed, what to do.

    Entry points print it without a stack trace and exit with status 2.
    """


class GradingError(UserError):
    """Responses can't be graded: raised on all processes alike, so that a run can save what it has before it ends."""


class Stopped(Exception):
    """A signal has reached a process: raised on all, at one place, with its number."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number
