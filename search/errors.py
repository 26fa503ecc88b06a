"""The base of errors that are made for people to read: the command line prints them without a traceback."""


class UserError(ValueError):
    """Something the user can mend; the message says what was expected, what there is, and what to do."""
