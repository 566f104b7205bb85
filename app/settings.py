"""Every setting: its environment variable, type, unit and default.

Values come from the environment, then `.env`, then `.toban/env` (written by `toban up` while the embedded stack runs).
`TOBAN_ENV_FILE` names one other file instead of those two. `load()` reads them and refuses to go on with a bad one:
one `SettingsError` lists every problem, each with a stable code and a remedy. A secret is a `SecretStr`: no `repr`, log
or message shows it.
"""

import base64
import binascii
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

BROKER_SCHEMES = ("redis", "rediss", "redis+socket", "amqp", "amqps", "sentinel", "memory")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the settings; `code` never changes its meaning."""

    code: str
    setting: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"[{self.code}] {self.setting}: {self.message}\n        → {self.remedy}"


class SettingsError(Exception):
    """The settings can't be used; the message lists every problem."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"The settings have {count}:", *(f"  {p}" for p in problems)]))


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"unknown time zone {name!r}; use a name such as Asia/Tokyo") from None
    return name


def _seconds(value: object) -> object:
    """Plain numbers in the environment are seconds."""
    if isinstance(value, str):
        try:
            return timedelta(seconds=float(value))
        except (ValueError, OverflowError):
            return value  # pydantic reads ISO 8601 durations and names the rest
    return value


Seconds = Annotated[timedelta, BeforeValidator(_seconds), Field(gt=timedelta(0))]


class Group(BaseSettings):
    """Base of the groups below; a field's name in capitals, after the group's prefix, is its variable."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True, populate_by_name=True
    )

    def problems(self) -> Iterator[Problem]:
        """What no single value shows: combinations, and what has to exist."""
        return iter(())


GroupT = TypeVar("GroupT", bound=Group)


class Database(Group):
    """Where the rows are: a direct connection (`DATABASE_URL`) or Supabase's REST API. The direct one wins."""

    database_url: SecretStr | None = Field(
        None,
        description="postgresql://user:password@host:5432/name; a transaction pooler (port 6543, PgBouncer) works too",
    )
    supabase_url: str | None = Field(
        None,
        description="https://<project>.supabase.co; used when DATABASE_URL is not set",
    )
    supabase_service_role_key: SecretStr | None = Field(
        None,
        description="the key that passes row level security",
    )
    supabase_key: SecretStr | None = Field(
        None,
        description="older name; used when SUPABASE_SERVICE_ROLE_KEY is not set; must not be the anon key",
    )
    database_pool_size: int = Field(
        4,
        ge=1,
        description="most connections that one process opens",
    )

    def rest_key(self) -> SecretStr | None:
        return self.supabase_service_role_key or self.supabase_key

    def problems(self) -> Iterator[Problem]:
        if self.database_url is None and self.supabase_url is None:
            yield Problem(
                "E002",
                "DATABASE_URL",
                "no database is set",
                "set DATABASE_URL, or SUPABASE_URL with SUPABASE_SERVICE_ROLE_KEY; `toban up` starts an embedded one",
            )
        if self.database_url is not None and urlsplit(self.database_url.get_secret_value()).scheme not in {
            "postgresql",
            "postgres",
        }:
            yield Problem(
                "E010",
                "DATABASE_URL",
                "is not a PostgreSQL address",
                "write it as postgresql://user:password@host:5432/name",
            )
        if self.database_url is not None or self.supabase_url is None:
            return
        if urlsplit(self.supabase_url).scheme not in {"http", "https"}:
            yield Problem("E011", "SUPABASE_URL", "is not an http(s) address", "copy the project URL from Supabase")
        secret = self.rest_key()
        name = "SUPABASE_SERVICE_ROLE_KEY" if self.supabase_service_role_key else "SUPABASE_KEY"
        if secret is None:
            yield Problem(
                "E003",
                "SUPABASE_SERVICE_ROLE_KEY",
                "is not set",
                "copy the service_role (secret) key from the project's API settings",
            )
        elif (role := key_role(secret.get_secret_value())) in {"anon", "authenticated"}:
            yield Problem(
                "E004",
                name,
                f"holds the {role} key, which may not read or write the work ledger",
                "put the service_role (secret) key into SUPABASE_SERVICE_ROLE_KEY; the old value may stay",
            )


