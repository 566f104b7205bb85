"""Ad-hoc reprocessing: `celery -A app call tasks.reprocess --kwargs '{"source": "transcription", …}'`."""

from typing import Any

from app.celery import app
from app.errors import TobanError
from app.reprocess import held_models
from app.reprocess import reprocess as reprocess_rows
from tasks.base import services


@app.task(name="tasks.reprocess", throws=(TobanError,))
def reprocess(source: str = "", **selection: Any) -> dict[str, int]:  # noqa: ANN401 - see app/reprocess.py
    """Ask for work again; the arguments are those of `app.reprocess.reprocess`."""
    own = services()
    held = held_models(source, own.settings)
    return reprocess_rows(own.database, own.settings.audio.zone, source=source, held=held, **selection)
