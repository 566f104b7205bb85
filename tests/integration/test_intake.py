"""Putting recordings in, over both ways to the database and into both kinds of store."""

from datetime import UTC, datetime
from pathlib import Path
from typing import LiteralString
from zoneinfo import ZoneInfo

import httpx
import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr
from supabase import Client, ClientOptions

from app.database.migrate import migrate
from app.errors import NotReady, Permanent, Transient
from app.intake import put_files, put_rows, upsert
from app.recordings import Recording
from app.settings import Audio, Database
from tests.support.moto import moto_bucket
from tests.support.servers import PostgREST, key_of

TOKYO = ZoneInfo("Asia/Tokyo")
AT = datetime(2025, 7, 18, 3, 30, tzinfo=UTC)
KEY = "files/d1/2025-07-18/12-30/audio.wav"


def a_recording(folder: Path, content: bytes = b"RIFF") -> Recording:
    file = folder / "new.wav"
    file.write_bytes(content)
    return Recording(file, "d1", AT)


def test_a_row_waits_and_waits_again_when_it_is_put_in_again(database_url: str, tmp_path: Path) -> None:
    settings = Database.model_validate({"database_url": SecretStr(database_url)})
    recording = a_recording(tmp_path)
    put_rows(settings, TOKYO, [recording])
    with psycopg.connect(database_url, autocommit=True) as connection:
        row = "select device_id, recorded_at, file_path, transcriptions_status from audio_files"
        assert connection.execute(row).fetchall() == [("d1", AT, KEY, "pending")]
        assert connection.execute("select key, state from work_items").fetchall() == [
            ("d1/2025-07-18T03:30:00Z", "pending")
        ]
        connection.execute("update audio_files set transcriptions_status = 'completed'")
        put_rows(settings, TOKYO, [recording])
        assert connection.execute(row).fetchall() == [("d1", AT, KEY, "pending")]


@pytest.mark.parametrize("kind", ["text", "uuid"])
def test_what_runs_goes_again_when_its_file_is_new(
    empty_database_url: str, tmp_path: Path, kind: LiteralString
) -> None:
    """The row stays pending with the same path, so nothing but the one who puts it in knows."""
    settings = Database.model_validate({"database_url": SecretStr(empty_database_url)})
    recording = Recording(tmp_path / "new.wav", "1C2B3A49-5D6E-4F70-8192-A3B4C5D6E7F8", AT)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL(
                """create table audio_files (
                     device_id {}, recorded_at timestamptz, file_path text, transcriptions_status text,
                     primary key (device_id, recorded_at))"""
            ).format(sql.SQL(kind))
        )
        migrate(empty_database_url)
        put_rows(settings, TOKYO, [recording])
        item = "select state, revision, priority from work_items"
        assert connection.execute(item).fetchall() == [("pending", 1, 0)]
        connection.execute("update work_items set state = 'processing', tries = 1, lease_until = now() + '1 min'")
        put_rows(settings, TOKYO, [recording])
        assert connection.execute(item).fetchall() == [("processing", 2, 0)]


def test_a_database_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    settings = Database.model_validate({"database_url": SecretStr("postgresql://me:s3cret@127.0.0.1:9/x")})
    with pytest.raises(Transient, match="Connection refused") as told:
        put_rows(settings, TOKYO, [a_recording(tmp_path)])
    assert "s3cret" not in str(told.value)


def test_rows_over_supabase(postgrest: PostgREST, shared_database_url: str) -> None:
    row = {"device_id": "rest", "recorded_at": AT.isoformat(), "file_path": KEY, "transcriptions_status": "pending"}
    with httpx.Client() as http:
        client = Client(postgrest.url, key_of("service_role"), ClientOptions(httpx_client=http))
        client.rest_url = type(client.rest_url)(postgrest.url)  # text or a URL, as the version has it
        upsert(client, [row])
        upsert(client, [row])
        with pytest.raises(Permanent, match="audio_files"):
            upsert(client, [{**row, "recorded_at": "noon"}])
    with psycopg.connect(shared_database_url, autocommit=True) as connection:
        rows = connection.execute("select recorded_at from audio_files where device_id = 'rest'").fetchall()
        connection.execute("delete from audio_files where device_id = 'rest'")
    assert rows == [(AT,)]


def test_files_go_into_a_folder_whole(tmp_path: Path) -> None:
    settings = Audio.model_validate({"audio_folder": tmp_path / "audio"})
    put_files(settings, [a_recording(tmp_path, b"one"), Recording(None, "d2", AT)])
    files = [file for file in (tmp_path / "audio").rglob("*") if file.is_file()]
    assert files == [tmp_path / "audio" / KEY]
    assert files[0].read_bytes() == b"one"


def test_files_go_into_a_bucket(tmp_path: Path) -> None:
    with moto_bucket() as bucket:
        put_files(bucket.settings(), [a_recording(tmp_path, b"one")])
        assert bucket.client.get_object(Bucket=bucket.name, Key=KEY)["Body"].read() == b"one"
        with pytest.raises(NotReady, match="S3_BUCKET_NAME"):
            put_files(bucket.settings(s3_bucket_name="elsewhere"), [a_recording(tmp_path)])


def test_a_recording_never_replaces_another(tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    settings = Audio.model_validate({"audio_folder": folder})
    put_files(settings, [a_recording(tmp_path, b"one")])
    put_files(settings, [a_recording(tmp_path, b"one")])  # the same one again is fine
    with pytest.raises(Permanent, match="--at"):
        put_files(settings, [a_recording(tmp_path, b"two")])
    assert (folder / KEY).read_bytes() == b"one"
