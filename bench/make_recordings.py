"""Makes the recordings of the demo: `python -m bench.make_recordings` (needs the program espeak-ng).

Each is spoken by espeak-ng and written as Opus in Ogg; then the engine must hear every word of
it. The moments are those of one day in Asia/Tokyo, 2025-07-18, written in UTC both ways that recorders do.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import jiwer

from app.settings import Whisper
from app.speech.hearing import Engine
from app.speech.pace import FRUGAL

FOLDER = Path(__file__).parents[1] / "app/demo/recordings"
KITCHEN, OFFICE = "6f0f3a52-8f0e-4f0c-9a5e-2d1c7b1e4a10", "b3d9c1de-5a77-4c83-8a0b-9e1f60c2d7f4"
BIT_RATE = 32_000

# (file, device, recorded_at, words); the second and third fall into one time block, and the last was never recorded.
DAY: list[tuple[str | None, str, str, str | None]] = [
    (
        "kitchen-morning.ogg",
        KITCHEN,
        "2025-07-17T22:31:05Z",
        "Good morning. The weather is nice today, and the children are playing in the garden.",
    ),
    (
        "kitchen-noon.ogg",
        KITCHEN,
        "2025-07-18T03:02:10Z",
        "Lunch is ready. There is fresh milk on the table, and the vegetables come from our garden.",
    ),
    (
        "kitchen-noon-later.ogg",
        KITCHEN,
        "2025-07-18T03:21:44+00:00",
        "Please remember to call your grandmother this evening. She would be happy to hear your voice.",
    ),
    (
        "office-meeting.ogg",
        OFFICE,
        "2025-07-18T01:00:00Z",
        "Please send the report to the whole team before the end of the day. Thank you very much for your help.",
    ),
    (
        "office-afternoon.ogg",
        OFFICE,
        "2025-07-18T06:45:30+00:00",
        "I am very tired today. The computer is slow, and everybody had to wait longer than expected.",
    ),
    (
        "kitchen-evening.ogg",
        KITCHEN,
        "2025-07-18T11:10:00+00:00",
        "Tomorrow is a holiday, so nobody has to get up early. Good night, and sleep well.",
    ),
    (None, OFFICE, "2025-07-18T12:00:00Z", None),
]


def plain(text: str) -> str:
    """Lower-case words without punctuation, for counting errors."""
    return re.sub(r"[^\w\s]", "", text).lower()


def speak(words: str, to: Path) -> None:
    """Writes `words`, spoken, to the Ogg file `to`."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "spoken.wav"
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", "145", "-w", str(wav), words], check=True)
        with av.open(str(wav)) as source, av.open(str(to), "w", format="ogg") as target:
            stream = target.add_stream("libopus", rate=48_000, layout="mono")
            stream.bit_rate = BIT_RATE
            resampler = av.AudioResampler(format=stream.format, layout="mono", rate=48_000)
            for frame in [*source.decode(audio=0), None]:
                for piece in resampler.resample(frame):
                    piece.pts = None
                    target.mux(stream.encode(piece))
            target.mux(stream.encode(None))


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    engine = Engine(Whisper(model="tiny.en"), max_seconds=60, pace=FRUGAL)
    entries: list[dict[str, Any]] = []
    worst = 0.0
    for name, device, recorded_at, words in DAY:
        entries.append({"file": name, "device_id": device, "recorded_at": recorded_at, "spoken": words})
        if name is None or words is None:
            continue
        speak(words, FOLDER / name)
        heard = engine.transcribe(FOLDER / name, language="en", progress=lambda _done, _total: None)
        rate = jiwer.wer(plain(words), plain(heard.text))
        worst = max(worst, rate)
        size = (FOLDER / name).stat().st_size
        print(f"{name:24} {heard.duration_seconds:5.1f} s {size:6} bytes  WER {rate:.3f}  {heard.text}")
    (FOLDER / "manifest.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return 0 if worst == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
