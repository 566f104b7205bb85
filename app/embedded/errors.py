"""What can go wrong with the embedded stack."""


class StackError(Exception):
    """The embedded stack can't start or has stopped; the message says why and what to do."""
