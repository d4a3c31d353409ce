"""The one exception that a user's mistake raises."""


class UserError(ValueError):
    """A mistake that the user can mend: the message is one line that says what was given, what is allowed, what to do.

    Entry points print it without a stack trace and exit with status 2.
    """
