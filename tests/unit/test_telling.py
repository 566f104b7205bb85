"""What is told of errors, and what libraries may log."""

import logging
import subprocess
import sys
from collections.abc import Callable

import pytest

from app.celery import Told, WorkFailed
from app.database.core import from_sqlstate
from app.errors import Permanent, Transient
from app.logs import _discreet, tell_exception
from app.telling import bare, reason, trace
from tests.support.servers import ROOT

WORDS = "what somebody said"


def caught(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as info:  # noqa: PT011 - any
        call()
    return info.value


def fail() -> None:
    try:
        int(WORDS)
    except ValueError as error:
        raise Permanent("it can't be used") from error


def test_our_own_words_are_told() -> None:
    error = caught(fail)
    assert reason(error) == "it can't be used"
    told = trace(error)
    assert told.index("ValueError") < told.index("which led to") < told.index("Permanent: it can't be used")
    assert "int(WORDS)" in told
    assert WORDS not in told


def test_of_others_the_kind_and_the_place() -> None:
    assert reason(caught(lambda: int(WORDS))).startswith("ValueError in <lambda> (test_telling.py, line ")
    assert reason(ValueError(WORDS)) == "ValueError"
    assert reason(caught(lambda: open(WORDS))) == "FileNotFoundError: No such file or directory"  # noqa: PTH123, SIM115


def test_errors_that_lead_to_each_other_end() -> None:
    first, second = ValueError(WORDS), KeyError(WORDS)
    first.__cause__, second.__cause__ = second, first
    assert trace(first) == "KeyError\n\nwhich led to:\n\nValueError"


def test_what_celery_sees_has_no_words() -> None:
    class Task(Told):
        name = "tests.quoting"

        def run(self, call: Callable[[], object]) -> None:
            call()

    ours = caught(lambda: Task()(fail))
    assert isinstance(ours, Permanent)
    assert ours.__cause__ is ours.__context__ is None
    other = caught(lambda: Task()(lambda: int(WORDS)))
    assert isinstance(other, WorkFailed)
    assert WORDS not in str(other)
    assert other.__suppress_context__
    assert bare(Permanent("x")).__suppress_context__


def test_a_log_line_with_an_exception() -> None:
    error = caught(fail)
    for given in (error, (type(error), error, error.__traceback__)):
        event = dict(tell_exception(None, "error", {"event": "x", "exc_info": given}))
        assert event == {"event": "x", "exception": trace(error)}
    assert tell_exception(None, "info", {"event": "x", "exc_info": False}) == {"event": "x"}


@pytest.mark.parametrize(
    ("name", "level", "passes"),
    [("openai._base_client", logging.DEBUG, False), ("openai", logging.WARNING, True), ("kombu", logging.DEBUG, True)],
)
def test_libraries_that_print_what_is_asked_are_quiet(name: str, level: int, passes: bool) -> None:  # noqa: FBT001
    assert _discreet(logging.LogRecord(name, level, "f", 1, WORDS, (), None)) is passes


def test_asyncio_prints_no_error() -> None:
    record = logging.LogRecord("asyncio", logging.ERROR, "f", 1, f"never retrieved\nfuture: {WORDS}", (), None)
    assert _discreet(record)
    assert record.getMessage() == "never retrieved"


def test_values_that_the_database_quotes() -> None:
    quoted = from_sqlstate("22P02", f'invalid input syntax for type json: "{WORDS}"', "toban_finish")
    assert str(quoted) == 'toban_finish: invalid input syntax for type json: "…"'
    raised = from_sqlstate("P0001", WORDS, "toban_finish")
    assert isinstance(raised, Permanent)
    assert WORDS not in str(raised)
    assert isinstance(from_sqlstate("40P01", "deadlock detected", "toban_finish"), Transient)


def test_a_thread_that_fails_prints_no_words() -> None:
    program = (
        "import threading\n"
        "from app import logs\n"
        "from app.settings import Log\n"
        "logs.configure(Log())\n"
        "thread = threading.Thread(target=int, args=[' '.join(['what', 'somebody', 'said'])])\n"
        "thread.start(); thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "thread.failed" in done.stderr
    assert WORDS not in done.stderr + done.stdout
