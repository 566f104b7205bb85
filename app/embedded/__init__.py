"""The embedded stack of `toban up` and `toban demo`: the servers and workers on one machine, under a supervisor."""

from app.embedded.errors import StackError
from app.embedded.stack import Stack

__all__ = ["Stack", "StackError"]
