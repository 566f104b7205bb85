"""The models of openai-whisper: checkpoint files (.pt)."""

import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from app.errors import NotReady
from app.settings import Whisper
from app.speech.models import names
from app.speech.models.model import Engine, Model, Progress
from app.speech.models.places import Places, cache_home, size

if TYPE_CHECKING:
    from app.speech.models.fetch import Checksum

# Before version 1.6, PyTorch's files were no archives but began with this pickled number.
_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class Checkpoints:
    """See `app.speech.models.model.Store`."""

    engine: Engine = "openai-whisper"

    def __init__(self, settings: Whisper) -> None:
        self._places = Places(settings, self.engine)
        self._mirror = settings.models_mirror

    def known(self) -> list[str]:
        """See `Store.known`."""
        return list(names.checkpoints())

    def find(self, name: str) -> Model | None:
        """See `Store.find`."""
        if path := names.path_of(name, names.checkpoints()):
            return self._at(path, name)
        own = self.place(name)
        if is_checkpoint(own):
            return Model(name, self.engine, own, size(own), "downloaded")
        with suppress(RuntimeError):
            cached = cache_home() / "whisper" / own.name
            if is_checkpoint(cached):
                return Model(name, self.engine, cached, size(cached), "cache")
        return None

    def pull(self, name: str, progress: Progress, *, again: bool) -> Model:
        """See `Store.pull`. Raises `NotReady`."""
        from app.speech.models import fetch, problems

        address = names.address(name)
        url, headers = fetch.without_login(_mirrored(address, self._mirror))
        target = self.place(name)
        with problems.told(name, url, self._places.root), self._places.lock(target.name), fetch.client() as session:
            found = self.find(name)  # another process may have been faster
            if found and not (again and self.damage(found)):
                return found
            unfinished = self._places.make(self._places.unfinished(target.name))
            remote = fetch.Remote(url, _checksum(address))
            fetch.fetch(session, remote, unfinished / target.name, headers=headers, progress=progress)
            (unfinished / target.name).replace(self._places.make(target.parent) / target.name)
            self._places.discard(unfinished)
        return Model(name, self.engine, target, size(target), "downloaded")

    def damage(self, model: Model) -> Sequence[str]:
        """See `Store.damage`."""
        if not is_checkpoint(model.path):
            return [f"{model.path.name} is no checkpoint, or not a whole one"]
        if model.origin == "folder":
            return []
        known = {_file(address): address for address in names.checkpoints().values()}
        address = known.get(model.path.name)
        if address and not _checksum(address).of(model.path):
            return [f"{model.path.name} is damaged: its checksum is another"]
        return []

    def downloaded(self) -> list[Model]:
        """See `Store.downloaded`."""
        files = sorted(self._places.folder.glob("*.pt"))
        return [Model(file.stem, self.engine, file, size(file), "downloaded") for file in files]

    def place(self, name: str) -> Path:
        """See `Store.place`; `large` and `large-v3` are one file."""
        return self._places.folder / _file(names.address(name))

    def _at(self, path: Path, name: str) -> Model:
        if not path.exists():
            raise NotReady(f"the checkpoint {name} does not exist; correct WHISPER_MODEL or WHISPER_EXTRA_MODELS")
        if path.is_dir():
            files = sorted(path.glob("*.pt"))
            if (path / "model.bin").exists() and not files:
                raise NotReady(
                    f"the folder {name} holds a CTranslate2 model, which openai-whisper can't read; set "
                    "WHISPER_ENGINE=faster-whisper"
                )
            if len(files) != 1:
                count = "no checkpoint (.pt)" if not files else f"{len(files)} checkpoints"
                raise NotReady(f"the folder {name} holds {count}; name the file itself")
            path = files[0]
        if not is_checkpoint(path):
            raise NotReady(
                f"the file {path} is no checkpoint of PyTorch, or not a whole one; copy it again, or set WHISPER_MODEL "
                "to a model's name"
            )
        return Model(name, self.engine, path.absolute(), size(path), "folder")


def is_checkpoint(path: Path) -> bool:
    """Whether a file looks like one that PyTorch has saved, up to its end."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(len(_OLD_FORMAT)) == _OLD_FORMAT:
            return True
        try:
            with zipfile.ZipFile(file) as archive:
                return any(name.endswith("/data.pkl") for name in archive.namelist())
        except zipfile.BadZipFile:
            return False


def _mirrored(address: str, mirror: str | None) -> str:
    if mirror is None:
        return address
    source, other = urlsplit(address), urlsplit(mirror)
    return urlunsplit(other._replace(path=other.path.rstrip("/") + source.path))


def _file(address: str) -> str:
    return urlsplit(address).path.rpartition("/")[2]


def _checksum(address: str) -> "Checksum":
    """The address holds the file's SHA-256."""
    from app.speech.models.fetch import Checksum

    return Checksum("sha256", urlsplit(address).path.split("/")[-2])
