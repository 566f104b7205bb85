"""`toban wrap`."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.monitor.report import Refused, seconds
from app.monitor.wrap import Reporter, end, reporter, run, say
from app.settings import Portal, SettingsError, load_group


def wrap(
    command: Sequence[str], *, key: str | None, title: str | None, expectations: Mapping[str, Any], send_log: bool
) -> None:
    end(run(command, _reporter(key, title, expectations), send_log=send_log))


def _reporter(key: str | None, title: str | None, expectations: Mapping[str, Any]) -> Reporter | None:
    """Who reports; None where nothing can be reported, and then it is said why."""
    try:
        portal = load_group(Portal)
    except SettingsError as error:
        say(f"nothing is reported: {error}")
        return None
    named = {name: value for name, value in (("job_key", key), ("job_title", title)) if value}
    if key and not title and portal.job_key != key:
        named["job_title"] = key  # the title is another job's
    found = reporter(portal.model_copy(update=named), _read(expectations))
    if isinstance(found, Reporter):
        return found
    say(f"nothing is reported: {found}")
    return None


def _read(expectations: Mapping[str, Any]) -> dict[str, Any]:
    """The spans in seconds; one that can't be read is left out, because the command matters more."""
    read = dict(expectations)
    for name in ("expect_every", "grace"):
        try:
            read[name] = seconds(read[name], name) if read[name] is not None else None
        except Refused as error:
            say(f"{error}, not {read.pop(name)}")
    return read
