"""Writes what was measured into its pages, and draws it: `python -m bench.report`, or `make bench`.

A table stands between `<!-- name -->` and `<!-- end -->`; everything else of the page is written by hand.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
PAGES = (ROOT / "docs/performance.md", ROOT / "docs/scale.md")
IMAGES = ROOT / "docs/img"

Figures = Mapping[str, Any]

NAMES = {
    "toban": "**Toban**",
    "raw": "best loop",
    "raw-words": "best loop, with times of words",
    "plain": "plain loop",
    "openai-greedy": "`whisper`, greedy",
    "openai": "`whisper` as it comes",
}
# The calls of a worker, as `bench.scale` names them.
CALLS = {
    "heartbeat": "heartbeat with one running item",
    "claim_full": "claim that finds the queue full",
    "claim_ten": "claim of ten items",
    "start": "start",
    "finish": "finish",
    "report": "report of a job",
    "look": "look of the monitor, where another one has just looked",
}
# Greys and colours that can be read on white and on black.
_TEXT, _LINE, _BAR, _OWN = "#808890", "#8088904d", "#5b8fc9", "#d9822b"
_LABEL, _WIDTH, _ROW, _HEAD = 210, 760, 26, 34  # pixels


def main() -> None:
    results = read()
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8"), results), "utf-8")
    IMAGES.mkdir(exist_ok=True)
    for name, drawing in drawings(results).items():
        (IMAGES / name).write_text(drawing, "utf-8")


def read() -> dict[str, Figures]:
    """All results, by name."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))}


