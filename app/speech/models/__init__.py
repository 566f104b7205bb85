"""The models of the speech engines at rest: found, downloaded, checked and removed.

Importing this package loads no speech library and not the hub's client either: they cost seconds, and may not be
touched before a fork. `Models.find` needs neither the libraries nor the network.

    <models_folder>/
      faster-whisper/<owner>--<repository>/     a CTranslate2 folder, with toban.json: what it has to hold
      openai-whisper/<name>.pt
      .unfinished/<user id>/                    what is being downloaded; one rename makes it a model
      .locks/                                   one file for each model
"""

from app.speech.models.model import Model, Origin, Progress
from app.speech.models.models import Models

__all__ = ["Model", "Models", "Origin", "Progress"]
