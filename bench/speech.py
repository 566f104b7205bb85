"""How fast Toban's whisper worker hears, beside what else there is for the same weights on the same machine.

`python -m bench.speech`, or `make bench`; `--quick` is a rehearsal on little sound that writes no result. Needs
espeak-ng, and the extras demo, dev and openai-whisper. The recordings are those of `bench.sentences`, the model is
tiny.en. In each round every contestant hears every set in fresh processes, one contestant after the other, so that
what a machine does beside hits all of them alike. Writes `bench/results/speech.json`.

Seconds of work run from the moment when every process has heard a first sentence, so that all have loaded all they
need, to the last text; for Toban from the insert of the rows, into a queue that is empty, to the last row completed.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jiwer
import psutil
import psycopg

from app.cli.up import stop_like_ctrl_c
from app.embedded import Stack
from app.settings import Whisper
from app.speech.memory import cores, plan
from app.speech.trial import Peak
from bench.make_recordings import plain
from bench.sentences import CACHE, SENTENCES, Kind, Spoken, recordings, said, write
from tests.support.weights import openai_checkpoint, wheel_model

ROUNDS = 3
SETS = {"100": Kind(1.0, 6, 65), "50": Kind(0.5, 6, 65), "10": Kind(0.1, 6, 100)}
QUICK = {"100": Kind(1.0, 2, 20), "50": Kind(0.5, 2, 20), "10": Kind(0.1, 2, 60)}
PATIENCE = 900  # seconds for one run
TOO_LONG = 100  # seconds; who takes longer for a set hears it in the first round only
HEARTBEAT = 1  # seconds; an idle worker looks for work that often
RESULTS = Path(__file__).parent / "results/speech.json"
RIVALS = Path(__file__).parent / "rivals.py"
WARM = CACHE / "warm.wav"
DEVICE = "bench"
LIBRARIES = ("faster-whisper", "ctranslate2", "onnxruntime", "openai-whisper", "torch", "celery", "numpy", "av")

INSERT = "insert into audio_files (device_id, recorded_at, file_path) values (%s, %s, %s)"
ENDED = """
select count(*) filter (where state = 'completed'), count(*) filter (where state in ('failed', 'skipped')),
       extract(epoch from max(finished_at))::float, count(distinct worker), max(last_error)
from work_items where at >= %s
"""


@dataclass(frozen=True)
class Run:
    """One contestant's way through a set.

    Seconds: `start`, until everything was loaded and warm; `work`, from there to the last text. `peak`: bytes. `texts`:
    in the order of the recordings.
    """

    start: float
    work: float
    peak: int
    texts: Sequence[str]


Contestant = Callable[[Sequence[Spoken]], Run]


def rival(name: str) -> Contestant:
    """A loop of `bench/rivals.py` over the library."""

    def run(spoken: Sequence[Spoken]) -> Run:
        files = [str(WARM), *(str(one.path) for one in spoken)]
        begun, peak, output = _watched([str(RIVALS), name, str(wheel_model()), str(cores()), *files])
        told = json.loads(output.splitlines()[-1])
        return Run(told["ready"] - begun, told["done"] - told["ready"], peak, told["texts"])

    return run


def command(checkpoint: Path, *options: str) -> Contestant:
    """openai-whisper's own command, once for all files: it writes one file for each as soon as it is done."""

    def run(spoken: Sequence[Spoken]) -> Run:
        with tempfile.TemporaryDirectory(prefix="toban-bench-") as folder:
            files = [WARM, *(one.path for one in spoken)]
            threads = ["--fp16", "False", "--threads", str(cores())]
            form = ["--output_format", "json", "--output_dir", folder, "--verbose", "False"]
            words = [*map(str, files), "--model", str(checkpoint), "--language", "en", *threads, *form, *options]
            begun, peak, _ = _watched([str(RIVALS), "cli", *words])
            texts = [Path(folder, f"{file.stem}.json") for file in files]
            moments = [text.stat().st_mtime for text in texts]
            heard = [json.loads(text.read_text("utf-8"))["text"] for text in texts[1:]]
        return Run(moments[0] - begun, max(moments) - moments[0], peak, heard)

    return run


