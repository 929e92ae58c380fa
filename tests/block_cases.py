"""Small models of one or two sub-blocks, covering every kind of block and every code path.

A case is (pattern, blocks, further fields of the architecture).
"""

from typing import Any

import torch

from archfront.builders.model import HybridLM, build
from archfront.search_space.architecture import Architecture

D_MODEL, VOCAB = 32, 48
TOKENS = 150  # > 2 blocks of a window, > 2 chunks of a recurrence, divisible by neither

Plain = dict[str, Any]

ATTN = {"kind": "attn", "heads": 4, "kv_heads": 2, "head_dim": 8}
SPARSE = ATTN | {"block_sparse": {"block": 16, "top_k": 3}}
MLA = {
    "kind": "mla",
    "heads": 3,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
POOLED = {
    "kind": "compressed",
    "heads": 4,
    "head_dim": 12,
    "q_lora_rank": 10,
    "o_groups": 2,
    "o_lora_rank": 6,
    "window": 9,
    "compress": 4,
    "rope": {"partial": 0.5},
}
MAMBA2 = {"kind": "mamba2", "heads": 4, "head_dim": 8, "d_state": 16}
MAMBA1 = {"kind": "mamba1", "d_inner": 24, "d_state": 6, "dt_rank": 3}
GDN = {"kind": "gdn", "k_heads": 2, "v_heads": 4, "k_head_dim": 8, "v_head_dim": 6}
KDA = {"kind": "kda", "heads": 3, "k_head_dim": 8, "v_head_dim": 6, "gate_rank": 5}
RWKV7 = {
    "kind": "rwkv7",
    "heads": 4,
    "head_dim": 8,
    "decay_rank": 4,
    "a_rank": 4,
    "v_rank": 3,
    "gate_rank": 5,
}
FFN = {"kind": "ffn", "width": 40}
MOE = {"kind": "moe", "n_experts": 6, "top_k": 2, "d_expert": 20}
SHARED = {
    "kind": "shared",
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "width": 40,
    "adapter_rank": 3,
}
YARN = {"theta": 500.0, "scaling": {"type": "yarn", "factor": 4.0, "original_context": 32}}

ATTENTION: dict[str, tuple[str, Plain, Plain]] = {
    "mha": ("*", {"*": ATTN | {"kv_heads": 4}}, {}),
    "gqa": ("*", {"*": ATTN}, {}),
    "mqa": ("*", {"*": ATTN | {"kv_heads": 1}}, {}),
    "nope": ("*", {"*": ATTN | {"rope": None}}, {}),
    "partial rope": ("*", {"*": ATTN | {"rope": {"theta": 500.0, "partial": 0.5}}}, {}),
    "yarn": ("*", {"*": ATTN | {"rope": YARN}}, {}),
    "qk norm": ("*", {"*": ATTN | {"qk_norm": "head"}}, {}),
    "qk norm over all heads": ("*", {"*": ATTN | {"qk_norm": "full"}}, {}),
    "qk l2 norm": ("*", {"*": ATTN | {"qk_norm": "l2"}}, {}),
    "sinks": ("*", {"*": ATTN | {"sinks": True}}, {}),
    "wide values": ("*", {"*": ATTN | {"v_head_dim": 12}}, {}),
    "keys as values": ("*", {"*": ATTN | {"k_eq_v": True, "v_norm": True}}, {}),
    "biases": ("*", {"*": ATTN | {"qkv_bias": True, "o_bias": True}}, {}),
    "elementwise gate": ("*", {"*": ATTN | {"out_gate": "elementwise"}}, {}),
    "headwise gate": ("*", {"*": ATTN | {"out_gate": "headwise"}}, {}),
    "soft cap": ("*", {"*": ATTN | {"logit_softcap": 2.0, "softmax_scale": 0.5}}, {}),
    "temperature": ("*", {"*": ATTN | {"temperature": {"scale": 0.5, "floor": 40}}}, {}),
    "window of one": ("W", {"W": ATTN | {"window": 1}}, {}),
    "window": ("W", {"W": ATTN | {"window": 5}}, {}),
    "wide window": ("W", {"W": ATTN | {"window": 70}}, {}),
    "window over the text": ("W", {"W": ATTN | {"window": 1000}}, {}),
    "window with sinks": ("W", {"W": ATTN | {"window": 70, "sinks": True}}, {}),
    "dilated window": ("W", {"W": ATTN | {"window": 6, "dilation": 3}}, {}),
    "window with global tokens": ("W", {"W": ATTN | {"window": 9, "global_tokens": 4}}, {}),
    "dilated window with global tokens and sinks": (
        "W",
        {"W": ATTN | {"window": 5, "dilation": 2, "global_tokens": 3, "sinks": True}},
        {},
    ),
    "chunks": ("C", {"C": ATTN | {"chunk": 40}}, {}),
    "block-sparse": ("S", {"S": SPARSE}, {}),
    "block-sparse with an index branch": (
        "S",
        {"S": ATTN | {"block_sparse": SPARSE["block_sparse"] | {"index_heads": 2, "index_dim": 8}}},
        {},
    ),
    "reused keys": ("**1", {"*": ATTN, "*1": ATTN | {"kv_reuse": True}}, {}),
    "mla": ("L", {"L": MLA}, {}),
    "mla with query latent": ("L", {"L": MLA | {"q_lora_rank": 10}}, {}),
    "mla with wide values": ("L", {"L": MLA | {"v_head_dim": 20, "out_gate": True}}, {}),
    "mla with an indexer": (
        "S",
        {"S": MLA | {"q_lora_rank": 10, "indexer": {"heads": 2, "head_dim": 8, "top_k": 20}}},
        {},
    ),
    "compressed keys": ("Z", {"Z": POOLED}, {}),
    "compressed keys that overlap": ("Z", {"Z": POOLED | {"overlap": True, "sinks": True}}, {}),
    "compressed keys with an indexer": (
        "Z",
        {"Z": POOLED | {"indexer": {"heads": 2, "head_dim": 8, "top_k": 5}}},
        {},
    ),
    "shared block": ("M@M1", {"@": SHARED, "M": MAMBA2, "M1": MAMBA2 | {"groups": 2}}, {}),
}
RECURRENT: dict[str, tuple[str, Plain, Plain]] = {
    "mamba2": ("M", {"M": MAMBA2}, {}),
    "mamba2 with groups": ("M", {"M": MAMBA2 | {"groups": 2, "conv": 2, "conv_bias": False}}, {}),
    "mamba1": ("m", {"m": MAMBA1}, {}),
    "mamba1 with inner norms": ("m", {"m": MAMBA1 | {"inner_norms": True}}, {}),
    "gdn": ("G", {"G": GDN}, {}),
    "gdn with a key head a value head": ("G", {"G": GDN | {"k_heads": 4}}, {}),
    "gdn with negative eigenvalues": ("G", {"G": GDN | {"negative_eigenvalues": True}}, {}),
    "deltanet": ("G", {"G": GDN | {"gated": False}}, {}),
    "kda": ("K", {"K": KDA}, {}),
    "kda with a bound": ("K", {"K": KDA | {"gate_lower_bound": -5.0, "full_rank_gate": True}}, {}),
    "lightning": ("T", {"T": {"kind": "lightning", "heads": 4, "head_dim": 8}}, {}),
    "retention": (
        "T",
        {"T": {"kind": "retention", "heads": 4, "k_head_dim": 8, "v_head_dim": 16}},
        {},
    ),
    "gla": (
        "T",
        {"T": {"kind": "gla", "heads": 2, "k_head_dim": 8, "v_head_dim": 16, "gate_rank": 4}},
        {},
    ),
    "rwkv7": ("RrR1r", {"R": RWKV7, "R1": RWKV7, "r": {"kind": "rwkv7_cmix", "width": 64}}, {}),
    "rg-lru": ("U", {"U": {"kind": "rglru", "width": 24, "blocks": 3}}, {}),
    "ttt-linear": ("D", {"D": {"kind": "ttt_linear", "heads": 4, "head_dim": 8}}, {}),
    "short convolution": ("Y", {"Y": {"kind": "shortconv"}}, {}),
    "gru": ("N", {"N": {"kind": "rnn", "width": 24}}, {}),
    "lstm": ("N", {"N": {"kind": "rnn", "width": 24, "cell": "lstm"}}, {}),
}
FEED_FORWARD: dict[str, tuple[str, Plain, Plain]] = {
    "swiglu": ("-", {"-": FFN}, {}),
    "biased relu2": ("-", {"-": FFN | {"activation": "relu2", "bias": True}}, {}),
    "softmax experts": ("E", {"E": MOE}, {}),
    "corrected experts in groups": (
        "E",
        {"E": MOE | {"router": "sigmoid_bias", "groups": {"n": 3, "top": 2}, "n_shared": 1}},
        {},
    ),
    "experts of all layers": ("EE", {"E": MOE | {"copies": 1}}, {}),
    "hashed experts": ("E", {"E": MOE | {"router": "hash"}}, {}),
    "sparsemixer": ("E", {"E": MOE | {"router": "sparsemixer"}}, {}),
    "deep experts": (
        "E",
        {"E": MOE | {"expert_layers": 2, "shared_gate": True, "n_shared": 1}},
        {},
    ),
    "zero experts": ("E", {"E": MOE | {"n_zero": 2}}, {}),
    "latent experts": ("E", {"E": MOE | {"latent": 16, "latent_norm": True}}, {}),
    "experts with a capacity": ("E", {"E": MOE | {"capacity": 1.1, "top_k": 1}}, {}),
    "rwkv channel mix": ("r", {"r": {"kind": "rwkv7_cmix", "width": 64}}, {}),
    "no-op": (".-", {".": {"kind": "noop"}, "-": FFN}, {}),
}
AROUND: dict[str, tuple[str, Plain, Plain]] = {
    "branches": ("[*|M]", {"*": ATTN, "M": MAMBA2}, {}),
    "branches with norms and gates": (
        "[*|M]-",
        {"*": ATTN, "M": MAMBA2, "-": FFN},
        {"joins": {"[*|M]": {"branch_norms": True, "branch_gates": True, "fusion": "mean"}}},
    ),
    "mixture of depths": ("*-1", {"*": ATTN, "-1": FFN | {"depth_capacity": 0.5}}, {}),
    "merged tokens": (
        "*1-G1",
        {"*1": ATTN | {"token_merge": 4}, "-": FFN, "G1": GDN | {"token_merge": 3}},
        {},
    ),
    "hyper-connections": (
        "*-G-",
        {"*": ATTN, "-": FFN, "G": GDN},
        {"hyper_connections": {"streams": 3}},
    ),
    "attention residuals": (
        "*-G-",
        {"*": ATTN, "-": FFN, "G": GDN},
        {"attention_residuals": {"block": 1}},
    ),
    "scaled residual": ("*-", {"*": ATTN, "-": FFN}, {"residual": {"keep": 0.8, "add": 0.5}}),
    "sandwich of layer norms": (
        "*-",
        {"*": ATTN, "-": FFN},
        {"norm": {"type": "layer", "placement": "sandwich"}},
    ),
    "norms on the stream": ("*-", {"*": ATTN, "-": FFN}, {"norm": {"placement": "stream"}}),
}
FP8_CACHE, INT8_CACHE = {"precision": {"fp8": ["kv_cache"]}}, {"precision": {"int8": ["kv_cache"]}}
EIGHT_BITS: dict[str, tuple[str, Plain, Plain]] = {
    "gqa, fp8 cache": ("*", {"*": ATTN}, FP8_CACHE),
    "gqa, int8 cache": ("*", {"*": ATTN}, INT8_CACHE),
    "window, int8 cache": ("W", {"W": ATTN | {"window": 70}}, INT8_CACHE),
    "mla, fp8 cache": ("L", {"L": MLA}, FP8_CACHE),
    "compressed keys, fp8 cache": ("Z", {"Z": POOLED}, FP8_CACHE),
}
CASES = EIGHT_BITS | ATTENTION | RECURRENT | FEED_FORWARD | AROUND


def architecture(name: str, **fields: Any) -> Architecture:
    pattern, blocks, more = CASES[name]
    plain = {"d_model": D_MODEL, "vocab_size": VOCAB, "pattern": pattern, "blocks": blocks}
    return Architecture.model_validate(plain | more | fields)


def model(name: str, dtype: torch.dtype = torch.float64, **fields: Any) -> HybridLM:
    """A model with weights large enough for uneven attention, open gates and gains other than 1."""
    built = build(architecture(name, **fields), dtype=dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.blocks.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=parameter.dtype
            )
        built.embedding.weight.normal_(generator=generator)
    return built


def text(batch: int = 2, tokens: int = TOKENS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(VOCAB, (batch, tokens), generator=generator)
