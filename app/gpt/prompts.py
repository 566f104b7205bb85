"""From what was heard in a time block to the prompt that asks about it: the job `timeblock-prompt`."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

from app.errors import Permanent
from app.services import Services

BUILT_IN = "timeblock.j2"
BLOCK = timedelta(minutes=30)
# Prompts are written so many in one call; of one run at most so many calls, the rest waits for the next.
_BATCH = 100
_BATCHES = 50


@dataclass
class Written:
    """What a run came to. `refused`: blocks that the table `dashboard` can't hold; `reason`: the last one's."""

    found: int = 0
    written: int = 0
    refused: int = 0
    reason: str | None = None

    def __str__(self) -> str:
        told = f"{self.written} prompts written"
        return f"{told}, {self.refused} refused: {self.reason}" if self.refused else told


class Prompt:
    """The template of a prompt: the built-in one, or the file `path`.

    It is a sandbox: a template reaches nothing but what it is given. Raises `Permanent`, naming file and line, when it
    can't be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._name = str(path or BUILT_IN)
        try:
            text = path.read_text("utf-8") if path else (resources.files("app.gpt") / BUILT_IN).read_text("utf-8")
            # What is written is text for a model: HTML's escapes would be part of it.
            environment = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)
            self._template = environment.from_string(text)
        except (OSError, UnicodeDecodeError) as error:
            raise Permanent(f"the prompt template {self._name} can't be read: {error}") from error
        except TemplateSyntaxError as error:
            raise Permanent(f"the prompt template {self._name}, line {error.lineno}: {error.message}") from error

    def text(self, block: dict[str, Any]) -> str:
        """The prompt of one block: `device_id`, `date` (YYYY-MM-DD), `time_block` (HH-MM), `transcription`.

        The template has these, and `start` and `end` (HH:MM) besides.
        """
        start = datetime.strptime(block["time_block"], "%H-%M")  # noqa: DTZ007 - a clock's face
        times = {"start": f"{start:%H:%M}", "end": f"{start + BLOCK:%H:%M}"}
        try:
            return self._template.render(**block, **times).strip()
        except (TemplateError, ArithmeticError, TypeError, ValueError) as error:
            # Not the error's own words: they may be those of a recording.
            told = error.message if isinstance(error, TemplateError) else type(error).__name__
            raise Permanent(f"the prompt template {self._name} fails: {told}") from None


def write_prompts(services: Services, job: str) -> Written:
    """Write a prompt into `dashboard` for each block that lacks one and whose recordings have all been heard.

    `job`: whose filters hold. Raises `Permanent` for a template that can't be used.
    """
    prompt = Prompt(services.settings.gpt.analysis_prompt_template)
    done = Written()
    zone = services.settings.audio.device_timezone
    for _ in range(_BATCHES):
        blocks = services.database.call("toban_unprompted_blocks", job=job, zone=zone, limit=_BATCH)["blocks"]
        if not blocks:
            break
        rows = [
            {
                **{name: block[name] for name in ("device_id", "date", "time_block", "heard_at")},
                "prompt": prompt.text({name: value for name, value in block.items() if name != "heard_at"}),
            }
            for block in blocks
        ]
        answer = services.database.call("toban_write_prompts", blocks=rows)
        done.found += len(blocks)
        done.written += answer["written"]
        for refused in answer["refused"]:
            done.refused += 1
            done.reason = f"{refused['device_id']}/{refused['date']}/{refused['time_block']}: {refused['error']}"
        if len(blocks) < _BATCH:
            break
    return done
