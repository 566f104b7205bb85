"""Memory is a limit, not a hope: a model that does not fit is refused, a recording that takes too much fails alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.conftest import NewSystem
from tests.support.servers import ROOT, wait_for
from tests.support.system import System

WORKER = ["-A", "workers.whisper", "worker"]


def toban(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from app.cli import main; main()", *arguments]
    return subprocess.run(
        command, env={**os.environ, **system.env}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_model_that_does_not_fit_is_refused_and_all_else_goes_on(new_system: NewSystem, recording: Path) -> None:
    system = new_system(WHISPER_MEMORY_LIMIT="1536MiB")
    system.add(recording)
    system.start("beat", "default")
    command = [sys.executable, "-m", "celery", *WORKER]
    refused = subprocess.run(
        command,
        env={**os.environ, **system.env, "WHISPER_MODEL": "medium"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = refused.stdout + refused.stderr
    assert refused.returncode == 1
    assert "Toban's whisper worker does not start: the speech model medium needs" in said
    assert "1.5 GB (WHISPER_MEMORY_LIMIT)" in said
    assert "base" in said.split("these fit:")[1]
    assert "medium" not in said.split("these fit:")[1]
    assert "Traceback" not in said

    # The next look at everything, some seconds later, makes an incident of it.
    system.wait_until(lambda _: "Worker of the queue whisper" in toban(system, "status").stdout)
    assert "WHISPER_MODEL" in toban(system, "status").stdout
    # Everybody else works on: the dispatcher runs, and the row waits for a worker.
    system.wait_until(lambda _: bool(system.sql("select * from jobs where last_status = 'success'")))
    assert system.states() == {"pending": 1}

    system.start("whisper")
    assert system.wait_done() == {"completed": 1}
    [told] = system.sql("select last_status from job_status where job_key = 'worker-whisper'")
    assert told["last_status"] == "success"


def test_who_takes_too_much_fails_alone_and_goes_again_with_less(new_system: NewSystem, recording: Path) -> None:
    system = new_system(TOBAN_SOURCES="tests.support.poison", WHISPER_MEMORY_LIMIT="1100MiB")
    for ending in (b"GREEDY", b"FAT", b"GLUTTON", b""):
        system.add(recording.read_bytes() + ending)
    system.start()
    assert system.wait_done() == {"completed": 3, "failed": 1}
    fat, plain, greedy, glutton = system.items()  # by device, then time
    assert (greedy["tries"], greedy["params"], greedy["state"]) == (2, {"frugal": True}, "completed")
    assert (fat["tries"], fat["params"], fat["state"]) == (2, {"frugal": True}, "completed")
    assert plain["tries"] == 1
    assert (glutton["tries"], glutton["last_error_kind"]) == (2, "out_of_memory")
    assert "a child may use" in glutton["last_error"]
    assert "WHISPER_MEMORY_LIMIT" in glutton["last_error"]
    assert "worker.plan" in system.log("whisper")


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A control group of 2 GB, as a container has; the kernel enforces it."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    group = root / f"toban-test-{uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / limit).write_text(str(2 * 1024**3))
    except OSError as error:
        pytest.skip(f"this machine lets nobody make a control group: {error}")
    yield group

    def is_removed() -> bool:
        try:
            group.rmdir()
        except OSError:  # what was killed a moment ago is still in it
            return False
        return True

    wait_for(is_removed, "the end of the control group")


def test_the_limit_of_the_container_is_the_workers(control_group: Path, new_system: NewSystem, recording: Path) -> None:
    system = new_system()
    system.add(recording, 4)
    system.start("beat", "default")
    worker = system.run("whisper", *WORKER, "-n", f"whisper-{id(system)}@%h", join=control_group)
    assert system.wait_done() == {"completed": 4}
    assert "of this container, less a margin" in system.log("whisper")
    assert int((control_group / "cgroup.procs").read_text().split()[0]) == worker.child.pid
