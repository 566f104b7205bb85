"""openai-whisper: the reference implementation, on PyTorch (the extra `openai-whisper`)."""

import zlib
from collections.abc import Collection, Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.settings import Whisper
from app.speech.engine import Heard, Word

if TYPE_CHECKING:
    from app.speech.models import Model

Sound = NDArray[np.float32]


class OpenAIWhisper:
    """A loaded checkpoint in float32, all there is for a processor; see `app.speech.engine.Recognizer`."""

    def __init__(self, model: "Model", settings: Whisper, threads: int) -> None:
        import torch
        import whisper

        torch.set_num_threads(threads)
        self._model: Any = whisper.load_model(str(model.path), device="cpu")
        self._beams = settings.beam_size
        # While it decodes and aligns, the library hangs hooks into the model, which then see the other threads' chunks
        # too: two threads at once end in "stack expects each tensor to be equal size", or in a KeyError.
        self._alone = Lock()

    @property
    def languages(self) -> Collection[str]:
        from whisper.tokenizer import LANGUAGES

        return list(LANGUAGES) if self._model.is_multilingual else ["en"]

    def detect(self, chunk: Sound) -> dict[str, float]:
        import whisper

        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(chunk), n_mels=self._model.dims.n_mels)
        with self._alone:
            found: dict[str, float] = self._model.detect_language(mel)[1]
        return found

    def hear(self, chunks: Sequence[Sound], language: str, *, batch: int) -> Iterator[Heard]:  # noqa: ARG002 - one by one
        for chunk in chunks:
            with self._alone:
                found: dict[str, Any] = self._model.transcribe(
                    chunk,
                    language=language,
                    fp16=False,
                    beam_size=self._beams if self._beams > 1 else None,
                    condition_on_previous_text=False,  # else one invented phrase is repeated to the end
                    word_timestamps=True,
                    verbose=None,
                )
            yield _heard(found["segments"])


def _heard(segments: Sequence[dict[str, Any]]) -> Heard:
    words = [
        Word(float(word["start"]), float(word["end"]), word["word"])
        for segment in segments
        for word in segment["words"]
    ]
    text = "".join(word.text for word in words).strip().encode()
    return Heard(
        words,
        confidence=float(np.mean([segment["avg_logprob"] for segment in segments] or [0.0])),
        silence=max((float(segment["no_speech_prob"]) for segment in segments), default=1.0),
        repetition=len(text) / len(zlib.compress(text)) if text else 0.0,
    )
