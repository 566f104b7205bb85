"""A hub of the test's own, and models that know no other."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.settings import Whisper
from app.speech.models import Models, names
from tests.support.model_hub import BASE, TINY, TINY_PATH, ModelHub, ctranslate2_files, serving

Make = Callable[..., Models]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting, proxy, token or cache of this machine; no pauses; openai's checkpoints are the test's."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(("WHISPER_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home/huggingface"))  # of other processes
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home/huggingface/hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("app.speech.models.fetch.PAUSE", 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(names, "checkpoints", lambda: {"tiny": f"https://openai.example{TINY_PATH}"})


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with serving(ModelHub({BASE: ctranslate2_files()}, {TINY_PATH: TINY})) as hub:
        yield hub


@pytest.fixture
def make(hub: ModelHub, tmp_path: Path) -> Make:
    def make(engine: str = "faster-whisper", **more: object) -> Models:
        settings = {"engine": engine, "models_folder": tmp_path / "models", "models_mirror": hub.url, **more}
        return Models(Whisper.model_validate(settings))

    return make
