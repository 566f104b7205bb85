"""Every setting: its environment variable, type, unit and default.

Values come from the environment, then `.env`, then `.toban/env` (written by `toban up` while the embedded stack runs).
`TOBAN_ENV_FILE` names one other file instead of those two. `load()` reads them and refuses to go on with a bad one:
one `SettingsError` lists every problem, each with a stable code and a remedy. A secret is a `SecretStr`: no `repr`, log
or message shows it.
"""

from app.settings.database import Database, key_role
from app.settings.flower import Flower
from app.settings.gpt import Gpt
from app.settings.group import Group, variable
from app.settings.groups import GROUPS, Audio, Broker, Ledger, Log, Settings, Whisper
from app.settings.loading import env_files, load, load_group, read
from app.settings.monitor import Alerts, Monitor, Portal
from app.settings.problems import Problem, SettingsError
from app.settings.traces import Traces
from app.settings.web import Web

__all__ = [
    "GROUPS",
    "Alerts",
    "Audio",
    "Broker",
    "Database",
    "Flower",
    "Gpt",
    "Group",
    "Ledger",
    "Log",
    "Monitor",
    "Portal",
    "Problem",
    "Settings",
    "SettingsError",
    "Traces",
    "Web",
    "Whisper",
    "env_files",
    "key_role",
    "load",
    "load_group",
    "read",
    "variable",
]
