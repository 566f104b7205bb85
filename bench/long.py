"""Whether memory grows with a recording's length: `python -m bench.long [--minutes 30 180]`; up to an hour.

Recordings full of speech are heard by both engines with the weights of tiny.en, each in a fresh process at the pace of
a worker's child. Writes `bench/results/long.json`: the highest resident memory of each, and for each engine how much
more the longest took than the shortest. Needs espeak-ng, and the extras demo, dev and openai-whisper.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.settings import Whisper
from app.speech.hearing import Engine
from app.speech.memory import cores, plan
from app.speech.pace import Pace
from bench.sentences import Kind, recordings
from tests.support.weights import openai_checkpoint

MINUTES = (30, 180)
RESULT = Path(__file__).parent / "results/long.json"


def main() -> None:
    """Run it, print what came of it, and keep it."""
    parser = argparse.ArgumentParser(prog="python -m bench.long", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, nargs="+", default=MINUTES)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(hear(**json.loads(asked.child))))
        return
    with tempfile.TemporaryDirectory(prefix="toban-long-") as folder:
        checkpoint = openai_checkpoint(Path(folder, "tiny.en.pt"))
        models = {"faster-whisper": "tiny.en", "openai-whisper": str(checkpoint)}
        found = {engine: compare(engine, model, asked.minutes, Path(folder)) for engine, model in models.items()}
    text = json.dumps({"model": "tiny.en", "engines": found}, indent=2) + "\n"
    RESULT.write_text(text, "utf-8")
    print(text)


def compare(engine: str, model: str, lengths: Sequence[int], folder: Path) -> dict[str, Any]:
    """What one engine takes for recordings of these `lengths`, minutes."""
    pace = plan(Whisper.model_validate({"engine": engine, "model": model}), cores()).pace
    runs = []
    for minutes in sorted(lengths):
        audio = speech(minutes, folder / f"{minutes}.wav")
        told = {"engine": engine, "model": model, "pace": asdict(pace), "audio": str(audio)}
        command = [sys.executable, "-m", __spec__.name, "--child", json.dumps(told)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        runs.append({"minutes": minutes, **json.loads(done.stdout)})
        print(engine, runs[-1], flush=True)
    return {"pace": asdict(pace), "runs": runs, "ratio": round(runs[-1]["peak_mb"] / runs[0]["peak_mb"], 3)}


def speech(minutes: int, target: Path) -> Path:
    """One sentence after the other, the same five minutes of them again and again: wav, 16 kHz, 16 bit, mono."""
    [spoken] = recordings(Kind(1.0, 1, 300))
    with wave.open(str(spoken.path)) as source, wave.open(str(target), "wb") as output:
        output.setparams(source.getparams())
        frames = source.readframes(source.getnframes())
        left = minutes * 60 * source.getframerate() * source.getsampwidth()
        while left > 0:
            output.writeframes(frames[:left])
            left -= len(frames)
    return target


def hear(*, engine: str, model: str, pace: dict[str, int], audio: str) -> dict[str, int]:
    """Hear the recording; the highest resident memory of this process, MB, the words, and the seconds it took."""
    own = Engine(Whisper.model_validate({"engine": engine, "model": model}), max_seconds=6 * 3600, pace=Pace(**pace))
    began = time.monotonic()
    heard = own.transcribe(Path(audio), language="en", progress=lambda _done, _total: None)
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
    return {"peak_mb": peak, "words": len(heard.text.split()), "seconds": round(time.monotonic() - began)}


if __name__ == "__main__":
    main()
