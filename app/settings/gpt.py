"""Who judges the prompts of the gpt queue, at what pace and at what cost: the group `Gpt`."""

import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from app.gpt.prices import Price, price_of
from app.settings.group import Group, Seconds, scheme
from app.settings.problems import Problem

OPENAI = "https://api.openai.com/v1"
REDIS = ("redis", "rediss", "redis+socket")


def _object(value: object) -> object:
    """Text of the environment as JSON, here and not in pydantic-settings, whose error would tell no variable."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_float=Decimal)
    except ValueError:
        raise ValueError("is no JSON object") from None


Prices = Annotated[dict[str, Price], NoDecode, BeforeValidator(_object)]
Dollars = Annotated[Decimal, Field(gt=0)]


class Gpt(Group):
    """Who judges the prompts: OpenAI, a server that speaks its protocol, or without either the offline analyser."""

    openai_api_key: SecretStr | None = Field(
        None,
        description="key of OpenAI or of the server at OPENAI_BASE_URL; without both, an offline analyser answers",
    )
    openai_base_url: str | None = Field(
        None,
        description="a server that speaks OpenAI's protocol (Groq, vLLM, Ollama …), such as http://localhost:11434/v1",
    )
    openai_model: str = Field("gpt-4.1-mini", min_length=1, description="the model that is asked")
    analysis_timeout: Seconds = Field(
        timedelta(seconds=60),
        description="total time that one call may take, seconds; the job's own timeout wins",
    )
    analysis_prompt_template: Path | None = Field(
        None,
        description="a Jinja2 file that replaces the built-in prompt of a time block",
    )
    analysis_deadline: Seconds | None = Field(
        None,
        description="rows may wait this long, seconds, and go through the half-price batch lane; default: they don't",
    )
    llm_requests_per_minute: int | None = Field(
        None,
        ge=1,
        description="most calls a minute of all workers together; default: what OpenAI says, none for others",
    )
    llm_tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="most tokens a minute of all workers together; default: what OpenAI says, none for others",
    )
    llm_limiter_url: SecretStr | None = Field(
        None,
        description="the Redis that the workers share their pace in; default: the broker or the result backend, where "
        "that is one",
    )
    llm_concurrency: int = Field(16, ge=1, le=256, description="calls that one gpt worker makes at once")
    llm_budget_daily: Dollars | None = Field(
        None,
        description="USD; once a day has cost this much, nothing is sent until the next",
    )
    llm_budget_monthly: Dollars | None = Field(
        None,
        description="USD; once a month has cost this much, nothing is sent until the next",
    )
    llm_prices: Prices = Field(
        {},
        description="USD per million tokens, beside and over the built-in ones: "
        '{"model": {"input": 0.4, "cached": 0.1, "output": 1.6}}',
    )

    @property
    def offline(self) -> bool:
        """Whether the offline analyser answers: nobody else is named."""
        return self.openai_api_key is None and self.openai_base_url is None

    @property
    def base_url(self) -> str:
        return self.openai_base_url or OPENAI

    def problems(self) -> Iterator[Problem]:
        if self.openai_base_url is not None and (wrong := _wrong_address(self.openai_base_url)):
            yield Problem(
                "E013", "OPENAI_BASE_URL", wrong, "write it as https://host/v1, and the key into OPENAI_API_KEY"
            )
        if self.llm_limiter_url is not None and not _is_redis(self.llm_limiter_url.get_secret_value()):
            yield Problem(
                "E016",
                "LLM_LIMITER_URL",
                "is not the address of a Redis",
                "write it as redis://:password@host:6379/0, the password's special characters percent-encoded",
            )
        has_budget = self.llm_budget_daily is not None or self.llm_budget_monthly is not None
        if has_budget and not self.offline and price_of(self.openai_model, self.llm_prices) is None:
            yield Problem(
                "E014",
                "LLM_BUDGET_MONTHLY" if self.llm_budget_daily is None else "LLM_BUDGET_DAILY",
                f"can't be kept: what {self.openai_model} costs is not known",
                'set LLM_PRICES to {"' + self.openai_model + '": {"input": …, "output": …}}, USD per million tokens',
            )
        if self.analysis_prompt_template is not None and not self.analysis_prompt_template.is_file():
            yield Problem(
                "E015",
                "ANALYSIS_PROMPT_TEMPLATE",
                f"{self.analysis_prompt_template} is not a file",
                "create it, or correct the path",
            )


def _wrong_address(url: str) -> str | None:
    """What is wrong with a server's address, without its words, which may hold a key."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "can't be read as an address"
    if scheme(url) not in {"http", "https"} or not parts.hostname:
        return "is not an http(s) address"
    if "@" in parts.netloc:
        return "holds a login"
    return None


def _is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return scheme(url) in REDIS and "@" not in parts.path + parts.query + parts.fragment
