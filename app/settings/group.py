"""What every group of settings is, and the types that their fields share."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, AliasChoices, BeforeValidator, ByteSize, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.settings.problems import Problem


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
Zone = Annotated[str, AfterValidator(_zone)]
Memory = Annotated[ByteSize, Field(gt=0)]


class Group(BaseSettings):
    """Base of the groups below; a field's name in capitals, after the group's prefix, is its variable."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True, populate_by_name=True
    )

    def problems(self) -> Iterator[Problem]:
        """What no single value shows: combinations, and what has to exist."""
        return iter(())


def variable(group: type[Group], field: str) -> str:
    """The environment variable of a group's field."""
    alias = group.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return f"{group.model_config.get('env_prefix', '')}{field}".upper()


def scheme(url: str) -> str:
    """The scheme of an address in lower case, "" where it has none. Nothing else of it, which may be a secret."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    return match[1].lower() if match else ""
