"""Measures what a child of the whisper worker needs, for `app/speech/memory.json`: `python -m bench.memory`.

`--engine` and `--size` measure only those and keep the other figures; `--docs` only writes the table of docs/memory.md.
Each figure is the highest resident memory of a fresh process that has imported what a worker imports, loads a model
with random weights of that size and hears chunks of 30 s that are full of speech, every text as long as the decoder
writes. Everything takes about half an hour.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from math import ceil
from pathlib import Path

import numpy as np

from app.settings import Whisper
from app.speech import memory
from app.speech.hearing import Engine
from app.speech.memory import SIZES
from app.speech.pace import Pace
from bench.models import random_ctranslate2, random_openai
from tests.support.sounds import RATE, wav, whole
from tests.support.speech import spoken

FIGURES = Path(memory.__file__).with_name("memory.json")
PAGE = Path(__file__).parents[1] / "docs/memory.md"
TYPES = {"faster-whisper": ("int8", "float32"), "openai-whisper": ("float32",)}
BEGIN, END = "<!-- figures -->\n", "<!-- end -->\n"
LARGE = {"medium", "turbo", "large"}

Figures = dict[str, dict[str, dict[str, dict[str, int]]]]


def main() -> None:
    """Measure what is asked for, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=TYPES, action="append")
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(peak(**json.loads(asked.child)))
        return
    if not asked.docs:
        measure(asked.engine or list(TYPES), asked.size or list(SIZES))
    write_page()


def measure(engines: list[str], sizes: list[str]) -> None:
    """Fill in the figures of `engines` and `sizes`."""
    told = json.loads(FIGURES.read_text("utf-8"))
    kept: Figures = told["figures"]
    for engine in engines:
        for size in sizes:
            with tempfile.TemporaryDirectory(prefix="toban-memory-") as folder:
                model = make(engine, size, Path(folder))
                audio = speech(Path(folder) / "speech.wav")
                for kind in TYPES[engine]:
                    found = fitted(engine, kind, model, audio, small=size in LARGE)
                    kept.setdefault(engine, {}).setdefault(kind, {})[size] = found
                    print(engine, kind, size, found, flush=True)
            told["measured"] = {
                "on": datetime.now(UTC).date().isoformat(),
                "machine": platform.machine(),
                **{name: version(name) for name in (*TYPES, "ctranslate2", "torch")},
            }
            told["estimated"] = [other for other in told["estimated"] if other != f"{engine}/{size}"]
            FIGURES.write_text(json.dumps(told, indent=2) + "\n", "utf-8")


def make(engine: str, size: str, folder: Path) -> Path:
    """A model with random weights, as the published one would be stored."""
    name = {"large": "large-v3", "turbo": "large-v3-turbo"}.get(size, size)
    if engine == "openai-whisper":
        return random_openai(name, folder / f"{size}.pt", sure=True)
    return random_ctranslate2(name, folder / size, sure=True)


def speech(target: Path) -> Path:
    """Four minutes and a half of speech without a pause: wav, 16 kHz."""
    sound = np.concatenate([whole(entry.path, max_seconds=60) for entry in spoken()])
    target.write_bytes(wav((np.resize(sound, 270 * RATE) * 32767).astype("<i2")))
    return target


def fitted(engine: str, kind: str, model: Path, audio: Path, *, small: bool) -> dict[str, int]:
    """MB of a child: `base`, more for each further `thread`, and for each further `chunk` at once."""

    def at(pace: Pace) -> int:
        told = {
            "engine": engine,
            "kind": kind,
            "model": str(model),
            "audio": str(audio),
            "pace": [pace.threads, pace.batch],
        }
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, "--child", json.dumps(told)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "DATABASE_URL": "postgresql://localhost/none", "AUDIO_FOLDER": "/tmp"},  # noqa: S108
        )
        return int(done.stdout)

    base = at(Pace(1, 1))
    if engine == "openai-whisper":  # one chunk after the other, whatever the pace
        return {"base": base, "thread": max(0, at(Pace(2, 1)) - base), "chunk": 0}
    batch = 2 if small else 4
    chunk = ceil(max(0, at(Pace(1, batch)) - base) / (batch - 1))
    threaded = at(Pace(2, 1 if small else 2))
    return {"base": base, "thread": max(0, threaded - base - chunk * (1 if small else 3)), "chunk": chunk}


def peak(*, engine: str, kind: str, model: str, audio: str, pace: list[int]) -> int:
    """The highest resident memory of this process, MB, after hearing one round of full chunks."""
    from workers.whisper import app

    app.loader.import_default_modules()
    settings = Whisper.model_validate({"engine": engine, "model": model, "compute_type": kind})
    own = Pace(*pace)
    # The first chunk is heard alone, the next ones together.
    sound = Path(audio).with_suffix(f".{own.chunks}.wav")
    samples = whole(Path(audio), max_seconds=600)[: (1 + own.chunks) * 29 * RATE]
    sound.write_bytes(wav((samples * 32767).astype("<i2")))
    Engine(settings, max_seconds=3600, pace=own).transcribe(sound, language="en", progress=lambda _done, _total: None)
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def table() -> str:
    """MB of a child with one thread, one chunk at a time and (faster-whisper) four at a time; ~: estimated."""
    told = json.loads(FIGURES.read_text("utf-8"))
    figures: Figures = told["figures"]
    heads = ["model", *(f"{engine}, {kind}" for engine, kinds in TYPES.items() for kind in kinds)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for size in SIZES:
        cells = [size]
        for engine, kinds in TYPES.items():
            for kind in kinds:
                of = figures[engine][kind][size]
                more = f" – {of['base'] + 3 * of['chunk']}" if of["chunk"] else ""
                sign = "~" if f"{engine}/{size}" in told["estimated"] else ""
                cells.append(f"{sign}{of['base']}{more}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_page() -> None:
    """Put the table into the page, between its markers."""
    text = PAGE.read_text("utf-8")
    first, rest = text.split(BEGIN)
    PAGE.write_text(f"{first}{BEGIN}{table()}\n{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
