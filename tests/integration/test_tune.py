"""`toban tune`: what it measures, what it chooses, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import psutil
import pytest

from app.cli import main
from app.errors import NotReady
from app.settings import Whisper
from app.speech import tune
from app.speech.memory import plan
from app.speech.pace import Pace
from app.speech.trial import Candidate, Run, Sample
from app.speech.tune import Result, chosen, explore, rows
from app.speech.tuned import tuned
from tests.support.servers import ROOT, wait_for
from tests.support.speech import spoken
from tests.support.weights import wheel_model

Command = Callable[..., tuple[int, str, str]]  # exit code, output, errors
SECONDS = 6.0


def settings(**changes: object) -> Whisper:
    return Whisper.model_validate({"model": "tiny.en", **changes})


@pytest.fixture
def toban(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `toban tune` with a cache of its own, as on two cores."""
    for name in [name for name in os.environ if name.startswith("WHISPER_")]:
        monkeypatch.delenv(name)
    for name, value in {"TOBAN_ENV_FILE": os.devnull, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(import_module("app.cli.tune"), "cores", lambda: 2)

    def run(*arguments: str, **env: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for name, value in {"WHISPER_MODEL": "tiny.en", **env}.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main(["tune", *arguments])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Runs cost nothing and have these speeds, by candidate or compute type; else 100."""
    known: dict[str, float] = {}

    def run(candidate: Candidate, of: Whisper, _sound: Sample) -> Run:
        usual = of.compute_type == "int8"
        speed = known.get(str(candidate) if usual else of.compute_type, 100.0)
        return Run(speed, 100 << 20, None if speed else "its process was killed by signal 9")

    monkeypatch.setattr(tune, "run", run)
    return known


def test_the_real_engine_is_measured_and_workers_use_what_was_found(
    toban: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel_model()
    monkeypatch.setattr(tune, "_LEAST", SECONDS)
    monkeypatch.setattr(tune, "MOST", SECONDS)
    monkeypatch.setattr(tune, "FINALS", 1)
    monkeypatch.setattr(tune.Tuner, "compute_types", lambda *_: {})
    code, out, err = toban("--json", WHISPER_CHILDREN="1")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["set_by_hand"] == ["WHISPER_CHILDREN=1"]
    assert {(one["children"], one["threads"], one["batch"]) for one in told["measured"]} == {(2, 1, 1), (1, 2, 1)}
    for one in told["measured"]:
        assert one["failed"] is None
        assert len(one["speeds"]) == 2
        assert all(speed > 0.5 for speed in one["speeds"])
        assert 100 << 20 < one["peak_bytes"] < 2 << 30
    best = told["choice"]
    found = plan(settings(), 2)
    assert (found.children, found.pace) == (best["children"], Pace(best["threads"], best["batch"]))
    assert tuned(settings(), 2) == {name: best[name] for name in ("children", "threads", "batch")}
    assert tuned(settings(compute_type="float32"), 2) is None
    assert tuned(settings(), 3) is None
    assert [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()] == ["tuned.json"]
    # What is set by hand wins.
    assert plan(settings(children=1), 2).children == 1


def test_a_person_sees_what_was_found_and_can_take_it_back(
    toban: Command, speeds: dict[str, float], tmp_path: Path
) -> None:
    speeds |= {"2 × 1 threads × 4 chunks": 150.0, "1 × 2 threads × 4 chunks": 140.0, "float32": 30.0}
    recording = spoken()[0]
    code, out, err = toban(str(recording.path), WHISPER_BATCH="2", WHISPER_LANGUAGE="en")
    assert (code, err) == (0, "")
    assert "WHISPER_BATCH=2 is set, and wins over what is found here" in out
    assert re.search(rf"Each child hears [56] s of {recording.path}, 6\d times", out)
    assert "Take WHISPER_BATCH=2 out of the settings" in out

    code, out, err = toban()
    assert (code, err) == (0, "")
    assert "2 × 1 threads × 4 chunks: 150.0 s of audio a second" in out
    assert "Workers use it from their next start" in out
    assert "WHISPER_COMPUTE_TYPE=int8 is right: it hears 150.0, float32 30.0." in out
    assert tuned(settings(), 2) == {"children": 2, "threads": 1, "batch": 4}

    assert "is forgotten" in toban("--forget")[1]
    assert tuned(settings(), 2) is None
    assert plan(settings(), 2).children == 2
    assert "Nothing was found before" in toban("--forget")[1]


def test_another_compute_type_is_advised_and_never_chosen(toban: Command, speeds: dict[str, float]) -> None:
    speeds["float32"] = 200.0
    assert "WHISPER_COMPUTE_TYPE=float32 is faster here than int8 (100.0): float32 200.0" in toban()[1]


def test_what_can_not_be_measured_is_said(toban: Command, speeds: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "noise.wav").write_bytes(b"no sound at all")
    (tmp_path / "empty.wav").touch()
    cases: list[tuple[tuple[str, ...], Mapping[str, str], str]] = [
        ((), {"WHISPER_MODEL": "base", "WHISPER_MODELS_FOLDER": str(tmp_path)}, "`toban models pull base` gets it"),
        ((), {"WHISPER_MEMORY_LIMIT": "50MiB"}, "this worker may use 50 MB (WHISPER_MEMORY_LIMIT)"),
        ((str(tmp_path / "nowhere.wav"),), {}, f"there is no file {tmp_path}/nowhere.wav"),
        ((str(tmp_path),), {}, f"there is no file {tmp_path}"),
        ((str(tmp_path / "noise.wav"),), {}, f"{tmp_path}/noise.wav can't be used: not an audio file"),
        ((str(tmp_path / "empty.wav"),), {}, f"{tmp_path}/empty.wav can't be used: the file is empty"),
    ]
    for arguments, env, reason in cases:
        code, _, err = toban(*arguments, **env)
        assert code == 1
        assert reason in err
        assert "Traceback" not in err
    speeds |= dict.fromkeys((f"{n} × {3 - n} threads × {b} chunks" for n in (1, 2) for b in (1, 2, 4, 8, 16)), 0.0)
    code, _, err = toban()
    assert (code, "killed by signal 9" in err) == (1, True)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_nothing_is_left(tmp_path: Path, how: signal.Signals) -> None:
    wheel_model()
    (tmp_path / "tmp").mkdir()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")},
        "WHISPER_MODEL": "tiny.en",
        "TOBAN_ENV_FILE": os.devnull,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    # Whatever a shell without job control runs in the background ignores Ctrl-C, these tests and what they start too.
    heeding = "from signal import SIGINT, default_int_handler, signal; signal(SIGINT, default_int_handler)"
    command = [sys.executable, "-c", f"{heeding}; from app.cli import main; main(['tune'])"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        parent = psutil.Process(process.pid)
        wait_for(lambda: len(parent.children()) >= 1, "a child of `toban tune`", 60)
        children = parent.children()
        time.sleep(1)  # it loads, or hears
        process.send_signal(how)
        assert process.wait(20) == (-how if how == signal.SIGKILL else 130)
        wait_for(lambda: not any(_runs(child) for child in children), "the end of its children", 20)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "cache").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_candidates_fill_the_cores_and_fit_the_memory() -> None:
    def within(children: int, each: int) -> Callable[[Candidate], bool]:
        """Room for so many children, with so many chunks each."""
        return lambda one: one.children <= children and one.pace.chunks <= each

    def told(cores: int, fits: Callable[[Candidate], bool]) -> list[list[tuple[int, int, int]]]:
        every = [[(one.children, one.pace.threads, one.pace.batch) for one in row] for row in rows(cores, (1, 2), fits)]
        assert all(children * threads <= cores for row in every for children, threads, _ in row)
        return every

    assert told(1, within(9, 99)) == [[(1, 1, 1), (1, 1, 2)]]
    assert told(2, within(9, 99)) == [[(2, 1, 1), (2, 1, 2)], [(1, 2, 1), (1, 2, 2)]]
    assert told(2, within(1, 1)) == [[(1, 1, 1)]]
    assert [row[0] for row in told(8, within(9, 99))] == [(8, 1, 1), (6, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1)]
    assert [row[0] for row in told(8, within(3, 99))] == [(3, 2, 1), (2, 4, 1), (1, 8, 1)]
    assert len(told(64, within(99, 99))) == 7


def test_the_search_finds_the_fastest_and_leaves_out_the_hopeless() -> None:
    def measured(speeds: Mapping[tuple[int, int], float]) -> list[tuple[int, int]]:
        done: list[tuple[int, int]] = []

        def measure(candidate: Candidate) -> float:
            done.append((candidate.children, candidate.pace.batch))
            return speeds.get(done[-1], 1.0)

        explore(rows(2, tune.BATCHES, lambda _: True), measure)
        return done

    # As long as it gains, and two steps further; then only what is near the best.
    assert measured({(2, 1): 50, (2, 2): 55, (2, 4): 60, (2, 8): 60, (2, 16): 59}) == [
        (2, 1), (2, 2), (2, 4), (2, 8), (2, 16), (1, 4)
    ]  # fmt: skip
    assert measured({(2, 1): 50, (2, 2): 40}) == [(2, 1), (2, 2), (1, 1)]
    assert measured({(2, 1): 50, (2, 2): 50, (2, 4): 50, (1, 1): 60, (1, 2): 61, (1, 4): 50}) == [
        (2, 1), (2, 2), (2, 4), (1, 1), (1, 2), (1, 4)
    ]  # fmt: skip


def test_the_choice_is_the_fastest_and_among_equals_the_smallest() -> None:
    def result(batch: int, peak: int, *speeds: float, failed: str | None = None) -> Result:
        return Result(Candidate(2, Pace(1, batch)), list(speeds), peak, failed)

    small, fast = result(2, 300, 99, 98.5, 70), result(4, 400, 100, 60, 99)
    assert chosen([result(1, 100, 120), small, fast]) is small
    assert chosen([result(2, 300, 90, 91, 92), fast]) is fast
    assert chosen([result(2, 300, 200, 200, 200, failed="too large"), fast]) is fast
    with pytest.raises(NotReady, match="too large"):
        chosen([result(2, 300, failed="too large")])
