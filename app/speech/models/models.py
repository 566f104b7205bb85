"""All models of this machine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from app.errors import NotReady, Permanent, TobanError
from app.settings import Whisper
from app.speech.models import names
from app.speech.models.checkpoints import Checkpoints
from app.speech.models.folders import PACKAGE, Folders
from app.speech.models.model import Model, Progress, Store
from app.speech.models.places import Places, on_disk, root


class Models:
    """The models that the engine of the settings can load: on this machine, or to be had."""

    def __init__(self, settings: Whisper) -> None:
        self._settings = settings
        self._folders = Folders(settings)
        self._stores: dict[str, Store] = {store.engine: store for store in (self._folders, Checkpoints(settings))}
        self._store = self._stores[settings.engine]

    def find(self, name: str) -> Model | None:
        """The model, if it can be loaded without the network; a name or a path.

        Raises `NotReady` with the remedy for a path that holds no model, a name that nobody knows, and an engine that
        is not installed.
        """
        with self._readable(name):
            return self._store.find(name)

    def get(self, name: str, progress: Progress | None = None) -> Model:
        """The model; downloaded, if need be and allowed. Raises `NotReady` with the remedy."""
        return self.find(name) or self._pull(name, progress, again=False)

    def pull(self, name: str, progress: Progress | None = None) -> Model:
        """The model; downloaded, if it is not there or damaged. Raises `NotReady` with the remedy."""
        found = self.find(name)
        if found and not (found.origin != "folder" and self.damage(found)):
            return found
        return self._pull(name, progress, again=found is not None)

    def verify(self, name: str) -> Sequence[str]:
        """What is wrong with the model's files, by their checksums where those are known; nothing: it is whole.

        Raises `NotReady` when it is not on this machine.
        """
        for model in self._at_its_place(name):
            return self.damage(model)
        if (found := self.find(name)) is None:
            raise NotReady(f"the model {name} is not on this machine; toban models pull {name}")
        return self.damage(found)

    def damage(self, model: Model) -> Sequence[str]:
        """See `verify`; of a model of either engine."""
        with self._readable(model.name):
            return self._stores[model.engine].damage(model)

    def remove(self, name: str) -> int:
        """Remove a downloaded model, and what has come of an unfinished download. Returns the bytes that were freed.

        Raises `Permanent` for what was not downloaded here.
        """
        store, found = self._store, None
        with self._readable(name):
            if self._is_path(name):
                raise Permanent(f"{name} is a path, and was not downloaded by Toban; remove it yourself")
            with suppress(NotReady):  # a name that nobody knows
                place, found = store.place(name), store.find(name)
                unfinished = Places(self._settings, store.engine).unfinished(place.name)
                if place.exists() or unfinished.exists():
                    return self._discard(place, unfinished)
        if found and found.origin == "package":
            raise Permanent(f"{name} comes with the package {PACKAGE}; pip uninstall {PACKAGE} removes it")
        if found:
            raise Permanent(f"{name} lies in the library's own cache, which other programs use too: {found.path}")
        there = ", ".join(model.name for model in store.downloaded()) or "none"
        raise Permanent(f"the model {name} has not been downloaded for {store.engine}; downloaded: {there}")

    def all(self) -> list[Model]:
        """Every model in the models folder, of both engines; the package's; and those that the settings name."""
        models = [model for store in self._stores.values() for model in store.downloaded()]
        if packed := self._folders.packed():
            models.append(packed)
        for name in self._settings.models:
            with suppress(NotReady):  # `find` tells it to who asks for that model
                if (found := self.find(name)) and found.path not in {model.path for model in models}:
                    models.append(found)
        return models

    def known(self) -> list[str]:
        """Names that can be downloaded for the engine; for faster-whisper any repository of the hub besides.

        Raises `NotReady` when the engine is not installed.
        """
        return self._store.known()

    def _pull(self, name: str, progress: Progress | None, *, again: bool) -> Model:
        if self._settings.offline:
            state = "is damaged" if again or any(self._at_its_place(name)) else "is not on this machine"
            raise NotReady(
                f"the model {name} {state}, and WHISPER_OFFLINE forbids to download it; run `toban models pull {name}` "
                f"where that is allowed, and copy {root(self._settings)} from there; or set WHISPER_MODEL to one that "
                "is here (`toban models list`)"
            )
        with self._readable(name):
            return self._store.pull(name, progress or (lambda _done, _total: None), again=again)

    def _discard(self, *paths: Path) -> int:
        places = Places(self._settings, self._store.engine)
        with places.lock(paths[0].name, wait=False):
            return sum(places.discard(path) for path in paths)

    def _at_its_place(self, name: str) -> Iterator[Model]:
        """The download of that name, damaged or not."""
        if not self._is_path(name):
            place = self._store.place(name)
            yield from (model for model in self._store.downloaded() if model.path == place)

    def _is_path(self, name: str) -> bool:
        return names.path_of(name, self._store.known()) is not None

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except TobanError:
            raise
        except OSError as error:
            raise on_disk(error, name, root(self._settings)) from error
