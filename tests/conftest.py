"""Small architectures and spaces for all tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archfront.search_space.architecture import Architecture

ROOT = Path(__file__).parents[1]
BLOCKS: dict[str, dict[str, Any]] = {
    "*": {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 16},
    "W": {"kind": "attn", "heads": 4, "kv_heads": 1, "head_dim": 16, "window": 8},
    "L": {
        "kind": "mla",
        "heads": 2,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
    },
    "M": {"kind": "mamba2", "heads": 4, "head_dim": 16, "d_state": 16},
    "G": {"kind": "gdn", "k_heads": 2, "v_heads": 4, "k_head_dim": 16, "v_head_dim": 16},
    "-": {"kind": "ffn", "width": 96},
    "E": {"kind": "moe", "n_experts": 4, "top_k": 2, "d_expert": 32, "n_shared": 1},
}


@pytest.fixture
def architecture() -> Callable[..., Architecture]:
    """A model of width 64 on 256 tokens by its pattern; keywords change fields or blocks."""

    def make(pattern: str, **fields: Any) -> Architecture:
        blocks = BLOCKS | fields.pop("blocks", {})
        used = {symbol: block for symbol, block in blocks.items() if symbol in pattern}
        plain = {"d_model": 64, "vocab_size": 256, "pattern": pattern, "blocks": used, **fields}
        return Architecture.model_validate(plain)

    return make


@pytest.fixture
def tiny_space() -> str:
    """The text of the space that ships for the demo."""
    return (ROOT / "examples" / "tiny.yaml").read_text()


@pytest.fixture(scope="session")
def small_space() -> str:
    """A space of eight candidates whose proxy models train in a moment."""
    return """\
name: small
architecture:
  d_model: 256
  vocab_size: 1024
  layout: {layers: 2, ratio: 1, attention: "*", feedforward: "-"}
  blocks:
    "*": {kind: attn, heads: 8, kv_heads: {choices: [1, 2, 4, 8]}, head_dim: 32}
    "-": {kind: ffn, width: free}
  precision: {fp8: {choices: [[], [ffn.up, ffn.down]]}}
budget: {quantity: active_params, value: 3.0e6}
objectives: [bits_per_byte, recall, decode_ms]
profile:
  proxy: {d_model: 32, layers: 2}
  text: {context: 32, batch: 2, steps: 4}
  recall: {pairs: 2, vocabulary: 16, context: 12, batch: 2, steps: 4}
"""
