"""docker-compose.yml as Docker reads it, and its services as processes of this machine."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

from tests.support.servers import ROOT, Process

FILE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def compose() -> dict[str, Any]:
    """The file, with its anchors resolved and its variables as they stand."""
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def variables(part: object) -> Iterator[str]:
    """Every variable that is filled in."""
    for name, _ in _VARIABLE.findall(str(part)):
        yield name


def filled(part: Any, values: Mapping[str, str]) -> Any:
    """`part` of the file with its variables filled in, as Docker does it: an empty one counts as not set."""
    match part:
        case str():
            return _VARIABLE.sub(lambda found: values.get(found[1]) or found[2] or "", part)
        case dict():
            return {name: filled(value, values) for name, value in part.items()}
        case list():
            return [filled(value, values) for value in part]
        case _:
            return part


@dataclass(frozen=True)
class Service:
    """One service: what is run, with which environment, and the command of its health check."""

    name: str
    command: list[str]
    environment: dict[str, str]
    check: list[str]


def service(name: str, env_file: Path, places: Mapping[str, str]) -> Service:
    """A service with the values of `env_file`; `places`: what stands in the file, and what it is on this machine."""
    values = {key: value or "" for key, value in dotenv_values(env_file).items()}
    told = filled(compose()["services"][name], values)
    environment = (values if "env_file" in told else {}) | told.get("environment", {})

    somewhere = re.compile("|".join(map(re.escape, places)))

    def moved(text: str) -> str:
        return somewhere.sub(lambda found: places[found[0]], text)

    return Service(
        name,
        [moved(word) for word in told.get("command", [])],
        {key: moved(str(value)) for key, value in environment.items()},
        [moved(word) for word in told.get("healthcheck", {}).get("test", [])[1:]],
    )


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else (shutil.which(name) or name)


def environment(one: Service, folder: Path) -> dict[str, str]:
    """All that a container would have, and where this machine has its programs; nothing of the caller's."""
    temporary = folder.with_name(f"{folder.name}-tmp")  # in the container the home of its user, too
    temporary.mkdir(exist_ok=True)
    own = {
        "HOME": str(temporary),
        "TMPDIR": str(temporary),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
    }
    return own | {key: value for key, value in one.environment.items() if value}


def run(one: Service, folder: Path) -> Process:
    """The service as a process, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    first, *rest = one.command
    return Process([_program(first), *rest], folder, env=environment(one, folder), clean=True)


def check(one: Service, folder: Path) -> subprocess.CompletedProcess[str]:
    """One run of the health check."""
    folder.mkdir(exist_ok=True)
    first, *rest = one.check
    return subprocess.run(
        [_program(first), *rest],
        cwd=folder, env=environment(one, folder), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
