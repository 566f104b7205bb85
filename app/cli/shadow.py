"""`toban shadow report`: how far Toban agrees with the other system."""

import json
import re
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import typer
from rich.markup import escape

from app.cli.console import Grid, console
from app.database import open_database
from app.errors import Permanent
from app.health import duration
from app.jobs import duration as span
from app.settings import read
from app.takeover import mode_of

Json = dict[str, Any]


def report(
    source: str | None, *, device: str | None, since: str | None, limit: int, show_text: bool, as_json: bool
) -> None:
    """Print it. Raises `Permanent` for a source or a time that there is not."""
    settings = read(audio=False)
    with closing(open_database(settings.database, shared=False)) as database:
        if source is not None:
            mode_of(database, source)
        told: Json = database.call(
            "toban_shadow_report",
            source=source,
            device=device,
            since=_moment(since, settings.audio.zone) if since else None,
            limit=limit,
            texts=show_text,
        )
        modes = database.call("toban_modes")["modes"]
    if as_json:
        typer.echo(json.dumps({**told, "modes": modes}, ensure_ascii=False))
        return
    screen = console()
    for one in modes:
        words = f"in shadow mode since {one['since'][:16].replace('T', ' ')}" if one["mode"] == "shadow" else "live"
        screen.print(f"{one['source']}: {words}" + ("" if one["compares"] else "; it can't be compared"))
    if not told["sources"]:
        screen.print("Nothing was compared.")
        return
    screen.print(_sums(told["sources"]))
    if told["differences"]:
        screen.print()
        screen.print(_differences(told["differences"], settings.audio.zone, show_text=show_text))


def _moment(text: str, zone: ZoneInfo) -> str:
    """A day, a moment or a length of time before now, as ISO 8601 with an offset."""
    text = text.strip()
    try:
        if re.fullmatch(r"[\d.dhms]+", text):
            return (datetime.now(UTC) - span(text)).isoformat()
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise Permanent(f"--since is {text!r}; write it as 2025-07-18, 2025-07-18T12:00, or 24h") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).isoformat()


def _sums(sources: list[Json]) -> Grid:
    shown = Grid("source", "rows", "waiting", "identical", "near", "different", "missing here", "no result there",
                 "our work", "from row to result there", "cost", turns=True)  # fmt: skip
    for one in sources:
        counts = (one[name] for name in ("rows", "waiting", "identical", "near", "different", "missing", "unmatched"))
        shown.add_row(
            one["source"],
            *map(str, counts),
            _times(one.get("seconds")),
            _times(one.get("their_seconds")),
            f"{float(one['cost']):.4f} USD",
        )
    return shown


def _times(values: list[float] | None) -> str:
    """Median and 95th percentile, seconds."""
    if not values:
        return ""
    half, most = (f"{value:.1f} s" if value < 10 else duration(value) for value in values)
    return f"{half}, 95 %: {most}"


def _differences(rows: list[Json], zone: ZoneInfo, *, show_text: bool) -> Grid:
    texts = ["what", "theirs", "ours"] if show_text else ["what"]
    shown = Grid("source", "key", "completed there", *texts, keys=2, texts=texts)
    for row in rows:
        when = datetime.fromisoformat(row["completed_at"]).astimezone(zone).strftime("%Y-%m-%d %H:%M")
        both = (escape(_text(row.get(name))) for name in ("theirs", "ours")) if show_text else ()
        shown.add_row(row["source"], escape(row["key"]), when, escape(_what(row)), *both)
    return shown


def _what(row: Json) -> str:
    match row["state"], row.get("verdict"):
        case "completed", "different" if row["source"] == "transcription":
            return f"error rate {row['difference']:.2f}"
        case "completed", "different":
            return f"{row['difference']:g} points apart"
        case "completed", _:
            return "no result there"
        case state, _:
            return f"{state} here: {row.get('reason', '')}"


def _text(result: Json | None) -> str:
    if not result:
        return ""
    return str(result["text"]) if "text" in result else json.dumps(result, ensure_ascii=False)
