"""The one exception a user is meant to see."""


class UserError(Exception):
    """A mistake its user can mend: one line that names the key, file or value and the way out.

    The command line prints the message without a traceback and exits with code 2.
    """
