"""One run of a way to cut the whisper worker: processes as its children, the same sound for each, one common start.

As a program (`python -m app.speech.trial`) it is one of those processes. It ends with the one that started it, however
that ends, and nothing has a name that could stay behind.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import psutil
from numpy.typing import NDArray

import app
from app.errors import Permanent, TobanError
from app.settings import Whisper
from app.speech.decode import measure
from app.speech.pace import Pace
from app.speech.voice import CHUNK, RATE

Samples = NDArray[np.float32]
"""float32 [n], 16 kHz, mono."""

SHIPPED = Path(app.__file__).parent / "demo/recordings"
_LONGEST = 24 * 3600.0  # seconds of a recording, of which only the start is heard
_EVERY = 0.2  # seconds between two looks at the memory


@dataclass(frozen=True)
class Candidate:
    """A way to cut the worker: `children` processes, each at `pace`."""

    children: int
    pace: Pace

    def __str__(self) -> str:
        return f"{self.children} × {self.pace.threads} threads × {self.pace.batch} chunks"


@dataclass(frozen=True)
class Sample:
    """What each child hears: a wav, `seconds` long, `times` one after the other; `language`: ISO 639-1."""

    file: BinaryIO
    seconds: float
    times: int
    language: str | None

    @property
    def chunks(self) -> int:
        """Of 30 s, at most: only speech counts."""
        return ceil(self.seconds * RATE / CHUNK)


@dataclass(frozen=True)
class Run:
    """All children together: `speed`: audio seconds per second; `peak`: bytes. `failed`: why there is no speed."""

    speed: float
    peak: int
    failed: str | None = None


def shipped() -> Samples:
    """The demo's recordings, in English, one after the other."""
    pause = np.zeros(RATE // 2, np.float32)
    return np.concatenate(
        [part for path in sorted(SHIPPED.glob("*.ogg")) for part in (start_of(path, _LONGEST), pause)]
    )


def start_of(file: Path, seconds: float) -> Samples:
    """The first `seconds` of a recording. Raises `Permanent` with the reason when it can't be used."""
    if not file.is_file():
        raise Permanent(f"there is no file {file}")
    pieces, left = [], round(seconds * RATE)
    try:
        for piece in measure(file, max_seconds=_LONGEST).samples():
            pieces.append(piece[:left])
            left -= piece.size
            if left <= 0:
                break
    except Permanent as error:
        raise Permanent(f"{file} can't be used: {error}") from error
    except OSError as error:
        raise Permanent(f"{file} can't be read: {error.strerror or error}") from error
    return np.concatenate(pieces)


@contextmanager
def sample(samples: Samples, seconds: float, language: str | None) -> Iterator[Sample]:
    """`samples` for about `seconds`: the start of them, or all as often as it takes. No file is left behind."""
    cut = samples[: round(seconds * RATE)]
    with tempfile.TemporaryFile(prefix="toban-tune-") as output:
        with wave.open(output, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(RATE)
            sound.writeframes((cut * 32767).astype("<i2").tobytes())
        output.flush()
        yield Sample(output, cut.size / RATE, max(1, round(seconds * RATE / cut.size)), language)


def run(candidate: Candidate, settings: Whisper, sound: Sample) -> Run:
    """Load the engine in each child, then have all hear `sound` at once."""
    told = {
        "settings": settings.model_dump(mode="json"),
        "pace": asdict(candidate.pace),
        "audio": f"/proc/self/fd/{sound.file.fileno()}",
        "times": sound.times,
        "language": sound.language,
    }
    with ExitStack() as stack:
        children = [stack.enter_context(_child(told, sound.file)) for _ in range(candidate.children)]
        with Peak([child.pid for child in children]) as peak:
            answers = [_answer(child) for child in children]
            since = time.monotonic()
            if not any("failed" in answer for answer in answers):
                for child in children:
                    _go(child)
                answers = [_answer(child) for child in children]
    failed = next((answer["failed"] for answer in answers if "failed" in answer), None)
    if failed:
        return Run(0.0, peak.bytes, failed)
    seconds = max(answer["finished"] for answer in answers) - since
    return Run(candidate.children * sound.times * sound.seconds / seconds, peak.bytes)


@contextmanager
def _child(told: dict[str, Any], sound: BinaryIO) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},  # else onnxruntime leaves files, and reports to its maker
        pass_fds=[sound.fileno()],
        text=True,
        start_new_session=True,  # Ctrl-C is for the one that started it
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _go(child: "subprocess.Popen[str]") -> None:
    if child.stdin:
        with suppress(BrokenPipeError):  # its answer tells
            child.stdin.write("go\n")
            child.stdin.flush()


def _answer(child: "subprocess.Popen[str]") -> dict[str, Any]:
    if child.stdout and (line := child.stdout.readline()):
        answer: dict[str, Any] = json.loads(line)
        return answer
    code = child.wait()
    return {"failed": f"its process was killed by signal {-code}" if code < 0 else f"its process ended with {code}"}


class Peak:
    """The most memory that some processes, and all they have started, take at one moment; looked at every 0.2 s.

    `bytes`: what several of them share counts once (Linux: the proportional set size).
    """

    def __init__(self, pids: Collection[int]) -> None:
        self.bytes = 0
        self._pids = pids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="toban-peak", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.bytes = max(self.bytes, sum(_memory(one) for pid in self._pids for one in _family(pid)))
            if self._over.wait(_EVERY):
                return


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:  # it has ended
        return []


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, OSError):
        return 0


def _be_a_child(told: dict[str, Any]) -> None:
    """Load, get warm, wait for the word, hear."""
    from app.speech.hearing import Engine

    engine = Engine(Whisper.model_validate(told["settings"]), max_seconds=_LONGEST, pace=Pace(**told["pace"]))
    go = threading.Event()
    threading.Thread(target=_obey, args=(go,), daemon=True).start()
    first = next(iter(sorted(SHIPPED.glob("*.ogg"))))
    engine.transcribe(first, language="en", progress=lambda _done, _total: None)
    print("{}", flush=True)  # noqa: T201 - the pipe to the one that started it
    go.wait()
    for _ in range(told["times"]):
        engine.transcribe(Path(told["audio"]), language=told["language"], progress=lambda _done, _total: None)
    print(json.dumps({"finished": time.monotonic()}), flush=True)  # noqa: T201


def _obey(go: threading.Event) -> None:
    """The word to go comes as a line; the end of the pipe is the end of the one who would say it."""
    sys.stdin.readline()
    go.set()
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    try:
        _be_a_child(json.loads(sys.argv[1]))
    except TobanError as error:
        print(json.dumps({"failed": str(error)}), flush=True)  # noqa: T201
