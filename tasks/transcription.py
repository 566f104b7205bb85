"""Source `transcription`: a recording in `audio_files` becomes a transcript (docs/sources/transcription.md)."""

from datetime import timedelta

from app.compare import transcripts
from app.sources import Source
from app.speech.transcribe import missing, transcribe
from tasks.base import define

transcription = define(
    Source(
        name="transcription",
        queue="whisper",
        title="Transcription",
        run=transcribe,
        max_run=timedelta(minutes=30),
        missing=missing,
        missing_note="nothing was recorded: there is no such audio object",
        models=lambda settings: settings.whisper.models,
        compare=transcripts,
    )
)
