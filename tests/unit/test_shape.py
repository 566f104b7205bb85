"""What a model at rest is: real ones, random ones, and files that are none."""

import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from app.errors import NotReady
from app.speech import shape as module
from app.speech.shape import PUBLISHED, Shape, shape, stored
from bench import models
from bench.models import QUANTIZATIONS, dims, published, random_ctranslate2, random_openai
from tests.support.weights import openai_checkpoint, openai_whisper, wheel_model

TINY_EN = Shape(layers=(4, 4), width=384, heads=6, vocabulary=51864, mels=80)
NOISE = random.Random(7).randbytes(10_000)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1f2c\nsize 75537502\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return openai_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.en.pt")


def zipped(to: Path, content: bytes, name: str = "tiny/data.pkl", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(to, "w", compression) as archive:
        archive.writestr(name, content)
    return to


def head(specification: bytes) -> bytes:
    """A model.bin without arrays."""
    return struct.pack("<IH", 6, len(specification) + 1) + specification + b"\0" + struct.pack("<III", 3, 0, 0)


def pickled(**changes: int) -> bytes:
    """What PyTorch writes about a checkpoint, without its tensors."""
    return pickle.dumps({"dims": dims(TINY_EN) | changes, "model_state_dict": {}}, protocol=2)


def reason(path: Path) -> str:
    """Why `path` is no model; the whole message names it and the remedy."""
    with pytest.raises(NotReady) as caught:
        shape(path)
    whole = re.fullmatch(
        f"{re.escape(str(path))} is no Whisper model that can be read: (.+); "
        "copy or download the model again, or correct WHISPER_MODEL",
        str(caught.value),
    )
    assert whole, caught.value
    return whole[1]


def test_the_real_model_in_both_formats(checkpoint: Path) -> None:
    assert shape(wheel_model()) == shape(checkpoint) == TINY_EN
    assert shape(checkpoint).size == "tiny"
    loaded: Any = import_module("torch").load(checkpoint, weights_only=True)
    assert shape(checkpoint).parameters == sum(tensor.numel() for tensor in loaded["model_state_dict"].values())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_random_model_of_ctranslate2(tmp_path: Path, quantization: str) -> None:
    wheel_model()
    assert shape(random_ctranslate2("tiny.en", tmp_path / "model", quantization=quantization)) == TINY_EN
    with (tmp_path / "model/model.bin").open("rb") as file:
        numbers = {array.name: array for array in stored(file)}
    assert numbers["decoder/embeddings/weight"].kind == {"float16": 4, "float32": 0}.get(quantization, 1)
    assert numbers["decoder/layer_norm/beta"].kind == (4 if "float16" in quantization else 0)


def test_random_models_of_openai_whisper_are_the_same_every_time(tmp_path: Path) -> None:
    openai_whisper()
    (tmp_path / "again").mkdir()  # the name of the file is inside it
    first, second = random_openai("tiny", tmp_path / "tiny.pt"), random_openai("tiny", tmp_path / "again/tiny.pt")
    assert first.read_bytes() == second.read_bytes()
    assert shape(first) == published("tiny")


def test_a_random_model_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel_model()
    with pytest.raises(ValueError, match="int4"):
        random_ctranslate2("tiny.en", tmp_path / "model", quantization="int4")
    with pytest.raises(FileExistsError):
        random_ctranslate2("tiny.en", tmp_path)
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="openai-whisper"):
        random_ctranslate2("tiny", tmp_path / "model")


# With the encoder's positions, as Hugging Face counts them, and without: as openai-whisper does.
@pytest.mark.parametrize(
    ("size", "family", "parameters"),
    [
        ("tiny.en", "tiny", 37_184_256 + 1500 * 384),
        ("tiny", "tiny", 37_760_640),
        ("base", "base", 72_593_920),
        ("small.en", "small", 241_734_144),
        ("medium", "medium", 763_857_920),
        ("large-v2", "large", 1_543_304_960),
        ("large-v3", "large", 1_543_490_560),
        ("turbo", "turbo", 808_878_080),
        ("large-v3-turbo", "turbo", 808_878_080),
    ],
)
def test_published_models(size: str, family: str, parameters: int) -> None:
    assert (published(size).size, published(size).parameters) == (family, parameters)


@pytest.mark.parametrize("size", ["nosuch", "large.en", "turbo.en", "tiny-v2", "", "en"])
def test_nothing_else_was_published(size: str) -> None:
    with pytest.raises(ValueError, match="published"):
        published(size)


@pytest.mark.parametrize(
    ("width", "encoder", "decoder", "size"),
    [
        (384, 4, 2, "tiny"),
        (768, 12, 4, "small"),  # distil-small.en
        (1024, 24, 2, "medium"),  # distil-medium.en
        (1280, 32, 2, "turbo"),  # distil-large-v3: fewer parameters than medium
        (1280, 32, 5, "large"),
        (512, 4, 4, "base"),
        (2048, 48, 48, "large"),
    ],
)
def test_other_models_are_taken_for_the_next_bigger_one(width: int, encoder: int, decoder: int, size: str) -> None:
    other = Shape((encoder, decoder), width, width // 64, 51865, 80)
    assert other.size == size
    bound = Shape(PUBLISHED[size][1:], PUBLISHED[size][0], 20, 51865, 80)
    assert other.parameters <= bound.parameters or width > 1280


def test_sizes_go_from_small_to_large() -> None:
    counts = [published(size).parameters for size in PUBLISHED]
    assert counts == sorted(counts)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "ends early", id="empty"),
        pytest.param(b"\6", "ends early", id="one byte"),
        pytest.param(b"no weights", "does not begin", id="text"),
        pytest.param(POINTER, "does not begin", id="pointer of Git LFS"),
        pytest.param(NOISE, "does not begin", id="noise"),
        pytest.param(head(b"TransformerSpec"), "is a 'TransformerSpec' instead", id="another model"),
        pytest.param(head(b"\xff"), "is a '\N{REPLACEMENT CHARACTER}' instead", id="no letters"),
        pytest.param(head(b"WhisperSpec"), "lacks decoder/embeddings/weight", id="no weights"),
    ],
)
def test_a_folder_without_a_whisper_model(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    assert words in reason(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", POINTER, b"PK\3\4" + NOISE, b"PK\5\6" + b"\xff" * 18],
    ids=["empty", "pointer of Git LFS", "noise", "end of a zip file"],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    assert reason(tmp_path / "model.pt") == "it is no checkpoint of openai-whisper, or was cut off"


@pytest.mark.parametrize("name", ["nosuch.pt", "empty"])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert "No such file or directory" in reason(tmp_path / name)


def test_a_truncated_model_of_ctranslate2(tmp_path: Path) -> None:
    file = Path(shutil.copy(wheel_model() / "model.bin", tmp_path))
    with file.open("rb") as whole:
        offsets = {0, 1, 3, 4, 5, 17, 21}
        for array in stored(whole):
            offsets |= {array.offset - 6, array.offset - 1, array.offset, array.offset + array.size - 1}
        offsets |= {file.stat().st_size - back for back in range(1, 60)}
    for offset in sorted(offsets, reverse=True):
        os.truncate(file, offset)
        assert reason(tmp_path) == "it ends early, as an interrupted copy or download does"


def test_a_truncated_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(checkpoint, tmp_path))
    size = file.stat().st_size
    for offset in [*(size - back for back in range(1, 100)), *range(size - 100, 0, -size // 100), 100, 10, 1]:
        os.truncate(file, offset)
        assert reason(file) == "it is no checkpoint of openai-whisper, or was cut off"


def test_a_damaged_header(tmp_path: Path) -> None:
    content = bytearray((wheel_model() / "model.bin").read_bytes()[:2000])
    place = content.index(b"decoder/embeddings/weight") + 26
    content[place + 9] = 9  # the kind of its numbers
    (tmp_path / "model.bin").write_bytes(content)
    assert reason(tmp_path) == "its model.bin is damaged at 'decoder/embeddings/weight'"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(pickled(n_mels=0), "can't have the dimensions", id="no mels"),
        pytest.param(pickle.dumps({"weights": {}}), "it lacks 'n_audio_layer'", id="another model"),
        pytest.param(pickled()[:50], "its data.pkl is damaged", id="cut off"),
        pytest.param(NOISE, "its data.pkl is damaged", id="noise"),
    ],
)
def test_a_zip_file_with_another_pickle(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in reason(zipped(tmp_path / "model.pt", content))


def test_a_zip_file_that_pytorch_did_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.pt"
    assert "no data.pkl" in reason(zipped(file, pickled(), "readme.txt"))
    assert "PyTorch did not write it" in reason(zipped(file, bytes(10**6), compression=zipfile.ZIP_DEFLATED))
    assert shape(zipped(file, pickled())) == TINY_EN
    monkeypatch.setattr(module, "_PICKLE_LIMIT", 100)
    assert "PyTorch did not write it" in reason(file)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    content = {"a": Bomb(made), "dims": dims(TINY_EN) | {"b": Bomb(made)}, "model_state_dict": Bomb(made)}
    bomb = pickle.dumps(content, protocol)
    assert shape(zipped(tmp_path / "bomb.pt", bomb)) == TINY_EN
    assert "lacks" in reason(zipped(tmp_path / "bomb.pt", pickle.dumps(Bomb(made), protocol)))
    assert not made.exists()
    pickle.loads(bomb)  # noqa: S301 - it is one
    assert made.exists()


def test_no_model_library_is_imported() -> None:
    program = (
        "import sys, app.speech.shape\n"
        "print({'torch', 'whisper', 'ctranslate2', 'faster_whisper', 'numpy'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert said.stdout == "set()\n"
