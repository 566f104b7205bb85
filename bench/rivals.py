"""What `bench.speech` compares Toban with. Run as a script, so that it pays for no module of Toban's.

    python bench/rivals.py plain MODEL CORES FILE…     one process, one recording after the other
    python bench/rivals.py raw MODEL CORES FILE…       a process for each core, voice detector, batches of 8
    python bench/rivals.py timed MODEL CORES FILE…     the same with the time of each word, as Toban stores it
    python bench/rivals.py cli ARGUMENT…               the command `whisper`

The first FILE is heard by every process before the clock starts. Printed is one JSON object: `ready` and `done`,
seconds since 1970, and `texts`, in the order of the other files. The command prints nothing and writes its own files.
"""

import json
import multiprocessing
import shutil
import sys
import time
from threading import Barrier
from typing import Any

pipeline: Any = None


def plain(model: str, cores: int, first: str, files: list[str]) -> None:
    """What the library's own page shows."""
    from faster_whisper import WhisperModel

    whisper = WhisperModel(model, device="cpu", cpu_threads=cores, compute_type="int8")

    def hear(file: str) -> str:
        segments, _ = whisper.transcribe(file, language="en", beam_size=1)
        return "".join(segment.text for segment in segments)

    hear(first)
    ready = time.time()
    tell(ready, [hear(file) for file in files])


def raw(model: str, cores: int, first: str, files: list[str], *, words: bool) -> None:
    """All that the machine can do with the library alone. `words`: with the time of each word."""
    warm = multiprocessing.Barrier(cores + 1)
    with multiprocessing.Pool(cores, load, (model, first, words, warm)) as pool:
        warm.wait()
        ready = time.time()
        texts = dict(pool.imap_unordered(hear_batched, [(file, words) for file in files]))
        tell(ready, [texts[file] for file in files])


def load(model: str, first: str, words: bool, warm: Barrier) -> None:  # noqa: FBT001 - a pool's argument
    """Make a process of the pool ready."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    global pipeline  # noqa: PLW0603 - one a process
    pipeline = BatchedInferencePipeline(WhisperModel(model, device="cpu", cpu_threads=1, compute_type="int8"))
    hear_batched((first, words))
    warm.wait()


def hear_batched(work: tuple[str, bool]) -> tuple[str, str]:
    file, words = work
    segments, _ = pipeline.transcribe(file, language="en", beam_size=1, batch_size=8, word_timestamps=words)
    return file, "".join(segment.text for segment in segments)


def cli(arguments: list[str]) -> None:
    """The function behind the command `whisper`.

    It reads sound with the program ffmpeg. Where there is none the standard library reads the wav for it, which is
    quicker than to start a program, so that is to its advantage.
    """
    import whisper.audio
    from whisper.transcribe import cli

    if not shutil.which("ffmpeg"):
        whisper.audio.load_audio = read_wav
    sys.argv = ["whisper", *arguments]
    cli()


def read_wav(file: str, sr: int = 16_000) -> Any:  # noqa: ANN401 - float32 [n]
    import wave

    import numpy as np

    with wave.open(file) as sound:
        if (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) != (sr, 1, 2):
            raise ValueError(f"{file} is not 16-bit mono at {sr} Hz")
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768


def tell(ready: float, texts: list[str]) -> None:
    print(json.dumps({"ready": ready, "done": time.time(), "texts": texts}))


def main() -> None:
    rival, *arguments = sys.argv[1:]
    if rival == "cli":
        cli(arguments)
        return
    model, cores, first, *files = arguments
    if rival == "plain":
        plain(model, int(cores), first, files)
    else:
        raw(model, int(cores), first, files, words=rival == "timed")


if __name__ == "__main__":
    main()
