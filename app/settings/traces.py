"""The group `Traces`: where spans are sent. The names are OpenTelemetry's own."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from app.settings.group import Group
from app.settings.problems import Problem

REMEDY = "pip install 'toban[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT"


class Traces(Group):
    """Traces, off by default: see [tracing.md](tracing.md). The standard has more variables; they may be set, too."""

    model_config = SettingsConfigDict(env_prefix="OTEL_")

    exporter_otlp_endpoint: str | None = Field(
        None,
        description="the collector, such as http://localhost:4318; without one there are no traces",
    )
    exporter_otlp_headers: SecretStr | None = Field(
        None,
        description="sent along, such as authorization=Bearer%20…; several separated by commas",
    )
    service_name: str | None = Field(
        None,
        description="default: toban- and what the process is, such as toban-web or toban-whisper",
    )
    resource_attributes: str | None = Field(
        None,
        description="said of every span, such as deployment.environment.name=production",
    )
    traces_sampler: str | None = Field(
        None,
        description="which traces are kept; parentbased_traceidratio keeps a share; default: all",
    )
    traces_sampler_arg: str | None = Field(None, description="that share, such as 0.1")

    @property
    def endpoint(self) -> str | None:
        """Where traces go: the standard has a variable for them alone, too."""
        return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or self.exporter_otlp_endpoint

    @property
    def on(self) -> bool:
        disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        nowhere = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none"
        return self.endpoint is not None and not disabled and not nowhere

    @property
    def installed(self) -> bool:
        """Whether the extra `otel` is."""
        return all(find_spec(f"opentelemetry.{name}") is not None for name in ("sdk", "exporter"))

    def environment(self) -> dict[str, str]:
        """The variables that are set, for the library, which reads no `.env`."""
        found = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is not None:
                found[f"OTEL_{name}".upper()] = value.get_secret_value() if isinstance(value, SecretStr) else value
        return found

    def problems(self) -> Iterator[Problem]:
        if self.endpoint is not None and not _is_address(self.endpoint):
            yield Problem(
                "E070",
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "is not an http(s) address",
                "write it as http://localhost:4318, the collector's port for OTLP over HTTP",
            )
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        if self.on and protocol != "http/protobuf":
            yield Problem(
                "E071",
                "OTEL_EXPORTER_OTLP_PROTOCOL",
                f"{protocol!r} is not spoken here",
                "unset it, and name the collector's port for http/protobuf (4318) in OTEL_EXPORTER_OTLP_ENDPOINT",
            )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)
