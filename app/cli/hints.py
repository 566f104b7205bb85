"""Commands in what people read, as they work from where the people are."""

import re
import shutil
import sys
from pathlib import Path

# In backticks, perhaps with a variable that is set for it.
_COMMAND = re.compile(r"(`(?:[A-Z_]+=\S+ )?)(toban|celery)(?=[ `])")


def here(hint: str) -> str:
    """`hint`, with the folder of each command that is not found by its name, as after `make`."""
    return _COMMAND.sub(lambda match: f"{match[1]}{_path(match[2])}", hint)


def _path(program: str) -> str:
    own = Path(sys.executable).parent / program
    found = shutil.which(program)
    if not own.exists() or (found and Path(found).resolve() == own.resolve()):
        return program
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)
