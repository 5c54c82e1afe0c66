"""How the card is made: what is taken over from the source, and what is left out."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

pytest.importorskip("genai_prices", reason="the `dev` extra")

from genai_prices.data import providers

from clawproxy.rates.card import Model
from clawproxy.rates.generate import LeftOut, in_force, micros, models, units_of, whole
from clawproxy.rates.hosts import VENDORS

DAY = date(2026, 11, 22)
SOURCE = {provider.id: provider for provider in providers}


@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_the_sources_own_look_up_agrees_on_every_name(vendor: str) -> None:
    """Each name that the card has leads, in the source, to a model with the same prices."""
    made: list[Model] = list(models(SOURCE[vendor], DAY))
    assert made
    for model in made:
        for name in (model.id, *model.names):
            theirs = SOURCE[vendor].find_model(name)
            assert theirs is not None
            base, _ = in_force(theirs, DAY)
            assert whole(base, theirs.id)["input"] == model.prices[0].input


def test_what_can_not_be_stated_is_left_out() -> None:
    assert micros(Decimal("0.15")) == 150_000
    for figure in ("0.0416666666666667", "-1"):
        with pytest.raises(LeftOut):
            micros(Decimal(figure))
    one = Decimal(1)
    for units in (
        {"input_mtok": one},
        {"input_mtok": Decimal(0), "output_mtok": Decimal(0)},
        {"input_mtok": one, "output_mtok": one, "input_video_mtok": one},
        {"input_mtok": one, "output_mtok": one, "requests_kcount": one},
    ):
        with pytest.raises(LeftOut):
            whole(units, "model")
    with pytest.raises(LeftOut, match="hears"):
        whole({"input_mtok": one, "output_mtok": one}, "model-audio")
    assert whole({"input_mtok": one}, "text-embedding-x")["output"] == 0
    [deepseek] = [model for model in SOURCE["deepseek"].models if model.id == "deepseek-chat"]
    with pytest.raises(LeftOut, match="hour"):
        in_force(deepseek, DAY)


def test_a_service_tiers_prices_are_whole() -> None:
    """What the source leaves as it is (a batch's cached input) is written out."""
    [mini] = [model for model in SOURCE["openai"].models if model.id == "gpt-4o-mini"]
    base, service = in_force(mini, DAY)
    assert base["cache_read_mtok"] == service["batch"]["cache_read_mtok"]
    assert service["batch"]["input_mtok"] * 2 == base["input_mtok"]
    assert "default" not in service
    assert units_of(mini.prices) == base
