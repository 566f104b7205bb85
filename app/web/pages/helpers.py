"""What the pages' templates know beside what all templates do: names, numbers and drawings."""

from typing import Any

from app.health import worker_command
from app.web.i18n import mark, t
from app.web.pages import drawing, words
from app.web.pages.common import title
from app.web.pages.recordings import moment_of
from app.web.pages.search import highlighted
from app.web.render import environment

# What the audit log calls actions.
_ACTIONS = {
    "edit job": mark("changed its settings"),
    "edit watch": mark("changed what is expected"),
    "pause": mark("paused it"),
    "resume": mark("resumed it"),
    "run now": mark("ran it"),
    "forget job": mark("forgot it"),
    "take over": mark("took it over"),
    "shadow": mark("put it in shadow mode"),
}

# Titles of sources and jobs, which templates translate.
TITLES = (
    mark("Transcription"), mark("Time block analysis"), mark("Time block prompts"),
    mark("Time block analysis in batches"), mark("Ledger reconciliation"), mark("Retention"),
)  # fmt: skip


def what(action: str) -> str:
    return t(_ACTIONS[action]) if action in _ACTIONS else action


def shown(value: Any) -> str:  # noqa: ANN401 - JSON
    """A value of the audit log or of an item's parameters."""
    if value is None or value == {}:
        return t("none")
    if isinstance(value, bool):
        return t("yes") if value else t("no")
    if isinstance(value, dict):
        return ", ".join(f"{name}: {shown(part)}" for name, part in value.items())
    return str(value)


def money(dollars: float | None) -> str:
    """US dollars, with as many digits as small sums need."""
    if dollars is None:
        return ""
    return f"${float(dollars):,.2f}" if dollars >= 1 or not dollars else f"${float(dollars):.4f}"


def clock(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    whole = int(seconds)
    hours = f"{whole // 3600}:{whole // 60 % 60:02}" if whole >= 3600 else str(whole // 60)
    return f"{hours}:{whole % 60:02}"


def install() -> None:
    own = environment()
    own.filters |= {"short": words.short, "why": words.why, "money": money, "clock": clock}
    own.globals |= {
        "bars": drawing.bars,
        "sparkline": drawing.sparkline,
        "share": words.share,
        "state_words": words.state,
        "cause": words.cause,
        "incident_title": words.incident_title,
        "incident_reason": words.incident_reason,
        "wanted": words.wanted,
        "title": title,
        "what": what,
        "shown": shown,
        "moment_of": moment_of,
        "highlighted": highlighted,
        "worker_command": worker_command,
    }
