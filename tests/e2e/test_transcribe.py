"""The old transcription service's clients, unchanged, behind nginx: real workers, real speech, and no 504."""

import json
import os
import time
import urllib.request
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString

import httpx

from app.settings import Web
from app.web.batches import LAST_LOOK
from app.web.prefer import patience
from tests.e2e.conftest import NewSystem
from tests.support.gateway import Nginx
from tests.support.servers import free_port, service_missing, wait_for
from tests.support.system import DEVICES, FIRST, System, kill_tree

# As domain.md has recorded it: what a client sends, and what it reads.
RECORDED: dict[str, Any] = {
    "status": "success",
    "device_id": "…",
    "date": "2025-07-18",
    "summary": {"total_files": 6, "already_completed": 2, "pending_processed": 4, "errors": 0},
    "processed_files": ["files/…/12-00/audio.wav"],
    "processed_time_blocks": ["12-00", "14-00"],
    "error_files": None,
    "execution_time_seconds": 11.3,
    "message": "pendingステータスの4件中4件を正常に処理しました",
}


def old_client(base: str, device: str, date: str) -> dict[str, Any]:
    """What the hourly script does: one request, and its answer taken apart. It knows no key, and nothing of batches."""
    body = json.dumps({"device_id": device, "date": date, "model": "tiny.en"}).encode()
    request = urllib.request.Request(  # noqa: S310 - a server of ours
        f"{base}/fetch-and-transcribe", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=300) as response:  # noqa: S310
        assert response.status == 200
        answer: dict[str, Any] = json.load(response)
    assert [type(value) for value in answer.values()] == [type(value) for value in RECORDED.values()]
    assert list(answer) == list(RECORDED)
    assert list(answer["summary"]) == list(RECORDED["summary"])
    return answer


def silence(path: Path) -> Path:
    """Half a second in which nobody speaks."""
    with wave.open(str(path), "wb") as output:
        output.setparams((1, 2, 16_000, 0, "NONE", ""))
        output.writeframes(bytes(16_000))
    return path


@contextmanager
def nginx(port: int, key: str, **settings: str) -> Iterator[str]:
    """Nginx as the old one was set up, with its prefix; it adds the key that old clients do not have."""
    more = "".join(f"{name} {value}; " for name, value in settings.items())
    server = Nginx(
        f"location /vibe-transcriber/ {{ proxy_pass http://127.0.0.1:{port}/; {more}"
        f"proxy_set_header X-API-Key {key}; proxy_buffering off; }}"
    )
    try:
        yield server.start().url
    except FileNotFoundError as error:
        service_missing(str(error))
    finally:
        server.stop()


