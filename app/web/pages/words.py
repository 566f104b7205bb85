"""What states, outcomes and reasons are called, in the reader's language."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from app.web.i18n import ago, at, mark, nt, number, t

STATES = ("pending", "queued", "processing", "completed", "skipped", "failed")

_STATES = {
    # of items
    "pending": mark("Waiting"),
    "queued": mark("Queued"),
    "processing": mark("Running"),
    "completed": mark("Done"),
    "skipped": mark("Skipped"),
    "failed": mark("Failed"),
    # of jobs
    "ok": mark("OK"),
    "running": mark("Running"),
    "late": mark("Late"),
    "missed": mark("Missed"),
    "overran": mark("Overran"),
    "paused": mark("Paused"),
    # of sources
    "shadow": mark("Shadow"),
    # of runs
    "success": mark("OK"),
    "error": mark("Failed"),
    "lost": mark("Lost"),
    # of attempts
    "retry": mark("Tried again"),
    "outdated": mark("Out of date"),
    "released": mark("Given back"),
    # of slots in a day
    "nothing": mark("Nothing"),
}
_CAUSES = {
    "budget": mark("budget used up"),
    "credit": mark("credit used up"),
    "key": mark("key refused"),
    "model": mark("no such model"),
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
    days = {"today": t("only today"), "yesterday": t("only yesterday")}
    return ", ".join(
        days.get(filters[name]) or t(words, value=filters[name]) for name, words in _FILTERS.items() if name in filters
    )


def why(reason: Mapping[str, Any]) -> Markup:
    """Why an item still waits: one entry of `why` of `toban_page_item`."""
    match reason["code"]:
        case "paused":
            words = escape(t("paused"))
        case "shadow":
            words = escape(t("shadow mode: another system works on these rows, and Toban only follows"))
        case "excluded":
            words = escape(t("left out by its job: {filter}", filter=wanted({reason["filter"]: reason["value"]})))
        case "held":
            words = Markup("{}: {} · {} {}").format(
                cause(reason["cause"]), reason["reason"], t("it goes on"), ago(reason["until"])
            )
        case "no_worker":
            words = escape(t("no worker listens to {queue}", queue=reason["queue"]))
        case "later":
            words = escape(t("due {moment}, attempt {n} of {most}")).format(
                moment=ago(reason["at"]), n=reason["try"], most=reason["max_attempts"]
            )
        case "not_ready":
            words = escape(t("its worker is not ready: {error}", error=reason["error"]))
        case "batch_limit":
            words = escape(t("the batch limit of {n} is reached; the next slot begins {moment}")).format(
                n=number(reason["limit"]), moment=ago(reason["next"])
            )
        case "full":
            sent, slots = number(reason["queued"]), number(reason["slots"])
            words = escape(t("{queue} is full: {n} sent, {slots} at work", queue=reason["queue"], n=sent, slots=slots))
        case _:
            ahead = reason["ahead"]
            words = escape(nt("its turn comes after {n} other", "its turn comes after {n} others", ahead))
            words = words if ahead else escape(t("it is next"))
    return words


def incident_title(one: Mapping[str, Any]) -> str:
    """What an incident is called; a job's and a source's title is its own."""
    details = one["details"]
    match one["kind"], details.get("state"):
        case "beat", _:
            words = t("No beat ticks")
        case "worker", "none":
            words = t("No worker listens to {queue}", queue=details["queue"])
        case "worker", "refuses":
            words = t("A worker of {queue} can't start", queue=details["queue"])
        case "queue", _:
            words = t("The queue {queue} is held", queue=details.get("queue", ""))
        case "alerts", _:
            words = t("Alerts don't get through to {channel}", channel=details["channel"])
        case _:
            title = str(one["title"])
            words = t(title)
    return words


def incident_reason(one: Mapping[str, Any]) -> Markup:
    """Why, in the reader's language where it is ours to say; else as the job or the item said it."""
    details = one["details"]
    if one["kind"] == "overdue" and details.get("running_since"):
        return escape(t("It has been running since {moment}.")).format(moment=at(details["running_since"]))
    if one["kind"] == "overdue" and details.get("due_at"):
        return escape(t("It was due {moment} and has not run.")).format(moment=at(details["due_at"]))
    if one["kind"] == "beat":
        stood_in = details.get("stood_in")
        return escape(t("Workers stand in for it.") if stood_in else t("Nobody stands in for it, so no job runs."))
    if one["kind"] == "worker" and details.get("state") == "none" and details.get("waiting"):
        return escape(nt("{n} item waits.", "{n} items wait.", details["waiting"]))
    return escape(one["reason"] or "")


def short(key: str) -> str:
    """The key of an item, for tables: a UUID is cut to its first eight characters."""
    return "/".join(part[:8] + "…" if len(part) == 36 and part.count("-") == 4 else part for part in key.split("/"))


def share(progress: Mapping[str, Any] | None) -> float | None:
    """How much of an item is done, 0 to 1; None: unknown."""
    if not progress or not progress.get("total"):
        return None
    return max(0.0, min(float(progress["done"]) / float(progress["total"]), 1.0))
