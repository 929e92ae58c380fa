"""Small architectures of each family of transformers, covering the options of its class."""

from dataclasses import dataclass, field
from typing import Any

from block_cases import (
    ATTN,
    D_MODEL,
    FFN,
    GDN,
    KDA,
    MAMBA1,
    MAMBA2,
    MLA,
    MOE,
    POOLED,
    SHARED,
    VOCAB,
)

from archfront.search_space.architecture import Architecture

Plain = dict[str, Any]
EPS = 1e-3  # large enough that a norm with another one shows


@dataclass(frozen=True, kw_only=True)
class Case:
    """`config`: further fields of the class's config. `even`: pattern of constant parameters."""

    family: str
    pattern: str
    blocks: Plain
    fields: Plain = field(default_factory=dict)
    config: Plain = field(default_factory=dict)
    even: str = "(?!)"

    def architecture(self) -> Architecture:
        norm = {"norm": {"eps": EPS} | self.fields.get("norm", {})}
        sizes = {"d_model": D_MODEL, "vocab_size": VOCAB, "pattern": self.pattern}
        return Architecture.model_validate(sizes | {"blocks": self.blocks} | self.fields | norm)


def rope(kind: str | None = None, **fields: Any) -> Plain:
    """Rotary positions with a scaling of that kind; other fields go to the record itself."""
    own = {name: fields.pop(name) for name in ("theta", "partial", "interleaved") if name in fields}
    return {"rope": own | ({"scaling": {"type": kind} | fields} if kind else {})}


def yarn(**fields: Any) -> Plain:
    return rope("yarn", factor=4.0, original_context=16, **fields)


HEAD_NORM, FULL_NORM = ATTN | {"qk_norm": "head"}, ATTN | {"qk_norm": "full"}
BIASED = ATTN | {"qkv_bias": True, "o_bias": True}
NOPE = ATTN | {"rope": None}
QUARTER, HALF = rope(partial=0.25), rope(partial=0.5)
WINDOW = {"window": 5}
TANH = {"activation": "geglu_tanh"}
CORRECTED = MOE | {"router": "sigmoid_bias"}
GROUPED = CORRECTED | {"groups": {"n": 3, "top": 2}, "n_shared": 1, "scale": 2.5}
GATED_SHARE = MOE | {"n_shared": 1, "d_shared": 24, "shared_gate": True}
SPARSEMIXER = MOE | {"router": "sparsemixer", "norm_topk": False}
INDEXER = {"heads": 16, "head_dim": 8, "top_k": 7}  # so many heads that hardly a score is zero
OAI = {"activation": "swiglu_oai"}

CENTRED = {"norm": {"zero_centered": True}}
LAYER_NORM = {"norm": {"type": "layer"}}
POST = {"norm": {"placement": "post"}}
GEMMA = {
    "norm": {"placement": "sandwich", "zero_centered": True},
    "embedding_scale": "sqrt_d_model",
    "tied_embeddings": True,
}
TIED = {"tied_embeddings": True}
# The classes' defaults have the published sizes; latent attention has one key head per head.
AS_MANY_KEYS = {"num_key_value_heads": MLA["heads"]}
# Two classes clamp steps at a lower bound of their initial values, unlike the kernels that the
# models were trained with (transformers, issue 47246).
NO_FLOOR = {"time_step_min": 1e-30}
STATED_EPS = {"norm": {"eps": 1e-5}}  # of a norm inside the mixer, whatever the stack has

