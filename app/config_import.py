"""The old switchboard, `config.json`, as settings of jobs.

    {"apis": {"timeblock-analysis": {"enabled": false, "timeout": 60, "batchLimit": 50, "deviceId": "9f7d…",
                                     "processDate": "today"}, "whisper": {…}, "timeblock-prompt": {…}}}

What is not in the file stays as it is. `deviceId` and `processDate` may be null or empty, `batchLimit` and `timeout`
(seconds) null: then there is none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.errors import Permanent
from app.jobs import HIGHEST_LIMIT, LONGEST_TIMEOUT, Changes, Row, day, takes

# api → job
JOBS = {"timeblock-analysis": "analysis", "whisper": "transcription", "timeblock-prompt": "timeblock-prompt"}
# key → setting
KEYS = {
    "enabled": "enabled", "timeout": "timeout", "batchLimit": "batch_limit", "deviceId": "partition",
    "processDate": "date",
}  # fmt: skip
FILTERS = {"partition", "date"}


class Api(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

    enabled: bool = True
    timeout: Annotated[float | None, Field(gt=0, le=LONGEST_TIMEOUT)] = None
    batchLimit: Annotated[int | None, Field(ge=1, le=HIGHEST_LIMIT)] = None  # noqa: N815 - as the file has it
    deviceId: Annotated[str | None, AfterValidator(lambda text: (text or "").strip() or None)] = None  # noqa: N815
    processDate: Annotated[str | None, AfterValidator(lambda text: day(text or "any"))] = None  # noqa: N815


class Config(BaseModel):
    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    apis: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One value of the file, and what it is here: a setting of a job."""

    api: str
    key: str
    job: str
    name: str
    value: Any

    @property
    def path(self) -> str:
        return f"apis.{self.api}.{self.key}"

    def of(self, job: Row) -> Any:  # noqa: ANN401 - the setting's own type
        """What `job` has now."""
        return job.get("filters", {}).get(self.name) if self.name in FILTERS else job.get(self.name)


@dataclass
class Switchboard:
    """`unmapped`: path of each value that has no counterpart here → why."""

    settings: list[Setting] = field(default_factory=list)
    unmapped: dict[str, str] = field(default_factory=dict)

    def changes(self, job: str) -> Changes:
        """The file's settings of a job, for `app.jobs.edit`."""
        mine = {setting.name: setting.value for setting in self.settings if setting.job == job}
        filters = {name: mine.pop(name) for name in FILTERS & mine.keys()}
        return {**mine, **({"filters": filters} if filters else {})}

    @property
    def jobs(self) -> list[str]:
        return list(dict.fromkeys(setting.job for setting in self.settings))


def read(path: Path, jobs: Mapping[str, Row]) -> Switchboard:
    """Read the file. `jobs`: those that there are, by name.

    Raises `Permanent` with every value that can't be used and where it stands.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    found = Switchboard()
    problems: list[str] = []
    try:
        config = Config.model_validate_json(text)
    except ValidationError as error:
        raise _refused(path, list(_told(error, ()))) from None
    for key in config.model_extra or {}:
        found.unmapped[key] = "only `apis` is read"
    for name, value in config.apis.items():
        if name not in JOBS:
            found.unmapped[f"apis.{name}"] = "there is no such job here"
            continue
        try:
            api = Api.model_validate(value)
        except ValidationError as error:
            problems += _told(error, ("apis", name))
            continue
        _map(found, name, api, jobs[JOBS[name]])
    if problems:
        raise _refused(path, problems)
    return found


def _map(found: Switchboard, name: str, api: Api, job: Row) -> None:
    for key in api.model_extra or {}:
        found.unmapped[f"apis.{name}.{key}"] = "there is no such setting here"
    for key, setting in KEYS.items():
        if key not in api.model_fields_set:
            continue
        if setting != "enabled" and setting not in takes(job):
            found.unmapped[f"apis.{name}.{key}"] = f"it means nothing to the job {job['job']}"
            continue
        found.settings.append(Setting(name, key, job["job"], setting, getattr(api, key)))


def _told(error: ValidationError, above: tuple[str, ...]) -> Iterator[str]:
    for detail in error.errors(include_input=False, include_url=False):
        path = ".".join(map(str, (*above, *detail["loc"])))
        message = detail["msg"].removeprefix("Value error, ")
        yield f"{path}: {message}" if path else message


def _refused(path: Path, problems: list[str]) -> Permanent:
    return Permanent("\n  ".join([f"{path} can't be used, and nothing was changed:", *problems]))
