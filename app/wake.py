"""Somebody says that a row of a source has begun to wait: claim at once, instead of at the next tick.

What is heard leads to a claim as every tick does, so a word that is lost, repeated or wrong costs nothing but time.
"""

import threading

import structlog

from app.dispatch import BATCH, BUSY, Dispatched, Send, dispatch
from app.errors import TobanError
from app.services import Services
from app.sources import registry

log = structlog.get_logger("toban.wake")

# Between two looks at a source, seconds: where the last one took rows, where it took none, where it failed. All that is
# heard meanwhile is one look.
AFTER_SOME, AFTER_NONE, AFTER_FAILURE = 0.05, 0.5, 5.0


def look(services: Services, source: str, send: Send) -> Dispatched | None:
    """Claim for `source` and send; None when that failed, which is told: the next tick does it."""
    try:
        return dispatch(services, registry[source], send)
    except TobanError as error:
        log.warning("wake.failed", source=source, reason=str(error))
    except Exception:
        log.exception("wake.failed", source=source)
    return None


def pause_after(done: Dispatched | None) -> float:
    """How long to leave a source alone after a look, seconds."""
    if done is None:
        return AFTER_FAILURE
    return AFTER_SOME if done.dispatched else AFTER_NONE


def more_after(done: Dispatched | None) -> bool:
    """Whether to look again, although nobody says anything new: a claim takes only so many, and one at a time claims.

    That other dispatcher may have begun before the row was there.
    """
    return done is not None and (done.reason == BUSY or done.dispatched + done.skipped >= BATCH)


def listen(services: Services, send: Send, stop: threading.Event) -> None:
    """Claim what the database tells of until `stop`; return at once where it tells of nothing.

    `send` publishes an item's message.
    """
    url = services.settings.database.listen_url()
    if url is None or not services.settings.ledger.listen:
        return
    from app.listener import Listener  # a library of 0.3 s, which the REST API needs none of

    Listener(services, send, url).run(stop)