class Follower:
    """Follows a batch by its events, over broken connections too."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, str] = {}
        self.last_id: str | None = None
        self.done: dict[str, Any] | None = None

    def listen(self, until: int | None = None) -> None:
        """Until the batch is done, or so many files are completed; or the connection breaks."""
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        with (
            suppress(httpx.RemoteProtocolError),  # nginx waits 3 s, and the stream may be silent for longer
            httpx.stream("GET", self.url, headers=headers, timeout=30) as answer,
        ):
            if not answer.is_success:
                return
            event: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                event[name] = value
                if not line and "event" in event:
                    self._take(event)
                    event = {}
                    if until is not None and list(self.files.values()).count("completed") >= until:
                        return

    def _take(self, event: dict[str, str]) -> None:
        data = json.loads(event["data"])
        self.last_id = event["id"]
        if event["event"] == "file":
            self.files[data["file"]] = data["state"]
        elif event["event"] == "done":
            self.done = data


def test_an_old_client_and_a_whole_day_at_once(new_system: NewSystem, recording: Path, tmp_path: Path) -> None:
    system = new_system(ROOT_PATH="/vibe-transcriber")
    ports = free_port(), free_port()
    system.web("web", ports[0])
    # Times of nginx and of the wait, shortened in proportion: 60 and 55 seconds by default.
    short = system.web("web-short", ports[1], WEB_WAIT="2")
    system.start("whisper", "default", "beat")
    key = system.key("old-clients", "transcribe")
    quiet = silence(tmp_path / "quiet.wav")
    for number in range(48):
        add(system, DEVICES[1], number, quiet)

    with nginx(ports[1], key, proxy_read_timeout="3s") as base:
        prefix = f"{base}/vibe-transcriber"
        body = {"device_id": DEVICES[1], "date": "2025-07-18", "model": "tiny.en"}
        with paused(system):  # on a quick machine two seconds are enough for all of them
            answer = httpx.post(f"{prefix}/fetch-and-transcribe", json=body, timeout=30)
        assert answer.status_code == 202, "no 504"
        told = answer.json()
        assert told["summary"]["total_files"] == 48
        [held] = system.sql("select distinct models from workers where 'whisper' = any (queues)")
        assert held["models"] == ["tiny.en"], "as the workers have told"
        assert told["status_url"].startswith("/vibe-transcriber/batches/")
        follower = Follower(base + told["events_url"])
        follower.listen(until=1)
        # The web process is killed in the middle: the work goes on, and so does who follows it.
        kill_tree(short.child.pid)
        short.stop()
        system.web("web-short", ports[1], WEB_WAIT="2")
        deadline = time.monotonic() + 90
        while follower.done is None and time.monotonic() < deadline:
            follower.listen()
        assert follower.done
        assert follower.done["summary"] == {
            "total_files": 48, "already_completed": 0, "pending_processed": 48, "errors": 0,
        }  # fmt: skip
        assert follower.done["message"] == "pendingステータスの48件中48件を正常に処理しました"
        assert list(follower.files.values()) == ["completed"] * 48
        assert httpx.get(f"{base}{told['status_url']}").json()["status"] == "success"
        assert httpx.post(f"{prefix}/fetch-and-transcribe", json=body).status_code == 200, "nothing to do"

    with nginx(ports[0], key) as base, ThreadPoolExecutor(1) as pool:  # with its default timeout
        with paused(system):  # nobody is to be quicker than the client
            for number in range(6):
                add(system, DEVICES[0], number, recording, "completed" if number < 2 else "pending")
            waiting = pool.submit(old_client, f"{base}/vibe-transcriber", DEVICES[0], "2025-07-18")
            wait_for(lambda: len(system.sql("select id from batch_requests")) == 3, "the batch")
        told = waiting.result()
    assert told["status"] == "success"
    assert told["summary"] == {"total_files": 6, "already_completed": 2, "pending_processed": 4, "errors": 0}
    assert told["processed_files"] == [path_of(DEVICES[0], number) for number in range(2, 6)]
    assert told["processed_time_blocks"] == ["10-00", "10-30", "11-00", "11-30"]
    assert told["message"] == RECORDED["message"]
    assert told["execution_time_seconds"] > 0
    assert {row["attempt"] for row in system.items() if row["state"] == "completed"} == {1}, "each was done once"


@contextmanager
def paused(system: System) -> Iterator[None]:
    """Nothing is claimed for a while."""
    pause: LiteralString = "update jobs set enabled = false where job = 'transcription' returning job"
    wait_for(lambda: bool(system.sql(pause)), "the job, which the first worker makes")
    yield
    system.sql("update jobs set enabled = true where job = 'transcription'")


def path_of(device: str, number: int) -> str:
    return f"files/{device}/2025-07-18/{number:02}/audio.wav"


def add(system: System, device: str, number: int, recording: Path, status: str = "pending") -> None:
    path = path_of(device, number)
    (system.audio / path).parent.mkdir(parents=True)
    os.link(recording, system.audio / path)
    system.sql(
        "insert into audio_files (device_id, recorded_at, file_path, transcriptions_status) values (%s, %s, %s, %s)",
        device,
        # Of 48 half hours from 9:00 on, a third is the next day's: a minute apart, they are all this one's.
        FIRST + number * (timedelta(minutes=30) if device == DEVICES[0] else timedelta(minutes=10)),
        path,
        status,
    )


def test_by_default_a_wait_ends_before_nginx_gives_up() -> None:
    held, _ = patience("", None, Web(_env_file=None).web_wait.total_seconds())
    assert held + LAST_LOOK <= 60 - 2
