"""Errors that a person can mend."""


class UserError(ValueError):
    """A mistake the user can mend; the command line prints it as one sentence and exits with 2."""
