"""Tables of the commands: readable on every terminal."""

import pytest
from rich.cells import cell_len

from app.cli.console import Grid
from tests.support.screen import printed

KEY = "9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93/2025-07-18T05:30:00Z"
OTHER = "d067d407-cf73-4174-a9c1-d91fb60d64d0/2025-07-18T05:30:00Z"
PATH = "files/9f7d6e27-98c3-4c19-bdfb-f7fda58b9a93/2025-07-18/12-30/audio.wav"


def shown(grid: Grid, width: int) -> list[str]:
    return [line.rstrip() for line in printed(grid, width).splitlines()]


def failed(reason: str = f"{PATH} can't be read: 音声が壊れています") -> Grid:
    grid = Grid("source", "key", "tries so far", "reason", title="Failed", keys=2, texts={"reason"})
    grid.add_row("transcription", KEY, "[red]5[/]", reason)
    grid.add_row("transcription", OTHER, "1", "")
    return grid


def sums() -> Grid:
    grid = Grid("source", "pending", "processing", "no result there", "mode", right={"pending"}, turns=True)
    grid.add_row("transcription", "12", "1", "0", "")
    grid.add_row("analysis", "3", "2", "45", "shadow")
    return grid


@pytest.mark.parametrize("width", [75, 80, 100, 120, 160, 250])
def test_no_word_is_cut_and_no_line_is_too_long(width: int) -> None:
    lines = shown(failed(), width)
    assert all(cell_len(line) <= width for line in lines)
    words = {word for line in lines for word in line.split()}
    assert {"transcription", KEY, "5", PATH, "can't", "be", "read:"} <= words


def test_with_room_each_row_is_one_line_of_a_table() -> None:
    title, head, first, second = shown(failed("it is broken"), 120)
    assert title == "Failed"
    assert head.split() == ["source", "key", "tries", "so", "far", "reason"]
    assert first == f"transcription  {KEY}  5             it is broken"
    assert second == f"transcription  {OTHER}  1"


def test_a_head_goes_on_before_a_row_does() -> None:
    assert shown(failed("it is broken"), 95)[1].strip() == "tries"
    assert shown(failed("it is broken"), 95)[3].split() == ["source", "key", "far", "reason"]


def test_a_sentence_goes_on_in_further_lines() -> None:
    *_, first, second, _ = shown(failed("it is broken " * 3), 112)
    assert first.endswith("  it is broken it is")
    assert second.strip() == "broken it is broken"


def test_without_room_each_row_begins_with_its_keys() -> None:
    assert shown(failed("it is broken"), 80) == [
        "Failed",
        f"transcription  {KEY}",
        "  tries so far 5",
        "  it is broken",
        f"transcription  {OTHER}",
        "  tries so far 1",
    ]


def test_what_has_few_rows_is_turned_round() -> None:
    assert [line.split() for line in shown(sums(), 60)] == [
        ["source", "pending", "processing", "no", "result", "there", "mode"],
        ["transcription", "12", "1", "0"],
        ["analysis", "3", "2", "45", "shadow"],
    ]
    assert [line.split() for line in shown(sums(), 45)] == [
        ["source", "transcription", "analysis"],
        ["pending", "12", "3"],
        ["processing", "1", "2"],
        ["no", "result", "there", "0", "45"],
        ["mode", "shadow"],
    ]


def test_without_rows_there_is_the_head() -> None:
    assert shown(Grid("source", "key"), 80) == ["source  key"]
