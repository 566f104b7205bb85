"""How long a request may be held: `?wait=` and the header `Prefer`.

Source: RFC 7240, sections 4.1 (`respond-async`) and 4.3 (`wait`).
"""

import re
import time
from typing import Annotated

from fastapi import Depends, Header, Query

# A preference and its value, quoted or not; parameters after a semicolon mean nothing here.
_PREFERENCE = re.compile(r'(?:^|,)\s*([\w!#$%&\'*+.^`|~-]+)\s*(?:=\s*"?([^",;]*)"?)?')


# Whoever asks for more than the default knows a proxy that is more patient, seconds.
MOST = 600


def patience(prefer: str, wait: float | None, default: float) -> tuple[float, str | None]:
    """Seconds to hold the request; and what `Preference-Applied` says, if anything.

    What of `Prefer` can't be read is as if it were not there.
    """
    if wait is not None:
        return min(wait, MOST), None
    asked: dict[str, str] = {}
    for name, value in _PREFERENCE.findall(prefer.lower()):
        asked.setdefault(name, value.strip())
    if re.fullmatch(r"\d{1,9}", asked.get("wait", "")):
        seconds = min(float(asked["wait"]), MOST)
        return seconds, f"wait={seconds:g}"
    return (0.0, "respond-async") if "respond-async" in asked else (default, None)


async def _began() -> float:
    return time.monotonic()


Began = Annotated[float, Depends(_began)]
"""When the request began, by `time.monotonic`. The first parameter of a route, so that its sign-in counts too."""

Wait = Annotated[
    float | None,
    Query(
        ge=0,
        le=MOST,
        allow_inf_nan=False,
        description="seconds to wait for the result; 0: none; default: `Prefer`, else `WEB_WAIT` (55)",
        examples=[0, 30],
    ),
]
Prefer = Annotated[
    str | None, Header(description="`wait=30` or `respond-async`, as RFC 7240 has it; `?wait=` goes first")
]
