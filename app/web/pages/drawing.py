"""Geometry of what is drawn as SVG on the server: sparklines, bars, and the curve over a day."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

BLOCKS = [f"{hour:02}-{minute:02}" for hour in range(24) for minute in (0, 30)]


def sparkline(values: Sequence[float], width: float = 120, height: float = 24) -> str:
    """Points of a polyline, the oldest value on the left, 0 at the bottom. "" for fewer than two values."""
    if len(values) < 2:
        return ""
    top = max(values) or 1
    step = (width - 2) / (len(values) - 1)
    return " ".join(f"{1 + i * step:.1f},{height - 1 - (height - 2) * v / top:.1f}" for i, v in enumerate(values))


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float


def bars(values: Sequence[float], width: float = 120, height: float = 24) -> list[Bar]:
    """One bar a value; what is not nothing can be seen."""
    if not values:
        return []
    top = max(values) or 1
    step = width / len(values)
    heights = [max((height - 1) * value / top, 2) if value else 0 for value in values]
    return [
        Bar(round(i * step, 1), round(height - h, 1), round(step - 1.5, 1), round(h, 1)) for i, h in enumerate(heights)
    ]


@dataclass(frozen=True)
class Curve:
    """`lines`: points of polylines, broken where a block has no score; `dots`: (x, y, block, score) of each score."""

    lines: list[str]
    dots: list[tuple[float, float, str, float]]


def curve(scores: Mapping[str, float], width: float, height: float, most: float = 100) -> Curve:
    """The scores (-`most` to +`most`) of a day's blocks ("HH-MM"), each over the middle of its slot."""
    step = width / len(BLOCKS)
    dots = [
        (
            round((i + 0.5) * step, 1),
            round(height / 2 - height / 2 * max(-most, min(scores[b], most)) / most, 1),
            b,
            scores[b],
        )
        for i, b in enumerate(BLOCKS)
        if b in scores
    ]
    return Curve([" ".join(f"{x},{y}" for x, y, *_ in line) for line in _runs(dots, step) if len(line) > 1], dots)


def _runs(
    dots: Sequence[tuple[float, float, str, float]], step: float
) -> Iterator[list[tuple[float, float, str, float]]]:
    """Dots that are at most three slots apart: a curve goes on over a short silence, not over a night."""
    line: list[tuple[float, float, str, float]] = []
    for dot in dots:
        if line and dot[0] - line[-1][0] > 3.5 * step:
            yield line
            line = []
        line.append(dot)
    yield line
