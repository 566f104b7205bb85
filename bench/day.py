"""A day of recordings inside 2 GB: `python -m bench.day [--limit 2GiB] [--size base] [--files 48]`; half an hour.

48 recordings of 30 minutes, one fifth of them speech, go through beat, the queue and a real whisper worker in a control
group of its own, whose limit the kernel enforces. The weights are random and of the size asked for (no real ones of
that size can be shipped): every text is as long as the decoder can write, the worst case for memory and time.
"""

import argparse
import json
import tempfile
import time
import wave
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import numpy as np
import psutil
from pydantic import ByteSize, TypeAdapter

from app.cli.up import stop_like_ctrl_c
from app.database.migrate import migrate
from bench.models import random_ctranslate2
from tests.support.servers import Postgres, Redis
from tests.support.sounds import whole
from tests.support.speech import spoken
from tests.support.system import System, family

RATE = 16_000
LENGTH = 30 * 60  # seconds of a recording
SHARE = 0.2  # of it somebody speaks
ENDED = {"completed", "failed", "skipped"}
RESULT = Path(__file__).parent / "results/day.json"


def main() -> None:
    """Run it, print what came of it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", default="2GiB")
    parser.add_argument("--size", default="base")
    parser.add_argument("--files", type=int, default=48)
    asked = parser.parse_args()
    stop_like_ctrl_c()
    limit = int(TypeAdapter(ByteSize).validate_python(asked.limit))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toban-day-")))
        group = Group(limit)
        stack.callback(group.remove)
        model = random_ctranslate2(asked.size, folder / "model", sure=True)
        recording = a_recording(folder / "day.wav")
        postgres, redis = Postgres().start(), Redis().start()
        stack.callback(postgres.stop)
        stack.callback(redis.stop)
        url = postgres.create("day")
        migrate(url)
        system = stack.enter_context(
            System(
                url,
                redis,
                folder,
                WHISPER_MODEL=str(model),
                TOBAN_HEARTBEAT="15",
                TOBAN_LEASE="60",
                TOBAN_QUEUE_LEASE="30",
            )
        )
        system.add(recording, asked.files)
        system.start("beat", "default")
        began = time.monotonic()
        worker = system.run("whisper", "-A", "workers.whisper", "worker", "-n", "whisper@%h", join=group.folder)
        peak, children = 0, set[int]()
        while sum(count for state, count in system.states().items() if state in ENDED) < asked.files:
            peak = max(peak, sum(_resident(process) for process in family(worker.child.pid)))
            children |= {child.pid for child in system.children("whisper")}
            print(f"\r{dict(system.states())} peak {peak >> 20} MB", end="", flush=True)
            time.sleep(1)
        took = time.monotonic() - began
        [plan] = [json.loads(line)["plan"] for line in system.log("whisper").splitlines() if '"worker.plan"' in line]
        found = {
            "files": asked.files,
            "hours": asked.files * LENGTH / 3600,
            "size": asked.size,
            "limit_mb": limit >> 20,
            "plan": plan,
            "states": dict(system.states()),
            "tries": max(item["tries"] for item in system.items()),
            "seconds": round(took),
            "times_real_time": round(asked.files * LENGTH / took, 1),
            "peak_mb": peak >> 20,
            "group_peak_mb": group.peak() >> 20,
            "children": len(children),
            "killed_by_kernel": group.kills(),
        }
    print()
    print(json.dumps(found, indent=2))
    RESULT.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


class Group:
    """A control group with a memory limit in bytes, of either version."""

    def __init__(self, limit: int) -> None:
        v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        self.first = v1.is_dir()
        self.folder = (v1 if self.first else v2) / f"toban-day-{uuid4().hex[:8]}"
        self.folder.mkdir()
        (self.folder / ("memory.limit_in_bytes" if self.first else "memory.max")).write_text(str(limit))

    def peak(self) -> int:
        """The most memory it held, bytes; with the files that its processes read, which the kernel drops at need."""
        return int((self.folder / ("memory.max_usage_in_bytes" if self.first else "memory.peak")).read_text())

    def kills(self) -> int:
        """How often the kernel killed a process in it for want of memory."""
        events = (self.folder / ("memory.oom_control" if self.first else "memory.events")).read_text()
        return next(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))

    def remove(self) -> None:
        self.folder.rmdir()


def a_recording(target: Path) -> Path:
    """16-bit mono wav at 16 kHz: half a minute of speech here and there in faint noise."""
    chance = np.random.default_rng(1)
    speech = np.concatenate([np.pad(whole(entry.path, max_seconds=60), (0, RATE // 2)) for entry in spoken()])
    sound = chance.normal(0, 0.0005, LENGTH * RATE).astype(np.float32)
    stretch = 30 * RATE
    looped = np.resize(speech, stretch)
    for first in range(0, LENGTH * RATE, int(stretch / SHARE)):
        sound[first : first + stretch] += looped
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return target


def _resident(process: psutil.Process) -> int:
    """Bytes; what is shared between processes is shared out among them."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


if __name__ == "__main__":
    main()
