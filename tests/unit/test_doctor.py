"""What `toban doctor` finds, and that the docs have a row for each of its codes."""

import re
from pathlib import Path

import pytest
from pydantic import ByteSize, SecretStr

from app import doctor
from app.audio import store
from app.doctor import ledger, speech
from app.errors import Permanent, Transient
from app.settings import Audio, Database, Whisper
from tests.support.servers import ROOT


def test_every_code_has_its_row_in_the_docs() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in Path(doctor.__file__).parent.glob("*.py"))
    page = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    assert set(re.findall(r'"(D\d{3})"', source)) == set(re.findall(r"^\| `(D\d{3})` \|", page, re.MULTILINE))


def test_a_model_is_not_downloaded_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fits, finding = speech.words(Whisper(model="small", models_folder=tmp_path), 60, None)
    assert (fits.level, fits.code) == ("OK", "D603")
    assert (finding.level, finding.code) == ("WARN", "D601")
    assert "toban models pull small" in finding.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_loaded_has_a_remedy() -> None:
    for model in ("/nowhere", "no-such-model"):
        _, finding = speech.words(Whisper(model=model), 60, None)
        assert (finding.level, finding.code) == ("FAIL", "D601")
        assert "WHISPER_MODEL" in finding.what + finding.remedy


def test_a_model_that_does_not_fit_is_told_with_those_that_do() -> None:
    (finding,) = speech.words(Whisper(model="medium", memory_limit=ByteSize(1024**3)), 60, None)
    assert (finding.level, finding.code) == ("FAIL", "D603")
    assert "medium needs" in finding.what
    assert "base" in finding.remedy
    assert "WHISPER_MODEL" in finding.remedy


@pytest.mark.parametrize(
    ("error", "remedy"), [(Transient("away"), "S3_ENDPOINT_URL"), (Permanent("forbidden"), "s3:ListBucket")]
)
def test_recordings_that_cannot_be_reached_have_a_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str
) -> None:
    class Broken:
        def present(self, _: set[str]) -> set[str]:
            raise error

    monkeypatch.setattr(store, "build_store", lambda _: Broken())
    (finding,) = speech.recordings(Audio(s3_bucket_name="vault"))
    assert (finding.level, finding.code) == ("FAIL", "D501")
    assert remedy in finding.remedy


def test_whether_new_rows_start_at_once() -> None:
    direct = Database(database_url=SecretStr("postgresql://u@h/d"))
    rest = Database(database_url=None, supabase_url="https://p.supabase.co")
    for settings, listening, level, words in (
        (direct, True, "OK", "at once"),
        (direct, False, "WARN", "next tick"),
        (rest, False, "OK", "DATABASE_LISTEN_URL"),
    ):
        (finding,) = ledger.wakes(settings, {"listening": listening})
        assert (finding.level, finding.code) == (level, "D407")
        assert words in finding.what
