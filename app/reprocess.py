"""Ask for rows again: what `celery -A app call tasks.reprocess` and `toban reprocess` do."""

import re
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from app.database import Database
from app.errors import Permanent
from app.settings import Settings
from app.sources import registry

BLOCK = timedelta(minutes=30)


def reprocess(
    database: Database,
    zone: ZoneInfo,
    *,
    source: str,
    key: str | list[str] | None = None,
    device_id: str | None = None,
    date: str | None = None,
    time_block: str | None = None,
    only_failed: bool = False,
    model: str | None = None,
    held: Collection[str] | None = None,
) -> dict[str, int]:
    """Make the rows of `source` that fit every given selector wait again, before other rows.

    `key`: keys as `toban status` shows them; `date`: YYYY-MM-DD, `time_block`: HH-00 or HH-30, both in `zone`;
    `only_failed`: only what has failed (alone: everything that has failed); `model`: the model to use this time;
    `held`: the models that the workers have, None: unknown.
    Returns `matched` rows, `opened` of them, `waiting` and `running` ones that were under way already.
    Raises `Permanent` for selectors that can't be meant, for a model that no worker has, and for a source that does not
    exist.
    """
    if not source or not source.strip():
        raise Permanent("reprocess: say which source, such as transcription")
    wanted: dict[str, Any] = {"source": source.strip()}
    if key is not None:
        wanted["keys"] = _keys(key)
    if device_id is not None:
        wanted["partition"] = _text("device_id", device_id)
    if date is not None:
        since, until = _period(date, time_block, zone)
        wanted |= {"date": date, "since": since.isoformat(), "until": until.isoformat()}
        if time_block is not None:
            wanted["block"] = time_block
    elif time_block is not None:
        raise Permanent("reprocess: time_block needs a date too")
    if only_failed:
        wanted["only_failed"] = True
    if wanted.keys() == {"source"}:
        raise Permanent(
            "reprocess: this would redo every row of the source; give a key, a device_id, a date or only_failed"
        )
    if model is not None:
        wanted["params"] = {"model": _held(source.strip(), _text("model", model), held)}
    answer: dict[str, int] = database.call("toban_reprocess", **wanted)
    return answer


def _keys(key: str | list[str]) -> list[str]:
    keys = [key] if isinstance(key, str) else key
    if not isinstance(keys, list) or not keys:
        raise Permanent("reprocess: key is one key or a list of keys")
    return [_text("key", each) for each in keys]


def held_models(source: str, settings: Settings) -> Collection[str] | None:
    """The models that workers with these settings have for `source`; None: nothing is known of such a source."""
    import tasks  # noqa: F401 - registers the sources

    known = registry.sources.get(source)
    if known is None:
        return None
    return known.models(settings) if known.models else ()


def _held(source: str, model: str, held: Collection[str] | None) -> str:
    if held is not None and model not in held:
        names = ", ".join(sorted(held)) or "none"
        raise Permanent(
            f"reprocess: no worker has the model {model!r} for {source}; it may be: {names}. Leave the model out, or "
            f"start the workers with that one first (docs/sources/{source}.md)"
        )
    return model


def _text(name: str, value: object) -> str:
    # Values come from a command line or as JSON from `celery call`, so their types are anybody's.
    if not isinstance(value, str) or not value.strip():
        raise Permanent(f"reprocess: {name} is {value!r}; it should be text")
    return value.strip()


def _period(day: object, block: object, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The moments (UTC) between which a day, or one of its blocks, lies in `zone`."""
    if not isinstance(day, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", day):
        raise Permanent(f"reprocess: date is {day!r}; write it as YYYY-MM-DD")
    try:
        first = datetime.combine(date.fromisoformat(day), datetime.min.time())
        next_day = first + timedelta(days=1)
    except (ValueError, OverflowError):
        raise Permanent(f"reprocess: there is no date {day}") from None
    if block is None:
        return _moments(first, zone)[0], _moments(next_day, zone)[0]
    if not isinstance(block, str) or not re.fullmatch(r"([01]\d|2[0-3])-(00|30)", block):
        raise Permanent(f"reprocess: time_block is {block!r}; write it as HH-00 or HH-30, from 00-00 to 23-30")
    starts = _moments(first.replace(hour=int(block[:2]), minute=int(block[3:])), zone)
    # Where clocks go back, a block comes twice; both are meant, and what lies between them is redone with them.
    return starts[0], starts[-1] + BLOCK


def _moments(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """When the wall clock of `zone` shows `wall`: twice where clocks go back; where they go forward, at the jump."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return [first, second] if first < second else [first]
