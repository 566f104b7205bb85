"""The other groups of settings, and all of them together. A field's description is its documentation."""

from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AliasChoices, BaseModel, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from app.settings.database import Database
from app.settings.flower import Flower
from app.settings.gpt import Gpt
from app.settings.group import Group, Memory, Seconds, Zone, scheme
from app.settings.monitor import Alerts, Monitor, Portal
from app.settings.problems import Problem, SettingsError
from app.settings.retention import Retention
from app.settings.traces import Traces
from app.settings.web import Web

# Problems with the source of recordings, which only a process that reads them has.
SOURCE_OF_RECORDINGS = frozenset({"E006", "E007", "E008"})
BROKER_SCHEMES = ("redis", "rediss", "redis+socket", "amqp", "amqps", "sentinel", "memory")


class Broker(Group):
    """The broker that carries wake-ups, and where task results are kept for a while."""

    url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        validation_alias=AliasChoices("CELERY_BROKER_URL", "REDIS_URL", "url"),
        description="Redis, Valkey or RabbitMQ; REDIS_URL is read too",
    )
    rabbitmq_queue_type: Literal["classic", "quorum"] = Field(
        "classic",
        description="of the queues in a RabbitMQ: classic, or quorum where it is a cluster",
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

    def queue_type(self) -> Literal["classic", "quorum"]:
        """Of the queues; another broker than RabbitMQ has one kind only."""
        return self.rabbitmq_queue_type if scheme(self.url.get_secret_value()) in {"amqp", "amqps"} else "classic"

    def problems(self) -> Iterator[Problem]:
        for name, secret in (("CELERY_BROKER_URL", self.url), ("CELERY_RESULT_BACKEND", self.celery_result_backend)):
            url = secret.get_secret_value() if secret else ""
            known = scheme(url) in BROKER_SCHEMES
            if name == "CELERY_BROKER_URL" and not known:
                yield Problem(
                    "E005",
                    name,
                    f"unknown scheme {scheme(url)!r}",
                    "write it as redis://:password@host:6379/0 (or rediss://, amqp://)",
                )
            elif known and not _is_clear(url):
                yield Problem(
                    "E012",
                    name,
                    "can't be read as an address without doubt",
                    "write the password's special characters as %40 for @, %2F for /, %3A for :, %23 for #, %3F for ?, "
                    "%3B for ; and %25 for %",
                )


def _is_clear(url: str) -> bool:
    """Whether a broker's URL means what it seems to mean; see `app.settings.database.address_is_clear`."""
    if scheme(url) == "redis+socket":
        return True  # a path, which may hold anything
    for one in url.split(";"):
        try:
            parts = urlsplit(one)
            _ = parts.port
        except ValueError:
            return False
        if "@" in parts.path + parts.query + parts.fragment:
            return False
    return True


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
    device_timezone: Zone = Field(
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

    engine: Literal["faster-whisper", "openai-whisper"] = Field(
        "faster-whisper", description="the speech engine: faster-whisper, or openai-whisper (the extra of that name)"
    )
    model: str = Field(
        "base",
        min_length=1,
        description="a model's name (tiny, base, small, medium, large-v3 …), a folder that holds one, or for "
        "openai-whisper a checkpoint file",
    )
    extra_models: str = Field(
        "",
        description="further models, separated by commas, that a row or request may ask for; a worker loads one at a "
        "time",
    )
    language: str | None = Field(
        None,
        description="ISO 639-1 code such as ja; default: detected for each recording",
    )
    compute_type: str = Field(
        "int8",
        description="CTranslate2 compute type: int8, int8_float32, float32 …; openai-whisper has float32 only",
    )
    memory_limit: Memory | None = Field(
        None,
        description="memory for the whole worker, such as 1500MB or 2GiB; default: what the container or the machine "
        "has, less a margin",
    )
    threads: int = Field(
        0,
        ge=0,
        description="threads of one child; 0: the cores shared out among the children",
    )
    children: int = Field(
        0,
        ge=0,
        description="processes of the worker, one recording each; 0: as many as the cores and the memory limit allow",
    )
    batch: int = Field(
        0,
        ge=0,
        le=64,
        description="stretches of 30 s that faster-whisper hears at once; 0: what `toban tune` found, else 4",
    )
    beam_size: int = Field(
        1,
        ge=1,
        le=20,
        description="beams of the decoder; 1 is greedy",
    )
    models_folder: Path | None = Field(
        None,
        description="where downloaded models are kept, for all workers of a machine; default: `~/.cache/toban/models`",
    )
    models_mirror: str | None = Field(
        None,
        pattern="^https?://",
        description="address of a server that has the models under the same paths as their makers' (a mirror)",
    )
    offline: bool = Field(False, description="true: models are never downloaded")

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that the worker holds, the default first."""
        extra = (name.strip() for name in self.extra_models.split(","))
        return tuple(dict.fromkeys([self.model, *filter(None, extra)]))


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
    listen: bool = Field(
        True,
        description="rows that begin to wait are claimed at once, by LISTEN over a direct connection; false: at the "
        "next tick",
    )
    sources: str = Field("", description="more modules that define sources, separated by commas")
    shadow: str = Field(
        "",
        description="sources that only follow another system, such as transcription,analysis; 1: all. It holds for "
        "sources about which nobody has decided yet by `toban takeover` or `toban rollback`",
    )
    shadow_limit: int = Field(
        200, ge=0, description="rows of one source that shadow mode does again within 24 hours at most; 0: all"
    )
    keep_items_days: int = Field(90, ge=1, description="finished items are forgotten after this, days")
    keep_runs_days: int = Field(30, ge=1, description="runs of jobs are forgotten after this, days")
    keep_batches_days: int = Field(
        7,
        ge=1,
        description="batches that were asked for over the API are forgotten after this, once they are done, days",
    )
    keep_calls_days: int = Field(
        400, ge=1, description="calls to language models, and what they cost, are forgotten after this, days"
    )

    def extra_sources(self) -> list[str]:
        return [name.strip() for name in self.sources.split(",") if name.strip()]

    def shadowed(self, sources: Collection[str]) -> list[str]:
        """Those of `sources` that TOBAN_SHADOW names.

        Raises `SettingsError` for a name that is none of them.
        """
        words = [word.strip().lower() for word in self.shadow.split(",") if word.strip()]
        if words == ["0"]:
            return []
        if words == ["1"]:
            return list(sources)
        if strange := [word for word in words if word not in sources]:
            remedy = f"write 1 for all, or some of {', '.join(sources)} with commas between"
            told = f"names no source: {', '.join(strange)}"
            raise SettingsError([Problem("E060", "TOBAN_SHADOW", told, remedy)])
        return words

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
    gpt: Gpt
    ledger: Ledger
    retention: Retention
    monitor: Monitor
    alerts: Alerts
    portal: Portal
    web: Web
    traces: Traces
    flower: Flower
    log: Log


GROUPS: dict[str, type[Group]] = {
    "database": Database,
    "broker": Broker,
    "audio": Audio,
    "whisper": Whisper,
    "gpt": Gpt,
    "ledger": Ledger,
    "retention": Retention,
    "monitor": Monitor,
    "alerts": Alerts,
    "portal": Portal,
    "web": Web,
    "traces": Traces,
    "flower": Flower,
    "log": Log,
}
