"""What can be wrong with the settings, told all at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the settings; `code` never changes its meaning."""

    code: str
    setting: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"[{self.code}] {self.setting}: {self.message}\n        → {self.remedy}"


class SettingsError(Exception):
    """The settings can't be used; the message lists every problem."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"The settings have {count}:", *(f"  {p}" for p in problems)]))
