"""The exceptions whose message the user sees."""


class UserError(Exception):
    """Bad input that the user can fix.

    The message is one line that names the thing and says how to fix it. The command line prints it and exits with
    code 2.
    """


class SaidElsewhere(UserError):
    """A `UserError` that another process on the same machine says. The command line exits with code 2, in silence."""


class Stopped(Exception):
    """Training was asked to stop (Ctrl-C, SIGTERM) and has saved. The command line exits with code 130."""
