"""What several pages share: calls to the database, the sources' queues and titles, what was done just now."""

from typing import Annotated, Any
from urllib.parse import parse_qsl, quote
from zoneinfo import ZoneInfo

from fastapi import Form, Request
from fastapi.responses import Response

from app.sources import SHADOW, Source, registry
from app.web.i18n import mark, t
from app.web.render import own_path, redirect
from app.web.state import state_of
from beat_schedule import timetable

Json = dict[str, Any]
Text = Annotated[str, Form(max_length=4000)]

# What a page says after a button was pressed: `?done=…` names one of these.
_NOTES = {
    "retried": mark("It waits again, before all others."),
    "retried-all": mark("All of them wait again."),
    "retried-part": mark("The first of them wait again; press once more for the rest."),
    "dismissed": mark("Dismissed."),
    "wanted": mark("It runs with the next tick."),
    "paused": mark("Paused: nothing more of it is sent."),
    "resumed": mark("It goes on."),
    "forgotten": mark("Forgotten."),
    "saved": mark("Saved; it holds from the next tick on."),
    "stopping": mark("The worker was asked to stop. It finishes what it runs, then it goes."),
}


def note(done: str) -> str | None:
    return t(_NOTES[done]) if done in _NOTES else None


def call(request: Request, function: str, **params: object) -> Any:  # noqa: ANN401 - the answer's shape is the function's
    return state_of(request).services.database.call(function, **params)


def device_zone(request: Request) -> ZoneInfo:
    """The zone in which days and time blocks are meant."""
    return state_of(request).settings.audio.zone


def sources() -> dict[str, Source]:
    import tasks  # noqa: F401 - registers them

    return registry.sources


def jobs() -> list[str]:
    """The names of the timetable's jobs."""
    sources()
    return list(timetable())


def queues() -> dict[str, str]:
    """The queue of each source's work."""
    return {source.name: source.queue for source in sources().values()}


def modes(request: Request) -> dict[str, Json]:
    """Who works on each source's rows: its entry of `toban_modes`."""
    return {one["source"]: one for one in call(request, "toban_modes")["modes"]}


def title(source: str) -> str:
    known = sources().get(source)
    if known and source.startswith(SHADOW):
        return t("{title} (shadow)", title=title(source.removeprefix(SHADOW)))
    return t(known.title) if known else source


def path(*parts: str) -> str:
    """A page's path of parts that may hold anything."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def back(wanted: str, fallback: str, done: str) -> Response:
    """To the page of the form that was taken; it says what was `done`."""
    path, _, query = own_path(wanted, fallback).partition("?")
    return redirect(path, **{**dict(parse_qsl(query)), "done": done})
