"""From a waiting `audio_files` row to the result that the ledger stores: fetch, transcribe, describe."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from app.errors import NothingThere, NotReady, Permanent
from app.ledger import Claimed
from app.services import Services
from app.speech.engine import Finished
from app.work import Work

# The longest that transcribing may take, for each second of audio: a slow machine with a big model needs about 3.
SLOWEST = 10
LEAST = timedelta(minutes=10)
# The first use of a model may have to download some gigabytes.
LOADING = timedelta(minutes=20)


def time_block(moment: datetime, zone: tzinfo) -> tuple[str, str]:
    """The device's date and the 30-minute slot that hold `moment` (aware): `("2025-07-18", "12-30")`."""
    local = moment.astimezone(zone)
    return local.date().isoformat(), f"{local.hour:02d}-{local.minute // 30 * 30:02d}"


def transcribe(work: Work) -> dict[str, Any]:
    """The transcript of the row's recording, as `toban_store_transcription` takes it.

    Raises `NothingThere` when the recording is missing, `Permanent` when it can't be used, `NotReady` when this worker
    can't transcribe now.
    """
    services = work.services
    recorded_at = work.attempt.at
    if recorded_at is None:
        raise Permanent("the row has no recorded_at, so its time block is unknown")
    date, block = time_block(recorded_at, services.settings.audio.zone)
    model = _model(work)
    frugal = bool(work.params.get("frugal"))

    def progress(done: float, total: float) -> None:
        work.allow(max(LEAST, timedelta(seconds=SLOWEST * total)))
        work.progress(done, total)

    # A file without a name: nobody else can open it, and nothing of it is left behind when this process is killed.
    with tempfile.TemporaryFile(prefix="toban-audio-") as file:
        audio = Path(f"/proc/self/fd/{file.fileno()}")
        with work.phase("loading the model", LOADING):
            services.engine.prepare(model, frugal=frugal)
        with work.phase("fetching", services.settings.audio.audio_fetch_timeout):
            _fetch(work, audio)
        started = time.monotonic()
        transcription = services.engine.transcribe(
            audio,
            language=services.settings.whisper.language,
            progress=progress,
            model=model,
            frugal=frugal,
            finished=[Finished.of(part) for part in work.saved()] if work.attempt.attempt > 1 else (),
            save=lambda part: work.save(part.as_json()),
        )
        seconds = time.monotonic() - started
    work.remark(transcription.note)
    return {
        "date": date,
        "time_block": block,
        "text": transcription.text,
        "segments": [asdict(segment) for segment in transcription.segments],
        "language": transcription.language,
        "duration_seconds": transcription.duration_seconds,
        "model": transcription.model,
        "engine": transcription.engine,
        "real_time_factor": round(seconds / transcription.duration_seconds, 4),
        "note": transcription.note,
    }


def missing(services: Services, items: Sequence[Claimed]) -> set[str]:
    """Task ids of the items whose recording is not there, by one listing for each device and day.

    A row may be inserted before its recording is uploaded: one that has not waited for `AUDIO_MISSING_GRACE` is left
    to its task, and nothing is called missing by a listing from before that.
    """
    grace = services.settings.audio.audio_missing_grace
    waited = [item for item in items if item.opened_at + grace <= datetime.now(UTC)]
    source = services.settings.audio
    if not waited or not (source.audio_folder or source.s3_bucket_name):  # a dispatcher need not know the recordings
        return set()
    old = {item.id: item.task_id for item in waited}
    rows = services.database.call("toban_rows", source="transcription", ids=list(old))
    paths = {row["id"]: row["row"]["file_path"] for row in rows if row["row"]["file_path"]}
    present = services.audio.present(
        set(paths.values()),
        listed_after=max(item.opened_at for item in waited) + grace,
        # The items are claimed: longer than this, and their lease would be over before they are sent.
        patience=services.settings.ledger.queue_lease.total_seconds() / 3,
    )
    return {old[item] for item, path in paths.items() if path not in present}


def _fetch(work: Work, to: Path) -> None:
    path = work.row.get("file_path")
    if not path:
        raise Permanent("the row has no file_path")
    try:
        work.services.audio.fetch(path, to)
    except NothingThere as error:
        final_at = work.attempt.opened_at + work.services.settings.audio.audio_missing_grace
        raise NothingThere(str(error), final_at=final_at) from error


def _model(work: Work) -> str:
    """The model that the row asks for, or the worker's own."""
    held = work.services.settings.whisper.models
    asked = work.params.get("model") or held[0]
    if asked not in held:
        raise NotReady(
            f"the model {asked!r} was asked for, and this worker holds {', '.join(held)} "
            "(WHISPER_MODEL, WHISPER_EXTRA_MODELS)"
        )
    return str(asked)
