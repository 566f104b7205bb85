"""How speech is shared out among the chunks that a model hears, without a model."""

import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.settings import Whisper
from app.speech import hearing
from app.speech.engine import Heard, Word
from app.speech.hearing import Engine
from app.speech.pace import Pace
from app.speech.voice import RATE, Stretch

LENGTHS = (20, 15, 9, 14, 12, 25, 17, 4)  # seconds of the stretches, each a minute after the one before


class Reader:
    """Reads its words off the sound: the samples of a stretch hold its number; a second before its end it is said."""

    languages = ("en",)

    def __init__(self) -> None:
        self.heard: list[list[int]] = []

    def hear(self, chunks: Sequence[np.ndarray[Any, Any]], _language: str, *, batch: int) -> Iterator[Heard]:
        assert len(chunks) <= batch
        for chunk in chunks:
            numbers = list(dict.fromkeys(np.rint(chunk * 100).astype(int).tolist()))
            self.heard.append(numbers)
            ends = np.cumsum([np.count_nonzero(np.rint(chunk * 100) == number) for number in numbers]) / RATE
            words = [Word(end - 2, end - 1, f" {number}") for number, end in zip(numbers, ends, strict=True)]
            yield Heard(words, confidence=-0.1, silence=0.0, repetition=1.0)


@pytest.mark.parametrize(
    ("batch", "chunks"),
    [
        (1, [[1], [2, 3], [4, 5], [6], [7, 8]]),
        (2, [[1, 3], [2, 4], [5, 7], [6, 8]]),
        (4, [[1, 3], [2, 4], [5, 7], [6, 8]]),
    ],
)
def test_a_stretch_goes_where_there_is_room_and_its_words_stay_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batch: int, chunks: list[list[int]]
) -> None:
    parts = [
        Stretch(60 * RATE * place, np.full(length * RATE, (place + 1) / 100, np.float32))
        for place, length in enumerate(LENGTHS)
    ]
    with wave.open(str(path := tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, RATE, 0, "NONE", ""))
        sound.writeframes(bytes(2 * RATE * 60 * len(LENGTHS)))
    monkeypatch.setattr(hearing, "stretches", lambda _pieces, _start: iter([*parts, parts[-1].end]))
    monkeypatch.setattr("app.speech.voice._raised", lambda samples: samples)
    engine = Engine(Whisper(model="tiny.en"), max_seconds=3600, pace=Pace(1, batch))
    reader = Reader()
    monkeypatch.setattr(engine, "_recognizer", lambda _model, _pace: reader)
    engine._each["tiny.en", Pace(1, batch)] = 0.1  # a chunk's seconds are known, so a whole batch is heard at once
    heard = engine.transcribe(path, language="en", progress=lambda _done, _total: None)
    assert reader.heard == chunks
    assert heard.text == "1 2 3 4 5 6 7 8"
    assert [segment.start for segment in heard.segments] == [
        60 * place + length - 2 for place, length in enumerate(LENGTHS)
    ]
