"""What was downloaded is whole, is found again, and came the way that the settings say."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import NotReady
from app.speech.models import Models
from tests.support.model_hub import BASE, COMMIT, TINY, TINY_PATH, WANTED, ModelHub, ctranslate2_files, serving

Make = Callable[..., Models]


@pytest.mark.parametrize(("engine", "name"), [("faster-whisper", "base"), ("openai-whisper", "tiny")])
def test_what_was_pulled_is_found_without_the_network(make: Make, hub: ModelHub, engine: str, name: str) -> None:
    seen: list[tuple[int, int]] = []
    assert make(engine).find(name) is None
    pulled = make(engine).pull(name, lambda done, total: seen.append((done, total)))
    assert hub.downloads() == (WANTED if name == "base" else ["tiny.pt"])
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    hub.requests.clear()
    found = make(engine).find(name)
    assert found == pulled == make(engine, offline=True).get(name) == make(engine).pull(name)
    assert (found.name, found.engine, found.origin) == (name, engine, "downloaded")
    assert make(engine).verify(name) == []
    assert hub.requests == []


def test_what_is_downloaded_is_what_the_server_has(make: Make) -> None:
    model = make().get("base")
    files = ctranslate2_files()
    held = {file.name: file.read_bytes() for file in model.path.iterdir()}
    manifest = json.loads(held.pop("toban.json"))
    assert held == {name: files[name] for name in WANTED}
    assert (manifest["repository"], manifest["commit"]) == (BASE, COMMIT)
    assert make("openai-whisper").get("tiny").path.read_bytes() == TINY
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in model.path.iterdir())


def test_another_name_and_another_repository(make: Make, hub: ModelHub) -> None:
    hub.repositories |= {"Systran/faster-whisper-large-v3": ctranslate2_files(3), "me/mine": ctranslate2_files(4)}
    assert make().get("large").path == make().get("large-v3").path
    assert make().get("me/mine").path.name == "me--mine"
    assert hub.downloads() == WANTED * 2
    assert [(model.name, model.origin) for model in make().all()][:2] == [
        ("large-v3", "downloaded"),
        ("me/mine", "downloaded"),
    ]


def test_a_real_model_works_after_its_download(make: Make, hub: ModelHub) -> None:
    from faster_whisper import WhisperModel

    packed = make().find("tiny.en")
    assert packed
    hub.repositories["real/tiny"] = {file.name: file.read_bytes() for file in packed.path.iterdir()}
    loaded = WhisperModel(str(make().get("real/tiny").path), device="cpu", compute_type="int8", local_files_only=True)
    assert not loaded.model.is_multilingual


def test_files_may_come_from_elsewhere_and_the_token_does_not_go_there(
    make: Make, hub: ModelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    with serving(ModelHub({BASE: ctranslate2_files()})) as cdn:
        hub.cdn = cdn.url
        assert make().get("base")
        assert cdn.downloads() == ["model.bin"]
        assert "Authorization" not in cdn.requests[0].headers
    assert {request.headers["Authorization"] for request in hub.requests} == {"Bearer hf_s3cret"}


def test_the_hubs_own_address_setting_is_used(make: Make, hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    assert make(models_mirror=None).get("base")


@pytest.mark.parametrize(
    ("engine", "name", "below"), [("faster-whisper", "base", ""), ("openai-whisper", "tiny", "/x/")]
)
def test_a_mirror_may_have_a_login_and_a_folder(make: Make, hub: ModelHub, engine: str, name: str, below: str) -> None:
    hub.files[f"/x{TINY_PATH}"] = TINY
    mirror = hub.url.replace("://", "://me:p%40ss@") + below
    assert make(engine, models_mirror=mirror).get(name)
    login = base64.b64encode(b"me:p@ss").decode()
    assert {request.headers["Authorization"] for request in hub.requests} == {f"Basic {login}"}
    hub.faults[""] = "500"
    with pytest.raises(NotReady) as caught:
        make(engine, models_mirror=mirror, models_folder=Path("other").absolute()).get(name)
    assert "ss@" not in str(caught.value)
    assert hub.url.removeprefix("http://") in str(caught.value)


def test_http_goes_through_the_proxy(make: Make, hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", hub.url.replace("://", "://me:s3cret@"))
    assert make(models_mirror="http://models.example").get("base")
    assert hub.requests[0].headers["Host"] == "models.example"
    hub.faults["tiny.pt"] = "407"
    with pytest.raises(NotReady, match=r"from models\.example: the proxy wants a login \(407\)"):
        make("openai-whisper", models_mirror="http://models.example").get("tiny")


def test_a_proxy_that_refuses_or_is_away(make: Make, hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", hub.url)
    with pytest.raises(NotReady, match=r"from huggingface\.co: the proxy refuses it \(403 Forbidden\); .*HTTPS_PROXY"):
        make(models_mirror=None).get("base")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:s3cret@127.0.0.1:9")
    with pytest.raises(NotReady, match=r"through the proxy 127\.0\.0\.1:9 .*refused") as caught:
        make("openai-whisper", models_mirror=None).get("tiny")
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://me:s3cret@127.0.0.1:9")
    with pytest.raises(NotReady, match="can't be used") as worse:
        make("openai-whisper", models_mirror=None).get("tiny")
    assert "s3cret" not in f"{caught.value} {worse.value}"


def test_a_token_that_cannot_be_read_is_none(make: Make, hub: ModelHub, tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()
    assert make().get("base")
    assert not any("Authorization" in request.headers for request in hub.requests)
