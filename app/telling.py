"""What may be told of an error, in logs, messages, results and the ledger.

The words of this program's own errors are meant for people. Those of all others may quote what they stumbled over: a
row, a prompt, an answer. So of these only the kind is told, and where it happened.
"""

import traceback
from pathlib import Path

from app.errors import TobanError


def reason(error: BaseException) -> str:
    """In one line: our own words, the system's, or `ValueError in parse (verdict.py, line 12)`."""
    if isinstance(error, TobanError):
        return str(error)
    name = type(error).__name__
    if isinstance(error, OSError) and isinstance(error.errno, int) and error.strerror:
        return f"{name}: {error.strerror}"
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return f"{name} in {frames[0].name} ({Path(frames[0].filename).name}, line {frames[0].lineno})" if frames else name


def trace(error: BaseException) -> str:
    """The traceback, with the errors that led to it: lines of source, and no words but our own."""
    parts: list[str] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        # (Where it happened is what the lines say.)
        words = f"{type(one).__name__}: {one}" if isinstance(one, TobanError) else reason(one).partition(" in ")[0]
        lines = ["Traceback (most recent call last):\n"] if one.__traceback__ else []
        parts.append("".join([*lines, *traceback.format_tb(one.__traceback__), words, "\n"]))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "\nwhich led to:\n\n".join(reversed(parts)).rstrip("\n")


def bare(error: TobanError) -> TobanError:
    """The error without those that led to it, for what prints the whole chain (Celery's results and events)."""
    error.__cause__ = error.__context__ = None
    error.__suppress_context__ = True
    return error
