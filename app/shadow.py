"""Shadow mode: what another system has completed is done again, compared, and written nowhere else.

Which sources are in it is in the database (`source_modes`), where `toban takeover` and `toban rollback` write it;
`TOBAN_SHADOW` is what holds for a source about which nobody has decided yet.
"""

from collections.abc import Collection
from dataclasses import replace
from importlib import import_module
from typing import Any

import structlog

from app.database import Database
from app.settings import Ledger, Settings
from app.sources import SHADOW, Result, Source, registry
from app.work import Work

log = structlog.get_logger("toban.shadow")


def shadow_of(source: Source) -> Source:
    """The source of the rows of `shadow_rows` that others have completed for `source`.

    It has no dispatcher of its own: that of `source` looks after it while `source` is in shadow mode.
    """
    compare = source.compare
    if compare is None:
        raise ValueError(f"{source.name} can't be compared")

    def redo(work: Work) -> Result:
        kept = work.row
        # The attempt, its lease and its fence are those of the kept row; what is worked on is the app's.
        work.attempt = replace(work.attempt, row=kept["row"])
        result = source.run(work)
        compared = compare(kept["theirs"], result)
        row: dict[str, Any] = {
            "ours": compared.ours,
            "verdict": compared.verdict,
            "difference": compared.difference,
            "seconds": round(work.elapsed, 3),
        }
        return {"row": row, "call": result["call"]} if "call" in result else {"row": row}

    return Source(
        name=SHADOW + source.name,
        queue=source.queue,
        title=f"{source.title} (shadow)",
        run=redo,
        max_run=source.max_run,
        models=source.models,
    )


def known() -> list[str]:
    """The sources that may be in shadow mode."""
    import tasks  # noqa: F401 - registers them

    return sorted(name for name in registry.sources if not name.startswith(SHADOW))


def named(settings: Ledger) -> list[str]:
    """The sources that `TOBAN_SHADOW` names.

    Raises `SettingsError` for a name that is none.
    """
    for module in settings.extra_sources():
        import_module(module)
    return settings.shadowed(known())


def introduce(database: Database, settings: Settings) -> None:
    """Bring `source_modes` up to the settings, before anything is claimed.

    Raises `TobanError` when the database can't be asked.
    """
    shadowed: Collection[str] = database.call("toban_sync_modes", shadow=named(settings.ledger), **bounds(settings))[
        "shadowed"
    ]
    for source in shadowed:
        log.warning("shadow.began", source=source)


def bounds(settings: Settings) -> dict[str, Any]:
    """What the database has to know of the settings to keep rows for comparison."""
    return {"limit": settings.ledger.shadow_limit, "zone": settings.audio.device_timezone}
