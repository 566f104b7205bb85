"""A folder and a bucket are the same store; a bucket has more ways to fail."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import (
    FlexibleChecksumError,
    NoCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSLError,
)
from urllib3.exceptions import ProtocolError

from app.audio import s3
from app.audio.s3 import S3Store
from app.audio.s3_errors import translated
from app.audio.store import AudioStore, build_store
from app.errors import NothingThere, NotReady, Permanent, Transient
from app.settings import Audio
from tests.support.faulty_http import FaultyS3, faulty_s3
from tests.support.moto import Bucket, audio_settings, moto_bucket

DAY = "files/9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93/2025-07-18"
LIMIT = 1000


@dataclass(frozen=True)
class Case:
    store: AudioStore
    put: Callable[[str, bytes], object]


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with moto_bucket() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultyS3]:
    with faulty_s3() as server:
        yield server


@pytest.fixture(scope="module")
def stores(faulty: FaultyS3) -> dict[str, AudioStore]:
    """Stores before the faulty server, one of them in a hurry; a client takes 0.4 s to make."""
    return {
        name: build_store(
            audio_settings(faulty.url, "vault", audio_fetch_timeout=timedelta(seconds=seconds), audio_max_bytes=2**20)
        )
        for name, seconds in {"patient": 60, "hasty": 0.5}.items()
    }


@pytest.fixture(params=["folder", "s3"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        return Case(build_store(bucket.settings(audio_max_bytes=LIMIT)), bucket.put)
    folder = tmp_path / "recordings"

    def put(key: str, data: bytes) -> None:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)

    folder.mkdir()
    return Case(build_store(Audio(audio_folder=folder, audio_max_bytes=LIMIT)), put)


@pytest.mark.parametrize("key", [f"{DAY}/12-00/audio.wav", "files/部屋 1/2025-07-18/12-00/録音+%20?#.wav", "audio.wav"])
@pytest.mark.parametrize("data", [b"", b"sound" * 200])
def test_fetch_writes_the_bytes(case: Case, tmp_path: Path, key: str, data: bytes) -> None:
    case.put(key, data)
    case.store.fetch(key, tmp_path / "audio")
    assert (tmp_path / "audio").read_bytes() == data
    assert case.store.present([key]) == {key}


@pytest.mark.parametrize("key", [f"{DAY}/12-00/audio.wav", "files/部屋 1/2025-07-18/12-00/録音+%20?#.wav"])
def test_a_browser_may_read_it(case: Case, key: str) -> None:
    case.put(key, b"sound" * 20)
    found = case.store.playable(key, 60)
    if isinstance(found, str):
        part = httpx.get(found, headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, b"sound")
        assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in found
    else:
        with found:
            assert found.read() == b"sound" * 20


def test_what_is_deleted_is_gone(case: Case, tmp_path: Path) -> None:
    keys = [f"{DAY}-deleted/{minute:02}-00/audio.wav" for minute in range(3)]
    for key in keys:
        case.put(key, b"sound")
    assert case.store.present(keys) == set(keys)
    assert sorted(case.store.below(f"{DAY}-deleted/")) == keys
    done = case.store.delete([*keys[:2], f"{DAY}-deleted/none.wav", "../out.wav", ""])
    assert (done.count >= 2, done.versions_kept) == (True, False)
    assert case.store.present(keys) == {keys[2]}
    with pytest.raises(NothingThere):
        case.store.fetch(keys[0], tmp_path / "audio")
    assert list(case.store.below(f"{DAY}-deleted/")) == [keys[2]]
    assert list(case.store.below("files/nobody/")) == []
    assert case.store.delete([]).count == 0


def test_a_bucket_that_keeps_old_versions_says_so(bucket: Bucket) -> None:
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    try:
        bucket.put("versioned.wav", b"sound")
        assert build_store(bucket.settings()).delete(["versioned.wav"]).versions_kept
    finally:
        bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Suspended"})


def test_many_keys_are_listed_and_deleted_in_pages(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_AT_ONCE", 2)
    keys = [f"many/{number}.wav" for number in range(5)]
    for key in keys:
        bucket.put(key, b"")
    store = build_store(bucket.settings())
    assert list(store.below("many/")) == keys
    store.delete(keys)
    assert list(store.below("many/")) == []


def test_what_is_missing_is_nothing_there(case: Case, tmp_path: Path) -> None:
    with pytest.raises(NothingThere, match="13-00/missing"):
        case.store.fetch(f"{DAY}/13-00/missing.wav", tmp_path / "audio")
    assert not (tmp_path / "audio").exists()


def test_an_upload_after_a_listing_is_not_missing(case: Case) -> None:
    """A recorder that was offline sends one recording after another; none is called missing by an older listing."""
    case.put(f"{DAY}/01-00/audio.wav", b"one")
    assert case.store.present([f"{DAY}/01-00/audio.wav"]) == {f"{DAY}/01-00/audio.wav"}
    case.put(f"{DAY}/01-30/audio.wav", b"two")
    now = datetime.now(UTC)
    assert case.store.present([f"{DAY}/01-30/audio.wav"], listed_after=now) == {f"{DAY}/01-30/audio.wav"}
    assert case.store.present([f"{DAY}/02-00/audio.wav"], listed_after=now) == set()


def test_too_large_is_refused(case: Case, tmp_path: Path) -> None:
    case.put(f"{DAY}/14-00/large.wav", b"x" * (LIMIT + 1))
    with pytest.raises(Permanent, match=r"1001 bytes or more, over the limit of 1000.*AUDIO_MAX_BYTES"):
        case.store.fetch(f"{DAY}/14-00/large.wav", tmp_path / "audio")
    assert not (tmp_path / "audio").exists()


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../secret",
        "files/../../secret",
        "files\\secret",
        "a\0b",
        ".",
        "files//a.wav",
        "files/./a.wav",
    ],
)
def test_a_key_stays_in_the_audio_folder(case: Case, tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(Permanent, match="leaves the audio folder"):
        case.store.fetch(key, tmp_path / "audio")
    assert not (tmp_path / "audio").exists()
    assert case.store.present([key]) == {key}  # so that somebody fetches it and learns why not


@pytest.mark.parametrize("key", ["a/" * 600 + "a", "a/\ud800.wav"])
def test_a_key_that_no_store_has(case: Case, tmp_path: Path, key: str) -> None:
    with pytest.raises(Permanent, match=r"audio_files\.file_path"):
        case.store.fetch(key, tmp_path / "audio")


def test_present_says_which_exist(case: Case) -> None:
    there = {f"{DAY}/{hour:02d}-30/audio.wav" for hour in range(5)} | {"files/other/2025-07-17/00-00/audio.wav"}
    for key in there:
        case.put(key, b"x")
    missing = {f"{DAY}/22-30/audio.wav", "files/other/2025-07-19/00-00/audio.wav", "nothing.wav"}
    assert case.store.present(there | missing) == there
    assert case.store.present([]) == set()


def test_one_store_serves_many_threads(case: Case, tmp_path: Path) -> None:
    keys = [f"{DAY}/0{n}-00/thread.wav" for n in range(8)]
    for key in keys:
        case.put(key, key.encode())

    def fetch(key: str) -> bytes:
        case.store.fetch(key, to := tmp_path / key.replace("/", "_"))
        return to.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fetch, keys)) == [key.encode() for key in keys]


def test_a_folder_wins_and_loads_no_boto3(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from app.audio.store import build_store; from app.settings import Audio;"
        f"build_store(Audio(audio_folder=Path({str(tmp_path)!r}), s3_bucket_name='b'));"
        "assert 'boto3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def listings(store: S3Store, **inject: Any) -> list[str]:
    """The prefixes that the store lists from now on; `inject` goes into every request."""
    seen: list[str] = []

    def asked(params: dict[str, Any], **_: object) -> None:
        seen.append(params["Prefix"])
        params.update(inject)

    store._client().meta.events.register("provide-client-params.s3.ListObjectsV2", asked)
    return seen


def test_one_listing_for_each_device_and_day(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store(bucket.settings(), bucket.name)
    seen = listings(store)
    keys = {
        f"files/{d}/{day}/{h:02d}-00/audio.wav" for d in "ab" for day in ("2025-07-17", "2025-07-18") for h in range(24)
    }
    assert store.present(keys) == set()
    assert sorted(seen) == [f"files/{d}/{day}/" for d in "ab" for day in ("2025-07-17", "2025-07-18")]
    store.present(keys)
    assert len(seen) == 4  # remembered
    bucket.put("files/a/2025-07-17/05-00/audio.wav", b"x")
    begun = datetime.now(UTC) - s3.LISTING_AGE  # half a minute later
    store._listings = {prefix: replace(old, begun=begun) for prefix, old in store._listings.items()}
    assert store.present(keys) == {"files/a/2025-07-17/05-00/audio.wav"}
    assert len(seen) == 8


def test_a_listing_has_pages(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {f"files/pages/2025-07-18/{h:02d}-00/audio.wav" for h in range(7)}
    for key in keys:
        bucket.put(key, b"x")
    store = S3Store(bucket.settings(), bucket.name)
    listings(store, MaxKeys=2)
    missing = "files/pages/2025-07-18/23-00/audio.wav"
    assert store.present(keys | {missing}) == keys
    monkeypatch.setattr(s3, "_PAGES", 2)
    store = S3Store(bucket.settings(), bucket.name)
    listings(store, MaxKeys=2)
    assert store.present(keys | {missing}) == keys | {missing}  # too many to look through: nothing is called missing


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        (f"{DAY}/12-00/audio.wav", f"{DAY}/"),
        ("a/b/c.wav", "a/"),
        ("b/c.wav", "b/"),
        ("c.wav", "c.wav"),
    ],
)
def test_prefix(key: str, prefix: str) -> None:
    assert s3._prefix(key) == prefix


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("500 InternalError", Transient, "500 InternalError"),
        ("503 SlowDown", Transient, "503 SlowDown"),
        ("400 RequestTimeout", Transient, "RequestTimeout"),
        ("403 AccessDenied", Permanent, "not permitted.*s3:"),
        ("403 InvalidAccessKeyId", NotReady, "AWS_ACCESS_KEY_ID"),
        ("403 SignatureDoesNotMatch", NotReady, "AWS_SECRET_ACCESS_KEY"),
        ("403 RequestTimeTooSkewed", NotReady, "clock"),
        ("403 InvalidObjectState", Permanent, "restore"),
        ("404 NoSuchBucket", NotReady, "S3_BUCKET_NAME"),
        ("400 AuthorizationHeaderMalformed", NotReady, "AWS_REGION"),
        ("400 InvalidRequest", Permanent, "400 InvalidRequest"),
        ("garbage", Transient, "failed"),
        ("drip-head", Transient, r"longer than 0\.\d+ s"),
        ("silent", Transient, r"longer than 0\.\d+ s"),
    ],
)
def test_what_a_bad_answer_means(
    faulty: FaultyS3,
    stores: dict[str, AudioStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)  # between its quick retries
    faulty.fault = fault
    store = stores["hasty" if "longer" in words else "patient"]
    before = len(faulty.requests)
    with pytest.raises(error, match=words) as caught:
        store.fetch(f"{DAY}/12-00/audio.wav", tmp_path / "audio")
    assert "toban-test-secret" not in str(caught.value)
    assert not (tmp_path / "audio").exists()
    assert len(faulty.requests) <= before + 3
    with pytest.raises(error, match=words):
        store.present([f"{DAY}/12-00/audio.wav"])


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("404 NoSuchKey", NothingThere, "does not exist"),
        ("midway", Transient, "failed: "),
        ("drip", Transient, r"longer than 0\.\d+ s"),
        ("lies", Permanent, "over the limit"),
        ("endless", Permanent, "over the limit"),
    ],
)
def test_a_bad_body(
    faulty: FaultyS3,
    stores: dict[str, AudioStore],
    tmp_path: Path,
    fault: str,
    error: type[Exception],
    words: str,
) -> None:
    store = stores["hasty" if "longer" in words else "patient"]
    faulty.fault = fault
    with pytest.raises(error, match=words):
        store.fetch(f"{DAY}/12-00/audio.wav", tmp_path / "audio")
    assert not (tmp_path / "audio").exists()
    faulty.fault = "good"
    stores["patient"].fetch(f"{DAY}/12-00/audio.wav", tmp_path / "audio")  # the store is as good as before
    assert (tmp_path / "audio").stat().st_size == 1000


def test_nobody_listens(tmp_path: Path) -> None:
    with faulty_s3() as server:
        url = server.url
    with pytest.raises(Transient, match="EndpointConnectionError"):
        build_store(audio_settings(url, "vault")).fetch("a/b/c.wav", tmp_path / "audio")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"s3_endpoint_url": "not an address"}, "S3_ENDPOINT_URL"), ({"s3_bucket_name": "no bucket!"}, "S3_BUCKET_NAME")],
)
def test_settings_that_ask_for_nothing(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    settings = audio_settings("http://127.0.0.1:9", "vault", **changes)
    with pytest.raises(NotReady, match=words):
        build_store(settings).fetch("a/b/c.wav", tmp_path / "audio")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (NoCredentialsError(), NotReady, "machine role"),
        (SSLError(endpoint_url="x", error=OSError("[SSL: CERTIFICATE_VERIFY_FAILED]")), NotReady, "not trusted"),
        (SSLError(endpoint_url="x", error=OSError("EOF occurred in violation of protocol")), Transient, "SSLError"),
        (ReadTimeoutError(endpoint_url="x"), Transient, "ReadTimeoutError"),
        (FlexibleChecksumError(error_msg="x"), Transient, "FlexibleChecksumError"),
        (ProtocolError("x"), Transient, "ProtocolError"),
        (ProfileNotFound(profile="x"), NotReady, "AWS_REGION"),
    ],
)
def test_what_the_way_there_means(error: Exception, kind: type[Exception], words: str) -> None:
    meant = translated(error, "s3://vault/a/b/c.wav", "s3:GetObject")
    assert type(meant) is kind
    assert words in str(meant)


def test_no_store_is_set() -> None:
    with pytest.raises(Permanent, match="S3_BUCKET_NAME"):
        build_store(Audio(s3_bucket_name=None, audio_folder=None))


def test_what_can_not_be_looked_up_in_time_counts_as_present(stores: dict[str, AudioStore], faulty: FaultyS3) -> None:
    """The dispatcher has claimed the items; they have to be sent before their lease is over."""
    faulty.fault = "good"
    assert stores["patient"].present(["files/d9/2025-07-18/12-00/audio.wav"], patience=0) == {
        "files/d9/2025-07-18/12-00/audio.wav"
    }