class Broker(Group):
    """The broker that carries wake-ups, and where task results are kept for a while."""

    url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        validation_alias=AliasChoices("CELERY_BROKER_URL", "REDIS_URL", "url"),
        description="Redis, Valkey or RabbitMQ; REDIS_URL is read too",
    )
    celery_result_backend: SecretStr | None = Field(
        None,
        description="default: the broker, when it is a Redis, else none",
    )
    toban_result_expires: Seconds = Field(
        timedelta(hours=1),
        description="seconds for which a task's result is kept; the ledger keeps the outcome itself",
    )

    def backend_url(self) -> str | None:
        if self.celery_result_backend:
            return self.celery_result_backend.get_secret_value()
        broker = self.url.get_secret_value()
        return broker if broker.startswith("redis") else None

    def problems(self) -> Iterator[Problem]:
        scheme = urlsplit(self.url.get_secret_value()).scheme
        if scheme not in BROKER_SCHEMES:
            yield Problem(
                "E005",
                "CELERY_BROKER_URL",
                f"unknown scheme {scheme!r}",
                "write it as redis://:password@host:6379/0 (or rediss://, amqp://)",
            )


class Audio(Group):
    """Where recordings are read from, and what is refused."""

    audio_folder: Path | None = Field(
        None,
        description="read recordings from this folder instead of S3",
    )
    s3_bucket_name: str | None = Field(None, description="the S3 bucket of the recordings")
    s3_endpoint_url: str | None = Field(
        None,
        description="another S3-compatible server",
    )
    aws_access_key_id: str | None = Field(
        None,
        description="default: the machine's own role or profile",
    )
    aws_secret_access_key: SecretStr | None = Field(
        None,
        description="goes with AWS_ACCESS_KEY_ID",
    )
    aws_region: str = Field("ap-northeast-1", description="the bucket's region")
    device_timezone: Annotated[str, AfterValidator(_zone)] = Field(
        "Asia/Tokyo",
        description="the zone in which `date` and `time_block` are meant",
    )
    audio_max_bytes: int = Field(
        2 * 1024**3,
        gt=0,
        description="a larger recording is refused, bytes",
    )
    audio_max_seconds: Seconds = Field(
        timedelta(hours=6),
        description="a longer recording is refused, seconds",
    )
    audio_fetch_timeout: Seconds = Field(
        timedelta(minutes=10),
        description="total time that reading one recording may take, seconds",
    )
    audio_missing_grace: Seconds = Field(
        timedelta(minutes=2),
        description="how long a fresh row may wait for its recording to arrive, seconds",
    )

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.device_timezone)

    def problems(self) -> Iterator[Problem]:
        if self.audio_folder is None and self.s3_bucket_name is None:
            yield Problem(
                "E006",
                "S3_BUCKET_NAME",
                "no source of recordings is set",
                "set S3_BUCKET_NAME (with AWS_…), or AUDIO_FOLDER for files on this machine",
            )
        if self.audio_folder is not None and not self.audio_folder.is_dir():
            yield Problem(
                "E007", "AUDIO_FOLDER", f"{self.audio_folder} is not a folder", "create it, or correct the path"
            )
        if (self.aws_access_key_id is None) != (self.aws_secret_access_key is None):
            yield Problem(
                "E008",
                "AWS_SECRET_ACCESS_KEY" if self.aws_access_key_id else "AWS_ACCESS_KEY_ID",
                "is missing beside its twin",
                "set both, or neither to use the machine's own role",
            )


class Whisper(Group):
    """The speech engine of the whisper queue."""

    model_config = SettingsConfigDict(env_prefix="WHISPER_")

    engine: Literal["faster-whisper"] = Field("faster-whisper", description="the speech engine")
    model: str = Field(
        "base",
        min_length=1,
        description="a model's name (tiny, base, small, medium, large-v3 …) or a folder that holds one",
    )
    language: str | None = Field(
        None,
        description="ISO 639-1 code such as ja; default: detected for each recording",
    )
    compute_type: str = Field(
        "int8",
        description="CTranslate2 compute type: int8, int8_float32, float32 …",
    )
    threads: int = Field(
        0,
        ge=0,
        description="threads of one child; 0: the cores shared out among the children",
    )
    children: int = Field(0, ge=0, description="processes of the worker, one recording each; 0: one for each core")
    beam_size: int = Field(
        1,
        ge=1,
        le=20,
        description="beams of the decoder; 1 is greedy",
    )


