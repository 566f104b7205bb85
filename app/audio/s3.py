"""Recordings in an S3 bucket, or in a server that speaks S3."""

import time
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from app import tracing
from app.audio.s3_errors import translated
from app.audio.store import check_key, too_large
from app.errors import Permanent, Transient
from app.settings import Audio

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 20.0  # seconds without a byte
LISTING_AGE = timedelta(seconds=30)  # for which a listing is used again
_PAGES = 20  # of 1,000 keys; a day of one device has 48

_CHUNK = 64 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Listing:
    """`keys`: None when there are too many to look through, or no time."""

    begun: datetime
    keys: frozenset[str] | None

    def lacks(self, key: str) -> bool:
        return self.keys is not None and key not in self.keys


def client(settings: Audio) -> "S3Client":
    """A client of the bucket's server, in a session of its own: the shared one is not thread-safe."""
    secret = settings.aws_secret_access_key
    return boto3.session.Session().client(
        "s3",
        region_name=settings.aws_region,
        endpoint_url=settings.s3_endpoint_url,
        aws_access_key_id=settings.aws_access_key_id,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            signature_version="s3v4",  # what every region takes, in addresses too
            retries={"total_max_attempts": 3, "mode": "standard"},  # two quick ones; the ledger has the rest
            s3={"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
        ),
    )


class S3Store:
    """`AudioStore` over a bucket; see `app.settings.Audio` for its settings."""

    def __init__(self, settings: Audio, bucket: str) -> None:
        self._settings = settings
        self._bucket = bucket
        self._deadline = settings.audio_fetch_timeout.total_seconds()
        self._made: S3Client | None = None
        self._lock = Lock()
        self._listings: dict[str, _Listing] = {}

    def fetch(self, file_path: str, to: Path) -> None:
        """See `AudioStore.fetch`."""
        check_key(file_path)
        with to.open("wb") as target:  # opened here: a download that was given up must not make the file again
            try:
                self._bounded(file_path, "s3:GetObject", lambda stop: self._download(file_path, target.write, stop))
            except BaseException:
                with suppress(OSError):  # a file without a name goes by itself
                    to.unlink()
                raise

    def present(
        self, file_paths: Collection[str], *, listed_after: datetime | None = None, patience: float | None = None
    ) -> set[str]:
        """See `AudioStore.present`; one listing for each device and day."""
        found = set()
        until = time.monotonic() + (self._deadline if patience is None else patience)
        for file_path in file_paths:
            try:
                check_key(file_path)
            except Permanent:
                found.add(file_path)
                continue
            listing = self._listing(_prefix(file_path), until)
            if listing.lacks(file_path) and listed_after and listing.begun < listed_after:
                listing = self._listing(_prefix(file_path), until, listed_after)
            if not listing.lacks(file_path):
                found.add(file_path)
        return found

    def playable(self, file_path: str, seconds: int) -> str:
        """See `AudioStore.playable`; signing asks nobody."""
        check_key(file_path)
        try:
            return self._client().generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket, "Key": file_path}, ExpiresIn=seconds
            )
        except (BotoCoreError, ClientError) as error:
            raise translated(error, f"s3://{self._bucket}/{file_path}", "s3:GetObject") from error

    def _download(self, file_path: str, write: Callable[[bytes], object], stop: Event) -> None:
        limit, size = self._settings.audio_max_bytes, 0
        answer = self._client().get_object(Bucket=self._bucket, Key=file_path)
        # Not `with answer["Body"]`: that gives the bare stream, which takes a connection lost midway for the end.
        with closing(answer["Body"]) as body:
            if answer.get("ContentLength", 0) > limit:
                raise too_large(file_path, answer["ContentLength"], limit)
            while chunk := body.read(_CHUNK):
                size += len(chunk)
                if size > limit:
                    raise too_large(file_path, size, limit)
                if stop.is_set():
                    return
                write(chunk)

    def _listing(self, prefix: str, until: float, begun_after: datetime | None = None) -> _Listing:
        """The keys below `prefix`: those known from a moment ago, or asked for now, as long as there is time."""
        now = datetime.now(UTC)
        with self._lock:
            self._listings = {p: old for p, old in self._listings.items() if now - old.begun < LISTING_AGE}
            known = self._listings.get(prefix)
        if known and (begun_after is None or known.begun >= begun_after):
            return known
        if (seconds := until - time.monotonic()) <= 0:
            return _Listing(now, None)
        listing = _Listing(now, self._bounded(prefix, "s3:ListBucket", lambda stop: self._list(prefix, stop), seconds))
        with self._lock:
            self._listings[prefix] = listing
        return listing

    def _list(self, prefix: str, stop: Event) -> frozenset[str] | None:
        keys: set[str] = set()
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        for number, page in enumerate(pages):
            if number == _PAGES or stop.is_set():
                return None
            keys.update(found["Key"] for found in page.get("Contents", ()))
        return frozenset(keys)

    def _client(self) -> "S3Client":
        with self._lock:
            if self._made is None:
                self._made = client(self._settings)
            return self._made

    def _bounded(self, key: str, permission: str, work: Callable[[Event], _T], seconds: float | None = None) -> _T:
        """`work`, within `seconds` (default: the total deadline), and with this project's errors."""
        what = f"s3://{self._bucket}/{key}"
        method = permission.removeprefix("s3:")
        try:
            with tracing.outside(f"S3 {method}", {"rpc.system": "aws-api", "rpc.service": "S3", "rpc.method": method}):
                return _within(self._deadline if seconds is None else seconds, what, work)
        except (BotoCoreError, ClientError, HTTPError, ValueError) as error:
            raise translated(error, what, permission) from error


def _prefix(file_path: str) -> str:
    """The day of the device, `files/{device_id}/{date}/`, of a key; with fewer parts, as narrow as it gets."""
    parts = file_path.split("/")
    return "/".join([*(parts[:-2] or parts[:-1]), ""]) if len(parts) > 1 else file_path


def _within(seconds: float, what: str, work: Callable[[Event], _T]) -> _T:
    """What `work` returns or raises, or `Transient` after `seconds`.

    Socket timeouts start anew with every byte, so a server that drips passes them all; name look-up has none. Hence a
    thread, which is left behind when time is over: it is told to stop, writes nothing more, and ends with its socket.
    """
    stop, results, errors = Event(), list[_T](), list[BaseException]()

    def run() -> None:
        try:
            results.append(work(stop))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            errors.append(error)

    thread = Thread(target=run, name="audio-fetch", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    finally:
        stop.set()
    if errors:
        raise errors[0]
    if not results:
        raise Transient(f"reading {what} took longer than {seconds:.3g} s (AUDIO_FETCH_TIMEOUT)")
    return results[0]
