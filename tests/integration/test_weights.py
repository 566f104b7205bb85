"""The models that tests and benchmarks of the engines stand on: real weights hear, random ones never end a text."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import ctranslate2
import jiwer
import numpy as np
import pytest
from faster_whisper import WhisperModel
from faster_whisper.audio import decode_audio

from app.speech.shape import PUBLISHED
from bench.models import random_ctranslate2, random_openai
from tests.support.speech import spoken
from tests.support.weights import openai_checkpoint, openai_whisper, wheel_model

LIMIT = 224  # tokens of a stretch of 30 s, for both engines

# openai-whisper leaves its file of tokens to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real weights in openai-whisper."""
    return openai_whisper().load_model(str(openai_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.en.pt")))


@pytest.fixture(scope="module")
def sound() -> Any:
    """30 s of speech: float32 [480000], 16 kHz, mono."""
    return np.concatenate([decode_audio(str(entry.path)) for entry in spoken()])[: 30 * 16_000]


def test_the_converted_checkpoint_hears(checkpoint: Any) -> None:
    said, heard = [], []
    for entry in spoken():
        answer = checkpoint.transcribe(decode_audio(str(entry.path)), fp16=False)
        said.append(re.sub(r"[^\w\s]", "", entry.words).lower())
        heard.append(re.sub(r"[^\w\s]", "", answer["text"]).lower().strip())
    assert jiwer.wer(said, heard) <= 0.02  # one word of a hundred: "is ice today"


def test_both_engines_compute_the_same(checkpoint: Any) -> None:
    whisper, torch = openai_whisper(), import_module("torch")
    spectrogram = whisper.log_mel_spectrogram(whisper.pad_or_trim(decode_audio(str(spoken()[0].path))))[None]
    other = ctranslate2.models.Whisper(str(wheel_model()), compute_type="float32")
    theirs = np.array(other.encode(ctranslate2.StorageView.from_array(spectrogram.numpy()), to_cpu=True))
    with torch.no_grad():
        ours = checkpoint.embed_audio(spectrogram).numpy()
    assert ours.shape == theirs.shape == (1, 1500, 384)
    assert np.abs(ours).max() > 10
    np.testing.assert_allclose(ours, theirs, atol=5e-4)  # float32 on both sides: they differ by 4e-5


def test_random_models_of_both_engines_say_the_same_to_the_limit(sound: Any, tmp_path: Path) -> None:
    whisper = openai_whisper()
    folder = random_ctranslate2("tiny", tmp_path / "model", sure=True)
    segments, _ = WhisperModel(str(folder), "cpu", compute_type="float32").transcribe(sound, language="ja", beam_size=1)
    [one] = segments
    model = whisper.load_model(str(random_openai("tiny", tmp_path / "tiny.pt", sure=True)))
    [other] = model.transcribe(sound, language="ja", fp16=False)["segments"]
    assert len(one.tokens) == len(other["tokens"]) == LIMIT
    assert one.text == other["text"]
    assert one.temperature == other["temperature"] == 0
    assert one.avg_logprob == pytest.approx(other["avg_logprob"], abs=0.02)


@pytest.mark.parametrize("quantization", ["float16", "int8"])
def test_a_random_model_that_is_not_sure_goes_through_all_temperatures(
    sound: Any, tmp_path: Path, quantization: str
) -> None:
    wheel_model()
    folder = random_ctranslate2("tiny.en", tmp_path / "model", quantization=quantization)
    model = WhisperModel(str(folder), "cpu", compute_type="int8")
    for temperature in (0.0, 1.0):
        [segment] = model.transcribe(sound, beam_size=1, temperature=[temperature])[0]
        assert len(segment.tokens) == LIMIT
        assert segment.avg_logprob < -1  # what makes both engines try the next one
        assert segment.no_speech_prob < 0.1  # else they would not


def test_a_random_model_of_the_newest_kind_has_128_mels_and_100_languages(
    sound: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai_whisper()
    monkeypatch.setitem(PUBLISHED, "turbo", PUBLISHED["tiny"])  # the true size takes 20 s
    folder = random_ctranslate2("turbo", tmp_path / "model", quantization="int8", sure=True)
    model = WhisperModel(str(folder), "cpu", compute_type="int8")
    assert (model.model.n_mels, model.model.is_multilingual) == (128, True)
    [segment], info = model.transcribe(sound, beam_size=1)
    assert len(info.all_language_probs or []) == 100
    assert segment.text
