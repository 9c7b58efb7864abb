"""Errors that are the user's to mend."""


class UserError(ValueError):
    """Something the user gave is wrong. `launch` prints the text and exits with 2."""
