"""faster-whisper: Whisper on CTranslate2, for the processor."""

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.settings import Whisper
from app.speech.doubt import is_doubtful
from app.speech.engine import Heard, Word

if TYPE_CHECKING:
    from app.speech.models import Model

Sound = NDArray[np.float32]

# After the first, greedy try. The libraries go through 0.2, 0.4, 0.6, 0.8 and 1.0; what is no better at 0.6 rarely gets
# better in between, and each costs as much as the first.
_TEMPERATURES = (0.2, 0.6, 1.0)
# Of which the best is taken; no more than a batch, because each takes as much memory as a chunk of one.
_SAMPLES = 5
_PREPENDED, _APPENDED = "\"'“¿([{-「『（", "\"'.。,，!！?？:：”)]}、」』）"


class FasterWhisper:
    """A loaded CTranslate2 model; see `app.speech.engine.Recognizer`.

    Chunks are encoded one by one, which keeps the activations in the processor's cache, and decoded in batches, which
    reads the weights once for all: 364 s of speech, tiny.en int8, one thread: 4.8 + 2.0 s; both one by one 4.8 + 3.9 s,
    both in batches of 8 6.2 + 2.0 s. More threads work on batches of their own and share the weights: on 2 cores the
    threads of one matrix product (`intra_threads`) gained nothing at these sizes.
    """

    def __init__(self, model: "Model", settings: Whisper, threads: int) -> None:
        from faster_whisper import WhisperModel

        self._model: Any = WhisperModel(
            str(model.path),
            device="cpu",  # what threads and memory are planned for
            compute_type=settings.compute_type,
            cpu_threads=1,
            num_workers=threads,
            local_files_only=True,
        )
        self._beams = settings.beam_size
        self._pool = ThreadPoolExecutor(threads, "speech") if threads > 1 else None

    @property
    def languages(self) -> Collection[str]:
        return list(self._model.supported_languages)

    def detect(self, chunk: Sound) -> dict[str, float]:
        found = self._model.model.detect_language(_storage([self._encoded(chunk)]))[0]
        return {token.strip("<|>"): float(share) for token, share in found}

    def hear(self, chunks: Sequence[Sound], language: str, *, batch: int) -> Iterator[Heard]:
        groups = [chunks[first : first + batch] for first in range(0, len(chunks), batch)]
        work = _Listening(self._model, self._encoded, language, self._beams, samples=min(batch, _SAMPLES))
        heard = self._pool.map(work, groups) if self._pool else map(work, groups)
        for group in heard:
            yield from group

    def _encoded(self, chunk: Sound) -> Sound:
        """What the encoder makes of a chunk: float32 [1, 1500, width]."""
        from faster_whisper.audio import pad_or_trim

        encoded: Sound = np.asarray(self._model.encode(pad_or_trim(self._model.feature_extractor(chunk))))
        return encoded


class _Listening:
    """Hears groups of chunks in one language."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - the library has no types
        encode: Callable[[Sound], Sound],
        language: str,
        beams: int,
        samples: int,
    ) -> None:
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import get_suppressed_tokens

        self._model = model
        self._encode = encode
        self._beams = beams
        self._samples = samples
        self._tokenizer: Any = Tokenizer(
            model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language=language
        )
        # Without time stamps: with them a batch ends where the model thinks a sentence ends, and what follows in the
        # chunk is lost (word error rate 0.201 instead of 0.118). Times come from the alignment.
        self._prompt: list[int] = model.get_prompt(self._tokenizer, [], without_timestamps=True)
        self._suppressed = list(get_suppressed_tokens(self._tokenizer, [-1]))

    def __call__(self, chunks: Sequence[Sound]) -> list[Heard]:
        encoded = [self._encode(chunk) for chunk in chunks]
        results = self._generated(_storage(encoded), len(chunks), beam_size=self._beams)
        tries = [self._again_if_doubtful(one, result) for one, result in zip(encoded, results, strict=True)]
        return [
            Heard(self._aligned(one, tokens, chunk.size), *figures)
            for one, chunk, (tokens, figures) in zip(encoded, chunks, tries, strict=True)
        ]

    def _generated(self, encoded: Any, count: int, **options: object) -> list[Any]:  # noqa: ANN401 - a StorageView
        return list(
            self._model.model.generate(
                encoded,
                [self._prompt] * count,
                max_length=self._model.max_length,
                suppress_blank=True,
                suppress_tokens=self._suppressed,
                return_scores=True,
                return_no_speech_prob=True,
                **options,
            )
        )

    def _again_if_doubtful(self, encoded: Sound, result: Any) -> tuple[list[int], tuple[float, float, float]]:  # noqa: ANN401
        """The tokens of the best try, and its figures."""
        tries = [self._judged(result)]
        for temperature in _TEMPERATURES:
            if not is_doubtful(*tries[-1][1]):
                return tries[-1]
            sampled = self._generated(
                _storage([encoded]),
                1,
                beam_size=1,
                num_hypotheses=self._samples,
                sampling_topk=0,
                sampling_temperature=temperature,
            )
            tries.append(self._judged(sampled[0]))
        return max(tries, key=lambda one: (not is_doubtful(*one[1]), -max(one[1][2], 2.4), one[1][0]))

    def _judged(self, result: Any) -> tuple[list[int], tuple[float, float, float]]:  # noqa: ANN401 - of CTranslate2
        from faster_whisper.transcribe import get_compression_ratio

        tokens = [token for token in result.sequences_ids[0] if token < self._tokenizer.eot]
        # The score is a mean over the tokens; the mean over them and the end is what the thresholds were made for.
        confidence = result.scores[0] * len(tokens) / (len(tokens) + 1)
        text = self._tokenizer.decode(tokens).strip()
        repetition = get_compression_ratio(text) if text else 0.0
        return tokens, (float(confidence), float(result.no_speech_prob), float(repetition))

    def _aligned(self, encoded: Sound, tokens: list[int], size: int) -> list[Word]:
        """The words of one chunk. In a batch it is no quicker, and base takes 570 MB for four chunks instead of 45."""
        from faster_whisper.transcribe import merge_punctuations

        if not tokens:
            return []
        frames = max(1, size // self._model.feature_extractor.hop_length)
        found = self._model.find_alignment(self._tokenizer, [tokens], _storage([encoded]), [frames])[0]
        merge_punctuations(found, _PREPENDED, _APPENDED)
        return [Word(float(word["start"]), float(word["end"]), word["word"]) for word in found if word["word"]]


def _storage(encoded: Sequence[Sound]) -> Any:  # noqa: ANN401 - CTranslate2 has no types
    from ctranslate2 import StorageView

    return StorageView.from_array(np.concatenate(encoded) if len(encoded) > 1 else encoded[0])
