"""How the whisper worker is cut to its memory, and what it says when nothing fits."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import psutil
import pytest
from pydantic import ByteSize

from app.settings import Whisper
from app.speech import memory, tuned
from app.speech.memory import MB, SIZES, DoesNotFit, Limit, memory_limit, need_of, plan
from app.speech.pace import FRUGAL, Pace
from bench.memory import PAGE, table

GB = 1024 * MB
Machine = Callable[[float], None]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Sets what memory there is, GB: 2 at first, without a container, on a machine where nothing was tuned."""

    def of(size: float) -> None:
        monkeypatch.setattr(memory, "_container_limit", lambda: None)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": int(size * GB)}))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    of(2)
    return of


def whisper(model: str = "base", **settings: object) -> Whisper:
    return Whisper.model_validate({"model": model, "models_folder": "/nowhere", **settings})


def test_the_default_model_fits_twice_into_2_gb() -> None:
    cut = plan(whisper(), cores=2)
    assert (cut.children, cut.pace.threads) == (2, 1)
    assert cut.limit.bytes == 1536 * MB
    assert "2.0 GB of this machine, less a margin" in str(cut)


@pytest.mark.parametrize("engine", ["faster-whisper", "openai-whisper"])
def test_no_plan_needs_more_than_there_is(machine: Machine, engine: str) -> None:
    for size, model, cores in product([0.5, 1, 2, 4, 8, 16, 64], SIZES, [1, 2, 4, 16]):
        machine(size)
        settings = whisper(model, engine=engine)
        if need_of(settings, model, FRUGAL) + 100 * MB > memory_limit(settings).bytes:
            with pytest.raises(DoesNotFit, match=f"the speech model {model} needs"):
                plan(settings, cores)
            continue
        cut = plan(settings, cores)
        assert 1 <= cut.children <= cores
        assert cut.need <= cut.child
        assert cut.children * cut.child + 100 * MB <= cut.limit.bytes
        assert cut.need == need_of(settings, model, cut.pace)


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(whisper("large-v3"), cores=2)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("the speech model large-v3 needs ")
    assert "this worker may use 1.5 GB" in first
    listed = [line.split()[0] for line in rest if line.startswith("  ")]
    fitting = [size for size in SIZES if need_of(whisper(size), size, FRUGAL) + 100 * MB <= 1536 * MB]
    assert listed == fitting
    assert "base" in listed
    assert "WHISPER_MODEL" in rest[-1]
    assert "WHISPER_MEMORY_LIMIT" in rest[-1]


def test_nothing_fits_into_nothing() -> None:
    with pytest.raises(DoesNotFit, match="No model fits there"):
        plan(whisper("tiny", memory_limit=ByteSize(100 * MB)), cores=2)


def test_the_settings_decide_before_anything_else() -> None:
    tuned.remember(whisper(), 2, {"children": 1, "threads": 2, "batch": 8})
    cut = plan(whisper(), 2)
    assert (cut.children, cut.pace) == (1, Pace(2, 8))
    assert plan(whisper(children=1, threads=1, batch=3), 2).pace == Pace(1, 3)
    with pytest.raises(DoesNotFit, match="with 8 children"):
        plan(whisper(children=8), 2)


def test_what_was_tuned_elsewhere_or_no_longer_fits_is_passed_over(tmp_path: Path) -> None:
    file = tuned.remember(whisper("small"), 2, {"children": 2, "threads": 1, "batch": 64})
    assert plan(whisper("small"), 2).pace.batch <= 4
    assert tuned.tuned(whisper("tiny"), 2) is None
    assert tuned.tuned(whisper("small"), 4) is None
    file.write_text("{ broken")
    assert tuned.tuned(whisper("small"), 2) is None
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_biggest_of_the_models_counts() -> None:
    assert plan(whisper("tiny", extra_models="small"), 2).need >= plan(whisper("small"), 2).need


def test_a_model_that_nothing_is_known_of_stops_nobody() -> None:
    assert plan(whisper("somebody/their-model"), 2).need == 0
    assert need_of(whisper(), "somebody/whisper-medium-ja", FRUGAL) == need_of(whisper(), "medium", FRUGAL)


def test_the_setting_is_no_more_than_there_is() -> None:
    assert memory_limit(whisper(memory_limit=ByteSize(64 * GB))) == Limit(2 * GB, "WHISPER_MEMORY_LIMIT")
    assert memory_limit(whisper(memory_limit=ByteSize(GB))).bytes == GB


@pytest.mark.parametrize(
    ("entries", "files", "limit"),
    [
        ("0::/app/worker\n", {"app/memory.max": "2147483648", "app/worker/memory.max": "max"}, 2 * GB),
        ("0::/\n", {"memory.max": "1073741824"}, GB),
        ("0::/on/the/host\n", {"memory.max": "1073741824"}, GB),  # in a container that sees the host's path
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {}, None),
        (
            "9:cpu:/x\n4:memory:/app/one\n",
            {"memory/app/memory.limit_in_bytes": "3221225472", "memory/app/one/memory.limit_in_bytes": "2147483648"},
            2 * GB,
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 9223372036854771712),
    ],
)
def test_the_containers_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entries: str, files: dict[str, str], limit: int | None
) -> None:
    monkeypatch.undo()
    own = tmp_path / "cgroup"
    own.write_text(entries)
    for name, content in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(content + "\n")
    assert memory._container_limit(own, tmp_path / "root") == limit


def test_the_page_shows_the_figures_that_count() -> None:
    assert table() in PAGE.read_text("utf-8")
    figures = json.loads(Path(memory.__file__).with_name("memory.json").read_text("utf-8"))["figures"]
    assert {size for kinds in figures.values() for of in kinds.values() for size in of} == set(SIZES)
