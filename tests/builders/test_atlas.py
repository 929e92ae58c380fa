"""Published decoders, MTP modules included, build with exactly the counted parameters."""

import pytest

from archfront.builders.body import Unbuilt
from archfront.builders.model import build
from archfront.search_space import published
from archfront.search_space.accounting import parameters

ENTRIES = {name: published.entry(name).architecture for name in published.names()}
ENCODER_DECODERS = {name for name, a in ENTRIES.items() if a.encoder}


@pytest.mark.parametrize("name", sorted(ENTRIES.keys() - ENCODER_DECODERS))
def test_a_published_decoder_has_the_counted_parameters(name: str) -> None:
    model = build(ENTRIES[name], device="meta")
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == parameters(ENTRIES[name], mtp=True).total


@pytest.mark.parametrize("name", sorted(ENCODER_DECODERS))
def test_building_an_encoder_decoder_raises_unbuilt(name: str) -> None:
    with pytest.raises(Unbuilt, match="counted, not built"):
        build(ENTRIES[name], device="meta")
