"""What a speech engine is, and which one the settings ask for.

Importing this module loads no model library: those cost seconds and memory, and may not be touched before a fork.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.settings import Whisper

Progress = Callable[[float, float], None]
"""Called with (done, total) seconds of audio; it may raise `LeaseLost` to end the work."""


@dataclass(frozen=True)
class Segment:
    """A stretch of speech; `start`, `end`: seconds from the start of the recording."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcription:
    """What was said in one recording.

    `text` is "" when nobody spoke. `language` is an ISO 639-1 code, or "und" when there was no speech to tell it from.
    `note` is a remark for a person (a truncated file, say).
    """

    text: str
    segments: tuple[Segment, ...]
    language: str
    duration_seconds: float
    engine: str
    model: str
    note: str | None


class Engine(Protocol):
    """A speech engine; one object serves all threads of a process."""

    @property
    def name(self) -> str:
        """The library, as stored beside a transcript."""

    @property
    def model(self) -> str:
        """The model, as asked for in the settings."""

    def prepare(self) -> None:
        """Load the model, if it is not loaded yet.

        Raises `NotReady` with the remedy, `OutOfMemory`.
        """

    def transcribe(self, audio: Path, *, language: str | None, progress: Progress) -> Transcription:
        """The words of the file `audio`; `language`: ISO 639-1, None: detected.

        `progress` is called at the start, whenever a stretch is done, and at the end; what it raises comes out here.
        Raises `Permanent` for a file or a model that can't be used, and `OutOfMemory`.
        """


def build_engine(settings: Whisper, *, max_seconds: float, threads: int) -> Engine:
    """The engine of the settings; its model is loaded by the first recording that has speech to hear.

    `max_seconds`: longer recordings are refused; `threads`: threads of one transcription, 0: the library decides.
    """
    from app.speech.faster import FasterWhisper

    return FasterWhisper(settings, max_seconds=max_seconds, threads=threads)
