"""How much a process does at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """`threads` of the processor, and `batch` chunks of 30 s for each of them."""

    threads: int
    batch: int

    @property
    def chunks(self) -> int:
        return self.threads * self.batch


FRUGAL = Pace(threads=1, batch=1)
"""With the least memory, and slower."""
