"""What it would gain at most to fetch the next recording while the current one is heard.

`python -m bench.overlap`, or `make bench`. A recording of 30 minutes (16 kHz, 16 bit, mono: 57.6 MB) is fetched from an
S3 server on this machine, as fast as that goes and through a proxy that lets through 1000 and 100 Mbit/s, and heard
by tiny.en, the quickest model there is: with any other the share of fetching is smaller. Writes
`bench/results/overlap.json`.

A child that fetches waits for the network, and meanwhile its core has nothing to do: the other child has a core of its
own. So a recording costs fetching and hearing, one after the other. At best it would cost hearing and the processor
time of fetching, which nothing hides, and the link has to carry what the children hear.
"""

import argparse
import json
import logging
import multiprocessing
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from app.audio.s3 import S3Store
from app.cli.up import stop_like_ctrl_c
from app.settings import Whisper
from app.speech.decode import measure
from app.speech.memory import cores, plan
from app.speech.trial import Candidate, Sample, run
from app.speech.voice import RATE
from bench.sentences import Kind, recordings, write
from bench.speech import machine
from tests.support.moto import audio_settings, moto_bucket

MINUTES = 30
SHARES = (20, 100)  # percent of speech
RATES = (None, 1000, 100)  # Mbit/s; None: all that the machine's own loop carries
TIMES = 3
KEY = "files/device/2025-07-18/12-00/audio.wav"
RESULTS = Path(__file__).parent / "results/overlap.json"
_BLOCK = 128 * 1024


@dataclass(frozen=True)
class Fetched:
    """Medians of fetching one recording: `seconds`, and the processor's seconds in that."""

    seconds: float
    processor: float


def fetch(url: str, bucket: str, size: int) -> Fetched:
    """As a worker fetches it, some times over."""
    store = S3Store(audio_settings(url, bucket), bucket)
    runs = []
    with tempfile.TemporaryDirectory(prefix="toban-bench-") as folder:
        for _ in range(TIMES + 1):
            to = Path(folder, "audio.wav")
            since, spent = time.perf_counter(), time.process_time()
            store.fetch(KEY, to)
            runs.append((time.perf_counter() - since, time.process_time() - spent))
            if to.stat().st_size != size:
                raise RuntimeError(f"{to.stat().st_size} of {size} bytes came")
    seconds, processor = zip(*runs[1:], strict=True)  # the first one has made the client
    return Fetched(statistics.median(seconds), statistics.median(processor))


@contextmanager
def served(recording: Path) -> Iterator[tuple[str, str]]:
    """The address of an S3 server that has the recording, and its bucket; a process of its own, as is the client's."""
    with _process(_serve, recording) as pipe:
        url, bucket = pipe.recv()
        yield url, bucket


def _serve(pipe: Connection, recording: Path) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    with moto_bucket() as bucket:
        bucket.put(KEY, recording.read_bytes())
        pipe.send((bucket.url, bucket.name))
        with suppress(EOFError):
            pipe.recv()


@contextmanager
def throttled(url: str, rate: float) -> Iterator[str]:
    """The address of a proxy before `url` that answers with at most `rate` Mbit/s in all."""
    with _process(_throttle, url, rate) as pipe:
        yield f"http://127.0.0.1:{pipe.recv()}"


def _throttle(pipe: Connection, url: str, rate: float) -> None:
    server = urlsplit(url)
    link = _Link(rate * 1e6 / 8)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        threading.Thread(target=_accept, args=(listener, (server.hostname, server.port), link), daemon=True).start()
        with suppress(EOFError):
            pipe.recv()


class _Link:
    """Lets `rate` bytes a second through, all connections together."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free = 0.0  # when what was sent so far has gone through
        self._lock = threading.Lock()

    def pass_through(self, count: int) -> None:
        with self._lock:
            self._free = max(self._free, time.monotonic()) + count / self._rate
            wait = self._free - time.monotonic()
        if wait > 0:
            time.sleep(wait)


def _accept(listener: socket.socket, server: tuple[str | None, int | None], link: _Link) -> None:
    while True:
        client, _ = listener.accept()
        upstream = socket.create_connection((server[0] or "", server[1] or 0))
        threading.Thread(target=_copy, args=(client, upstream, None), daemon=True).start()
        threading.Thread(target=_copy, args=(upstream, client, link), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket, link: _Link | None) -> None:
    with suppress(OSError):
        while block := source.recv(_BLOCK):
            if link:
                link.pass_through(len(block))
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def _process(target: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """`target(pipe, *arguments)` in a fresh process, until the block ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(10)
        process.kill()


def gain(fetched: Fetched, heard: float, children: int, link: float) -> float:
    """What perfect overlap would gain at most: 0.02 is 2 %.

    `heard`: seconds that one child hears a recording, all others hearing too; `link`: the least seconds that the
    link needs for one.
    """
    today = children / (fetched.seconds + heard)
    best = min(children / (heard + fetched.processor), 1 / link)
    return max(0.0, best / today - 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overlap", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a recording of two minutes, and no result is written")
    options = parser.parse_args()
    stop_like_ctrl_c()
    minutes = 2 if options.quick else MINUTES
    told = machine()
    settings = Whisper(model="tiny.en", language="en")
    cut = plan(settings, cores())
    hearing: dict[int, float] = {}
    fetching: dict[int | None, Fetched] = {}
    with tempfile.TemporaryDirectory(prefix="toban-bench-") as folder, ExitStack() as stack:
        recording = Path(folder, "audio.wav")
        for share in SHARES:
            [part] = recordings(Kind(share / 100, 1, 300))
            samples = np.concatenate([*measure(part.path, max_seconds=3600).samples()])
            write(np.resize(samples, minutes * 60 * RATE), recording)
            with recording.open("rb") as file:
                done = run(Candidate(cut.children, cut.pace), settings, Sample(file, minutes * 60, 1, "en"))
            if done.failed:
                raise RuntimeError(done.failed)
            hearing[share] = cut.children * minutes * 60 / done.speed
            print(f"{share} % speech: {hearing[share]:.2f} s to hear it", flush=True)
        size = recording.stat().st_size
        url, bucket = stack.enter_context(served(recording))
        for rate in RATES:
            with throttled(url, rate) if rate else nothing(url) as address:
                fetching[rate] = fetch(address, bucket, size)
            print(f"{rate or 'no limit'}: {fetching[rate]}", flush=True)
    figures = {
        "machine": told,
        "model": "tiny.en",
        "plan": {"children": cut.children, "threads": cut.pace.threads, "batch": cut.pace.batch},
        "minutes": minutes,
        "bytes": size,
        "rows": [
            {
                "mbit_per_s": rate,
                "speech": share,
                "fetch_seconds": round(fetched.seconds, 2),
                "fetch_processor_seconds": round(fetched.processor, 2),
                "hear_seconds": round(heard, 2),
                "share": round(fetched.seconds / (fetched.seconds + heard), 4),
                "gain": round(gain(fetched, heard, cut.children, size * 8e-6 / rate if rate else 1e-9), 4),
            }
            for rate, fetched in fetching.items()
            for share, heard in hearing.items()
        ],
    }
    text = json.dumps(figures, indent=2) + "\n"
    if not options.quick:
        RESULTS.write_text(text, "utf-8")
    print(text)


@contextmanager
def nothing(url: str) -> Iterator[str]:
    yield url


if __name__ == "__main__":
    main()
