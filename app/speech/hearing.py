"""From a sound file to its transcription: find the speech, have it heard in chunks, place the words in time.

Memory does not grow with the recording's length, and what is done can be saved and gone on from.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import merge
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from app.errors import NotReady, OutOfMemory, TobanError
from app.settings import Whisper
from app.speech.decode import measure
from app.speech.doubt import believed
from app.speech.engine import Finished, Progress, Recognizer, Segment, Transcription, Word, loader
from app.speech.models import Models
from app.speech.pace import FRUGAL, Pace
from app.speech.segments import segments, text
from app.speech.voice import RATE, Chunk, Stretch, stretches

# Where speech is sparse, what was found is heard after this much of the recording, so that progress shows, samples.
_SPAN = 30 * 60 * RATE
# How often there should be news of the progress, seconds.
_NEWS = 60.0
# Speech after the last word that is too much for a pause, seconds. In two of 40 chunks of clean speech, tiny.en left
# out up to two thirds of the words so.
_STOPPED_EARLY = 2.5
_TRIES = 5
# What took less than this need not be saved, seconds.
_WORTH_SAVING = 10.0
_NO_MEMORY = (
    "mkl_malloc",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "failed to allocate",
    "cannot allocate",
    "can't allocate",
)

Save = Callable[[Finished], None]


class Engine:
    """The speech engine of the settings, with one model in memory at a time; serves all threads of a process.

    `max_seconds`: longer recordings are refused.
    """

    def __init__(self, settings: Whisper, *, max_seconds: float, pace: Pace) -> None:
        self.name = settings.engine
        self._settings = settings
        self._max_seconds = max_seconds
        self._pace = pace
        self._models = Models(settings)
        self._loaded: tuple[str, int, Recognizer] | None = None
        self._each: dict[tuple[str, Pace], float] = {}  # seconds that a chunk took last
        self._lock = Lock()

    def prepare(self, model: str | None = None, *, frugal: bool = False) -> None:
        """Load the model (default: WHISPER_MODEL) if it is not loaded yet, and download it if it is not here.

        Raises `NotReady` with the remedy, `OutOfMemory`.
        """
        model = model or self._settings.model
        with _memory_errors(model):
            self._recognizer(model, FRUGAL if frugal else self._pace)

    def transcribe(
        self,
        audio: Path,
        *,
        language: str | None,
        progress: Progress,
        model: str | None = None,
        frugal: bool = False,
        finished: Sequence[Finished] = (),
        save: Save | None = None,
    ) -> Transcription:
        """The words of the file `audio`.

        `language`: ISO 639-1, None: detected. `model`: default WHISPER_MODEL. `frugal`: with the least memory.
        `finished`: what an earlier attempt at this file saved; `save` gets what this one finishes. `progress` is called
        at the start, whenever a stretch is done, and at the end; what it raises comes out here.
        Raises `Permanent` for a file that can't be used, `NotReady` for a model that can't, and `OutOfMemory`.
        """
        model = model or self._settings.model
        with _memory_errors(model):
            sound = measure(audio, max_seconds=self._max_seconds)
            fingerprint = self._fingerprint(audio, model, language)
            pace = FRUGAL if frugal else self._pace
            hearing = _Hearing(
                recognizer=lambda: self._recognizer(model, pace),
                model=model,
                pace=pace,
                asked=language,
                total=sound.seconds,
                progress=progress,
                save=save,
                fingerprint=fingerprint,
                each=self._each.get((model, pace)),
            )
            hearing.go_on_from(finished)
            hearing.hear(sound.samples(hearing.until))
            if hearing.each:
                self._each[model, pace] = hearing.each
            spoken = hearing.language or language or "und"
            return Transcription(
                text=text(hearing.segments, spoken),
                segments=tuple(hearing.segments),
                language=spoken,
                duration_seconds=sound.seconds,
                engine=self.name,
                model=model,
                note="; ".join(filter(None, [sound.note, hearing.remark()])) or None,
            )

    def _recognizer(self, model: str, pace: Pace) -> Recognizer:
        with self._lock:
            if self._loaded is None or self._loaded[:2] != (model, pace.threads):
                found = self._models.get(model)
                self._loaded = None  # first, so that two models need never fit at once
                load = loader(self.name)
                try:
                    recognizer = load(found, self._settings, pace.threads)
                except Exception as error:  # the libraries share no base class
                    if is_memory(error):
                        raise
                    raise NotReady(
                        f"the speech model {model} can't be loaded: {(str(error) or repr(error)).splitlines()[0]}; "
                        "`toban models verify` looks for damage; else set WHISPER_MODEL to another model, and "
                        "WHISPER_COMPUTE_TYPE to a type this processor has"
                    ) from error
                self._loaded = (model, pace.threads, recognizer)
            return self._loaded[2]

    def _fingerprint(self, audio: Path, model: str, language: str | None) -> str:
        """Of everything that the words depend on."""
        settings = self._settings
        told = blake2b(f"{self.name}/{model}/{settings.compute_type}/{settings.beam_size}/{language}".encode())
        with audio.open("rb") as file:
            while block := file.read(1 << 20):
                told.update(block)
        return told.hexdigest()[:32]


@dataclass
class _Hearing:
    """One recording, as far as it has been heard: `until` samples."""

    recognizer: Callable[[], Recognizer]
    model: str
    pace: Pace
    asked: str | None
    total: float
    progress: Progress
    save: Save | None
    fingerprint: str
    each: float | None = None  # seconds that a chunk takes; None: not known yet
    segments: list[Segment] = field(default_factory=list)
    language: str | None = None
    until: int = 0
    _saved: int = 0  # segments
    _since: float = field(default_factory=time.monotonic)

    def go_on_from(self, finished: Sequence[Finished]) -> None:
        """Take over what was saved for the very same work."""
        for part in sorted(finished, key=lambda part: part.until):
            if part.fingerprint == self.fingerprint and part.until > self.until:  # else it was saved twice
                self.segments += part.segments
                self.language = part.language
                self.until = part.until
        self._saved = len(self.segments)

    def hear(self, pieces: Iterator[NDArray[np.float32]]) -> None:
        """Hear the rest of the recording: `pieces` from `until` on."""
        self.progress(min(self.until / RATE, self.total), self.total)
        chunks: list[Chunk] = []
        for found in stretches(pieces, self.until):
            if isinstance(found, Stretch):
                # A model takes as long for half a chunk as for a full one: the first that has room takes the stretch.
                chunk = next((chunk for chunk in chunks if chunk.takes(found)), None)
                if chunk is None:
                    if len(chunks) == self._room():
                        self._understand(chunks)
                        self._keep()
                        chunks = []
                    chunks.append(chunk := Chunk([]))
                chunk.stretches.append(found)
            elif not chunks:
                self._reach(found)
            elif found - chunks[0].stretches[0].start > _SPAN:
                self._understand(chunks)
                chunks = []
                self._reach(found)
                self._keep()
        if chunks:
            self._understand(chunks)
        self.progress(self.total, self.total)

    def _understand(self, chunks: Sequence[Chunk]) -> None:
        recognizer = self.recognizer()
        samples = [chunk.samples for chunk in chunks]
        if self.language is None:
            self.language = self._decide(recognizer, samples)
        began = time.monotonic()
        words: list[list[Word]] = [[] for _ in chunks]
        rest = list(enumerate(chunks))
        for _ in range(_TRIES):
            heard = recognizer.hear([chunk.samples for _, chunk in rest], self.language, batch=self.pace.batch)
            left: list[tuple[int, Chunk]] = []
            for (place, chunk), found in zip(rest, heard, strict=True):
                said = believed(found)
                words[place] += (
                    Word(chunk.moment(word.start), chunk.moment(word.end, ends=True), word.text) for word in said
                )
                self._reach(chunk.stretches[-1].end)
                if unheard := _unheard(chunk, said):
                    left.append((place, unheard))
            if not left:
                break
            rest = left
        spoken = merge(*words, key=lambda word: word.start)
        self.segments += segments(spoken, self.segments[-1].end if self.segments else 0.0, self.total)
        self.each = (time.monotonic() - began) / len(chunks)

    def _room(self) -> int:
        """Chunks that are heard together; a process's first one alone, which tells how long one takes.

        A slow machine with a big model says often how far it is, else it would count as hanging.
        """
        return max(1, min(self.pace.chunks, int(_NEWS / self.each))) if self.each else 1

    def _decide(self, recognizer: Recognizer, samples: Sequence[NDArray[np.float32]]) -> str:
        """The language that the recording is heard in."""
        known = recognizer.languages
        if len(known) == 1:
            return next(iter(known))
        if self.asked:
            if self.asked not in known:
                raise NotReady(
                    f"the model {self.model} does not know the language {self.asked!r}; use a code such as ja"
                )
            return self.asked
        shares: dict[str, float] = {}
        for chunk in samples:
            for language, share in recognizer.detect(chunk).items():
                shares[language] = shares.get(language, 0.0) + share * chunk.size
        return max(shares, key=lambda language: shares[language])

    def remark(self) -> str | None:
        """What a person should know about how it was heard."""
        if self.asked and self.language and self.asked != self.language:
            return f"the model {self.model} knows only English, so the language {self.asked} was not used"
        return None

    def _reach(self, until: int) -> None:
        self.until = max(self.until, until)
        self.progress(min(self.until / RATE, self.total), self.total)

    def _keep(self) -> None:
        """Save what is new, if it is worth it. Called only where everything up to `until` is done."""
        if self.save is None or self.language is None or time.monotonic() - self._since < _WORTH_SAVING:
            return
        new = tuple(self.segments[self._saved :])
        self.save(Finished(self.until, self.language, new, self.fingerprint))
        self._saved = len(self.segments)
        self._since = time.monotonic()


def _unheard(chunk: Chunk, said: Sequence[Word]) -> Chunk | None:
    """The rest of a chunk where the model stopped early: it sometimes takes a pause for the end."""
    end = said[-1].end if said else 0.0
    if not said or chunk.size / RATE - end < _STOPPED_EARLY:
        return None
    return chunk.after(end)


def is_memory(error: BaseException) -> bool:
    """Whether an error of any library here means a lack of memory."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _NO_MEMORY)


@contextmanager
def _memory_errors(model: str) -> Iterator[None]:
    """Every library here has its own word for a lack of memory."""
    try:
        yield
    except TobanError:
        raise
    except Exception as error:
        if not is_memory(error):
            raise
        raise OutOfMemory(f"not enough memory to transcribe with the model {model}; use a smaller one") from error
