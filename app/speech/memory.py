"""How many children of what size fit into the worker's memory, and which models do.

The figures are measured: `python -m bench.memory` writes `app/speech/memory.json`, MB of a child that hears the worst
that there is (every chunk full, every text as long as the decoder can write).
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from app.errors import NotReady
from app.settings import Whisper
from app.speech.pace import Pace
from app.speech.shape import shape
from app.speech.tuned import tuned

MB = 1024**2
SIZES = ("tiny", "base", "small", "medium", "turbo", "large")
BATCHES = (4, 2, 1)

# The parent of the children: Celery, and this program's own modules. Measured 95 MB, most of it shared with them.
_PARENT = 100 * MB
# Kept free for what else runs there. Of a container: its kernel memory and the files it reads. Of a machine: beat, the
# other workers, the system; on one of 2 GB they take about 450 MB.
_MARGINS = {"container": (0.10, 100 * MB), "machine": (0.25, 300 * MB)}


class DoesNotFit(NotReady):
    """The model needs more memory than there is."""


@dataclass(frozen=True)
class Limit:
    """What the whole worker may use, bytes, and where that figure is from."""

    bytes: int
    origin: str


@dataclass(frozen=True)
class Plan:
    """How the whisper worker is cut: `children` processes, each at its `pace`, with `child` bytes at most.

    `fits`: the published sizes of models that there would be room for.
    """

    children: int
    pace: Pace
    child: int
    need: int
    limit: Limit
    fits: Sequence[str] = ()

    def __str__(self) -> str:
        return (
            f"{self.children} × {self.pace.threads} threads × {self.pace.batch} chunks, about {_size(self.need)} each; "
            f"limit {_size(self.limit.bytes)} ({self.limit.origin})"
        )


def plan(settings: Whisper, cores: int) -> Plan:
    """How many children, threads and chunks at once fit: those of the settings, else tuned, else what fits best.

    Raises `DoesNotFit` with a table of the models that do.
    """
    limit = memory_limit(settings)
    best = tuned(settings, cores)
    for children, pace in _choices(settings, cores, best):
        share = (limit.bytes - _PARENT) // children
        need = max((need_of(settings, model, pace) for model in settings.models), default=0)
        if need <= share:
            return Plan(children, pace, share, need, limit, fitting(settings, limit))
    raise DoesNotFit(_refusal(settings, limit))


def _choices(settings: Whisper, cores: int, best: "Mapping[str, int] | None") -> Iterator[tuple[int, Pace]]:
    """From the fastest to the smallest: children share nothing; the threads of one child share the model's weights."""
    if best and not (settings.children or settings.threads or settings.batch):
        yield best["children"], Pace(best["threads"], best["batch"])
    for children in [settings.children] if settings.children else range(cores, 0, -1):
        threads = settings.threads or max(1, cores // children)
        for batch in [settings.batch] if settings.batch else BATCHES:
            yield children, Pace(threads, batch)
    if not (settings.children or settings.threads):
        for batch in [settings.batch] if settings.batch else BATCHES:
            yield 1, Pace(1, batch)


def need_of(settings: Whisper, model: str, pace: Pace) -> int:
    """Bytes of one child with `model`; 0 where nothing is known of it (its shape is known once it is downloaded)."""
    size = size_of(settings, model)
    return _need(settings, size, pace) if size else 0


def size_of(settings: Whisper, model: str) -> str | None:
    """The published size that the model's memory is like: by its file, else by its name."""
    from app.speech.models import Models

    try:
        found = Models(settings).find(model)
        if found:
            return shape(found.path).size
    except NotReady:  # said better, and in its place, by whoever loads it
        return None
    name = model.rsplit("/", 1)[-1].lower()
    if "turbo" in name:
        return "turbo"
    return next((size for size in SIZES if size in name), None)


def _need(settings: Whisper, size: str, pace: Pace) -> int:
    figures = _figures()[settings.engine]
    kind = "int8" if settings.compute_type.startswith("int8") and "int8" in figures else "float32"
    of = figures[kind][size]
    return int((of["base"] + of["thread"] * (pace.threads - 1) + of["chunk"] * (pace.chunks - 1)) * MB)


@cache
def _figures() -> "dict[str, dict[str, dict[str, dict[str, float]]]]":
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = json.loads(
        Path(__file__).with_name("memory.json").read_text("utf-8")
    )["figures"]
    return found


def fitting(settings: Whisper, limit: Limit) -> list[str]:
    """The published sizes of models that the worker would have room for, the smallest first."""
    small, children = _smallest(settings)
    return [size for size in SIZES if _need(settings, size, small) * children + _PARENT <= limit.bytes]


def _smallest(settings: Whisper) -> tuple[Pace, int]:
    """The pace that needs the least memory, and how many children have to have room."""
    return Pace(settings.threads or 1, settings.batch or 1), settings.children or 1


def _refusal(settings: Whisper, limit: Limit) -> str:
    small, children = _smallest(settings)
    needs = {model: need_of(settings, model, small) for model in settings.models}
    model, need = max(needs.items(), key=lambda entry: entry[1])
    of = f"{children} children" if children > 1 else "one child"
    has = f"this worker may use {_size(limit.bytes)} ({limit.origin})"
    lines = [f"the speech model {model} needs {_size(need * children + _PARENT)} with {of}, and {has}"]
    fit = [f"  {size:7}{_size(_need(settings, size, small)):>9} a child" for size in fitting(settings, limit)]
    lines += [f"With {settings.engine} ({settings.compute_type}) these fit:", *fit] if fit else ["No model fits there."]
    lines.append(
        "Set WHISPER_MODEL to one that fits, WHISPER_CHILDREN lower, or give the worker more memory "
        "(WHISPER_MEMORY_LIMIT, the container's limit, a bigger machine)."
    )
    return "\n".join(lines)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_limit(settings: Whisper) -> Limit:
    """What the worker may use: the setting, else the container's limit or the machine's memory, less a margin."""
    machine, container = psutil.virtual_memory().total, _container_limit()
    if settings.memory_limit:
        return Limit(min(settings.memory_limit, machine, container or machine), "WHISPER_MEMORY_LIMIT")
    kind, total = ("container", container) if container and container < machine else ("machine", machine)
    share, least = _MARGINS[kind]
    return Limit(max(0, total - max(int(total * share), least)), f"{_size(total)} of this {kind}, less a margin")


def _container_limit(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The least memory limit of this process's control group and those above it, bytes; None: no limit.

    Source: the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    limits: list[int] = []
    try:
        entries = [line.split(":", 2) for line in own.read_text("utf-8").splitlines()]
    except OSError:
        return None
    for _, controllers, path in entries:
        if controllers == "":
            folder, file = root, "memory.max"
        elif "memory" in controllers.split(","):
            folder, file = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's, and the group itself stands at the root.
        for group in [Path(path.lstrip("/")), *Path(path.lstrip("/")).parents]:
            try:
                limits.append(int((folder / group / file).read_text("ascii")))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return min(limits, default=None)


def _size(count: float) -> str:
    """Bytes for a person."""
    return f"{count / 1024 / MB:.1f} GB" if count >= 1024 * MB else f"{count / MB:.0f} MB"
