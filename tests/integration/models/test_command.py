"""The doctor and `toban models`."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import main
from app.doctor.speech import at_hand
from app.settings import Whisper
from app.speech.models import Models
from tests.support.model_hub import WANTED, ModelHub, ctranslate2_files

Make = Callable[..., Models]


def test_the_doctor_knows_what_is_at_hand(make: Make, hub: ModelHub, tmp_path: Path) -> None:
    settings = Whisper(models_folder=tmp_path / "models", models_mirror=hub.url)
    assert not at_hand(settings)
    assert hub.requests == []
    Models(settings).get("base")
    assert at_hand(settings)
    for name in ("/nowhere", "no-such-model"):  # loading says what is wrong with these, and needs no download for it
        assert at_hand(settings.model_copy(update={"model": name}))


Run = Callable[..., tuple[int, str, str]]  # exit code, output, errors


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: ModelHub, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("TOBAN_ENV_FILE", os.devnull)
    monkeypatch.setenv("WHISPER_MODELS_FOLDER", str(tmp_path / "models"))
    monkeypatch.setenv("WHISPER_MODELS_MIRROR", hub.url)

    def run(*arguments: str, **env: str) -> tuple[int, str, str]:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["models", *arguments])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


def test_the_life_of_a_model(run: Run, hub: ModelHub, tmp_path: Path) -> None:
    code, out, _ = run("list", WHISPER_EXTRA_MODELS="tiny.en,/nowhere")
    assert code == 0
    assert "base (faster-whisper): not here yet: toban models pull base" in out
    assert "/nowhere does not exist" in out
    assert run("pull", "base") == (
        0,
        f"base: downloading 300 kB …\nbase: 301 kB, {tmp_path}/models/faster-whisper/Systran--faster-whisper-base\n",
        "",
    )
    code, out, _ = run("pull", "base")
    assert (code, "downloading" in out) == (0, False)
    assert run("pull", "--engine", "openai-whisper", "tiny")[0] == 0
    code, out, _ = run("list", "--json")
    answer = json.loads(out)
    assert [(m["name"], m["engine"], m["origin"], m["named"]) for m in answer["models"]] == [
        ("base", "faster-whisper", "downloaded", True),
        ("tiny", "openai-whisper", "downloaded", False),
        ("tiny.en", "faster-whisper", "package", True),
    ]
    assert list(answer["missing"]) == ["/nowhere"]
    code, out, _ = run("list")
    assert [line.split()[:5] for line in out.splitlines()[1:4]] == [
        ["*", "base", "faster-whisper", "301", "kB"],
        ["tiny", "openai-whisper", "200", "kB", "downloaded"],
        ["*", "tiny.en", "faster-whisper", "78", "MB"],
    ]
    assert run("verify")[0] == 0
    assert run("verify", "base") == (0, "whole   base\n", "")
    (tmp_path / "models/faster-whisper/Systran--faster-whisper-base/model.bin").write_bytes(bytes(300_000))
    code, out, _ = run("verify")
    assert code == 1
    assert "damaged base (faster-whisper): model.bin is damaged" in out
    assert "whole   tiny (openai-whisper)" in out
    code, out, _ = run("rm", "base")
    assert (code, out) == (0, "base: 301 kB freed\n")
    assert run("rm", "base") == (
        1,
        "",
        "toban: the model base has not been downloaded for faster-whisper; downloaded: none\n",
    )
    assert "downloaded: tiny" in run("rm", "huge", "--engine", "openai-whisper")[2]
    assert run("verify", "base")[0] == 1


def test_pull_takes_what_the_settings_name(run: Run, hub: ModelHub) -> None:
    code, out, _ = run("pull", WHISPER_EXTRA_MODELS="tiny.en, me/mine")
    assert (code, hub.downloads()) == (1, WANTED)
    hub.repositories["me/mine"] = ctranslate2_files(2)
    code, out, _ = run("pull")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == ["base", "tiny.en", "me/mine", "me/mine"]


def test_an_error_is_one_line(run: Run, hub: ModelHub) -> None:
    hub.faults["/main"] = "500"
    code, out, err = run("pull")
    assert (code, out) == (1, "")
    host = hub.url.removeprefix("http://")
    assert err == f"toban: the model base can't be downloaded from {host}: it answers 500; try again later\n"
    assert run("pull", "huge")[2].startswith("toban: faster-whisper knows no model 'huge'; ")
    assert "[E001] WHISPER_MODELS_MIRROR" in run("pull", WHISPER_MODELS_MIRROR="nonsense")[2]


def test_a_terminal_sees_a_bar(make: Make, hub: ModelHub) -> None:
    from io import StringIO

    from rich.console import Console

    from app.cli.models import _progress

    screen = Console(file=StringIO(), force_terminal=True, width=100)
    with _progress("base", screen) as report:
        make().pull("base", report)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "300.1/300.1" in shown or "300.0" in shown
