"""The exceptions that a user's mistake raises."""


class UserError(ValueError):
    """A mistake that the user can fix: the message is one line that says what was given, what is allowed, what to do.

    Entry points print it without a stack trace and exit with status 2.
    """


class GradingError(UserError):
    """Responses can't be graded: raised on all processes alike, so that a run can save what it has before it ends."""
