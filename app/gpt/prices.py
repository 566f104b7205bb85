"""What calls cost: USD per million tokens, as the settings and OpenAI's price list have it."""

import re
from collections.abc import Mapping
from decimal import Decimal

from pydantic import BaseModel, Field

MILLION = Decimal(1_000_000)
BATCH = Decimal("0.5")  # of the price, for what goes through the batch lane
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")


class Price(BaseModel):
    """USD per million tokens. `cached`: prompt tokens the server had from before; default: the same as `input`."""

    model_config = {"frozen": True, "extra": "forbid"}

    input: Decimal = Field(ge=0)
    cached: Decimal | None = Field(None, ge=0)
    output: Decimal = Field(ge=0)


def _price(input_: str, cached: str, output: str) -> Price:
    return Price(input=Decimal(input_), cached=Decimal(cached), output=Decimal(output))


# Source: OpenAI's API price list, standard tier. Another tier, or a changed price, goes into LLM_PRICES.
PRICES: Mapping[str, Price] = {
    "gpt-4.1": _price("2.00", "0.50", "8.00"),
    "gpt-4.1-mini": _price("0.40", "0.10", "1.60"),
    "gpt-4.1-nano": _price("0.10", "0.025", "0.40"),
    "gpt-4o": _price("2.50", "1.25", "10.00"),
    "gpt-4o-mini": _price("0.15", "0.075", "0.60"),
    "gpt-5": _price("1.25", "0.125", "10.00"),
    "gpt-5-mini": _price("0.25", "0.025", "2.00"),
    "gpt-5-nano": _price("0.05", "0.005", "0.40"),
    "o4-mini": _price("1.10", "0.275", "4.40"),
}


def price_of(model: str, own: Mapping[str, Price]) -> Price | None:
    """The price of a model, by its own name or by that without its date (gpt-4o-2024-08-06); None: not known."""
    base = _DATED.sub("", model)
    return own.get(model) or own.get(base) or PRICES.get(base)


def cost(
    model: str, prompt: int, cached: int, completion: int, own: Mapping[str, Price], *, batch: bool = False
) -> Decimal | None:
    """USD for so many tokens; `cached` are a part of `prompt`. None: the model's price is not known."""
    price = price_of(model, own)
    if price is None:
        return None
    known = min(cached, prompt)
    for_known = price.input if price.cached is None else price.cached
    spent = (prompt - known) * price.input + known * for_known + completion * price.output
    return spent / MILLION * (BATCH if batch else 1)
