"""Where recordings are read from: a bucket, or a folder that stands in for one."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from app.errors import Permanent
from app.settings import Audio


@dataclass(frozen=True)
class Deleted:
    """`count`: recordings that are gone now; `versions_kept`: the bucket keeps older versions of them."""

    count: int
    versions_kept: bool = False


class AudioStore(Protocol):
    """Recordings by their key, as in `audio_files.file_path`; one object serves all threads of a process."""

    def fetch(self, file_path: str, to: Path) -> None:
        """Writes the recording into the file `to`; after an error there is no such file any more.

        Raises `NothingThere` if the recording is missing, `Permanent` if its key leaves the audio folder, reading is
        not permitted or it has more than `AUDIO_MAX_BYTES`, `Transient` if the store fails or is too slow.
        """

    def present(
        self, file_paths: Collection[str], *, listed_after: datetime | None = None, patience: float | None = None
    ) -> set[str]:
        """Which of the recordings exist; the answer may be 30 s old.

        `listed_after`: nothing counts as missing by a listing that was begun before this moment. `patience`: seconds
        that the look-up may take in all. A key that can't be looked up, or not in time, counts as present, so that
        `fetch` gets to say what is wrong with it.
        Raises `Permanent` if listing is not permitted, `Transient` if the store fails.
        """

    def playable(self, file_path: str, seconds: int) -> BinaryIO | str:
        """The recording for a browser: an open file, or an address at which it is read for the next `seconds`.

        Raises as `fetch` does; whether there is such a recording at an address is only known to who asks there.
        """

    def delete(self, file_paths: Collection[str]) -> Deleted:
        """Deletes recordings; one that is not there is no error, and neither is a key that can name none.

        Raises `Permanent` if deleting is not permitted, `Transient` if the store fails: some may be gone then.
        """

    def below(self, prefix: str) -> Iterator[str]:
        """The keys that begin with `prefix`, which ends with `/`. Raises as `present` does."""


def build_store(settings: Audio) -> AudioStore:
    """The store of the settings; a folder wins over a bucket. Nothing connects before its first use.

    Raises `Permanent` if neither is set.
    """
    if settings.audio_folder is not None:
        from app.audio.folder import FolderStore

        return FolderStore(settings.audio_folder, max_bytes=settings.audio_max_bytes)
    if settings.s3_bucket_name is None:
        raise Permanent("no source of recordings is set; set S3_BUCKET_NAME or AUDIO_FOLDER")
    from app.audio.s3 import S3Store  # boto3 costs 24 MB and 0.14 s

    return S3Store(settings, settings.s3_bucket_name)


def check_key(file_path: str) -> None:
    """Raises `Permanent` if a key is not a plain relative path below the audio folder."""
    if (
        file_path.startswith("/")
        or "\\" in file_path
        or "\0" in file_path
        or {"", ".", ".."} & set(file_path.split("/"))
    ):
        raise Permanent(f"the key {file_path!r} leaves the audio folder; correct audio_files.file_path")
    try:
        size = len(file_path.encode())
    except UnicodeEncodeError:
        raise Permanent(f"the key {file_path!r} is not text; correct audio_files.file_path") from None
    if size > 1024:  # S3's limit
        raise Permanent(f"the key {file_path[:60]!r}… is longer than 1024 bytes; correct audio_files.file_path")


def too_large(file_path: str, size: int, max_bytes: int) -> Permanent:
    """The error for a recording of `size` bytes or more."""
    return Permanent(
        f"{file_path} has {size} bytes or more, over the limit of {max_bytes}; split it, or raise AUDIO_MAX_BYTES"
    )
