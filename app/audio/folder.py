"""Recordings in a folder of this machine."""

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from app.audio.store import Deleted, check_key, too_large
from app.errors import NothingThere, NotReady, Permanent, TobanError, Transient

_CHUNK = 1024 * 1024


class FolderStore:
    """`AudioStore` over a folder; symbolic links may point within it, not out of it."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def fetch(self, file_path: str, to: Path) -> None:
        """See `AudioStore.fetch`."""
        with self._open(file_path) as source, to.open("wb") as target:
            try:
                self._copy(file_path, source, target)
            except BaseException:
                with suppress(OSError):  # a file without a name goes by itself
                    to.unlink()
                raise

    def present(
        self,
        file_paths: Collection[str],
        *,
        listed_after: datetime | None = None,  # noqa: ARG002 - here the answer is always fresh
        patience: float | None = None,  # noqa: ARG002 - and quick
    ) -> set[str]:
        """See `AudioStore.present`."""
        return {file_path for file_path in file_paths if self._there(file_path)}

    def playable(self, file_path: str, seconds: int) -> BinaryIO:  # noqa: ARG002 - it stays open as long as it is read
        """See `AudioStore.playable`."""
        return self._open(file_path)

    def delete(self, file_paths: Collection[str]) -> Deleted:
        """See `AudioStore.delete`; folders that are empty then go too."""
        return Deleted(sum(self._unlink(file_path) for file_path in file_paths))

    def below(self, prefix: str) -> Iterator[str]:
        """See `AudioStore.below`."""
        folder = Path(os.path.realpath(self._folder))
        for where, _, names in os.walk(self._real(prefix.rstrip("/"))):
            yield from (str((Path(where) / name).relative_to(folder)) for name in names)

    def _unlink(self, file_path: str) -> bool:
        try:
            self._real(file_path)
            above, _, name = file_path.rpartition("/")
            folder = self._real(above) if above else Path(os.path.realpath(self._folder))
            path = folder / name  # a link goes itself, not what it leads to
            if path.is_dir() and not path.is_symlink():
                return False
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except PermissionError as error:
            reason = f"deleting {file_path} is not permitted; let this user write to the audio folder"
            raise Permanent(reason) from error
        except OSError as error:
            raise Transient(f"deleting {file_path} failed: {error.strerror}") from error
        except Permanent:  # a key that can name no recording
            return False
        root = Path(os.path.realpath(self._folder))
        with suppress(OSError):  # not empty
            while folder != root:
                folder.rmdir()
                folder = folder.parent
        return True

    def _there(self, file_path: str) -> bool:
        try:
            return self._real(file_path).exists()
        except (Permanent, OSError):
            return True

    def _real(self, file_path: str) -> Path:
        check_key(file_path)
        folder = Path(os.path.realpath(self._folder))
        if not folder.is_dir():  # not mounted, say: its recordings are not missing
            raise NotReady(f"the audio folder {self._folder} is not there; mount it, or correct AUDIO_FOLDER")
        path = Path(os.path.realpath(folder / file_path))
        if not path.is_relative_to(folder):
            raise Permanent(f"the key {file_path!r} leaves the audio folder through a link; remove that link")
        return path

    def _open(self, file_path: str) -> BinaryIO:
        path = self._real(file_path)
        try:
            # A pipe would block without O_NONBLOCK; O_NOFOLLOW refuses a link that was put there after the check.
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _translated(error, file_path) from error
        state = os.fstat(file)
        if stat.S_ISREG(state.st_mode) and state.st_size <= self._max_bytes:
            return os.fdopen(file, "rb")
        os.close(file)
        if stat.S_ISREG(state.st_mode):
            raise too_large(file_path, state.st_size, self._max_bytes)
        raise Permanent(f"{file_path} is not a file; correct audio_files.file_path")

    def _copy(self, file_path: str, source: BinaryIO, target: BinaryIO) -> None:
        size = 0
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > self._max_bytes:  # it is still growing
                raise too_large(file_path, size, self._max_bytes)
            target.write(chunk)


def _translated(error: OSError, file_path: str) -> TobanError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NothingThere(f"{file_path} is not in the audio folder")
    if isinstance(error, PermissionError):
        return Permanent(f"reading {file_path} is not permitted; let the worker's user read the audio folder")
    if error.errno in {errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}:
        return Permanent(f"{file_path} can't be opened: {error.strerror}; correct audio_files.file_path")
    return Transient(f"reading {file_path} failed: {error.strerror}")
