"""Put recordings in, as an uploader does: the file into the store, then the row that says it waits."""

import filecmp
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from app.database import Database, open_database
from app.database.core import from_sqlstate
from app.errors import Permanent, Transient
from app.recordings import Recording
from app.settings import Audio
from app.settings import Database as DatabaseSettings

if TYPE_CHECKING:
    from supabase import Client

Row = dict[str, Any]


def put_files(settings: Audio, recordings: Sequence[Recording]) -> None:
    """Copy the files into the audio folder or the bucket; one of the same key is replaced.

    Raises `Permanent` or `Transient`, naming the file.
    """
    put = _upload(settings) if settings.audio_folder is None else partial(_copy, settings.audio_folder)
    for recording in recordings:
        if recording.file is not None:
            put(recording.file, recording.key(settings.zone))


def put_rows(settings: DatabaseSettings, zone: ZoneInfo, recordings: Sequence[Recording]) -> None:
    """Insert the rows of `audio_files`; one that is there already waits again, also when it runs now.

    Raises `Permanent` or `Transient`.
    """
    database = open_database(settings, shared=False)
    try:
        ask_again(database, recordings)
    finally:
        database.close()
    rows: list[Row] = [
        {
            "device_id": recording.device_id,
            "recorded_at": recording.recorded_at.isoformat(),
            "file_path": recording.key(zone),
            "transcriptions_status": "pending",
        }
        for recording in recordings
    ]
    if settings.database_url is not None:
        _insert(settings.database_url.get_secret_value(), rows)
    else:
        _over_rest(settings, rows)


def ask_again(database: Database, recordings: Sequence[Recording]) -> None:
    """Have the recordings' rows that exist done again: their files are new, and nothing in the rows may tell.

    What runs goes again after it ends, since it may have read the old file.
    """
    keys = sorted({key for recording in recordings for key in recording.item_keys})
    # Before the rows are written: a new row may be running a moment later, and need not go twice.
    database.call("toban_reprocess", source="transcription", keys=keys, priority=0)


def _copy(folder: Path, file: Path, key: str) -> None:
    target = folder / key
    try:
        if target.exists() and not filecmp.cmp(file, target, shallow=False):
            raise Permanent(
                f"{file}: another recording of that device and second is there already, {key}; "
                "give this one its own time with --at, or remove the other"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")  # nobody reads half a recording
        shutil.copyfile(file, part)
        part.replace(target)
    except OSError as error:
        raise Permanent(f"{file} can't be copied into AUDIO_FOLDER: {error}") from error


def _upload(settings: Audio) -> Callable[[Path, str], None]:
    from botocore.exceptions import BotoCoreError, ClientError

    from app.audio.s3 import client
    from app.audio.s3_errors import translated

    bucket, server = settings.s3_bucket_name or "", client(settings)

    def put(file: Path, key: str) -> None:
        try:
            with file.open("rb") as body:
                server.put_object(Bucket=bucket, Key=key, Body=body)
        except (BotoCoreError, ClientError) as error:
            raise translated(error, f"s3://{bucket}/{key}", "s3:PutObject") from error
        except OSError as error:
            raise Permanent(f"{file} can't be read: {error}") from error

    return put


def _insert(dsn: str, rows: Sequence[Row]) -> None:
    import psycopg

    statement = """
        insert into public.audio_files (device_id, recorded_at, file_path, transcriptions_status)
        values (%(device_id)s, %(recorded_at)s, %(file_path)s, %(transcriptions_status)s)
        on conflict (device_id, recorded_at) do update
          set file_path = excluded.file_path, transcriptions_status = excluded.transcriptions_status
    """
    try:
        with (
            psycopg.connect(dsn, prepare_threshold=None, connect_timeout=10) as connection,
            connection.cursor() as cursor,
        ):
            cursor.executemany(statement, rows)
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise Transient(f"the database can't be reached: {str(error).strip()}") from error
        raise from_sqlstate(error.sqlstate, error.diag.message_primary or str(error), "audio_files") from error


def _over_rest(settings: DatabaseSettings, rows: Sequence[Row]) -> None:
    import httpx
    from supabase import Client, ClientOptions

    key = settings.rest_key()
    if settings.supabase_url is None or key is None:
        raise Permanent("no database is set")
    with httpx.Client(timeout=30) as http:
        upsert(Client(settings.supabase_url, key.get_secret_value(), ClientOptions(httpx_client=http)), rows)


def upsert(client: "Client", rows: Sequence[Row]) -> None:
    """Write rows of `audio_files` by the client's table API; see `put_rows`."""
    import httpx
    from postgrest import APIError

    try:
        client.table("audio_files").upsert(list(rows), on_conflict="device_id,recorded_at").execute()
    except APIError as error:
        raise from_sqlstate(error.code, error.message or str(error), "audio_files") from error
    except httpx.HTTPError as error:
        raise Transient(f"Supabase can't be reached: {str(error) or type(error).__name__}") from error
