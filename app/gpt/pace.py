"""What a server's headers say about how soon it may be asked again.

Sources: OpenAI's guide "Rate limits" (`x-ratelimit-*`, durations such as `6m0s` and `20ms`), RFC 9110 10.2.3
(`Retry-After`); `retry-after-ms` is Azure's and OpenAI's.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST = 3600.0  # seconds; after that it is looked again, whatever the server said
DEFAULT = 15.0  # seconds, after a 429 that says nothing
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Limits:
    """`pause`: seconds in which nobody should ask this server. `requests`, `tokens`: its limits; None: not said."""

    pause: float = 0
    requests: int | None = None
    tokens: int | None = None


def limits_of(headers: Mapping[str, str], *, refused: bool = False, now: datetime | None = None) -> Limits:
    """The limits in an answer's headers (names in lower case); `refused`: the answer was a 429."""
    resets = {name: seconds_of(headers.get(f"x-ratelimit-reset-{name}", "")) for name in ("requests", "tokens")}
    used_up = [
        reset for name, reset in resets.items() if reset is not None and _count(headers, f"remaining-{name}") == 0
    ]
    asked = _asked(headers, now or datetime.now(UTC))
    if refused:
        known = [reset for reset in resets.values() if reset is not None]
        if asked is None:
            asked = max(used_up or known, default=DEFAULT)
        pause = asked
    else:
        pause = max([*used_up, asked or 0.0])
    return Limits(min(pause, LONGEST), _count(headers, "limit-requests"), _count(headers, "limit-tokens"))


def seconds_of(duration: str) -> float | None:
    """Seconds of `6m0s`, `20ms`, `1h2m3.5s` or a plain number; None: it can't be read."""
    text = duration.strip().lower()
    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    return _number(text)


def _asked(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the server asks to wait; None: it doesn't."""
    if (milliseconds := _number(headers.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000
    text = headers.get("retry-after", "")
    if (seconds := _number(text)) is not None:
        return seconds
    moment = _date(text)
    if moment is None:
        return None
    # By the server's own clock where it tells it: this machine's may be wrong.
    return max((moment - (_date(headers.get("date", "")) or now)).total_seconds(), 0.0)


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    # Larger ones are moments (seconds since 1970), not durations.
    return number if math.isfinite(number) and 0 <= number < 10**8 else None


def _count(headers: Mapping[str, str], name: str) -> int | None:
    number = _number(headers.get(f"x-ratelimit-{name}", ""))
    return None if number is None else int(number)
