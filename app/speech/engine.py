"""What a speech engine is, and which one the settings ask for.

Importing this module loads no model library: those cost seconds and memory, and may not be touched before a fork.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from app.settings import Whisper

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from app.speech.models import Model

Progress = Callable[[float, float], None]
"""Called with (done, total) seconds of audio; it may raise `LeaseLost` to end the work."""


@dataclass(frozen=True)
class Word:
    """A word with its space and its punctuation; `start`, `end`: seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Heard:
    """What a model made of one chunk.

    `words`: in the chunk's seconds. `confidence`: mean log probability of the tokens. `silence`: probability that
    nobody speaks. `repetition`: how much smaller the text gets when compressed (about 1.5, in a loop above 2.4).
    """

    words: Sequence[Word]
    confidence: float
    silence: float
    repetition: float


class Recognizer(Protocol):
    """A loaded model; one object serves all threads of a process."""

    @property
    def languages(self) -> Collection[str]:
        """ISO 639-1 codes that the model knows."""

    def detect(self, chunk: "NDArray[np.float32]") -> dict[str, float]:
        """The probability of each language in a chunk (float32 [n], 16 kHz, at most 30 s)."""

    def hear(self, chunks: "Sequence[NDArray[np.float32]]", language: str, *, batch: int) -> Iterator[Heard]:
        """What is said in each of `chunks` (float32 [n], 16 kHz, at most 30 s), in order; `batch` of them at once."""


class Loader(Protocol):
    """How a library brings a model into memory."""

    def __call__(self, model: "Model", settings: Whisper, threads: int) -> Recognizer:
        """Load `model` for `threads` processor threads. Raises whatever the library raises."""


def loader(engine: str) -> Loader:
    """The loader of the engine named in the settings."""
    if engine == "openai-whisper":
        from app.speech.openai import OpenAIWhisper

        return OpenAIWhisper
    from app.speech.faster import FasterWhisper

    return FasterWhisper


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


@dataclass(frozen=True)
class Finished:
    """The part of a recording that is done, as an attempt saves it for the next one.

    `until`: samples from the recording's start; `segments` of this part; `fingerprint`: of what it depends on.
    """

    until: int
    language: str
    segments: tuple[Segment, ...]
    fingerprint: str

    def as_json(self) -> dict[str, Any]:
        return {
            "until": self.until,
            "language": self.language,
            "segments": [[segment.start, segment.end, segment.text] for segment in self.segments],
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Finished":
        segments = tuple(Segment(*segment) for segment in saved["segments"])
        return cls(saved["until"], saved["language"], segments, saved["fingerprint"])
