"""What only a folder can do wrong."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from app.audio.folder import FolderStore
from app.errors import NothingThere, Permanent, Transient


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/a/b.wav").write_bytes(b"sound")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> FolderStore:
    return FolderStore(root, max_bytes=100)


def test_a_link_that_leaves_the_folder_is_refused(root: Path, store: FolderStore, tmp_path: Path) -> None:
    (root / "out.wav").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    for key in ("out.wav", "up/secret"):
        with pytest.raises(Permanent, match="leaves the audio folder through a link"):
            store.fetch(key, tmp_path / "audio")
        assert store.present([key]) == {key}
    assert not (tmp_path / "audio").exists()


def test_a_link_within_the_folder_is_fine(root: Path, store: FolderStore, tmp_path: Path) -> None:
    (root / "in.wav").symlink_to(root / "a/b.wav")
    store.fetch("in.wav", tmp_path / "audio")
    assert (tmp_path / "audio").read_bytes() == b"sound"
    (tmp_path / "linked").symlink_to(root)  # the folder itself may be a link
    FolderStore(tmp_path / "linked", max_bytes=100).fetch("a/b.wav", tmp_path / "audio")


def test_a_neighbour_with_the_same_beginning_is_outside(root: Path, store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2/x.wav").write_bytes(b"x")
    (root / "x.wav").symlink_to(tmp_path / "root-2/x.wav")
    with pytest.raises(Permanent, match="leaves"):
        store.fetch("x.wav", tmp_path / "audio")


def test_only_files_are_read(root: Path, store: FolderStore, tmp_path: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    for key in ("a", "pipe"):
        with pytest.raises(Permanent, match="is not a file"):
            store.fetch(key, tmp_path / "audio")
    with pytest.raises(Permanent, match="can't be opened"):
        store.fetch("loop", tmp_path / "audio")
    with pytest.raises(Permanent, match="can't be opened"):
        store.fetch("x" * 300, tmp_path / "audio")
    with pytest.raises(NothingThere):
        store.fetch("a/b.wav/c", tmp_path / "audio")


def test_a_deleted_link_goes_itself_and_nothing_outside(root: Path, store: FolderStore, tmp_path: Path) -> None:
    (root / "in.wav").symlink_to(root / "a/b.wav")
    (root / "out.wav").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    assert store.delete(["in.wav", "out.wav", "up/secret", "a", "../secret", "a/none.wav"]).count == 1
    assert not (root / "in.wav").is_symlink()
    assert (root / "a/b.wav").exists()
    assert (tmp_path / "secret").exists()
    assert store.delete(["a/b.wav"]).count == 1
    assert not (root / "a").exists()
    assert root.exists()


def test_no_handle_stays_open(root: Path, store: FolderStore, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for key in ("a", "missing", "a/b.wav", "../secret"):
        with suppress(Permanent, NothingThere):
            store.fetch(key, tmp_path / "audio")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_folder_that_is_gone_hides_no_recordings(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "unmounted", max_bytes=100)
    with pytest.raises(Transient, match="AUDIO_FOLDER"):
        store.fetch("a/b.wav", tmp_path / "audio")
    with pytest.raises(Transient, match="AUDIO_FOLDER"):
        store.present(["a/b.wav"])


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [(PermissionError(13, "denied"), Permanent, "not permitted"), (OSError(5, "I/O error"), Transient, "I/O error")],
)
def test_the_system_says_no(
    store: FolderStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    kind: type[Exception],
    words: str,
) -> None:
    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setattr("app.audio.folder.os.open", refuse)
    with pytest.raises(kind, match=words):
        store.fetch("a/b.wav", tmp_path / "audio")


def test_a_file_that_grows_while_it_is_read(store: FolderStore, tmp_path: Path) -> None:
    with (tmp_path / "source").open("wb+") as source, (tmp_path / "target").open("wb") as target:
        source.write(b"x" * 101)
        source.seek(0)
        with pytest.raises(Permanent, match="over the limit"):
            store._copy("a", source, target)
