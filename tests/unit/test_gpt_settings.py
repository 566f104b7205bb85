"""The settings of the analysis."""

import os
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from app.gpt.prices import Price
from app.settings import Gpt, SettingsError, load_group, variable


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for field in Gpt.model_fields:
        monkeypatch.delenv(variable(Gpt, field), raising=False)
    monkeypatch.setenv("TOBAN_ENV_FILE", os.devnull)
    return monkeypatch


def loaded(env: pytest.MonkeyPatch, **values: str) -> Gpt:
    for name, value in values.items():
        env.setenv(name, value)
    return load_group(Gpt)


def test_the_defaults(env: pytest.MonkeyPatch) -> None:
    own = loaded(env)
    assert own.offline
    assert own.openai_model == "gpt-4.1-mini"
    assert own.analysis_timeout == timedelta(seconds=60)
    assert own.base_url == "https://api.openai.com/v1"
    assert (own.analysis_deadline, own.llm_budget_daily, own.llm_prices) == (None, None, {})


@pytest.mark.parametrize("values", [{"OPENAI_API_KEY": "sk-x"}, {"OPENAI_BASE_URL": "http://localhost:11434/v1"}])
def test_either_ends_the_offline_analyser(env: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    assert not loaded(env, **values).offline


def test_prices_and_budgets(env: pytest.MonkeyPatch) -> None:
    own = loaded(
        env,
        OPENAI_BASE_URL="https://api.groq.com/openai/v1",
        OPENAI_MODEL="llama",
        LLM_PRICES='{"llama": {"input": 0.59, "output": 0.79}}',
        LLM_BUDGET_DAILY="2.50",
        ANALYSIS_DEADLINE="3600",
    )
    assert own.llm_prices == {"llama": Price(input=Decimal("0.59"), output=Decimal("0.79"))}
    assert own.llm_budget_daily == Decimal("2.50")
    assert own.analysis_deadline == timedelta(hours=1)


@pytest.mark.parametrize(
    ("values", "code", "setting"),
    [
        ({"OPENAI_BASE_URL": "api.groq.com/openai/v1"}, "E013", "OPENAI_BASE_URL"),
        ({"OPENAI_BASE_URL": "ftp://hunter2"}, "E013", "OPENAI_BASE_URL"),
        ({"OPENAI_BASE_URL": "https://me:hunter2@host/v1"}, "E013", "OPENAI_BASE_URL"),
        ({"OPENAI_BASE_URL": "https://host:hunter2/v1"}, "E013", "OPENAI_BASE_URL"),
        ({"OPENAI_API_KEY": "k", "OPENAI_MODEL": "llama", "LLM_BUDGET_DAILY": "1"}, "E014", "LLM_BUDGET_DAILY"),
        ({"OPENAI_API_KEY": "k", "OPENAI_MODEL": "llama", "LLM_BUDGET_MONTHLY": "1"}, "E014", "LLM_BUDGET_MONTHLY"),
        ({"ANALYSIS_PROMPT_TEMPLATE": "/nowhere/at/all"}, "E015", "ANALYSIS_PROMPT_TEMPLATE"),
        ({"LLM_LIMITER_URL": "http://hunter2"}, "E016", "LLM_LIMITER_URL"),
        ({"LLM_LIMITER_URL": "redis://:pass/hunter2@host"}, "E016", "LLM_LIMITER_URL"),
        ({"LLM_BUDGET_DAILY": "0"}, "E001", "LLM_BUDGET_DAILY"),
        ({"LLM_BUDGET_DAILY": "NaN"}, "E001", "LLM_BUDGET_DAILY"),
        ({"LLM_CONCURRENCY": "257"}, "E001", "LLM_CONCURRENCY"),
        ({"LLM_PRICES": "gpt=1"}, "E001", "LLM_PRICES"),
        ({"LLM_PRICES": "[1]"}, "E001", "LLM_PRICES"),
        ({"LLM_PRICES": '{"m": {"input": -1, "output": 1}}'}, "E001", "LLM_PRICES"),
        ({"LLM_PRICES": '{"m": {"in": 1, "out": 1}}'}, "E001", "LLM_PRICES"),
        ({"ANALYSIS_TIMEOUT": "0"}, "E001", "ANALYSIS_TIMEOUT"),
    ],
)
def test_problems(env: pytest.MonkeyPatch, values: dict[str, str], code: str, setting: str) -> None:
    with pytest.raises(SettingsError) as told:
        loaded(env, **values)
    assert {(problem.code, problem.setting) for problem in told.value.problems} == {(code, setting)}
    assert "hunter2" not in str(told.value)


def test_what_is_no_problem(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    template = tmp_path / "prompt.j2"
    template.write_text("{{ transcript }}", encoding="utf-8")
    loaded(
        env,
        OPENAI_MODEL="unknown",  # nobody is asked, so nothing costs
        LLM_BUDGET_DAILY="1",
        ANALYSIS_PROMPT_TEMPLATE=str(template),
        LLM_LIMITER_URL="redis+socket:///run/redis.sock?virtual_host=2",
    )
    loaded(env, OPENAI_BASE_URL="https://api.groq.com/openai/v1", OPENAI_MODEL="gpt-4o", ANALYSIS_DEADLINE="60")


def test_keys_are_not_shown(env: pytest.MonkeyPatch) -> None:
    own = loaded(env, OPENAI_API_KEY="sk-hunter2", LLM_LIMITER_URL="redis://:hunter2@h")
    assert "hunter2" not in repr(own) + str(own.model_dump())
