"""Around every answer: the headers that keep a browser from doing what it should not, and the size of what comes in."""

from collections.abc import Iterable

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Forms and reports are small; a job's log tail is cut by who sends it.
MOST_BYTES = 1024 * 1024

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "font-src": "'self'",
    "connect-src": "'self'",
    "manifest-src": "'self'",
    "media-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
FIXED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def policy(media: Iterable[str] = (), images: Iterable[str] = ()) -> str:
    """The content security policy; `media`, `images`: where sound and pictures may come from, beside our own origin."""
    parts = {**POLICY, "media-src": " ".join(["'self'", *media]), "img-src": " ".join(["'self'", *images])}
    return "; ".join(f"{name} {value}" for name, value in parts.items())


class Guard:
    """Adds the headers; refuses bodies that are too large."""

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self.app = app
        self.https = https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0
        length = Headers(scope=scope).get("content-length", "")

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MOST_BYTES or (length.isdecimal() and int(length) > MOST_BYTES):
                raise HTTPException(413, f"at most {MOST_BYTES} bytes are taken")
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in FIXED.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", policy())
                headers.setdefault("Cache-Control", "no-store")
                if self.https or scope.get("scheme") == "https":
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        await self.app(scope, limited, guarded)
