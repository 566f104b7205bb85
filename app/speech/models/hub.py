"""The Hugging Face hub: what a repository holds, and what the library's own cache holds of it.

Protocol: `GET {endpoint}/api/models/{repository}/revision/{revision}?blobs=true` lists the files with sizes and
checksums, `GET {endpoint}/{repository}/resolve/{commit}/{file}` is a file. The client library is asked for its settings
alone (HF_ENDPOINT, HF_TOKEN, HF_HOME …): from version to version it raises the errors of another HTTP library, and its
faster protocol (Xet) goes past a mirror.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx

from app.errors import NotReady
from app.speech.models.fetch import Checksum, Remote, without_login
from app.speech.models.model import REQUIRED

# What faster-whisper downloads of a repository.
_WANTED = (*REQUIRED, "preprocessor_config.json", "vocabulary.*")


@dataclass(frozen=True)
class Listing:
    """The files of a model at one commit."""

    commit: str
    files: tuple[Remote, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes or 0 for file in self.files)


def endpoint(mirror: str | None) -> tuple[str, Mapping[str, str]]:
    """The hub's address, or the mirror's, without a login; and the headers that stand for that."""
    from huggingface_hub import constants

    return without_login((mirror or constants.ENDPOINT).rstrip("/"))


def authorization() -> Mapping[str, str]:
    """The header with the token of HF_TOKEN or of `hf auth login`, if there is one."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return {}
    token = None
    with suppress(OSError):  # one that can't be read is none: models for everybody need none
        token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def listing(session: httpx.Client, address: str, headers: Mapping[str, str], repository: str) -> Listing:
    """The files of a repository that make a model. Raises `httpx.HTTPError`, `ValueError` and `NotReady`."""
    response = session.get(
        f"{address}/api/models/{repository}/revision/main", params={"blobs": "true"}, headers=dict(headers)
    )
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    try:
        commit = str(answer["sha"])
        files = {str(entry["rfilename"]): entry for entry in answer["siblings"]}
        wanted = [name for name in sorted(files) if any(fnmatch(name, one) for one in _WANTED) and "/" not in name]
        remotes = tuple(
            Remote(f"{address}/{repository}/resolve/{commit}/{name}", _checksum(files[name]), int(files[name]["size"]))
            for name in wanted
        )
    except (KeyError, TypeError) as error:
        raise ValueError("not the answer of a hub") from error
    if missing := [name for name in REQUIRED if name not in wanted]:
        raise NotReady(
            f"the repository {repository} is no model for faster-whisper: it lacks {', '.join(missing)}; name one that "
            "was converted for CTranslate2, with its tokenizer.json"
        )
    return Listing(commit, remotes)


def cached(repository: str) -> Path | None:
    """A whole model in the hub's own cache (HF_HOME), where other programs have put it."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    try:
        commit = (folder / "refs/main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    # All files are downloaded at once, and the library takes what has come of a killed download for the model.
    if any((folder / "blobs").glob("*.incomplete")):
        return None
    snapshot = folder / "snapshots" / commit
    whole = all((snapshot / name).is_file() for name in REQUIRED) and any(snapshot.glob("vocabulary.*"))
    return snapshot if whole else None


def cached_checksum(file: Path) -> Checksum | None:
    """The checksum by which the hub's cache names the content of a file; None: it does not."""
    name = file.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return Checksum("sha256", name)
    return Checksum("git", name) if re.fullmatch(r"[0-9a-f]{40}", name) else None


def _checksum(entry: dict[str, Any]) -> Checksum:
    """Large files are known by their SHA-256, small ones as git knows them."""
    if lfs := entry.get("lfs"):
        return Checksum("sha256", str(lfs["sha256"]))
    return Checksum("git", str(entry["blobId"]))
