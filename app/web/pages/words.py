"""What states, outcomes and reasons are called, in the reader's language."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from app.web.i18n import ago, mark, number, t

STATES = ("pending", "queued", "processing", "completed", "skipped", "failed")

_STATES = {
    # of items
    "pending": mark("waiting"),
    "queued": mark("sent"),
    "processing": mark("running"),
    "completed": mark("done"),
    "skipped": mark("skipped"),
    "failed": mark("failed"),
    # of jobs
    "ok": mark("ok"),
    "running": mark("running"),
    "late": mark("late"),
    "missed": mark("missed"),
    "overran": mark("overran"),
    "paused": mark("paused"),
    # of runs
    "success": mark("ok"),
    "error": mark("failed"),
    "lost": mark("lost"),
    # of attempts
    "retry": mark("tried again"),
    "outdated": mark("out of date"),
    "released": mark("given back"),
    # of slots in a day
    "nothing": mark("nothing"),
}
# Which colour says the same: states that a person should look at are red or amber, what moves is blue.
TONES = {
    "completed": "good", "ok": "good", "success": "good",
    "processing": "busy", "running": "busy", "queued": "busy",
    "pending": "wait", "late": "warn", "retry": "warn", "lost": "warn", "overran": "warn",
    "failed": "bad", "error": "bad", "missed": "bad",
}  # fmt: skip

_CAUSES = {
    "budget": mark("budget used up"),
    "credit": mark("credit used up"),
    "quota": mark("credit used up"),
    "key": mark("key refused"),
    "auth": mark("key refused"),
    "rate": mark("too many requests"),
}
_FILTERS = {
    "partition": mark("only the device {value}"),
    "date": mark("only the day {value}"),
    "since": mark("only from {value} on"),
    "until": mark("only before {value}"),
}


def state(name: str) -> str:
    return t(_STATES[name]) if name in _STATES else name


def cause(name: str) -> str:
    """Why a queue is held, in two words."""
    return t(_CAUSES[name]) if name in _CAUSES else t("held")


def wanted(filters: Mapping[str, str]) -> str:
    """A job's filters in words; "" for none."""
    days = {"today": t("today"), "yesterday": t("yesterday")}
    return ", ".join(
        t(words, value=days.get(filters[name], filters[name])) for name, words in _FILTERS.items() if name in filters
    )


def why(reason: Mapping[str, Any]) -> Markup:
    """Why an item still waits: one entry of `why` of `toban_page_item`."""
    match reason["code"]:
        case "paused":
            return Markup("{}").format(t("paused"))
        case "excluded":
            words = wanted({reason["filter"]: reason["value"]})
            return Markup("{}").format(t("left out by its job: {filter}", filter=words))
        case "held":
            return Markup("{}: {} · {}").format(cause(reason["cause"]), reason["reason"], ago(reason["until"]))
        case "no_worker":
            return Markup("{}").format(t("no worker listens to {queue}", queue=reason["queue"]))
        case "later":
            tries = t("attempt {n} of {most}", n=reason["try"], most=reason["max_attempts"])
            return Markup(t("due {moment}, {tries}")).format(moment=ago(reason["at"]), tries=tries)
        case "not_ready":
            return Markup("{}").format(t("its worker is not ready: {error}", error=reason["error"]))
        case "batch_limit":
            words = t("the batch limit of {n} is reached; the next slot begins {moment}", n=number(reason["limit"]),
                      moment="{moment}")  # fmt: skip
            return Markup(words).format(moment=ago(reason["next"]))
        case "full":
            words = t(
                "{queue} is full: {queued} sent, room for {slots}",
                queue=reason["queue"], queued=number(reason["queued"]), slots=number(reason["slots"]),
            )  # fmt: skip
            return Markup("{}").format(words)
        case _:
            if reason["ahead"]:
                return Markup("{}").format(t("its turn comes after {n} others", n=number(reason["ahead"])))
            return Markup("{}").format(t("it is next"))


def short(key: str) -> str:
    """The key of an item, for tables: a UUID is cut to its first eight characters."""
    return "/".join(part[:8] + "…" if len(part) == 36 and part.count("-") == 4 else part for part in key.split("/"))


def share(progress: Mapping[str, Any] | None) -> float | None:
    """How much of an item is done, 0 to 1; None: unknown."""
    if not progress or not progress.get("total"):
        return None
    return max(0.0, min(float(progress["done"]) / float(progress["total"]), 1.0))