def _watched(arguments: Sequence[str]) -> tuple[float, int, str]:
    """Runs a program of Python: when it began (seconds since 1970), its peak in bytes, and its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    begun = time.time()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        )
        try:
            with Peak([process.pid]) as peak:
                output, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{arguments[:2]} ended with {process.returncode}: {errors.read()[-3000:]}")
    return begun, peak.bytes, output


class Toban:
    """The real worker over real servers, `celery -A workers.whisper worker`."""

    def __init__(self, connection: psycopg.Connection[Any], environment: Mapping[str, str], children: int) -> None:
        self._connection = connection
        self._environment = environment
        self._children = children
        self._next = datetime(2025, 7, 18, tzinfo=UTC)

    def __call__(self, spoken: Sequence[Spoken]) -> Run:
        with tempfile.NamedTemporaryFile("w+b") as log:
            arguments = ["-m", "celery", "-A", "workers.whisper", "worker", "-n", "bench@%h", "--without-mingle"]
            begun = time.time()
            process = subprocess.Popen(
                [sys.executable, *arguments], env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                with Peak([process.pid]) as peak:
                    self._warm(process)
                    ready = time.time()
                    first = self._insert([one.path for one in spoken])
                    finished = self._wait(first, len(spoken), process)
            except BaseException:
                print(Path(log.name).read_text("utf-8", errors="replace")[-3000:], file=sys.stderr)
                raise
            finally:
                _end(process)
        texts = [text for (text,) in self._connection.execute(
            "select text from transcripts where recorded_at >= %s order by recorded_at", [first]
        )]  # fmt: skip
        return Run(ready - begun, finished - ready, peak.bytes, texts)

    def _insert(self, files: Sequence[Path]) -> datetime:
        """Rows that wait for `files`; returns the first one's moment, and all later ones are theirs."""
        first = self._next
        for file in files:
            self._connection.execute(INSERT, [DEVICE, self._next, str(file.relative_to(CACHE))])
            self._next += timedelta(minutes=30)
        return first

    def _warm(self, process: "subprocess.Popen[bytes]") -> None:
        """Until every child has heard a sentence."""
        first = self._next
        count = 0
        while count == 0 or self._row(first)[3] < self._children:
            count += self._children
            self._insert([WARM] * self._children)
            self._wait(first, count, process)

    def _wait(self, first: datetime, count: int, process: "subprocess.Popen[bytes]") -> float:
        """Until `count` rows are done: when the last one finished, seconds since 1970."""
        deadline = time.monotonic() + PATIENCE
        while True:
            completed, lost, finished, _, error = self._row(first)
            if lost or process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"of {count} recordings {completed} completed, {lost} failed or skipped: {error}")
            if completed == count:
                return float(finished)
            time.sleep(0.05)

    def _row(self, first: datetime) -> tuple[Any, ...]:
        return self._connection.execute(ENDED, [first]).fetchone() or ()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def compete(contestants: Mapping[str, Contestant], sets: Mapping[str, Sequence[Spoken]], rounds: int) -> dict[str, Any]:
    """Every contestant in turn on every set, `rounds` times; what came of it, by set."""
    runs: dict[str, dict[str, list[Run]]] = {share: {name: [] for name in contestants} for share in sets}
    for number in range(1, rounds + 1):
        for share, spoken in sets.items():
            for name, contestant in contestants.items():
                if any(run.work > TOO_LONG for run in runs[share][name]):
                    continue
                run = contestant(spoken)
                runs[share][name].append(run)
                print(
                    f"round {number}, {share:>3} % speech, {name:14} start {run.start:6.2f} s, work {run.work:7.2f} s, "
                    f"{run.peak >> 20:5} MB, word error rate {_errors(spoken, run):.3f}",
                    flush=True,
                )
    return {
        share: {
            "recordings": len(sets[share]),
            "seconds": round(sum(one.seconds for one in sets[share])),
            "words": sum(len(one.words.split()) for one in sets[share]),
            "contestants": {name: _figures(sets[share], of, runs[share]["toban"]) for name, of in runs[share].items()},
        }
        for share in sets
    }


