"""Which settings the embedded stack fills in, and what its processes get as their environment.

What the user has set is used; the local stand-ins fill the gaps.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from app.settings import Settings, env_files, read

# Where rows, wake-ups and recordings are. The demo ignores the user's, so that it touches nothing but its own.
PLACES = (
    "DATABASE_URL",
    "SUPABASE_URL",
    "CELERY_BROKER_URL",
    "REDIS_URL",
    "CELERY_RESULT_BACKEND",
    "AUDIO_FOLDER",
    "S3_BUCKET_NAME",
)
MODEL = "tiny.en"


@dataclass(frozen=True)
class StandIn:
    """A setting that the stack fills in, or with an empty `value` stands in for; `log`: the program that says so."""

    setting: str
    value: str
    what: str
    log: str


def own_values() -> dict[str, str]:
    """What the user has set: the environment over `.env`, without what another `toban up` wrote."""
    from dotenv import dotenv_values

    values: dict[str, str] = {}
    for file in env_files():
        if file != Path(".toban/env"):
            values |= {name.upper(): value for name, value in dotenv_values(file).items() if value}
    return values | {name: value for name, value in os.environ.items() if value}


def stand_ins(own: Mapping[str, str], data: Path, run: Path) -> list[StandIn]:
    """What fills the gaps that `own` leaves; `data`: folder that is kept, `run`: folder of the sockets."""
    found = []
    if not own.get("DATABASE_URL") and not own.get("SUPABASE_URL"):
        url = f"postgresql://postgres@/toban?host={quote(str(run))}"
        found.append(StandIn("DATABASE_URL", url, f"PostgreSQL, its data in {data}/postgres", "postgres"))
    if not own.get("CELERY_BROKER_URL") and not own.get("REDIS_URL"):
        url = f"redis+socket://{quote(str(run))}/valkey.sock?virtual_host=0"
        found.append(StandIn("CELERY_BROKER_URL", url, "Valkey, a server like Redis", "valkey"))
    if not own.get("AUDIO_FOLDER") and not own.get("S3_BUCKET_NAME"):
        found.append(StandIn("AUDIO_FOLDER", str(data / "audio"), "a folder instead of S3", "worker-whisper"))
    if not own.get("WHISPER_MODEL"):
        found.append(StandIn("WHISPER_MODEL", MODEL, "a small model that knows only English", "worker-whisper"))
    if not own.get("OPENAI_API_KEY") and not own.get("OPENAI_BASE_URL"):
        what = "an analyser that counts the moods of English words, instead of a language model"
        found.append(StandIn("OPENAI_API_KEY", "", what, "worker-default"))
    return found


def absolute(own: Mapping[str, str]) -> dict[str, str]:
    """The same values, with folders and files that are named from here: the stack's processes run elsewhere."""
    values = dict(own)
    for name in ("AUDIO_FOLDER", "WHISPER_MODEL", "ANALYSIS_PROMPT_TEMPLATE"):
        if (value := values.get(name)) and (Path(value).is_dir() or Path(value).is_file()):
            values[name] = str(Path(value).absolute())
    return values


def settings_of(environment: Mapping[str, str]) -> Settings:
    """The settings that a process with this environment will have.

    Raises `SettingsError`.
    """
    with environ(environment):
        return read()


@contextmanager
def environ(values: Mapping[str, str]) -> Iterator[None]:
    """This process's environment, replaced for a moment. Not for programs with threads."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
