"""What `toban doctor` looks at: settings, machine, database, broker, workers, recordings, speech, known traps.

Each check yields findings with a stable code and, where something is wrong, the remedy. No check stops another.
"""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from app.database import open_database
from app.errors import TobanError
from app.health import Status, duration, overdue, since, slots
from app.settings import GROUPS, Audio, Broker, Database, Group, SettingsError, Whisper, key_role, load_group

# Ticks expire by the sender's clock, so clocks that differ by more than this lose some, seconds.
CLOCK = 10
# Due work that waits longer than this has a reason that somebody should know, seconds.
WAIT = 600


@dataclass(frozen=True)
class Finding:
    """One line of the report. FAIL: it does not work; WARN: it will hurt one day."""

    level: Literal["OK", "WARN", "FAIL"]
    code: str
    what: str
    remedy: str = ""


Findings = Iterator[Finding]


def examine(speech: Path | None = None) -> Findings:
    """Everything; `speech`: a recording to transcribe too."""
    groups: dict[type[Group], Any] = {}
    for group in GROUPS.values():
        try:
            groups[group] = load_group(group)
        except SettingsError as error:
            yield from (Finding("FAIL", p.code, f"{p.setting}: {p.message}", p.remedy) for p in error.problems)
    if len(groups) == len(GROUPS):
        yield Finding("OK", "D101", "every setting can be used")
    yield from machine()
    if audio := groups.get(Audio):
        yield from clocks(audio)
    if database := groups.get(Database):
        yield from rows(database)
    if broker := groups.get(Broker):
        yield from wakeups(broker)
    if audio:
        yield from recordings(audio)
    if whisper := groups.get(Whisper):
        limit = audio.audio_max_seconds if audio else Audio.model_fields["audio_max_seconds"].default
        yield from words(whisper, limit.total_seconds(), speech)


def machine() -> Findings:
    yield Finding("OK", "D102", f"Python {platform.python_version()} on {platform.machine()}")
    if os.environ.get("REMAP_SIGTERM"):
        yield Finding(
            "WARN",
            "D103",
            "REMAP_SIGTERM is set: SIGTERM then ends running work at once, without the grace",
            "unset it; TOBAN_SHUTDOWN_GRACE says how long running work may take to finish",
        )


def clocks(settings: Audio) -> Findings:
    here, there = datetime.now().astimezone(), datetime.now(settings.zone)
    yield Finding(
        "OK",
        "D104",
        f"dates and time blocks are meant in {settings.device_timezone}, where it is {there:%Y-%m-%d %H:%M} "
        f"(this machine: {here:%Y-%m-%d %H:%M %Z})",
    )
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < settings.audio_max_bytes:
        yield Finding(
            "WARN",
            "D105",
            f"{folder} has {free / 1024**2:.0f} MB left, less than a recording may have",
            "make room, set TMPDIR to another disk, or lower AUDIO_MAX_BYTES",
        )


def rows(settings: Database) -> Findings:
    """The database: reachable, up to date, allowed; then what it knows about workers and work."""
    if settings.database_url is None and (secret := settings.rest_key()):
        role = key_role(secret.get_secret_value())
        if role != "service_role":
            yield Finding("WARN", "D201", f"the Supabase key's role is {role}", "use the service_role (secret) key")
    if settings.database_url is not None:
        from app.database.migrate import pending

        try:
            waiting = pending(settings.database_url.get_secret_value())
        except TobanError as error:
            yield Finding("FAIL", "D202", str(error), "start the server, or correct DATABASE_URL")
            return
        if waiting:
            yield Finding("FAIL", "D203", f"the schema lacks {', '.join(waiting)}", "run `toban migrate`")
            return
    database = open_database(settings, shared=False)
    try:
        began = time.time()
        status = database.call("toban_status")
        took = time.time() - began
    except TobanError as error:
        remedy = "check the address and the key; `toban migrate` or `supabase db push` brings the functions"
        yield Finding("FAIL", "D202", str(error), remedy)
        return
    finally:
        database.close()
    way = "PostgreSQL" if settings.database_url else "Supabase's REST API"
    yield Finding("OK", "D202", f"the ledger answers over {way} in {took * 1000:.0f} ms, its schema is up to date")
    now = datetime.fromisoformat(status["now"])
    skew = abs(now.timestamp() - (began + took / 2)) - took / 2
    if skew > CLOCK:
        yield Finding(
            "WARN",
            "D204",
            f"this machine's clock and the database's differ by {skew:.0f} s",
            "set the clock by NTP on both",
        )
    yield from work(status, now)