DENSE = {
    "llama": Case(
        family="llama",
        pattern="(*-)x2",
        blocks={
            "*": BIASED | rope("llama3", factor=4.0, original_context=16),
            "-": FFN | {"bias": True},
        },
    ),
    "llama, linear": Case(
        family="llama",
        pattern="*-",
        blocks={"*": ATTN | rope("linear", factor=4.0), "-": FFN},
    ),
    "llama, dynamic, within its context": Case(
        family="llama",
        pattern="*-",
        blocks={"*": ATTN | rope("dynamic", factor=4.0), "-": FFN},
    ),
    "mistral": Case(family="mistral", pattern="(W-)x2", blocks={"W": ATTN | WINDOW, "-": FFN}),
    "olmo2": Case(family="olmo2", pattern="(*-)x2", blocks={"*": FULL_NORM, "-": FFN}, fields=POST),
    "olmo3": Case(
        family="olmo3",
        pattern="W-*-",
        blocks={"W": FULL_NORM | WINDOW, "*": FULL_NORM | yarn(theta=500.0), "-": FFN},
        fields=POST,
    ),
    "qwen3": Case(
        family="qwen3",
        pattern="*-W-",
        blocks={"*": HEAD_NORM, "W": HEAD_NORM | WINDOW, "-": FFN},
    ),
    "gemma2": Case(
        family="gemma2",
        pattern="W-*-",
        blocks={
            symbol: ATTN | {"softmax_scale": 16**-0.5, "logit_softcap": 2.0} | reach
            for symbol, reach in {"W": WINDOW, "*": {}}.items()
        }
        | {"-": FFN | TANH},
        fields=GEMMA | {"final_logit_softcap": 3.0},
    ),
    "gemma3": Case(
        family="gemma3_text",
        pattern="W-*-",
        blocks={
            "W": HEAD_NORM | {"softmax_scale": 16**-0.5} | WINDOW,
            "*": HEAD_NORM | {"softmax_scale": 16**-0.5} | rope("linear", theta=1e3, factor=8.0),
            "-": FFN | TANH,
        },
        fields=GEMMA,
    ),
}
GEMMA4 = HEAD_NORM | {"softmax_scale": 1.0, "v_norm": True}
GPT_OSS = BIASED | {"sinks": True} | yarn(theta=1e3, truncate=False)
M3 = HEAD_NORM | HALF
MIMO = ATTN | {"head_dim": 12, "v_head_dim": 8, "value_scale": 0.707} | rope(partial=0.334)
EXPERTS = {
    "gemma4": Case(
        family="gemma4_text",
        pattern="W[-|E]*[-|E]",
        blocks={
            "W": GEMMA4 | WINDOW,
            "*": GEMMA4
            | {"head_dim": 16, "kv_heads": 1, "k_eq_v": True}
            | rope("proportional", theta=1e3, partial=0.25),
            "-": FFN | TANH,
            "E": MOE | TANH | {"router_scale": True},
        },
        fields=GEMMA
        | {
            "norm": {"placement": "sandwich"},
            "joins": {"[-|E]": {"branch_norms": True}},
            "final_logit_softcap": 3.0,
        },
    ),
    "mixtral": Case(family="mixtral", pattern="(*E)x2", blocks={"*": ATTN, "E": MOE}),
    "qwen3_moe": Case(
        family="qwen3_moe",
        pattern="*E*-",
        blocks={"*": HEAD_NORM, "E": MOE | {"norm_topk": False}, "-": FFN},
    ),
    "gpt_oss": Case(
        family="gpt_oss",
        pattern="WE*E",
        blocks={
            "W": GPT_OSS | WINDOW,
            "*": GPT_OSS,
            "E": MOE | OAI | {"router_bias": True, "expert_bias": True},
        },
    ),
    "phimoe": Case(
        family="phimoe",
        pattern="(*E)x2",
        blocks={"*": BIASED, "E": SPARSEMIXER},
        fields=LAYER_NORM | {"lm_head_bias": True},
    ),
    "phimoe, longrope": Case(
        family="phimoe",
        pattern="*E",
        blocks={
            "*": ATTN
            | rope(
                "longrope",
                factor=2.0,
                original_context=64,
                short_factor=[1.0, 1.1, 1.2, 1.3],
                long_factor=[2.0, 2.0, 2.0, 2.0],
                mscale=1.2,
            ),
            "E": SPARSEMIXER,
        },
        fields=LAYER_NORM,
    ),
    "hunyuan_v1_moe": Case(
        family="hunyuan_v1_moe",
        pattern="(*E)x2",
        blocks={"*": HEAD_NORM | rope("dynamic", alpha=100.0), "E": MOE | {"n_shared": 1}},
        even=r"(query|key)_layernorm",  # its norms come behind the rotation, ours in front of it
    ),
    "llama4": Case(
        family="llama4_text",
        pattern="CE*-CE*E",
        blocks={
            "C": ATTN | {"chunk": 8, "qk_norm": "l2"} | rope(theta=500.0, interleaved=True),
            "*": NOPE | {"temperature": {"scale": 0.1, "floor": 4}},
            "-": FFN,
            "E": MOE
            | {
                "top_k": 1,
                "n_shared": 1,
                "router": "sigmoid",
                "norm_topk": False,
                "scale_input": True,
            },
        },
    ),
    "minimax_m2": Case(
        family="minimax_m2", pattern="(*E)x2", blocks={"*": FULL_NORM | HALF, "E": CORRECTED}
    ),
    "minimax_m3": Case(
        family="minimax_m3_vl_text",
        pattern="*-SESE",
        blocks={
            "*": M3,
            "S": M3 | {"block_sparse": {"block": 8, "top_k": 2, "index_heads": 2, "index_dim": 8}},
            "-": FFN | OAI,
            "E": CORRECTED | OAI | {"scale": 2.0, "n_shared": 1, "d_shared": 24},
        },
        fields=CENTRED,
    ),
    "mimo_v2_flash": Case(
        family="mimo_v2_flash",
        pattern="*-WEWE",
        blocks={
            "*": MIMO,
            "W": MIMO | WINDOW | {"kv_heads": 4, "sinks": True},
            "-": FFN,
            "E": CORRECTED | {"groups": {"n": 3, "top": 2}},
        },
    ),
    "glm4_moe": Case(
        family="glm4_moe",
        pattern="*-*E*E",
        blocks={"*": HEAD_NORM | HALF | {"qkv_bias": True}, "-": FFN, "E": GROUPED},
    ),
}
LATENT_QUERIES = MLA | {"q_lora_rank": 10}
V3_YARN = yarn(interleaved=True, mscale=0.7, mscale_all_dim=0.9)
WINDOWED = POOLED | {"compress": None, "sinks": True} | rope(partial=0.5, interleaved=True)
COMPRESSED = WINDOWED | yarn(partial=0.5, interleaved=True, theta=1600.0)
V4_EXPERTS = MOE | {"n_shared": 1, "scale": 1.5, "limit": 1.0}
LATENT = {
    "deepseek_v2": Case(
        family="deepseek_v2",
        pattern="L-LELE",
        blocks={
            "L": MLA | {"heads": 4} | rope(interleaved=True),
            "-": FFN,
            "E": MOE
            | {"norm_topk": False, "n_shared": 2, "scale": 2.0, "groups": {"n": 3, "top": 2}},
        },
    ),
    "deepseek_v2, yarn": Case(
        family="deepseek_v2",
        pattern="L-LE",
        blocks={
            "L": LATENT_QUERIES
            | {"heads": 4}
            | yarn(interleaved=True, mscale=0.9, mscale_all_dim=0.9),
            "-": FFN,
            "E": MOE | {"norm_topk": False, "n_shared": 2},
        },
    ),
    "deepseek_v3": Case(
        family="deepseek_v3",
        pattern="L-LELE",
        blocks={"L": LATENT_QUERIES | V3_YARN, "-": FFN, "E": GROUPED},
        config=AS_MANY_KEYS,
    ),
    "deepseek_v32": Case(
        family="deepseek_v32",
        pattern="S-SESE",
        blocks={"S": LATENT_QUERIES | V3_YARN | {"indexer": INDEXER}, "-": FFN, "E": GROUPED},
        config=AS_MANY_KEYS,
    ),
    "deepseek_v4": Case(
        family="deepseek_v4",
        pattern="WE1Z1E1Z2EZ1E",
        blocks={
            "W": WINDOWED,
            "Z1": COMPRESSED | {"compress": 4, "overlap": True, "indexer": INDEXER | {"top_k": 3}},
            "Z2": COMPRESSED | {"compress": 6},
            "E": V4_EXPERTS | {"router": "sqrtsoftplus_bias"},
            "E1": V4_EXPERTS | {"router": "hash"},
        },
        fields={"hyper_connections": {"streams": 3, "sinkhorn_iters": 4}},
    ),
    "kimi_linear": Case(
        family="kimi_linear",
        pattern="K-LEKE",
        blocks={
            "K": KDA | {"v_head_dim": 8, "gate_rank": 8},
            "L": MLA | {"rope": None},
            "-": FFN,
            "E": GROUPED,
        },
        config=AS_MANY_KEYS,
    ),
}
QWEN = HEAD_NORM | QUARTER | {"out_gate": "elementwise"}
GRANITE = {"residual": {"add": 0.22}, "embedding_scale": 12.0, "logit_scale": 0.25}
STATE_GROUPS = MAMBA2 | {"groups": 2}
RECURRENT = {
    "qwen3_next": Case(
        family="qwen3_next",
        pattern="GE*EG-",
        blocks={"G": GDN, "*": QWEN, "-": FFN, "E": GATED_SHARE},
        fields=CENTRED,
    ),
    "qwen3_5": Case(
        family="qwen3_5_text",
        pattern="G-*-",
        blocks={"G": GDN, "*": QWEN, "-": FFN},
        fields=CENTRED,
    ),
    "qwen3_5_moe": Case(
        family="qwen3_5_moe_text",
        pattern="GE*E",
        blocks={"G": GDN, "*": QWEN, "E": GATED_SHARE},
        fields=CENTRED,
    ),
    "olmo_hybrid": Case(
        family="olmo_hybrid",
        pattern="G-*-",
        blocks={"G": GDN | {"negative_eigenvalues": True}, "*": FULL_NORM, "-": FFN},
        fields={"norm": STATED_EPS["norm"] | {"of_mixer": {"*": "post"}}},
    ),
    "mamba2": Case(family="mamba2", pattern="MM", blocks={"M": STATE_GROUPS}),
    "nemotron_h": Case(
        family="nemotron_h",
        pattern="M-*EM",
        blocks={
            "M": STATE_GROUPS,
            "*": NOPE,
            "-": FFN | {"activation": "relu2"},
            "E": GROUPED | {"activation": "relu2", "d_shared": 24, "latent": 16},
        },
        config=NO_FLOOR,
    ),
    "jamba": Case(
        family="jamba",
        pattern="m-*Em-*E",
        blocks={
            "m": MAMBA1 | {"d_inner": 2 * D_MODEL, "inner_norms": True},
            "*": NOPE,
            "-": FFN | {"width": MOE["d_expert"]},
            "E": MOE | {"norm_topk": False},
        },
    ),
    "zamba2": Case(
        family="zamba2",
        pattern="M@MM@MM@M",
        blocks={"M": STATE_GROUPS, "@": SHARED | {"copies": 2} | rope(theta=500.0)},
        fields=STATED_EPS | TIED,
        config=NO_FLOOR,
    ),
    "falcon_h1": Case(
        family="falcon_h1",
        pattern="([*|M]-)x2",
        blocks={
            "*": ATTN | {"softmax_scale": 0.2, "value_scale": 0.7},
            "M": STATE_GROUPS | {"gated_norm": False},
            "-": FFN,
        },
        fields={"embedding_scale": 1.5, "logit_scale": 0.3},
    ),
    "falcon_h1, gated norm": Case(
        family="falcon_h1",
        pattern="([*|M]-)x2",
        blocks={"*": ATTN, "M": STATE_GROUPS, "-": FFN},
    ),
    "granitemoehybrid": Case(
        family="granitemoehybrid",
        pattern="ME*EME",
        blocks={
            "M": STATE_GROUPS,
            "*": NOPE | {"softmax_scale": 0.3},
            "E": MOE | {"n_shared": 1, "d_shared": 24},
        },
        fields=GRANITE,
    ),
    "granitemoehybrid, dense": Case(
        family="granitemoehybrid",
        pattern="M-*-",
        blocks={"M": STATE_GROUPS, "*": ATTN | {"softmax_scale": 0.3}, "-": FFN},
        fields=GRANITE,
    ),
    "minimax": Case(
        family="minimax",
        pattern="*ETETE",
        blocks={"T": {"kind": "lightning", "heads": 4, "head_dim": 8}, "*": ATTN, "E": MOE},
        fields={"norm": {"placement": "stream"}, "residual": {"keep": 1.5, "add": 0.7}},
    ),
    "lfm2": Case(
        family="lfm2",
        pattern="Y-*-",
        blocks={"Y": {"kind": "shortconv"}, "*": HEAD_NORM, "-": FFN},
        fields=TIED,
    ),
    "recurrent_gemma": Case(
        family="recurrent_gemma",
        pattern="U-U-W-",
        blocks={
            "U": {"kind": "rglru", "width": 24, "blocks": 4},
            "W": ATTN | HALF | WINDOW | {"kv_heads": 1, "head_dim": 16, "o_bias": True},
            "-": FFN | TANH | {"bias": True},
        },
        # a width whose root bfloat16 has: the class rounds the embedding's scale to it
        fields=GEMMA | CENTRED | {"d_model": 64, "final_logit_softcap": 3.0},
    ),
}
CASES = DENSE | EXPERTS | LATENT | RECURRENT
