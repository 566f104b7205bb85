"""Which models there are, by name, as the libraries themselves list them; and which names are paths."""

import ast
import os
import re
from collections.abc import Container, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from app.errors import NotReady

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@cache
def repositories() -> Mapping[str, str]:
    """Repositories of the hub that hold models for faster-whisper, by model name."""
    if (found := _listed("faster_whisper", "utils.py")) is None:
        raise NotReady("the installed faster-whisper does not list its models; install the version that Toban asks for")
    return found


@cache
def checkpoints() -> Mapping[str, str]:
    """Addresses of openai-whisper's checkpoints, by model name.

    The last part of the path but one is the file's SHA-256. Raises `NotReady` when openai-whisper is not installed.
    """
    if (found := _listed("whisper", "__init__.py")) is None:
        raise NotReady(
            "WHISPER_ENGINE is openai-whisper, which is not installed: install the CPU build of PyTorch first (its "
            "default build brings gigabytes of GPU libraries), then pip install 'toban[openai-whisper]'"
        )
    return found


def repository(name: str) -> str:
    """The hub's repository of the model `name`. Raises `NotReady` for a name that nobody knows."""
    if found := repositories().get(name):
        return found
    if _REPOSITORY.fullmatch(name):
        return name
    raise NotReady(
        f"faster-whisper knows no model {name!r}; set WHISPER_MODEL to one of {', '.join(repositories())}, to a "
        "repository of the hub (owner/name), or to a folder with a CTranslate2 model"
    )


def address(name: str) -> str:
    """Where openai's checkpoint `name` is downloaded from. Raises `NotReady` for a name that nobody knows."""
    if found := checkpoints().get(name):
        return found
    raise NotReady(
        f"openai-whisper knows no model {name!r}; set WHISPER_MODEL to one of {', '.join(checkpoints())}, or to a "
        "checkpoint file (.pt)"
    )


def path_of(name: str, known: Container[str]) -> Path | None:
    """The path that `name` means; None: it is a model's name.

    A model's name stays one in a working folder that happens to hold a folder `base`.
    """
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    if name.startswith(("/", ".", "~")):
        return path
    return path if name not in known and path.exists() else None


def _listed(package: str, file: str) -> Mapping[str, str] | None:
    """The dictionary `_MODELS` in a library's source; None: the library is not installed, or another of that name is.

    It is read, not imported: `whisper` would bring PyTorch, which takes 2.5 s and may not be loaded before a fork.
    """
    spec = find_spec(package)
    if spec is None or not spec.origin:
        return None
    try:
        tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None
    for node in tree.body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["_MODELS"]:
            return {str(name): str(value) for name, value in ast.literal_eval(node.value).items()}
    return None
