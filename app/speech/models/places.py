"""Where downloads are kept, and how the processes, users and containers that share the folder get along."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.errors import NotReady, Permanent
from app.settings import Whisper
from app.speech.models.model import Engine

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}

MARGIN = 64 * 1024**2  # bytes that a download leaves free


class Places:
    """The folders of one engine in the models folder; see the package's docstring."""

    def __init__(self, settings: Whisper, engine: Engine) -> None:
        self.root = root(settings)
        self.engine = engine
        self.folder = self.root / engine

    def unfinished(self, name: str) -> Path:
        """Where the download `name` is collected. Each user has an own one: nobody could go on with another's files."""
        return self.root / ".unfinished" / str(os.getuid()) / self.engine / name

    def make(self, folder: Path) -> Path:
        """The folder, below the root and as open to other users as that is: it may be shared by several."""
        self.root.mkdir(parents=True, exist_ok=True)
        for part in [*reversed(folder.relative_to(self.root).parents), folder.relative_to(self.root)]:
            with suppress(FileExistsError):
                (self.root / part).mkdir()
                (self.root / part).chmod(self.root.stat().st_mode & 0o7777)
        return folder

    @contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """One process of this machine at a time; the kernel frees the lock of one that dies.

        Raises `Permanent` when another has it and `wait` is false.
        """
        path = self.make(self.root / ".locks") / f"{self.engine}--{name}"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:  # another user's, which may be locked all the same
            if not path.exists():
                raise
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise Permanent(
                    f"{name} is being downloaded by another process; end that first, or wait for it"
                ) from None
            yield
        finally:
            os.close(handle)

    def discard(self, path: Path) -> int:
        """Remove a file or folder, in one step for those who look for models. Returns the bytes that were freed."""
        if not path.exists():
            return 0
        freed = size(path)
        removed = self.make(self.unfinished("removed"))
        path.rename(removed / f"{path.name}.{os.getpid()}")
        shutil.rmtree(removed, ignore_errors=True)  # with what a killed process has left there
        return freed


def root(settings: Whisper) -> Path:
    """The models folder. Raises `NotReady` when there is no home folder to keep it in."""
    try:
        if settings.models_folder:
            return settings.models_folder.expanduser().absolute()
        return cache_home() / "toban/models"
    except RuntimeError:
        raise NotReady(
            "this user has no home folder to keep models in; set WHISPER_MODELS_FOLDER to a folder it may write"
        ) from None


def cache_home() -> Path:
    """The user's cache folder. Raises `RuntimeError` for a user without a home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def check_room(folder: Path, needed: int) -> None:
    """Raises `NotReady` when fewer than `needed` bytes and a margin are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if needed + MARGIN > free:
        raise NotReady(
            f"the disk of {folder} has {text(free)} left, and {text(needed)} are to be downloaded; make room "
            "(`toban models rm NAME`), or set WHISPER_MODELS_FOLDER to a folder on a larger disk"
        )


def text(count: int) -> str:
    """Bytes for a person: 145 MB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}" if unit == "GB" else f"{count / factor:.0f} {unit}"
    return f"{count} B"


def on_disk(error: OSError, name: str, place: object) -> NotReady:
    """The error for what the file system said about a model's files."""
    where = error.filename or place
    if error.errno in _FULL:
        return NotReady(
            f"the model {name} can't be stored: the disk of {place} is full; make room (`toban models rm NAME`), or "
            "set WHISPER_MODELS_FOLDER to a folder on a larger disk"
        )
    if error.errno in _FORBIDDEN:
        return NotReady(
            f"the model {name} can't be kept in or read from {where}: {error.strerror}; give the user "
            f"{os.getuid()} the right to, or set WHISPER_MODELS_FOLDER to a folder of its own"
        )
    return NotReady(f"the model {name} can't be kept in or read from {where}: {error.strerror or type(error).__name__}")
