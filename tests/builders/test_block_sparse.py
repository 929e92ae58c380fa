"""Block-sparse attention runs in the kernels and equals attention under the mask of its blocks."""

from typing import Any

import pytest
import torch
from block_cases import CASES, architecture, model, text

from archfront.builders.body import Pass, document_positions
from archfront.builders.caches import KeyValues
from archfront.builders.mixers import block_sparse
from archfront.builders.mixers.attention import Attention
from archfront.builders.mixers.block_sparse import BlockIndex, block_sparse_attention
from archfront.builders.mixers.masked_attention import (
    causal_mask,
    masked_attention,
    within_segment,
)
from archfront.builders.model import HybridLM, build

KINDS = ["block-sparse", "block-sparse with an index branch"]
LENGTHS = (41, 1, 64, 44)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the attention operators that block-sparse attention has called."""
    found: list[str] = []
    for name in ("attend_blocks", "attend_cached"):
        operator = getattr(block_sparse.attention, name)

        def recorded(*args: Any, _name: str = name, _operator: Any = operator, **kw: Any) -> Any:
            found.append(_name)
            return _operator(*args, **kw)

        monkeypatch.setattr(block_sparse.attention, name, recorded)
    return found


def index_of(of: HybridLM) -> BlockIndex:
    body = of.blocks[0].body
    assert isinstance(body, Attention)
    assert body.index is not None
    return body.index


@pytest.mark.parametrize("name", KINDS)
def test_whole_texts_run_in_the_block_kernel(name: str, calls: list[str]) -> None:
    of = model(name)
    of.loss(text())
    of.prefill(text())
    assert calls == ["attend_blocks", "attend_blocks"]


@pytest.mark.parametrize("name", KINDS)
def test_a_decoded_token_runs_in_the_cached_kernel(name: str, calls: list[str]) -> None:
    of = model(name)
    _, caches = of.prefill(text())
    of.step(text()[:, 0], caches)
    assert calls == ["attend_blocks", "attend_cached"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_it_equals_attention_under_the_mask_of_its_blocks(name: str, packed: bool) -> None:
    of, generator = model(name), torch.Generator().manual_seed(0)
    index, T = index_of(of), sum(LENGTHS)
    q, k, v = (torch.randn(2, T, h, 8, generator=generator, dtype=torch.float64) for h in (4, 2, 2))
    ids = torch.repeat_interleave(torch.arange(4, dtype=torch.int32), torch.tensor(LENGTHS))
    ids_BT = ids.expand(2, -1) if packed else torch.zeros(2, T, dtype=torch.int32)
    run = Pass(positions_BT=document_positions(ids_BT), segment_ids_BT=ids_BT if packed else None)
    x = torch.randn(2, T, 32, generator=generator, dtype=torch.float64)
    keys = KeyValues(None, run.positions_BT, None, {"k": k, "v": v} | index.keys(x, run))
    q_index = index.queries(x, q, run)
    if packed:  # the mask counts the blocks of one document, so the documents are masked apart
        positions = run.positions_BT
        spans = torch.tensor(LENGTHS).cumsum(0).tolist()
        found, _ = block_sparse_attention(index, q_index, q, keys, run, 0.3)
        for start, stop in zip([0, *spans], spans, strict=False):
            part = Pass(positions_BT=positions[:, start:stop])
            alone = {n: keys[n][:, start:stop] for n in keys._named}
            of_part = KeyValues(None, part.positions_BT, None, alone)
            expected = _masked(index, q_index[:, start:stop], q[:, start:stop], of_part, part)
            torch.testing.assert_close(found[:, start:stop], expected)
        return
    found, _ = block_sparse_attention(index, q_index, q, keys, run, 0.3)
    torch.testing.assert_close(found, _masked(index, q_index, q, keys, run))


def _masked(
    index: BlockIndex, q_index: torch.Tensor, q: torch.Tensor, keys: KeyValues, run: Pass
) -> torch.Tensor:
    visible = within_segment(run, causal_mask(run.positions_BT, keys.positions_BC))
    chosen = index.mask(q_index, index.scored(keys), keys.positions_BC, visible, run)
    mask = visible[:, None] & chosen
    mask = mask.repeat_interleave(q.shape[2] // mask.shape[1], 1)
    return masked_attention(q, keys["k"], keys["v"], lambda t: mask[:, :, t], scale=0.3)[0]


@pytest.mark.parametrize("name", KINDS)
def test_a_soft_cap_gives_the_same_tokens_in_decoding(name: str) -> None:
    symbol = {"S": CASES[name][1]["S"] | {"logit_softcap": 2.0}}
    of = build(architecture(name, blocks=symbol), dtype=torch.float64).eval()
    expected = of(text())
    _, caches = of.prefill(text()[:, :100])
    logits, _ = of.step(text()[:, 100], caches)
    torch.testing.assert_close(logits, expected[:, 100])
