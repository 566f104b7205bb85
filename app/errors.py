"""Every error that work on a row can end with.

    TobanError
    ├── Transient           the same work may succeed later: connection reset, 5xx, timeout, deadlock
    │   ├── RateLimited     the other side said when
    │   └── NotReady        this worker can't do any such work now: its model or its keys are missing
    │       └── Halted      no worker can: credit is used up, a key is refused; until a person or time changes that
    ├── Permanent           it will fail again until a person changes something
    │   └── Refused         the database says what is wrong with what was asked for
    ├── BadAnswer           a model's answer can't be used; a new one may be
    ├── OutOfMemory         the work needs more memory than this worker has
    ├── NothingThere        there is nothing to do for this row
    └── LeaseLost           another attempt owns the item; stop and write nothing

Adapters translate their library's exceptions into these where they arise. What is done about an error is decided
in one place, `app/retry.py`. Messages are read by people: they name the thing, the reason and the remedy, and never
hold a secret or the words of a recording.
"""

from datetime import datetime


class TobanError(Exception):
    """Base class; `kind` is what the ledger stores beside the message."""

    kind = "error"


class Transient(TobanError):
    """The same work may succeed later."""

    kind = "transient"


class RateLimited(Transient):
    """The other side asked for a pause.

    `retry_after`: seconds until it takes requests again.
    """

    kind = "rate_limited"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(Transient):
    """This worker can't do any such work now, whatever the row: its model is missing, its keys are wrong."""

    kind = "not_ready"


class Halted(NotReady):
    """No work of this queue can go on until a person or a later moment changes something.

    `cause`: `credit`, `key`, `model` or `budget`. `seconds`: pause before the next look.
    """

    kind = "halted"

    def __init__(self, message: str, cause: str, seconds: float = 600) -> None:
        super().__init__(message)
        self.cause = cause
        self.seconds = seconds


class Permanent(TobanError):
    """It will fail again until a person changes something."""

    kind = "permanent"


class Refused(Permanent):
    """What was asked for makes no sense or is not there; the message is for whoever asked.

    `missing`: it is not there.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class BadAnswer(TobanError):
    """A model's answer can't be used; a new one may be."""

    kind = "bad_answer"


class OutOfMemory(TobanError):
    """The work needs more memory than this worker has."""

    kind = "out_of_memory"


class NothingThere(TobanError):
    """There is nothing to do for this row.

    `final_at`: until this moment (aware) the thing may still arrive, so the row waits; None: it is final now.
    """

    kind = "nothing_there"

    def __init__(self, message: str, final_at: datetime | None = None) -> None:
        super().__init__(message)
        self.final_at = final_at


class LeaseLost(TobanError):
    """Another attempt owns the item; whoever gets this stops and writes nothing."""

    kind = "lease_lost"
