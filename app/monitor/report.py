"""`POST /api/monitor/job-report`: a job outside tells how it ended. Status codes and messages are TC Portal's.

Beyond that, and all optional: `status` "running" (it has started), `run_id`, `started_at`, `exit_code`, `log`,
`expect_every`, `grace`, `fail_after`.
"""

import hmac
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from pydantic import SecretStr

from app.cli.errors import without_passwords
from app.database import Database
from app.errors import TobanError

log = structlog.get_logger("toban.monitor")

HEADER = "X-TC-Portal-Webhook-Secret"
MAX_BODY = 256 * 1024  # bytes
LOG_LENGTH = 8000  # characters of the log's end that are kept

Json = Any
Answer = tuple[int, dict[str, Json]]

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class Refused(Exception):
    """The body is not a report; the message is the answer's."""


def handle(database: Database, secret: SecretStr | None, headers: Mapping[str, str], body: bytes) -> Answer:
    """Check a report and write it down.

    `headers`: of any case; `body`: as received. Returns the HTTP status and the JSON answer.
    """
    if secret is None or not secret.get_secret_value():
        return 500, {"error": "Server configuration error"}
    if not authentic(secret, headers):
        return 401, {"error": "Invalid or missing webhook secret"}
    if len(body) > MAX_BODY:
        return 413, {"error": "Request body too large"}
    try:
        report = checked(body)
    except Refused as error:
        return 400, {"error": str(error)}
    try:
        written = database.call("toban_job_report", **report)
    except TobanError as error:
        log.warning("report.refused", job=report["job_key"], reason=str(error))
        return 500, {"error": "Failed to update job status"}
    return 200, {"success": True, "id": written["id"], "job_key": written["job_key"]}


def authentic(secret: SecretStr, headers: Mapping[str, str]) -> bool:
    """Whether the header holds the secret; takes the same time wherever they differ."""
    given = next((value for name, value in headers.items() if name.lower() == HEADER.lower()), "")
    # A header arrives as bytes that servers show as Latin-1; a secret that is not ASCII is sent as UTF-8.
    return hmac.compare_digest(given.encode("latin-1", "replace"), secret.get_secret_value().encode())


def checked(body: bytes) -> dict[str, Json]:
    """The parameters of `toban_job_report`.

    Raises `Refused` with the first thing that is wrong.
    """
    try:
        data = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise Refused("Invalid JSON body") from None
    if not isinstance(data, dict):
        raise Refused("Invalid JSON body")
    report: dict[str, Json] = {name: _required(data, name) for name in ("job_key", "title")}
    match data.get("status"):
        case "success" | "error" as status:
            if not data.get("finished_at"):
                raise Refused("finished_at is required")
            report |= {"status": status, "finished_at": _moment(data["finished_at"], "finished_at")}
        case "running" if not data.get("finished_at"):
            report["status"] = "running"
        case _:
            raise Refused("status must be 'success' or 'error'")
    for name, read in OPTIONAL.items():
        if data.get(name) is not None:
            report[name] = read(data[name], name)
    if "tool_id" in data:
        report["tool_id"] = None if data["tool_id"] in (None, "") else _uuid(data["tool_id"], "tool_id")
    if "log" in report:
        report["log"] = without_passwords(report["log"])[-LOG_LENGTH:]
    return report


def _required(data: Mapping[str, Json], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Refused(f"{name} is required")
    return _text(value, name)


def _text(value: Json, _name: str) -> str:
    """Text as PostgreSQL can store it: without NUL and halves of characters. Anything else becomes JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _moment(value: Json, name: str) -> str:
    """An ISO 8601 moment; without an offset it is meant in UTC."""
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"{name} must be valid ISO 8601") from None


def _uuid(value: Json, name: str) -> str:
    try:
        return str(UUID(value))
    except (AttributeError, TypeError, ValueError):
        raise Refused(f"{name} must be a UUID") from None


def _whole(value: Json, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise Refused(f"{name} must be a whole number")
    return value


def seconds(value: Json, name: str) -> float:
    """A time span: a number of seconds, or like 90s, 15m, 24h, 1d.

    Raises `Refused`.
    """
    text = str(value).strip() if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*(s|m|min|h|d|)", text)
    if not match or not (span := float(match[1]) * _UNITS[match[2]]):
        raise Refused(f"{name} must be seconds, or like 90s, 15m, 24h, 1d")
    return span


def _times(value: Json, name: str) -> int:
    if (times := _whole(value, name)) < 1:
        raise Refused(f"{name} must be at least 1")
    return times


OPTIONAL: Mapping[str, Callable[[Json, str], Json]] = {
    "message": _text,
    "run_id": _text,
    "started_at": _moment,
    "exit_code": _whole,
    "log": _text,
    "expect_every": seconds,
    "grace": seconds,
    "fail_after": _times,
}
