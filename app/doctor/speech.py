"""Recordings can be reached, and the speech model hears."""

import time
from collections.abc import Callable
from pathlib import Path

from app.doctor.finding import Finding, Findings
from app.errors import NotReady, TobanError, Transient
from app.settings import Audio, Whisper
from app.speech.memory import DoesNotFit, cores, plan
from app.speech.models import Models


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
    """The model fits and loads, and with a recording, hears. Only with one is a model downloaded."""
    from app.speech.hearing import Engine

    try:
        cut = plan(settings, cores())
    except DoesNotFit as error:
        first, _, rest = str(error).partition("\n")
        yield Finding("FAIL", "D603", first, rest)
        return
    yield Finding("OK", "D603", f"a whisper worker here has {cut}")
    if not at_hand(settings):
        what = f"the speech model {settings.model} is not on this machine yet"
        if speech is None:
            remedy = (
                f"`toban models pull {settings.model}` downloads it; else a worker does with its first recording. "
                "Without the internet: set WHISPER_MODEL to a folder that holds a model"
            )
            yield Finding("WARN", "D601", what, remedy)
            return
        yield Finding("WARN", "D601", f"{what}; it is downloaded now", "wait; the next time it is there")
    engine = Engine(settings, max_seconds=max_seconds, pace=cut.pace)
    took = _timer()
    try:
        engine.prepare()
    except (TobanError, OSError) as error:
        yield Finding("FAIL", "D601", str(error), "see the message; `toban models list` shows what there is")
        return
    yield Finding("OK", "D601", f"the speech model {settings.model} loads in {took():.1f} s")
    if speech is None:
        return
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


def at_hand(settings: Whisper) -> bool:
    """Whether the model loads without a download."""
    try:
        return Models(settings).find(settings.model) is not None
    except NotReady:  # no such name, no such folder: loading says it, and at once
        return True


def _timer() -> Callable[[], float]:
    began = time.monotonic()
    return lambda: time.monotonic() - began
