"""The one exception for mistakes that the user can mend."""


class UserError(ValueError):
    """Something the user gave is wrong: the message says what, the value seen, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """
