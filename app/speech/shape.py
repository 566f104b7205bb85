"""What a Whisper model at rest is, read from its file in milliseconds: nothing is loaded, no model library imported.

Memory and time are planned from it before a model is in memory.
"""

import math
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.errors import NotReady

AUDIO_POSITIONS = 1500  # of 20 ms: the 30 s that every Whisper model hears at once
TEXT_POSITIONS = 448

# Smallest first: width, layers of the encoder, of the decoder. Source: the model card of openai/whisper; the English
# twins and the versions of large differ in vocabulary and mels only.
PUBLISHED = {
    "tiny": (384, 4, 4),
    "base": (512, 6, 6),
    "small": (768, 12, 12),
    "medium": (1024, 24, 24),
    "turbo": (1280, 32, 4),
    "large": (1280, 32, 32),
}

_FORMAT = 6  # of model.bin, as CTranslate2 4 writes it
_SPECIFICATION = "WhisperSpec"
_PARTS = ("encoder", "decoder")
_KINDS = (4, 1, 2, 4, 2, 2)  # bytes of a number: float32, int8, int16, int32, float16, bfloat16
_ENDS_EARLY = "it ends early, as an interrupted copy or download does"

_PICKLE_LIMIT = 8 * 1024**2  # bytes; that of large-v3 has some 200 kB
_NUMBERS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1"}
_BETWEEN = {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE", "FRAME"}  # may stand between a key and its value


@dataclass(frozen=True)
class Shape:
    """A Whisper model's dimensions.

    `layers`: of the encoder and of the decoder; `width`: numbers that stand for a position (n_state); `heads`: of each
    attention; `vocabulary`: tokens; `mels`: bands of the spectrogram.
    """

    layers: tuple[int, int]
    width: int
    heads: int
    vocabulary: int
    mels: int

    def __post_init__(self) -> None:
        if min(*self.layers, self.width, self.heads, self.vocabulary, self.mels) < 1:
            raise ValueError(f"a Whisper model can't have the dimensions {self}")

    @property
    def parameters(self) -> int:
        """Numbers that the model holds, with the encoder's fixed position encodings, and the shared embedding once."""
        width, (encoder, decoder) = self.width, self.layers
        attention = 4 * width**2 + 5 * width  # query, key, value, output; no bias of the key; the norm before it
        perceptron = 8 * width**2 + 7 * width
        convolutions = 3 * width * (self.mels + width) + 2 * width
        positions = (AUDIO_POSITIONS + TEXT_POSITIONS) * width
        norms = 4 * width  # after the last layers
        return (
            encoder * (attention + perceptron)
            + decoder * (2 * attention + perceptron)
            + convolutions
            + positions
            + norms
            + self.vocabulary * width
        )

    @property
    def size(self) -> str:
        """The smallest published size that is nowhere smaller than this; "large" for what exceeds them all.

        Distilled models have a published encoder with few decoder layers: one of large is "turbo", though "medium"
        has as many parameters, because its encoder needs more memory at work than that of medium.
        """
        for name, published in PUBLISHED.items():
            if all(own <= other for own, other in zip((self.width, *self.layers), published, strict=True)):
                return name
        return "large"


@dataclass(frozen=True)
class Stored:
    """An array of a CTranslate2 model: `kind` is the type of its numbers, `offset` and `size` are bytes of the file."""

    name: str
    dimensions: tuple[int, ...]
    kind: int
    offset: int
    size: int


def shape(path: Path) -> Shape:
    """The shape of the model `path`: a folder of CTranslate2, or a checkpoint file of openai-whisper.

    Raises `NotReady` with the reason for anything else.
    """
    try:
        return _of_folder(path) if path.is_dir() else _of_checkpoint(path)
    except (OSError, ValueError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        raise NotReady(
            f"{path} is no Whisper model that can be read: {reason}; copy or download the model again, "
            "or correct WHISPER_MODEL"
        ) from error


def stored(file: BinaryIO) -> Iterator[Stored]:
    """Every array of a Whisper model's `model.bin`, by its header; the data is skipped, not read.

    The format: `_serialize` in ctranslate2/specs/model_spec.py. Raises `ValueError` if it is broken.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    version = _number(file, "I")
    if version != _FORMAT:
        raise ValueError(f"its model.bin does not begin as one of CTranslate2 (format {_FORMAT})")
    if (specification := _text(file)) != _SPECIFICATION:
        raise ValueError(f"it is a {specification[:40]!r} instead of a {_SPECIFICATION!r}")
    _number(file, "I")  # revision
    for _ in range(_number(file, "I")):
        name = _text(file)
        dimensions = tuple(_number(file, "I") for _ in range(_number(file, "B")))
        kind, size = _number(file, "B"), _number(file, "I")
        if kind >= len(_KINDS) or math.prod(dimensions) * _KINDS[kind] != size:
            raise ValueError(f"its model.bin is damaged at {name[:80]!r}")
        offset = file.tell()
        if offset + size > end:
            raise ValueError(_ENDS_EARLY)
        yield Stored(name, dimensions, kind, offset, size)
        file.seek(offset + size)
    for _ in range(2 * _number(file, "I")):  # second names of arrays
        _text(file)


def _of_folder(folder: Path) -> Shape:
    with (folder / "model.bin").open("rb") as file:
        arrays = {array.name: array for array in stored(file)}
        vocabulary, width = _array(arrays, "decoder/embeddings/weight", 2).dimensions
        _, mels, _ = _array(arrays, "encoder/conv1/weight", 3).dimensions
        heads = _array(arrays, "encoder/num_heads", 0)
        file.seek(heads.offset)
        number = int.from_bytes(_bytes(file, heads.size), "little")
    layers = [{match[0] for name in arrays if (match := re.match(rf"{part}/layer_\d+/", name))} for part in _PARTS]
    return Shape((len(layers[0]), len(layers[1])), width, number, vocabulary, mels)


def _array(arrays: dict[str, Stored], name: str, rank: int) -> Stored:
    if name not in arrays or len(arrays[name].dimensions) != rank:
        raise ValueError(f"its model.bin lacks {name}")
    return arrays[name]


def _of_checkpoint(file: Path) -> Shape:
    found = _dimensions(_pickle(file))
    try:
        return Shape(
            layers=(found["n_audio_layer"], found["n_text_layer"]),
            width=found["n_audio_state"],
            heads=found["n_audio_head"],
            vocabulary=found["n_vocab"],
            mels=found["n_mels"],
        )
    except KeyError as error:
        raise ValueError(f"it is no checkpoint of openai-whisper (it lacks {error})") from None


def _pickle(file: Path) -> bytes:
    """What PyTorch wrote about the tensors of `file`, which is a zip archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("/data.pkl"):
                    # PyTorch compresses nothing; what isn't compressed can't grow without limit.
                    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > _PICKLE_LIMIT:
                        raise ValueError("PyTorch did not write it")
                    return archive.read(entry)
    except (zipfile.BadZipFile, EOFError, UnicodeDecodeError, RuntimeError) as error:  # RuntimeError: encrypted
        raise ValueError("it is no checkpoint of openai-whisper, or was cut off") from error
    raise ValueError("it is no checkpoint of openai-whisper (no data.pkl inside)")


def _dimensions(pickle: bytes) -> dict[str, int]:
    """Every name in `pickle` that a whole number follows directly: in a checkpoint, its "dims".

    The instructions of the pickle are only looked at: a pickle that is run may do anything.
    """
    found: dict[str, int] = {}
    name = None
    try:
        for instruction, argument, _ in pickletools.genops(pickle):
            if name is not None and instruction.name in _NUMBERS and isinstance(argument, int):
                found.setdefault(name, argument)
            if instruction.name not in _BETWEEN:
                name = str(argument) if "UNICODE" in instruction.name else None
    except ValueError as error:
        raise ValueError("its data.pkl is damaged") from error
    return found


def _number(file: BinaryIO, form: str) -> int:
    form = f"<{form}"
    return int(struct.unpack(form, _bytes(file, struct.calcsize(form)))[0])


def _text(file: BinaryIO) -> str:
    return _bytes(file, _number(file, "H")).rstrip(b"\0").decode(errors="replace")


def _bytes(file: BinaryIO, count: int) -> bytes:
    if len(data := file.read(count)) < count:
        raise ValueError(_ENDS_EARLY)
    return data
