"""The two exceptions that speak to the user."""


class UserError(Exception):
    """Bad input that the user can mend.

    The message is one line that names the thing and the mend. The command line prints it and exits with code 2.
    """


class Stopped(Exception):
    """Training was asked to stop (Ctrl-C, SIGTERM) and has saved. The command line exits with code 130."""
