"""Erase everything of one device, as far as this program reaches, and leave a receipt: `toban erase`.

Every step may be repeated: whoever is killed in between, runs it again and it goes on under the same number. Attempts
that run lose their items, so they can write nothing afterwards.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from importlib.metadata import version
from typing import Any

from app.audio.store import AudioStore, build_store, check_key
from app.database import Database
from app.errors import Permanent, TobanError, Transient
from app.retention import delete_audio
from app.settings import Settings
from app.sources import registry
from app.traces import Traces

# How long rows that somebody holds are waited for, seconds.
PATIENCE = 30.0
PAUSE = 0.5

VERSIONS = "older versions of the audio: the bucket keeps them (its lifecycle rules delete them)"
BATCHES = "batches at the provider: they are called back, and their files are deleted when they have ended"
OUT_OF_REACH = (
    "backups and replicas of the database and the bucket",
    "lines of logs that have left the program (keys with the device's id; no words)",
    "what a provider of language models keeps of answered calls",
    "messages that alert channels have delivered",
)

Counts = dict[str, int]


@dataclass(frozen=True)
class Wanted:
    """What is to go: everything of `device`, or its days from `since` to `until`; `audio`: its objects too."""

    device: str
    since: date | None = None
    until: date | None = None
    audio: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.device.encode()).hexdigest()

    @property
    def whole(self) -> bool:
        return self.since is None and self.until is None

    @property
    def days(self) -> dict[str, str | None]:
        return {
            "since": self.since.isoformat() if self.since else None,
            "until": self.until.isoformat() if self.until else None,
        }


class Eraser:
    """Erases what is `wanted`; `provider` deletes what batches have left at a provider and returns how many files."""

    def __init__(
        self, database: Database, settings: Settings, wanted: Wanted, provider: Callable[[], int] | None = None
    ) -> None:
        self._call = database.call
        self._database = database
        self._settings = settings
        self._wanted = wanted
        self._provider = provider
        queues = {"default", *(source.queue for source in registry.sources.values())}
        # (A part of the days is not told apart there: a result is kept for an hour.)
        self._traces = Traces(settings.broker, sorted(queues), wanted.device) if wanted.whole else None
        self._which = {"device": wanted.device, "zone": settings.audio.device_timezone, **wanted.days}

    @cached_property
    def _store(self) -> AudioStore:
        return build_store(self._settings.audio)

    def preview(self) -> Counts:
        """What there is. Raises `TobanError`."""
        found: Counts = dict(self._call("toban_erase", **self._which, dry=True)["counts"])
        if self._wanted.audio:
            rows = self._call("toban_audio_to_delete", **self._which, after=datetime.now(UTC).isoformat(), dry=True)
            found["audio"] = rows["count"]
            found["audio_without_row"] = max(sum(1 for _ in self._objects()) - rows["count"], 0)
        return found | (self._traces.count() if self._traces else {})

    def earlier(self) -> list[dict[str, Any]]:
        """Erasures of this device that were finished, the newest first."""
        return [one for one in self._known() if one["ended_at"]]

    def unfinished(self) -> bool:
        """Whether one was begun and has no receipt."""
        return any(one["ended_at"] is None for one in self._known())

    def _known(self) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = self._call("toban_erasures", device_sha256=self._wanted.sha256)["erasures"]
        return told

    def erase(self, who: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> dict[str, Any]:
        """Erase it; returns the receipt.

        Raises `TobanError`: what is gone until then is gone, and another run goes on.
        """
        wanted = self._wanted
        begun = self._call(
            "toban_begin_erasure", device_sha256=wanted.sha256, audio=wanted.audio, who=who, **wanted.days
        )
        after = begun["begun_at"] if wanted.audio else None
        versions_kept = False
        deadline = time.monotonic() + PATIENCE
        while True:
            also = Counter[str](self._traces.erase() if self._traces else {})
            if wanted.audio:
                also["audio"], kept = self._erase_audio(after)
                versions_kept |= kept
            done = self._call("toban_erase", **self._which, erasure=begun["id"], audio_after=after, also=also)["counts"]
            if any(done.values()) or any(also.values()):
                continue
            if not any(self._call("toban_erase", **self._which, dry=True)["counts"].values()):
                break
            if time.monotonic() > deadline:
                raise Transient("somebody holds rows of this device; run the same command again, and it goes on")
            time.sleep(PAUSE)
        files = self._provider_files()
        (noted,) = self._call("toban_erasures", id=begun["id"])["erasures"]
        counts = noted["counts"] | ({"provider_files": files} if files else {})
        out_of_reach = [
            *([VERSIONS] if versions_kept else []),
            *(f"{name} in a broker that is no Redis: they end by themselves" for name in self._unreached()),
            *([BATCHES] if counts.get("batches_called_back") else []),
            *(["files of ended batches at the provider, which could not be asked"] if files is None else []),
            *OUT_OF_REACH,
        ]
        receipt = {
            "erasure": begun["id"],
            "device_sha256": wanted.sha256,
            **wanted.days,
            "audio": wanted.audio,
            "asked_by": who,
            "begun_at": begun["begun_at"],
            "ended_at": now().isoformat(),
            "program": f"toban {version('toban')}",
            "erased": {name: count for name, count in sorted(counts.items()) if count},
            "out_of_reach": out_of_reach,
        }
        receipt["sha256"] = seal(receipt)
        self._call("toban_end_erasure", id=begun["id"], receipt=receipt)
        return receipt

    def _unreached(self) -> list[str]:
        return self._traces.out_of_reach if self._traces else []

    def _provider_files(self) -> int | None:
        """How many files of ended batches were deleted at the provider; None: it could not be asked."""
        if self._provider is None:
            return 0
        try:
            return self._provider()
        except TobanError:
            return None

    def _erase_audio(self, after: str | None) -> tuple[int, bool]:
        """Delete the audio of the device's rows, then what has none; how many, and whether old versions are kept."""
        count, versions_kept = 0, False
        while True:
            deleted, kept = delete_audio(self._database, self._store, **self._which, after=after)
            count, versions_kept = count + deleted, versions_kept or kept
            if not deleted:
                break
        if objects := list(self._objects()):
            done = self._store.delete(objects)
            count, versions_kept = count + done.count, versions_kept or done.versions_kept
        return count, versions_kept

    def _objects(self) -> Iterator[str]:
        """Keys below the device's own folder, `files/{device_id}/{YYYY-MM-DD}/…`, of the days that are wanted."""
        wanted = self._wanted
        prefix = f"files/{wanted.device}/"
        try:
            check_key(prefix[:-1])
        except Permanent:
            return
        for key in self._store.below(prefix):
            if not (day := re.match(r"(\d{4}-\d\d-\d\d)/", key.removeprefix(prefix))):
                continue  # of another device, whose id has a slash
            first, last = (wanted.since or date.min).isoformat(), (wanted.until or date.max).isoformat()
            if first <= day[1] <= last:
                yield key


def seal(receipt: Mapping[str, Any]) -> str:
    """SHA-256 of a receipt's other fields as compact JSON with sorted keys: one that was changed no longer fits."""
    fields = {name: value for name, value in receipt.items() if name != "sha256"}
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