def _figures(spoken: Sequence[Spoken], runs: Sequence[Run], toban: Sequence[Run]) -> dict[str, Any]:
    seconds = sum(one.seconds for one in spoken)
    pairs = list(zip(runs, toban, strict=False))  # of the same round
    return {
        "start_seconds": [round(run.start, 2) for run in runs],
        "work_seconds": [round(run.work, 2) for run in runs],
        "speed": spread([seconds / run.work for run in runs], 1),
        "speed_whole": spread([seconds / (run.start + run.work) for run in runs], 1),
        "toban_is": spread([run.work / own.work for run, own in pairs], 2),
        "toban_is_whole": spread([(run.start + run.work) / (own.start + own.work) for run, own in pairs], 2),
        "peak_mb": round(max(run.peak for run in runs) / 2**20),
        "word_error_rate": round(statistics.median(_errors(spoken, run) for run in runs), 4),
    }


def _errors(spoken: Sequence[Spoken], run: Run) -> float:
    """Word error rate without case and punctuation."""
    return float(jiwer.wer([plain(one.words) for one in spoken], [plain(text) for text in run.texts]))


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    of = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in of.items()}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return {
        "processor": next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?"),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES if find_spec(_MODULES.get(name, name))},
        # Above some tenths others were busy on the machine, and the figures are worth little.
        "load_before": round(os.getloadavg()[0], 2),
    }


_MODULES = {"faster-whisper": "faster_whisper", "openai-whisper": "whisper"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speech", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round over little sound, to see that all is there")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="beside toban, some of the contestants")
    parser.add_argument("--to", type=Path, help=f"the result; default: {RESULTS.relative_to(Path.cwd())}, or none")
    options = parser.parse_args()
    stop_like_ctrl_c()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else onnxruntime reports to its maker
    told = machine()
    sets = {share: recordings(kind) for share, kind in (QUICK if options.quick else SETS).items()}
    write(said(SENTENCES[0], "en-us", 150), WARM)
    own = {"WHISPER_MODEL": "tiny.en", "WHISPER_LANGUAGE": "en", "AUDIO_FOLDER": str(CACHE)}
    with (
        tempfile.TemporaryDirectory(prefix="toban-bench-") as folder,
        Stack(Path(folder, "stack"), own, workers=False) as stack,
        psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection,
    ):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")},
            **stack.environment,
            "TOBAN_HEARTBEAT": str(HEARTBEAT),
            "XDG_CACHE_HOME": folder,  # as on a machine where nobody has run `toban tune`
        }
        os.environ["XDG_CACHE_HOME"] = folder
        cut = plan(Whisper(model="tiny.en"), cores())
        contestants: dict[str, Contestant] = {
            "toban": Toban(connection, environment, cut.children),
            "raw": rival("raw"),
            "raw-words": rival("timed"),
            "plain": rival("plain"),
        }
        if find_spec("whisper"):
            checkpoint = openai_checkpoint(Path(folder, "tiny.en.pt"))
            contestants["openai"] = command(checkpoint)
            contestants["openai-greedy"] = command(checkpoint, "--beam_size", "None")
        else:
            print("openai-whisper is not installed, so it does not take part")
        if options.only:
            contestants = {name: of for name, of in contestants.items() if name in {"toban", *options.only}}
        rounds = 1 if options.quick else ROUNDS
        figures = {
            "machine": told,
            "model": "tiny.en",
            "rounds": rounds,
            "toban": {"plan": f"{cut.children} × {cut.pace.threads} threads × {cut.pace.batch} chunks",
                      "heartbeat_seconds": HEARTBEAT},
            "sets": compete(contestants, sets, rounds),
        }  # fmt: skip
    text = json.dumps(figures, indent=2) + "\n"
    if to := options.to or (None if options.quick else RESULTS):
        to.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
