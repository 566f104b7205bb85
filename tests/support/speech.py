"""Real speech for the tests: the recordings that the demo ships."""

import json
import wave
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers import ROOT

RECORDINGS = ROOT / "app/demo/recordings"
RATE = 16_000


@dataclass(frozen=True)
class Spoken:
    """A recording and what is said in it."""

    path: Path
    words: str


def spoken() -> list[Spoken]:
    entries = json.loads((RECORDINGS / "manifest.json").read_text(encoding="utf-8"))
    return [Spoken(RECORDINGS / entry["file"], entry["spoken"]) for entry in entries if entry["file"]]


def make_wav(target: Path, repeats: int) -> Path:
    """All recordings one after another, `repeats` times, as 16-bit mono WAV at 16 kHz."""
    from tests.support.sounds import whole

    pieces = [whole(entry.path, max_seconds=60) for entry in spoken()] * repeats
    with wave.open(str(target), "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(RATE)
        for piece in pieces:
            output.writeframes((piece * 32767).clip(-32768, 32767).astype("<i2").tobytes())
            output.writeframes(bytes(RATE))  # half a second of silence
    return target
