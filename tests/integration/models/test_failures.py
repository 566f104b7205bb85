"""Servers, disks and processes that fail: one message, and never half a model."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from app.errors import LeaseLost, NotReady, Permanent
from app.speech.models import Models
from tests.support.model_hub import TINY, WANTED, ModelHub, ctranslate2_files
from tests.support.servers import ROOT, wait_for

Make = Callable[..., Models]
Start = Callable[[], "subprocess.Popen[str]"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("404", "there is no such model (404); correct the name, or WHISPER_MODELS_MIRROR"),
        ("401", "not for everybody (401); correct the name; or set HF_TOKEN"),
        ("403", "access is restricted (403); accept the model's terms"),
        ("gated", "access is restricted (403); accept the model's terms"),
        ("503", "it answers 503; try again later"),
        ("wrong", "another checksum"),
        ("cut", "the transfer broke off; what has come is kept"),
        ("hang", "it does not go on sending; what has come is kept"),
    ],
)
@pytest.mark.parametrize(
    ("engine", "name", "file"), [("faster-whisper", "base", "model.bin"), ("openai-whisper", "tiny", "tiny.pt")]
)
def test_each_failure_is_one_message_and_nothing_is_taken_for_a_model(
    make: Make,
    hub: ModelHub,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    name: str,
    file: str,
    fault: str,
    words: str,
) -> None:
    monkeypatch.setattr("app.speech.models.fetch.TIMEOUT", httpx.Timeout(0.1))
    hub.faults[file] = fault
    with pytest.raises(NotReady) as caught:
        make(engine).get(name)
    host = hub.url.removeprefix("http://")
    assert str(caught.value).startswith(f"the model {name} can't be downloaded from {host}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert make(engine).find(name) is None
    hub.faults.clear()
    hub.released.set()
    assert make(engine).verify(make(engine).get(name).name) == []


@pytest.mark.parametrize(("fault", "words"), [("404", "no such model"), ("page", "can't be used; check the network")])
def test_a_hub_that_is_none(make: Make, hub: ModelHub, fault: str, words: str) -> None:
    hub.faults["/main"] = fault
    with pytest.raises(NotReady, match=words):
        make().get("base")


def test_a_repository_that_holds_another_model(make: Make, hub: ModelHub) -> None:
    files = ctranslate2_files()
    hub.repositories["me/other"] = {name: files[name] for name in files if name != "tokenizer.json"}
    with pytest.raises(NotReady, match=r"the repository me/other .* lacks tokenizer\.json"):
        make().get("me/other")
    assert hub.downloads() == []


def test_a_server_that_is_away(make: Make, tmp_path: Path) -> None:
    for engine, name in (("faster-whisper", "base"), ("openai-whisper", "tiny")):
        with pytest.raises(NotReady, match=r"from 127\.0\.0\.1:9: it can't be reached \(.*refused\); check"):
            make(engine, models_mirror="http://127.0.0.1:9").get(name)


def test_a_broken_transfer_goes_on_where_it_broke(make: Make, hub: ModelHub) -> None:
    hub.faults["model.bin"] = "cut"

    def mend(done: int, total: int) -> None:
        if done > total // 3:
            hub.faults.clear()

    assert make().verify(make().get("base", mend).name) == []
    ranges = [request.headers.get("Range") for request in hub.requests if request.file == "model.bin"]
    assert ranges == [None, "bytes=150000-"]


def test_a_server_without_ranges_sends_all_again(make: Make, hub: ModelHub) -> None:
    hub.faults["tiny.pt"] = "cut"
    with pytest.raises(NotReady):
        make("openai-whisper").get("tiny")
    hub.faults["tiny.pt"] = "no range"
    assert make("openai-whisper").get("tiny").bytes == len(TINY)


def test_a_part_that_does_not_fit_is_thrown_away(make: Make, hub: ModelHub, tmp_path: Path) -> None:
    for size in (1000, len(TINY), len(TINY) + 1):
        folder = tmp_path / f"models/.unfinished/{os.getuid()}/openai-whisper/tiny.pt"
        folder.mkdir(parents=True)
        (folder / f"tiny.pt.{sha256(TINY).hexdigest()[:12]}.part").write_bytes(bytes(size))
        assert make("openai-whisper").get("tiny").path.read_bytes() == TINY
        make("openai-whisper").remove("tiny")


def test_what_progress_raises_comes_out_and_the_next_try_goes_on(make: Make, hub: ModelHub) -> None:
    def lost(done: int, total: int) -> None:
        if done > total // 2:
            raise LeaseLost("another attempt owns the item")

    with pytest.raises(LeaseLost):
        make().get("base", lost)
    assert make().find("base") is None
    assert make().get("base")
    assert any("Range" in request.headers for request in hub.requests)


def test_no_room(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("app.speech.models.fetch.os.fsync", full)
        with pytest.raises(NotReady, match=r"the disk of .*/models is full; make room .*WHISPER_MODELS_FOLDER"):
            make().get("base")
    monkeypatch.setattr("app.speech.models.places.MARGIN", 10**18)
    for engine, name in (("faster-whisper", "base"), ("openai-whisper", "tiny")):
        with pytest.raises(NotReady, match=r"has .* GB left, and .* are to be downloaded"):
            make(engine).get(name)


def test_a_folder_that_may_not_be_written(make: Make) -> None:
    with pytest.raises(NotReady, match=r"/sys/toban.*give the user \d+ the right to, or set WHISPER_MODELS_FOLDER"):
        make(models_folder=Path("/sys/toban")).get("base")


def test_offline(make: Make, hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in (make(offline=True).get, make(offline=True).pull):
        with pytest.raises(NotReady, match=r"base is not on this machine, and WHISPER_OFFLINE .*models pull base"):
            ask("base")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotReady, match="HF_HUB_OFFLINE"):
        make().get("base")
    assert make("openai-whisper").get("tiny")
    assert hub.downloads() == ["tiny.pt"]


@pytest.fixture
def start(hub: ModelHub, tmp_path: Path) -> Iterator[Start]:
    children: list[subprocess.Popen[str]] = []
    settings = {"WHISPER_MODELS_FOLDER": str(tmp_path / "models"), "WHISPER_MODELS_MIRROR": hub.url}

    def start() -> "subprocess.Popen[str]":
        child = subprocess.Popen(
            [sys.executable, "-c", "from app.cli import main; main(['models', 'pull', 'base'])"],
            cwd=ROOT,
            env=os.environ | settings | {"TOBAN_ENV_FILE": os.devnull},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
            child.communicate()


def holds(child: "subprocess.Popen[str]", place: str) -> bool:
    """Whether the process has a file open whose path holds `place`."""
    return any(place in os.path.realpath(handle) for handle in Path(f"/proc/{child.pid}/fd").iterdir())


def test_two_processes_download_once(make: Make, hub: ModelHub, start: Start) -> None:
    hub.faults["model.bin"] = "hang"
    children = [start() for _ in range(2)]
    wait_for(lambda: "model.bin" in hub.downloads(), "the download")
    wait_for(lambda: all(holds(child, "/.locks/") for child in children), "the other process")
    hub.released.set()
    outputs = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert hub.downloads() == WANTED
    assert make().verify("base") == []


def test_a_killed_download_is_taken_up_again(make: Make, hub: ModelHub, start: Start, tmp_path: Path) -> None:
    hub.faults["model.bin"] = "hang"
    child = start()
    wait_for(lambda: holds(child, "model.bin"), "the download")
    with pytest.raises(Permanent, match="is being downloaded by another process"):
        make().remove("base")
    part = next((tmp_path / "models").rglob("model.bin*.part"))
    wait_for(lambda: part.stat().st_size == 150_000, "half of the file")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert make().find("base") is None
    assert make().all() == [make().find("tiny.en")]
    hub.faults.clear()
    assert make().verify(make().get("base").name) == []
    assert [request.headers.get("Range") for request in hub.requests if request.file == "model.bin"] == [
        None,
        "bytes=150000-",
    ]
    assert hub.downloads().count("config.json") == 1
    assert not [file for file in (tmp_path / "models/.unfinished").rglob("*") if file.is_file()]


def test_rm_frees_what_an_unfinished_download_has_left(make: Make, hub: ModelHub) -> None:
    hub.faults["model.bin"] = "cut"
    with pytest.raises(NotReady):
        make().get("base")
    assert make().remove("base") >= 150_000


def test_nothing_heavy_is_loaded_to_find_a_model(make: Make, hub: ModelHub, tmp_path: Path) -> None:
    make().get("base")
    program = (
        "import sys, app.speech.models as models\n"
        "heavy = {'torch', 'whisper', 'ctranslate2', 'faster_whisper', 'huggingface_hub', 'httpx'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
        "from app.settings import Whisper\n"
        f"print(models.Models(Whisper(models_folder={str(tmp_path / 'models')!r})).find('base').name)\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["[]", "base", "[]"]
