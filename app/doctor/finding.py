"""What every check yields."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the report. FAIL: it does not work; WARN: it will hurt one day."""

    level: Literal["OK", "WARN", "FAIL"]
    code: str
    what: str
    remedy: str = ""


Findings = Iterator[Finding]
