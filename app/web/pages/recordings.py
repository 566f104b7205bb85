"""A recording's sound and its words: /recordings/{device}/{moment}/audio, …/transcript.srt, .vtt and .json."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from mimetypes import guess_type
from os import fstat
from typing import BinaryIO, Literal
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from app.errors import NothingThere, Permanent
from app.speech.subtitles import srt, vtt
from app.web.i18n import t
from app.web.pages.common import Json, call, device_zone
from app.web.state import state_of

router = APIRouter()

ADDRESS_SECONDS = 3600  # for which a bucket's address is good: a browser may come back for more of a long recording
CHUNK = 256 * 1024


def moment_of(recorded_at: str) -> str:
    """A recording's moment as addresses have it: `2025-07-18T03:00:00Z`."""
    return datetime.fromisoformat(recorded_at).astimezone(UTC).isoformat().replace("+00:00", "Z")


def parsed(moment: str) -> str:
    """The moment of an address, ISO 8601. Raises 404 for what is none."""
    try:
        found = datetime.fromisoformat(moment)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise HTTPException(404, t("There is no such recording."))
    return found.isoformat()


def origins(request: Request) -> list[str]:
    """Where its audio comes from, if not from here; for the page's content security policy."""
    settings = state_of(request).settings.audio
    if settings.audio_folder is not None or settings.s3_bucket_name is None:
        return []
    address = state_of(request).services.audio.playable("a", 1)
    parts = urlsplit(address if isinstance(address, str) else "")
    return [f"{parts.scheme}://{parts.netloc}"] if parts.netloc else []


@router.get("/recordings/{device}/{moment}/audio")
def audio(request: Request, device: str, moment: str) -> Response:
    """The recording's bytes, or the bucket's own address for them; only the part that was asked for by `Range`."""
    path = _recording(request, device, moment)["recording"]["file_path"]
    if not path:
        raise HTTPException(404, t("There is no such recording."))
    try:
        found = state_of(request).services.audio.playable(path, ADDRESS_SECONDS)
    except NothingThere:
        raise HTTPException(404, t("There is no audio for this recording.")) from None
    except Permanent as error:
        raise HTTPException(404, str(error)) from None
    if isinstance(found, str):
        return RedirectResponse(found, 307)
    kind = guess_type(path)[0] or ""
    return _part(
        found, request.headers.get("range", ""), kind if kind.startswith("audio/") else "application/octet-stream"
    )


@router.get("/recordings/{device}/{moment}/transcript.{kind}")
def transcript(request: Request, device: str, moment: str, kind: Literal["srt", "vtt", "json"]) -> Response:
    found = _recording(request, device, moment)
    recording = found["recording"]
    if recording["text"] is None:
        raise HTTPException(404, t("This recording has no transcript yet."))
    response: Response
    if kind == "json":
        kept = ("recorded_at", "duration_seconds", "language", "model", "engine", "text", "segments")
        response = JSONResponse(
            {"device_id": device, "date": found["date"], "time_block": found["time_block"]}
            | {name: recording[name] for name in kept}
        )
    elif kind == "srt":
        response = Response(srt(recording["segments"]), media_type="application/x-subrip; charset=utf-8")
    else:
        response = Response(vtt(recording["segments"]), media_type="text/vtt; charset=utf-8")
    name = f"{device}_{found['date']}_{found['time_block']}.{kind}"
    response.headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    return response


def _recording(request: Request, device: str, moment: str) -> Json:
    found: Json = call(request, "toban_page_recording", device=device, at=parsed(moment), zone=device_zone(request).key)
    return found


def _part(file: BinaryIO, wanted: str, kind: str) -> Response:
    """All of `file`, or the one range that was asked for; RFC 9110, section 14."""
    size = fstat(file.fileno()).st_size
    first, last, status = 0, size - 1, 200
    if found := re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", wanted.strip()):
        begin, end = found.groups()
        if begin and not (end and int(end) < int(begin)):  # (such a range makes no sense: it is as if there was none)
            first, last, status = int(begin), min(int(end or last), last), 206
        elif end and not begin:
            first, status = max(size - int(end), 0), 206
        if status == 206 and first > last:
            file.close()
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(last - first + 1), "Cache-Control": "private, no-cache"}
    if status == 206:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return StreamingResponse(_read(file, first, last - first + 1), status, headers, kind)


def _read(file: BinaryIO, start: int, count: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while count > 0 and (chunk := file.read(min(CHUNK, count))):
            count -= len(chunk)
            yield chunk
