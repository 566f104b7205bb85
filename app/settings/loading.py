"""Read the settings, and refuse to go on with bad ones: one `SettingsError` lists every problem."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from app.settings.group import Group, variable
from app.settings.groups import GROUPS, SOURCE_OF_RECORDINGS, Settings
from app.settings.problems import Problem, SettingsError

GroupT = TypeVar("GroupT", bound=Group)


def env_files() -> tuple[Path, ...]:
    """The files read beside the environment, the weakest first."""
    if named := os.environ.get("TOBAN_ENV_FILE"):
        return (Path(named),)
    return (Path(".toban/env"), Path(".env"))


def load(*, audio: bool = True) -> Settings:
    """The settings of this process, read once.

    `audio`: False for a process that reads no recordings: it needs no source of them.
    Raises `SettingsError` with every problem of every group.
    """
    return _checked(*_own(), audio=audio)


def read(*, audio: bool = True) -> Settings:
    """The settings as the environment has them now; see `load`."""
    return _checked(*_read(), audio=audio)


def load_group(group: type[GroupT]) -> GroupT:
    """One group alone: sending a task needs only the broker's.

    Raises `SettingsError` with every problem of the group.
    """
    loaded, problems = _read_group(group)
    if loaded is None or problems:
        raise SettingsError(problems)
    return loaded


def _checked(settings: Settings | None, problems: list[Problem], *, audio: bool) -> Settings:
    counted = [problem for problem in problems if audio or problem.code not in SOURCE_OF_RECORDINGS]
    if settings is None or counted:
        raise SettingsError(counted)
    return settings


def _read() -> tuple[Settings | None, list[Problem]]:
    """The settings, where every value can be read, and every problem."""
    groups: dict[str, Group] = {}
    problems: list[Problem] = []
    for name, group in GROUPS.items():
        loaded, found = _read_group(group)
        problems += found
        if loaded is not None:
            groups[name] = loaded
    complete = groups.keys() == GROUPS.keys()
    return Settings.model_validate(groups) if complete else None, problems


_own = cache(_read)


def _read_group(group: type[GroupT]) -> tuple[GroupT | None, list[Problem]]:
    try:
        loaded = group(_env_file=env_files())
    except ValidationError as error:
        return None, list(_invalid(group, error))
    return loaded, list(loaded.problems())


def _invalid(group: type[Group], error: ValidationError) -> Iterator[Problem]:
    for detail in error.errors(include_input=False, include_url=False):
        where = str(detail["loc"][0]) if detail["loc"] else ""
        name = where.upper() if where.isupper() else variable(group, where)
        field = group.model_fields.get(where)
        help_ = field.description if field and field.description else "see docs/configuration.md"
        yield Problem("E001", name, detail["msg"].removeprefix("Value error, "), help_)
