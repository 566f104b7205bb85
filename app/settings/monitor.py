"""The monitor's settings: what it keeps, whom it tells, and how jobs outside report to it."""

import re
from collections.abc import Iterator
from datetime import datetime, time
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from app.settings.group import Group
from app.settings.problems import Problem

ADDRESS = r"[A-Za-z][A-Za-z0-9+.-]*://"
HOURS = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)\s*-\s*([01]?\d|2[0-3]):([0-5]\d)")


def _hours(text: str) -> str:
    if not HOURS.fullmatch(text.strip()):
        raise ValueError("write them as 22:00-07:00")
    return text


class Monitor(Group):
    """How long the monitor remembers."""

    model_config = SettingsConfigDict(env_prefix="TOBAN_")

    keep_incidents_days: int = Field(
        90, ge=1, description="incidents, messages and reports are forgotten after this, days"
    )
    keep_audit_days: int = Field(365, ge=1, description="the audit log is forgotten after this, days")


class Alerts(Group):
    """Who is told of incidents and of their ends, over [Apprise](https://github.com/caronc/apprise)."""

    model_config = SettingsConfigDict(env_prefix="ALERT_")

    urls: SecretStr | None = Field(
        None,
        description="Apprise's addresses of the channels, separated by spaces or commas: slack://…, mailto://…, line://…",
    )
    quiet_hours: Annotated[str, AfterValidator(_hours)] | None = Field(
        None,
        description="messages wait during these hours, such as 22:00-07:00 (in DEVICE_TIMEZONE)",
    )
    language: Literal["en", "ja"] = Field("en", description="the messages' language: en or ja")
    base_url: str | None = Field(
        None,
        pattern="^https?://",
        description="address under which people open the pages, for links in messages",
    )

    @property
    def addresses(self) -> list[str]:
        """Each channel's address. A comma inside of one (two recipients of a mail) separates nothing."""
        text = self.urls.get_secret_value().strip() if self.urls else ""
        return list(dict.fromkeys(filter(None, re.split(rf"[\s,]+(?={ADDRESS})", text))))

    def quiet(self, local: datetime) -> bool:
        """Whether messages wait at this time; `local` in the zone of the quiet hours, which may pass midnight."""
        if not self.quiet_hours or not (match := HOURS.fullmatch(self.quiet_hours.strip())):
            return False
        start, end = time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4]))
        now = local.time()
        return start <= now < end if start <= end else now >= start or now < end

    def problems(self) -> Iterator[Problem]:
        for number, address in enumerate(self.addresses, 1):
            if not re.match(ADDRESS, address):  # (the address is a secret)
                yield Problem(
                    "E020",
                    "ALERT_URLS",
                    f"number {number} is no address",
                    "write each as Apprise has it, such as slack://…, and several with spaces between; "
                    "`toban alerts test` tries them",
                )


class Portal(Group):
    """Reports of jobs outside: the secret of our endpoint, and what `toban wrap` and reporting scripts use."""

    model_config = SettingsConfigDict(env_prefix="TC_PORTAL_")

    monitor_url: str | None = Field(
        None,
        pattern="^https?://",
        description="where jobs report: https://<host>/api/monitor/job-report, or the host alone",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="the secret that a report brings along; without one, our endpoint takes none",
    )
    job_key: str | None = Field(None, description="the job that `toban wrap` and scripts report")
    job_title: str | None = Field(None, description="what that job is called")
