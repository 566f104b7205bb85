"""What calls cost."""

from decimal import Decimal

import pytest

from app.gpt.prices import PRICES, Price, cost, price_of

OWN = {"llama": Price(input=Decimal(1), output=Decimal(2)), "gpt-4o": Price(input=Decimal(9), output=Decimal(9))}


def test_a_call() -> None:
    assert cost("gpt-4.1-mini", 1_000_000, 0, 0, {}) == Decimal("0.40")
    # 600 new tokens, 400 known ones, 200 of the answer.
    assert cost("gpt-4.1-mini", 1000, 400, 200, {}) == Decimal("0.00060")


def test_a_batch_costs_half() -> None:
    assert cost("gpt-4.1-mini", 1000, 400, 200, {}, batch=True) == Decimal("0.00030")


@pytest.mark.parametrize("name", ["gpt-4.1-mini-2025-04-14", "gpt-4.1-mini"])
def test_a_dated_name_has_the_price_of_its_model(name: str) -> None:
    assert price_of(name, {}) == PRICES["gpt-4.1-mini"]


def test_own_prices_come_first() -> None:
    assert cost("gpt-4o-2024-08-06", 1_000_000, 0, 0, OWN) == 9
    dated = {**OWN, "gpt-4o-2024-08-06": Price(input=Decimal(5), output=Decimal(5))}
    assert cost("gpt-4o-2024-08-06", 1_000_000, 0, 0, dated) == 5
    assert cost("llama", 1_000_000, 1_000_000, 0, OWN) == 1, "without a price of their own, known tokens cost the same"


def test_an_unknown_model_has_no_price() -> None:
    assert cost("mystery", 1, 0, 1, OWN) is None


@pytest.mark.parametrize("model", PRICES)
def test_the_built_in_prices_are_plausible(model: str) -> None:
    price = PRICES[model]
    assert price.cached is not None
    assert 0 < price.cached < price.input < price.output


def test_more_known_tokens_than_there_are_cost_nothing_less() -> None:
    assert cost("gpt-4.1", 10, 99, 0, {}) == cost("gpt-4.1", 10, 10, 0, {})
