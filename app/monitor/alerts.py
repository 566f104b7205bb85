"""Send alerts by Apprise: each message to each channel once, and a channel that fails again later."""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import structlog

from app.database import Database
from app.errors import TobanError
from app.monitor.messages import Message, message
from app.settings import Alerts

if TYPE_CHECKING:
    from apprise.plugins.base import NotifyBase

log = structlog.get_logger("toban.monitor")

# Whoever has taken a message has this long to send it, seconds. A channel answers within its time-outs (some 8 s).
LEASE = 120


@dataclass(frozen=True)
class Outcome:
    """How a channel took a message; `error`: None when it did."""

    channel: str
    error: str | None = None

    def row(self) -> dict[str, str | None]:
        return {"channel": self.channel, "error": self.error}


@dataclass(frozen=True)
class Channel:
    """`name`: what people and the database know it by; the address is a secret."""

    name: str
    address: str
    plugin: "NotifyBase | None"

    def send(self, words: Message, kind: str) -> Outcome:
        """Never raises: an alert that can't be sent is told like any other trouble."""
        if self.plugin is None:
            return Outcome(self.name, "Apprise can't read this address of ALERT_URLS")
        from apprise import LogCapture, NotifyFormat, NotifyType

        types = {"opened": NotifyType.FAILURE, "recovered": NotifyType.SUCCESS, "test": NotifyType.INFO}
        with LogCapture(level=logging.WARNING, fmt="%(message)s") as told:  # type: ignore[no-untyped-call]
            try:
                done = self.plugin.notify(
                    title=words.title, body=words.body, notify_type=types[kind], body_format=NotifyFormat.TEXT
                )
            except Exception as error:  # noqa: BLE001 - a plugin's own bug
                return Outcome(self.name, self._harmless(f"{type(error).__name__}: {error}"))
            if done:
                return Outcome(self.name)
            lines = told.getvalue().strip().splitlines()
        return Outcome(self.name, self._harmless(lines[-1]) if lines else "it was not delivered")

    def _harmless(self, text: str) -> str:
        """`text` without any part of the address that could be a key."""
        for part in re.split(r"[/:@?&=,#%]+", self.address):
            if len(part) >= 6 and not re.fullmatch(r"[\d.]+|localhost", part):
                text = text.replace(part, "***")
        return text[:300]


def channels(settings: Alerts) -> list[Channel]:
    """The channels of `ALERT_URLS`."""
    from apprise import Apprise

    words = logging.getLogger("apprise")
    words.propagate = False  # they are in the outcomes
    words.setLevel(logging.WARNING)  # below that they have the addresses
    found = []
    for number, address in enumerate(settings.addresses, 1):
        plugin = Apprise.instantiate(address)
        name = f"address {number}"
        if plugin:
            name = f"{plugin.service_name} {plugin.url_id()[:6]}"  # type: ignore[no-untyped-call]
        found.append(Channel(name, address, plugin))
    return found


def send_due(database: Database, settings: Alerts, zone: ZoneInfo, waited: float = 0) -> int:
    """Send the messages that are due, unless the hours are quiet.

    `waited`: seconds for which others must have left a message. Returns how many were sent to all channels.
    """
    if not settings.addresses or settings.quiet(datetime.now(UTC).astimezone(zone)):
        return 0
    sent = 0
    targets: list[Channel] = []
    # One at a time, so that a slow channel never uses up the lease of the next.
    while taken := database.call("toban_claim_alerts", limit=1, lease=LEASE, waited=waited)["alerts"]:
        targets = targets or channels(settings)
        [alert] = taken
        words = message(alert, settings.language, zone, settings.base_url)
        outcomes = [target.send(words, alert["kind"]) for target in targets if target.name not in alert["channels"]]
        sent += _told(database, alert["id"], outcomes, alert["incident"]["fingerprint"])
    return sent


def test(database: Database, settings: Alerts, zone: ZoneInfo, who: str | None) -> Sequence[Outcome]:
    """Send a test message to every channel at once, quiet hours or not, and note how each did.

    Sends also when the database can't be told.
    """
    alert: dict[str, Any] = {"kind": "test"}
    with suppress(TobanError):
        alert["id"] = database.call("toban_test_alert", who=who)["id"]
    words = message(alert, settings.language, zone, settings.base_url)
    outcomes = [target.send(words, "test") for target in channels(settings)]
    if "id" in alert:
        with suppress(TobanError):
            _told(database, alert["id"], outcomes, "test")
    return outcomes


def _told(database: Database, alert: int, outcomes: Sequence[Outcome], incident: str) -> bool:
    for outcome in outcomes:
        if outcome.error:
            log.warning("alert.failed", channel=outcome.channel, incident=incident, reason=outcome.error)
        else:
            log.info("alert.sent", channel=outcome.channel, incident=incident)
    return bool(database.call("toban_alert_sent", id=alert, channels=[one.row() for one in outcomes])["sent"])
