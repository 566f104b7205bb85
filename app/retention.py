"""Forget what is old enough, kind by kind: the job `retention`, and `toban retention`."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from app.audio.store import AudioStore
from app.database import Database
from app.services import Services
from app.settings import Settings

# Calls of each function in one run; what is left then waits for the next one.
BATCHES = 100
# Keys of requests hold for a day, and a worker process without news is forgotten after one.
A_DAY = 1
# Recordings whose audio is deleted at once.
OBJECTS = 500

KINDS: dict[str, tuple[str, str | None]] = {
    "audio": ("audio_days", "RETENTION_AUDIO_DAYS"),
    "segments": ("segments_days", "RETENTION_SEGMENTS_DAYS"),
    "transcripts": ("transcripts_days", "RETENTION_TRANSCRIPTS_DAYS"),
    "texts": ("transcripts_days", "RETENTION_TRANSCRIPTS_DAYS"),
    "prompted_blocks": ("transcripts_days", "RETENTION_TRANSCRIPTS_DAYS"),
    "compared_texts": ("transcripts_days", "RETENTION_TRANSCRIPTS_DAYS"),
    "compared_prompts": ("prompts_days", "RETENTION_PROMPTS_DAYS"),
    "parts": ("parts_days", "RETENTION_PARTS_DAYS"),
    "prompts": ("prompts_days", "RETENTION_PROMPTS_DAYS"),
    "results": ("results_days", "RETENTION_RESULTS_DAYS"),
    "errors": ("errors_days", "RETENTION_ERRORS_DAYS"),
    "attempt_errors": ("errors_days", "RETENTION_ERRORS_DAYS"),
    "job_logs": ("errors_days", "RETENTION_ERRORS_DAYS"),
    "incident_logs": ("errors_days", "RETENTION_ERRORS_DAYS"),
    "items": ("items_days", "TOBAN_KEEP_ITEMS_DAYS"),
    "batches": ("batches_days", "TOBAN_KEEP_BATCHES_DAYS"),
    "request_keys": ("request_keys_days", None),
    "runs": ("runs_days", "TOBAN_KEEP_RUNS_DAYS"),
    "calls": ("calls_days", "TOBAN_KEEP_CALLS_DAYS"),
    "incidents": ("incidents_days", "TOBAN_KEEP_INCIDENTS_DAYS"),
    "messages": ("incidents_days", "TOBAN_KEEP_INCIDENTS_DAYS"),
    "reports": ("incidents_days", "TOBAN_KEEP_INCIDENTS_DAYS"),
    "audit": ("audit_days", "TOBAN_KEEP_AUDIT_DAYS"),
    "workers": ("workers_days", None),
}
"""Every kind: its name in `limits`, and the setting that says how long it is kept; None: always as long."""

_NAMES = ("segments", "transcripts", "prompts", "results", "parts", "errors")


def limits(settings: Settings) -> dict[str, int | None]:
    """How many days each kind is kept, by the names of `toban_retention`'s parameters; None: for ever."""
    kept = settings.retention
    return {
        **{f"{name}_days": getattr(kept, f"{name}_days") for name in _NAMES},
        "audio_days": kept.audio_days,
        "items_days": settings.ledger.keep_items_days,
        "batches_days": settings.ledger.keep_batches_days,
        "request_keys_days": A_DAY,
        "workers_days": A_DAY,
        "runs_days": settings.ledger.keep_runs_days,
        "calls_days": settings.ledger.keep_calls_days,
        "incidents_days": settings.monitor.keep_incidents_days,
        "audit_days": settings.monitor.keep_audit_days,
    }


def preview(database: Database, settings: Settings) -> dict[str, int]:
    """How much of each kind would go now; kinds that are kept for ever are not named."""
    days = limits(settings)
    zone = settings.audio.device_timezone
    found: dict[str, int] = dict(database.call("toban_retention", dry=True, zone=zone, **days))
    if days["audio_days"]:
        found["audio"] = database.call("toban_audio_to_delete", dry=True, days=days["audio_days"])["count"]
    return found


def retain(services: Services) -> Counter[str]:
    """Forget what is old; returns how much of each kind went.

    Every part is a transaction of its own, so whoever is killed leaves nothing half done, and the next run goes on.
    Raises `TobanError` where the recordings can't be deleted; everything else is done by then.
    """
    days = limits(services.settings)
    gone = Counter[str]()
    zone = services.settings.audio.device_timezone
    for done in batches(services.database, "toban_retention", zone=zone, **days):
        gone.update({name: count for name, count in done.items() if name != "more"})
    for done in batches(
        services.database, "toban_upkeep_monitor", days=days["incidents_days"], audit_days=days["audit_days"]
    ):
        gone.update({"incidents": done["incidents"], "messages": done["alerts"]})
        gone.update({"reports": done["reports"], "audit": done["entries"]})
    for done in batches(services.database, "toban_upkeep_requests", days=days["batches_days"]):
        gone.update({"batches": done["forgotten"], "request_keys": done["keys"]})
    for done in batches(services.database, "toban_upkeep_calls", calls_days=days["calls_days"]):
        gone["calls"] += done["forgotten"]
    if days["audio_days"]:
        for _ in range(BATCHES):
            deleted = delete_audio(services.database, services.audio, days=days["audio_days"])
            gone["audio"] += deleted[0]
            if not deleted[0]:
                break
    return gone


def delete_audio(database: Database, store: AudioStore, **which: Any) -> tuple[int, bool]:  # noqa: ANN401
    """Delete the audio of some recordings, and note it; returns of how many, and whether old versions of it are kept.

    `which`: the parameters of `toban_audio_to_delete`. Raises `TobanError`.
    """
    some = database.call("toban_audio_to_delete", limit=OBJECTS, **which)["recordings"]
    if not some:
        return 0, False
    done = store.delete([one["file_path"] for one in some if one["file_path"]])
    database.call("toban_audio_deleted", recordings=some)
    return len(some), done.versions_kept


def batches(database: Database, function: str, **params: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Call a function that does a bounded part of its work, until it says that there is no more."""
    for _ in range(BATCHES):
        answer = database.call(function, **params)
        yield answer
        if not answer["more"]:
            return


def drain(database: Database, function: str, **params: Any) -> None:  # noqa: ANN401
    """The same, for what nobody counts."""
    for _ in batches(database, function, **params):
        pass


def told(gone: Counter[str]) -> str:
    """What went, in one line."""
    named = [f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(gone.items()) if count]
    return f"forgotten: {', '.join(named)}" if named else "nothing is old enough"