class Ledger(Group):
    """How long things may take before somebody else takes over, and how long they are kept."""

    model_config = SettingsConfigDict(env_prefix="TOBAN_")

    lease: Seconds = Field(timedelta(seconds=60), description="a running item without news is taken back after this")
    queue_lease: Seconds = Field(
        timedelta(seconds=30),
        description="a queued item is queued again after this, if a worker of its queue stands idle",
    )
    heartbeat: Seconds = Field(timedelta(seconds=15), description="how often a worker reports")
    stall: Seconds = Field(timedelta(minutes=5), description="a running item without progress is given up after this")
    max_attempts: int = Field(5, ge=1, le=100, description="starts of one item before it is set aside as failed")
    shutdown_grace: Seconds = Field(
        timedelta(seconds=25), description="how long a stopping worker lets its running items finish"
    )
    sources: str = Field("", description="more modules that define sources, separated by commas")
    keep_items_days: int = Field(90, ge=1, description="finished items are forgotten after this, days")
    keep_runs_days: int = Field(30, ge=1, description="runs of jobs are forgotten after this, days")

    def extra_sources(self) -> list[str]:
        return [name.strip() for name in self.sources.split(",") if name.strip()]

    def problems(self) -> Iterator[Problem]:
        if self.lease < 3 * self.heartbeat:
            yield Problem(
                "E009",
                "TOBAN_LEASE",
                f"{self.lease.total_seconds():g} s is less than three heartbeats "
                f"({self.heartbeat.total_seconds():g} s each), so one late heartbeat would lose work",
                "raise TOBAN_LEASE or lower TOBAN_HEARTBEAT",
            )


class Log(Group):
    """What is logged."""

    model_config = SettingsConfigDict(env_prefix="LOG_")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO",
        description="DEBUG, INFO, WARNING or ERROR",
    )
    format: Literal["text", "json"] = Field("text", description="text, or one JSON object a line")


class Settings(BaseModel):
    """All groups together."""

    model_config = {"frozen": True}

    database: Database
    broker: Broker
    audio: Audio
    whisper: Whisper
    ledger: Ledger
    log: Log


GROUPS: dict[str, type[Group]] = {
    "database": Database,
    "broker": Broker,
    "audio": Audio,
    "whisper": Whisper,
    "ledger": Ledger,
    "log": Log,
}


def env_files() -> tuple[Path, ...]:
    """The files read beside the environment, the weakest first."""
    if named := os.environ.get("TOBAN_ENV_FILE"):
        return (Path(named),)
    return (Path(".toban/env"), Path(".env"))


def variable(group: type[Group], field: str) -> str:
    """The environment variable of a group's field."""
    alias = group.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return f"{group.model_config.get('env_prefix', '')}{field}".upper()


@lru_cache(maxsize=1)
def load() -> Settings:
    """The settings of this process, read once.

    Raises `SettingsError` with every problem of every group.
    """
    groups: dict[str, Group] = {}
    problems: list[Problem] = []
    for name, group in GROUPS.items():
        try:
            groups[name] = load_group(group)
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)
    return Settings.model_validate(groups)


def load_group(group: type[GroupT]) -> GroupT:
    """One group alone: sending a task needs only the broker's.

    Raises `SettingsError` with every problem of the group.
    """
    try:
        loaded = group(_env_file=env_files())
    except ValidationError as error:
        raise SettingsError(list(_invalid(group, error))) from None
    if problems := list(loaded.problems()):
        raise SettingsError(problems)
    return loaded


def _invalid(group: type[Group], error: ValidationError) -> Iterator[Problem]:
    for detail in error.errors(include_input=False, include_url=False):
        where = str(detail["loc"][0]) if detail["loc"] else ""
        name = where.upper() if where.isupper() else variable(group, where)
        field = group.model_fields.get(where)
        help_ = field.description if field and field.description else "see docs/configuration.md"
        yield Problem("E001", name, detail["msg"].removeprefix("Value error, "), help_)


def key_role(key: str) -> str:
    """The role that a Supabase key speaks for: `anon`, `service_role` … or `unknown`.

    Old keys are JSON Web Tokens with the role inside (the signature is the server's business); new ones say it by
    their prefix, `sb_publishable_` for what was anon and `sb_secret_` for service_role.
    Source: Supabase documentation, "Understanding API keys".
    """
    if key.startswith("sb_publishable_"):
        return "anon"
    if key.startswith("sb_secret_"):
        return "service_role"
    parts = key.split(".")
    if len(parts) != 3:
        return "unknown"
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return "unknown"
    return str(claims.get("role", "unknown")) if isinstance(claims, dict) else "unknown"
