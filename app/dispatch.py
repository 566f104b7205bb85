"""Turn waiting rows into messages: claim what the workers can run, drop what is not there, send the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
from opentelemetry.trace import SpanKind

from app import tracing
from app.errors import TobanError, Transient
from app.ledger import Claimed
from app.services import Services
from app.sources import SHADOW, Source, registry

log = structlog.get_logger("toban.dispatch")

# One claim's size at most; a queue with more room is filled by the next round.
BATCH = 500
# Rounds in which everything claimed turned out to be missing, before the rest is left to the next tick.
ROUNDS = 100
# Why a claim took nothing: somebody else is at it.
BUSY = "another dispatcher is claiming"

Send = Callable[[Source, Claimed], None]


@dataclass
class Dispatched:
    """What one look at a source's waiting rows came to.

    `found`: items that were due (counted up to 10,000); `reason`: why the last look took none, where it took none;
    `shadow`: what was sent is only compared.
    """

    found: int = 0
    dispatched: int = 0
    skipped: int = 0
    reason: str | None = None
    shadow: bool = False

    def __str__(self) -> str:
        told = "shadow: " if self.shadow else ""
        told += f"{self.dispatched} sent, {self.skipped} skipped of {self.found} due"
        return f"{told}: {self.reason}" if self.reason and not self.dispatched else told


def dispatch(services: Services, source: Source, send: Send) -> Dispatched:
    """Send messages for due items of `source`, as many as its workers have room for; in shadow mode, for its shadow's.

    Raises `Transient` when the broker does not take them: they are given back and nothing is lost.
    """
    done = Dispatched()
    zone = services.settings.audio.device_timezone
    for _ in range(ROUNDS):
        claim = services.ledger.claim(source.name, source.queue, BATCH, zone, source.opened_before(services))
        done.found = max(done.found, claim.found + done.skipped)
        done.reason = claim.reason
        if claim.reason == "shadow":
            twin = registry.sources.get(SHADOW + source.name)
            return replace(dispatch(services, twin, send), shadow=True) if twin else done
        if not claim.items:
            break
        about: tracing.Attributes = {"toban.source": source.name, "messaging.batch.message_count": len(claim.items)}
        with tracing.span(f"dispatch {source.name}", about, kind=SpanKind.PRODUCER):
            present = _without_missing(services, source, claim.items)
            done.skipped += len(claim.items) - len(present)
            _send_all(services, source, present, send)
        done.dispatched += len(present)
        if len(present) == len(claim.items):
            break
    if done.dispatched or done.skipped:
        log.info(
            "dispatch.sent", source=source.name, found=done.found, dispatched=done.dispatched, skipped=done.skipped
        )
    return done


def _without_missing(services: Services, source: Source, items: Sequence[Claimed]) -> list[Claimed]:
    if source.missing is None:
        return list(items)
    try:
        missing = set(source.missing(services, items))
    except TobanError as error:
        # The look-up only saves time: without it each task finds out for itself.
        log.warning("dispatch.unchecked", source=source.name, reason=str(error))
        return list(items)
    if missing:
        services.database.call("toban_skip_claimed", tasks=sorted(missing), reason=source.missing_note)
    return [item for item in items if item.task_id not in missing]


def _send_all(services: Services, source: Source, items: list[Claimed], send: Send) -> None:
    for position, item in enumerate(items):
        try:
            send(source, item)
        except Transient:
            services.database.call("toban_release", tasks=[rest.task_id for rest in items[position:]])
            raise
