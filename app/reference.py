"""Writes `docs/configuration.md` and `.env.example` from the settings themselves: `python -m app.reference`."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.settings import GROUPS, variable

ROOT = Path(__file__).parents[1]
TITLES = {
    "database": "Database",
    "broker": "Broker",
    "audio": "Recordings",
    "whisper": "Speech",
    "gpt": "Analysis",
    "ledger": "Ledger and workers",
    "retention": "Retention",
    "monitor": "Monitor",
    "alerts": "Alerts",
    "portal": "Reports of jobs outside",
    "web": "Web pages",
    "traces": "Traces",
    "flower": "Flower",
    "log": "Log",
}
CODES = {
    "E001": "A value can't be read or is out of its range.",
    "E002": "No database is set.",
    "E003": "`SUPABASE_URL` is set, but no key.",
    "E004": "The Supabase key is the anon (publishable) key, which may not use the ledger.",
    "E005": "The broker's address has a scheme that Celery does not know.",
    "E006": "No source of recordings is set.",
    "E007": "`AUDIO_FOLDER` does not exist.",
    "E008": "Only one of the two AWS keys is set.",
    "E009": "`TOBAN_LEASE` is shorter than three heartbeats.",
    "E010": "`DATABASE_URL` is not a PostgreSQL address, or may mean another than it seems to: its password holds a "
    "character that has to be percent-encoded.",
    "E011": "`SUPABASE_URL` is not an http(s) address.",
    "E012": "The address of the broker or of the result backend may mean another than it seems to (as above).",
    "E013": "`OPENAI_BASE_URL` is not an http(s) address, or holds a login.",
    "E014": "A budget is set, but what `OPENAI_MODEL` costs is not known: set `LLM_PRICES`.",
    "E015": "The file of `ANALYSIS_PROMPT_TEMPLATE` does not exist.",
    "E016": "`LLM_LIMITER_URL` is not the address of a Redis, or may mean another than it seems to.",
    "E020": "`ALERT_URLS` holds something that is no address.",
    "E030": "`WEB_BASE_URL` is not an http(s) address.",
    "E031": "`TRUSTED_PROXIES` has something that is no IP address or network.",
    "E032": "`SUPABASE_JWKS_URL` is not an https address.",
    "E033": "Both `SUPABASE_JWT_SECRET` and `SUPABASE_JWKS_URL` are set.",
    "E034": "`SUPABASE_JWT_SECRET` is too short to be safe.",
    "E035": "`FLOWER_URL` is not an http(s) address.",
    "E050": "`WEB_EXTRA_PORTS` has something that is no port.",
    "E051": "`LEGACY_ANONYMOUS_CIDRS` has something that is no IP address or network, or everybody.",
    "E052": "`CORS_ORIGINS` has something that is no origin.",
    "E060": "`TOBAN_SHADOW` names something that is no source.",
    "E065": "`FLOWER_BASIC_AUTH` has an entry that is not name:password, both in ASCII.",
    "E070": "`OTEL_EXPORTER_OTLP_ENDPOINT` is not an http(s) address.",
    "E071": "`OTEL_EXPORTER_OTLP_PROTOCOL` is another than `http/protobuf`.",
}
INTRODUCTION = """# Configuration

Every setting comes from the environment, else from `.env` in the working folder, else from `.toban/env`, which
`toban up` writes while its embedded stack runs. `TOBAN_ENV_FILE` names one other file instead of those two. An empty
value counts as not set. Times are seconds unless the name says otherwise.

A worker, beat and `toban doctor` check everything at start and list every problem at once, each with its code and what
to do. A source of recordings (`E006` to `E008`) is needed only by what reads them: whisper workers and `toban add`; the
others need `DEVICE_TIMEZONE` alone, if it is not the default. This page is written by `python -m app.reference`; a test
keeps it equal to the program.
"""


def default(field: FieldInfo) -> str:
    """The default as one would write it in an environment; empty where there is none."""
    match field.default:
        case None:
            return ""
        case timedelta() as span:
            return f"{span.total_seconds():g}"
        case SecretStr() as secret:
            return secret.get_secret_value()
        case value:
            return str(value)


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """Group, variable and field of every setting."""
    for name, group in GROUPS.items():
        for field_name, field in group.model_fields.items():
            yield name, variable(group, field_name), field


def configuration() -> str:
    """The text of `docs/configuration.md`."""
    lines = [INTRODUCTION]
    for group, title in TITLES.items():
        lines += [f"## {title}", "", (GROUPS[group].__doc__ or "").strip(), "", "| variable | default | meaning |"]
        lines.append("|---|---|---|")
        for owner, name, field in fields():
            if owner == group:
                shown = f"`{default(field)}`" if default(field) else ""
                lines.append(f"| `{name}` | {shown} | {field.description} |")
        lines.append("")
    lines += ["## Problem codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| `{code}` | {meaning} |" for code, meaning in CODES.items()]
    return "\n".join(lines) + "\n"


def example() -> str:
    """The text of `.env.example`."""
    lines = ["# Copy to .env and fill in what you need; what stays commented out has the default shown.", ""]
    for group, title in TITLES.items():
        lines.append(f"## {title}")
        for owner, name, field in fields():
            if owner == group:
                lines += [f"# {field.description}", f"# {name}={default(field)}"]
        lines.append("")
    return "\n".join(lines)


FILES = {"docs/configuration.md": configuration, ".env.example": example}


def main() -> None:
    for path, text in FILES.items():
        (ROOT / path).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