def work(status: Status, now: datetime) -> Findings:
    """What the ledger says about workers, beat and the rows that wait."""
    due = [source for source in status["sources"] if source["oldest_due"]]
    for queue, count in slots(status).items():
        if count:
            yield Finding("OK", "D401", f"live workers listen to {queue}, {count} at once")
        else:
            remedy = f"start one: `celery -A workers.{queue} worker`, or everything with `toban up`"
            yield Finding("FAIL" if due else "WARN", "D401", f"no worker listens to {queue}", remedy)
    ticks = [since(job["last_started_at"], now) for job in status["jobs"] if job["last_started_at"]]
    last = f"the last tick came {duration(min(ticks))} ago" if ticks else "no tick has ever come"
    if ticks and not overdue(status):
        yield Finding("OK", "D402", last)
    else:
        late = f", and {', '.join(overdue(status))} should have had one" if ticks else ""
        yield Finding("WARN", "D402", last + late, "start beat: `celery -A app beat`, or everything with `toban up`")
    for source in due:
        if (waited := since(source["oldest_due"], now)) > WAIT:
            what = f"{source['source']}: {source['pending']} rows wait, the oldest for {duration(waited)}"
            yield Finding("WARN", "D403", what, "more workers or a smaller model; `toban status` shows what runs")
    for source in status["sources"]:
        if source["failed"]:
            remedy = f"`toban status` shows why; then `toban reprocess {source['source']} --only-failed`"
            yield Finding("WARN", "D404", f"{source['source']}: {source['failed']} rows have failed", remedy)


def wakeups(settings: Broker) -> Findings:
    """The broker: reachable, and a Redis that neither evicts nor forgets."""
    from kombu import Connection

    url = settings.url.get_secret_value()
    if url.startswith("memory"):
        yield Finding("FAIL", "D301", "the broker is this process's memory", "set CELERY_BROKER_URL to a Redis")
        return
    try:
        with Connection(url, connect_timeout=5, transport_options={"socket_connect_timeout": 5}) as connection:
            connection.ensure_connection(max_retries=1, timeout=10)
            if not url.startswith(("redis", "sentinel")):
                yield Finding("OK", "D301", f"the broker answers ({connection.transport.driver_name})")
                return
            channel: Any = connection.default_channel
            yield from _redis(channel.client)
    except Exception as error:  # noqa: BLE001 - each transport has its own errors; the other checks go on
        remedy = "start the server, or correct CELERY_BROKER_URL"
        yield Finding("FAIL", "D301", f"the broker can't be used: {str(error) or type(error).__name__}", remedy)


def _redis(client: Any) -> Findings:  # noqa: ANN401 - redis.Redis, whatever the transport made of it
    info = client.info("server")
    yield Finding("OK", "D301", f"the broker answers (Redis protocol, version {info.get('redis_version', 'unknown')})")
    try:
        policy = client.config_get("maxmemory-policy")["maxmemory-policy"]
        persistent = client.config_get("appendonly")["appendonly"] == "yes"
    except Exception as error:  # noqa: BLE001 - hosted servers often forbid CONFIG, each in its own way
        yield Finding(
            "WARN", "D302", f"the broker's settings can't be read ({error})", "see that it does not evict keys"
        )
        return
    if policy != "noeviction":
        remedy = "set maxmemory-policy to noeviction"
        yield Finding("WARN", "D302", f"the broker drops messages when memory is short ({policy})", remedy)
    if persistent:
        yield Finding("OK", "D303", "the broker keeps its queue on disk")
    else:
        remedy = "set appendonly to yes; without it the ledger sends lost messages again, a little later"
        yield Finding("WARN", "D303", "the broker forgets its queue when it restarts", remedy)


def recordings(settings: Audio) -> Findings:
    from app.audio.store import build_store

    place = f"the folder {settings.audio_folder}" if settings.audio_folder else f"s3://{settings.s3_bucket_name}"
    try:
        build_store(settings).present({"files/toban-doctor/2000-01-01/00-00/audio.wav"})
    except TobanError as error:
        yield Finding("FAIL", "D501", f"recordings can't be read from {place}: {error}", "see the message")
    else:
        yield Finding("OK", "D501", f"recordings are read from {place}")


def words(settings: Whisper, max_seconds: float, speech: Path | None) -> Findings:
    """The model loads, and with a recording, hears."""
    from app.speech.engine import build_engine
    from app.speech.faster import load

    took = _timer()
    try:
        load(settings, settings.threads)
        yield Finding("OK", "D601", f"the speech model {settings.model} loads in {took():.1f} s")
        if speech is None:
            return
        engine = build_engine(settings, max_seconds=max_seconds, threads=settings.threads)
        took = _timer()
        heard = engine.transcribe(speech, language=settings.language, progress=lambda _done, _total: None)
    except (TobanError, OSError) as error:
        yield Finding("FAIL", "D601" if speech is None else "D602", str(error), "see the message")
    else:
        speed = heard.duration_seconds / took()
        note = f"; {heard.note}" if heard.note else ""
        yield Finding(
            "OK",
            "D602",
            f"{speech}: {heard.language}, {speed:.1f} × real time{note}: {heard.text or '(nobody speaks)'}",
        )


def _timer() -> Callable[[], float]:
    began = time.monotonic()
    return lambda: time.monotonic() - began