def filled(page: str, results: Mapping[str, Figures]) -> str:
    """The page with its tables. Raises `KeyError` for a table that nobody knows."""

    def table(found: re.Match[str]) -> str:
        name, _, argument = found[1].partition(" ")
        lines = TABLES[name](results, argument)
        return f"<!-- {found[1]} -->\n{lines}\n<!-- end -->"

    return re.sub(r"<!-- (?!end)([^>]+?) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def _machine(results: Mapping[str, Figures], _: str) -> str:
    of = results["speech"]["machine"]
    libraries = ", ".join(f"{name} {number}" for name, number in of["libraries"].items())
    busy = of["load_before"]
    beside = f" Others had been busy on it until then: its load was {busy}." if busy > 0.3 else ""
    return (
        f"{of['processor']}, {of['cores']} cores, {of['memory_gb']} GB; Python {of['python']}, {libraries}. "
        f"{results['speech']['rounds']} rounds.{beside}"
    )


def _speech(results: Mapping[str, Figures], share: str) -> str:
    """Speed, ratio and errors on one set."""
    of = results["speech"]["sets"][share]
    rows = [
        (
            NAMES[name],
            _spread(one["speed"], 1),
            "" if name == "toban" else _spread(one["toban_is"], 2),
            "" if name == "toban" else _spread(one["toban_is_whole"], 2),
            f"{one['word_error_rate'] * 100:.1f} %",
        )
        for name, one in _in_order(of["contestants"])
    ]
    told = f"{of['recordings']} recordings, {of['seconds']} s, {of['words']} words:"
    heads = ("", "audio s per s", "Toban is × as fast", "… with start", "word errors")
    return f"{told}\n\n{_table(heads, rows)}"


def _starts(results: Mapping[str, Figures], _: str) -> str:
    """What comes before the work, and the memory."""
    sets = results["speech"]["sets"]
    rows = []
    for name, _one in _in_order(sets["100"]["contestants"]):
        every = [of["contestants"][name] for of in sets.values()]
        starts = [seconds for one in every for seconds in one["start_seconds"]]
        peaks = [str(one["peak_mb"]) for one in every]
        rows.append((NAMES[name], f"{median(starts):.1f} s", *peaks))
    return _table(("", "start", *(f"MB at {share} %" for share in sets)), rows)


def _overlap(results: Mapping[str, Figures], _: str) -> str:
    rows = [
        (
            f"{one['mbit_per_s']} Mbit/s" if one["mbit_per_s"] else "this machine's own loop",
            f"{one['speech']} %",
            f"{one['fetch_seconds']:.2f} s",
            f"{one['hear_seconds']:.1f} s",
            f"{one['share'] * 100:.1f} %",
            f"{one['gain'] * 100:.1f} %",
        )
        for one in results["overlap"]["rows"]
    ]
    return _table(("network", "speech", "fetching", "hearing", "fetching's share", "overlap gains at most"), rows)


def _ledger(results: Mapping[str, Figures], _: str) -> str:
    of = results["ledger"]
    rows = [
        (name, f"{min(seconds):.1f} – {max(seconds):.1f} s", f"{of['items'] / median(seconds):.0f}")
        for name, seconds in (("plain Celery", of["celery_seconds"]), ("Toban", of["toban_seconds"]))
    ]
    ratio = f"{of['ratio']['median']:.2f} ({of['ratio']['min']:.2f} – {of['ratio']['max']:.2f})"
    told = f"Toban takes {ratio} times as long, {of['added_ms_per_item']:.1f} ms more for each item."
    table = _table((f"{of['items']:,} items", "seconds", "items a second"), rows)
    return f"{table}\n\n{told}"


def _analysis(results: Mapping[str, Figures], _: str) -> str:
    """What faults cost, and whether the pace is kept."""
    of = results["analysis"]
    rows = [
        (
            name,
            f"{one['completed']:,} of {one['rows']:,}",
            f"{one['calls']:,}",
            f"{one['paid_for_each_row']:.2f}",
            f"{one['refused_share'] * 100:.1f} %",
        )
        for name, one in (("faults", of["faulty"]), ("60 a minute", of["paced"]))
    ]
    return _table(("", "rows completed", "calls", "paid calls for each", "refused for their pace"), rows)


def _fleets(results: Mapping[str, Figures], _: str) -> str:
    """What each call takes of PostgreSQL's processors, by the size of the fleet."""
    fleets = results["scale"]["fleets"]
    rows = [(words, *(f"{one['ms'][name]:.1f}" for one in fleets.values())) for name, words in CALLS.items()]
    hot = [f"{100 * one['workers']['hot'] / one['workers']['updates']:.0f} %" for one in fleets.values()]
    rows.append(("updates of `workers` that write no index", *hot))
    return _table(("ms of a processor for a call", *(f"{int(size):,} workers" for size in fleets)), rows)


def _load(results: Mapping[str, Figures], _: str) -> str:
    """Computed: how much of one processor a fleet takes whose items take a minute each."""
    rows = []
    for size, one in results["scale"]["fleets"].items():
        workers, ms = int(size), one["ms"]
        shares = [
            workers / 15 * ms["heartbeat"],
            workers / 10 * ms["look"],
            workers / 60 * (ms["start"] + ms["finish"] + max(ms["claim_ten"], ms["claim_full"]) + 2 * ms["report"]),
        ]
        calls = workers * (1 / 15 + 1 / 10 + 5 / 60)
        rows.append((f"{workers:,}", f"{calls:.1f}", *(f"{share / 10:.1f} %" for share in [*shares, sum(shares)])))
    return _table(("workers", "calls a second", "heartbeats", "looks of the monitor", "items", "of one core"), rows)


def _history(results: Mapping[str, Figures], _: str) -> str:
    of = results["scale"]["history"]
    ours = results["scale"]["fleets"]["100"]["ms"]
    rows = [(words, f"{ours[name]:.1f}", f"{of['ms'][name]:.1f}") for name, words in CALLS.items()]
    told = (
        f"A finished item takes {of['bytes_a_row']} bytes with its indexes. `toban status` looks at all of them and "
        f"takes {of['status']} ms, the page of the work {of['work_page']} ms; to forget ten thousand takes "
        f"{of['forget_ten_thousand']} ms."
    )
    heads = ("ms of a processor, 100 workers", "no finished item", f"{of['rows']:,} finished items")
    return f"{_table(heads, rows)}\n\n{told}"


def _rest(results: Mapping[str, Figures], _: str) -> str:
    of = results["scale"]["rest"]
    rows = [
        (words, *(f"{of[f'{name}_{column}']:.1f}" for column in ("clock", "postgres", "postgrest")))
        for name, words in (("direct", "`DATABASE_URL`"), ("rest", "`SUPABASE_URL`"))
    ]
    return _table(("ms for a heartbeat", "on the clock", "PostgreSQL's processor", "PostgREST's processor"), rows)


def _messages(results: Mapping[str, Figures], _: str) -> str:
    rows = [
        (name, f"{one['sent_per_s']:,}", f"{one['ms']:.2f}", str(one["mb"]))
        for name, one in results["scale"]["messages"].items()
    ]
    return _table(("", "sent a second, one after the other", "ms of its processor for a message", "MB"), rows)


def _wake(results: Mapping[str, Figures], _: str) -> str:
    """How soon a row starts, and what telling costs."""
    of = results["wake"]
    rows = [
        (name, str(one["rows"]), *(_milliseconds(one[part]) for part in ("median_ms", "p95_ms", "most_ms")))
        for name, one in (("`LISTEN`", of["listen"]), ("webhook", of["webhook"]), ("tick", of["tick"]))
    ]
    table = _table(("told by", "rows", "median", "95 % within", "longest"), rows)
    burst = of["burst"]
    nobody, listening = (f"{min(rates):,.0f} – {max(rates):,.0f}" for rates in burst["inserts_per_second"].values())
    told = (
        f"{burst['rows']:,} rows inserted one by one over {burst['connections']} connections: {nobody} a second while "
        f"nobody listens, {listening} while somebody does."
    )
    busy = f" Others were busy on the machine: its load was {of['load_before']}." if of["load_before"] > 0.3 else ""
    return f"{table}\n\n{told}{busy}"


def _milliseconds(value: float) -> str:
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms"


def _long(results: Mapping[str, Figures], _: str) -> str:
    """The memory of each engine by the recording's length."""
    engines = results["long"]["engines"]
    lengths = [run["minutes"] for run in next(iter(engines.values()))["runs"]]
    rows = [
        (engine, *(f"{run['peak_mb']:,} MB" for run in of["runs"]), f"{of['ratio']:.2f}")
        for engine, of in engines.items()
    ]
    return _table(("engine", *(f"{minutes} minutes" for minutes in lengths), "ratio"), rows)


def _day(results: Mapping[str, Figures], _: str) -> str:
    of = results["day"]
    states = ", ".join(f"{count} {state}" for state, count in of["states"].items())
    rows = [
        ("recordings", f"{of['files']}, {of['hours']:.0f} h in all"),
        ("model", f"random weights of the size {of['size']}"),
        ("limit, which the kernel enforces", f"{of['limit_mb']} MB"),
        ("plan", of["plan"]),
        ("they became", f"{states}; {of['tries']} tries at most"),
        ("highest memory of the whole worker", f"{of['peak_mb']} MB"),
        ("highest of the control group, with the files it read", f"{of['group_peak_mb']} MB"),
        ("processes that the kernel killed", str(of["killed_by_kernel"])),
        ("children that worked", str(of["children"])),
        ("time", f"{of['seconds'] / 60:.0f} minutes, {of['times_real_time']:.0f} × real time"),
    ]
    return _table(("", ""), rows).replace("---:", "---")


TABLES: Mapping[str, Callable[[Mapping[str, Figures], str], str]] = {
    "machine": _machine,
    "speech": _speech,
    "starts": _starts,
    "long": _long,
    "day": _day,
    "overlap": _overlap,
    "ledger": _ledger,
    "analysis": _analysis,
    "fleets": _fleets,
    "load": _load,
    "history": _history,
    "rest": _rest,
    "messages": _messages,
    "wake": _wake,
}


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(of: Mapping[str, float], digits: int) -> str:
    return f"{of['median']:.{digits}f} ({of['min']:.{digits}f} – {of['max']:.{digits}f})"


def _in_order(contestants: Figures) -> list[tuple[str, Figures]]:
    return [(name, contestants[name]) for name in NAMES if name in contestants]


def drawings(results: Mapping[str, Figures]) -> dict[str, str]:
    """The pictures, by file name."""
    sets = results["speech"]["sets"]
    speeds = {
        f"{share} % speech": {name: one["speed"] for name, one in _in_order(of["contestants"])}
        for share, of in sets.items()
    }
    peaks = {
        f"{share} % speech": {
            name: dict.fromkeys(("median", "min", "max"), float(one["peak_mb"]))
            for name, one in _in_order(of["contestants"])
        }
        for share, of in sets.items()
    }
    return {
        "speed.svg": chart("Audio seconds per second: more is better", speeds),
        "memory.svg": chart("Memory at the peak, MB: less is better", peaks),
    }


def chart(title: str, panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Bars of the medians with whiskers from the least to the most, one panel below the other, as SVG."""
    parts: list[str] = []
    top = float(_HEAD)
    for name, bars in panels.items():
        parts.append(_words(0, top + 16, name, bold=True))
        top += _HEAD - 8
        most = max(spread["max"] for spread in bars.values())
        scale = (_WIDTH - _LABEL - 60) / most
        for contestant, spread in bars.items():
            parts += _bar(contestant, spread, top, scale)
            top += _ROW
        parts.append(f'<path d="M{_LABEL} {top - len(bars) * _ROW}V{top}" stroke="{_LINE}"/>')
        top += 12
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:.0f}" width="{_WIDTH}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{_TEXT}" role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, _words(0, 16, title, bold=True), *parts, "</svg>", ""])


def _bar(contestant: str, spread: Mapping[str, float], top: float, scale: float) -> list[str]:
    own = contestant == "toban"
    middle, least, most = (_LABEL + spread[name] * scale for name in ("median", "min", "max"))
    y = top + _ROW / 2
    x, high, colour = _LABEL, _ROW - 8, _OWN if own else _BAR
    parts = [
        _words(x - 10, y + 4, NAMES[contestant].strip("*").replace("`", ""), anchor="end", bold=own),
        f'<rect x="{x}" y="{top + 4:.0f}" width="{middle - x:.1f}" height="{high}" fill="{colour}"/>',
        _words(most + 8, y + 4, f"{spread['median']:g}"),
    ]
    if most > least:
        whisker = f"M{least:.1f} {y:.0f}H{most:.1f}M{least:.1f} {y - 4:.0f}v8M{most:.1f} {y - 4:.0f}v8"
        parts.insert(2, f'<path d="{whisker}" stroke="{_TEXT}" stroke-width="1.5" fill="none"/>')
    return parts


def _words(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


if __name__ == "__main__":
    main()
