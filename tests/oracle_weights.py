"""Maps parameters of transformers' models and fla's layers to those of our models.

Our names begin with the kind of the block, `attn.q_proj`, or the role of the sub-block,
`feed.norm_in`; theirs begin after the number of the layer. A name stands for weight and bias. Where
a tensor of ours is computed from theirs, the function stands before their names.
"""

# E experts, O features out, I features in, G key heads

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archfront.builders.body import Body
from archfront.builders.model import HybridLM
from archfront.search_space.architecture import Architecture
from archfront.search_space.pattern import is_feed_forward

Source = str | tuple[Any, ...]
Rules = dict[str, Source]


@dataclass(frozen=True, kw_only=True)
class Names:
    """The rules of a family.

    With `one_each` each sub-block is a layer of its own, not a mixer with its feed-forward; a
    shared block belongs to the layer that it feeds.
    """

    rules: Rules
    layers: str = "model.layers"
    one_each: bool = False


def moved(theirs: nn.Module, model: HybridLM, names: Names) -> dict[str, Tensor]:
    """The state dict of `model` with the values of `theirs`; all of its parameters must be used."""
    return _moved(theirs, model, lambda name: _source(model.architecture, name, names))


def moved_body(theirs: nn.Module, body: Body, rules: Rules) -> dict[str, Tensor]:
    """The same for one mixer or feed-forward."""
    return _moved(theirs, body, lambda name: (*_rule(rules, [name]), None))


def _moved(
    theirs: nn.Module, ours: nn.Module, source: Callable[[str], tuple[Any, list[str], Any]]
) -> dict[str, Tensor]:
    held = dict(theirs.named_parameters(remove_duplicate=False)) | dict(theirs.named_buffers())
    left = {id(p): name for name, p in held.items() if isinstance(p, nn.Parameter)}
    made = {}
    for name, mine in ours.state_dict().items():
        function, sources, block = source(name)
        given = [next(held[s] for s in source.split("|") if s in held) for source in sources]
        for tensor in given:
            left.pop(id(tensor), None)
        made[name] = function(block, *(tensor.detach() for tensor in given))
        assert made[name].shape == mine.shape, name
    assert not left, f"unused: {sorted(left.values())}"
    return made


def _source(architecture: Architecture, name: str, names: Names) -> tuple[Any, list[str], Any]:
    """(function, their names, block) of one tensor of ours."""
    inside = re.fullmatch(r"blocks\.(\d+)\.(?:branches\.(\d+)\.)?(body\.)?(.*)", name)
    if inside is None:
        function, sources = _rule(names.rules, [name])
        return function, sources, None
    index, branch, local = int(inside[1]), inside[2], inside[4]
    symbols = architecture.symbols
    blocks = [body.block for body in architecture.bodies if body.sub_block == index]
    block = blocks[int(branch or 0)]
    of_group = len(blocks) > 1 and branch is None
    kinds = ["feed" if is_feed_forward(symbols[index]) else "mixer"]
    if not of_group:
        kinds.insert(0, block.kind)
    function, sources = _rule(names.rules, [f"{kind}.{local}" for kind in kinds])
    uses = symbols[:index].count("@")
    layer = index - uses if names.one_each else architecture.layer_of(index)
    roots = [f"{names.layers}.{layer}.{source}" for source in sources]
    return (
        function,
        [r.replace("|", f"|{names.layers}.{layer}.").format(use=uses) for r in roots],
        block,
    )


def _rule(rules: Rules, keys: list[str]) -> tuple[Any, list[str]]:
    for key in keys:
        stem, dot, suffix = key.rpartition(".")
        for known, behind in ((key, ""), (stem, dot + suffix)):
            if known in rules:
                rule = rules[known]
                function, *sources = (_unchanged, rule) if isinstance(rule, str) else rule
                return function, ["|".join(s + behind for s in n.split("|")) for n in sources]
    raise KeyError(keys)


def _unchanged(_: Any, x: Tensor) -> Tensor:
    return x


def _flat(_: Any, x: Tensor) -> Tensor:
    return x.flatten()


def _taps(_: Any, x: Tensor) -> Tensor:
    """A depthwise convolution without its middle dimension; its bias unchanged."""
    return x.squeeze(1) if x.ndim == 3 else x


def _stacked(_: Any, *parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _stacked_taps(_: Any, *parts: Tensor) -> Tensor:
    return torch.cat([part.squeeze(1) for part in parts])


def _transposed(_: Any, x_EIO: Tensor) -> Tensor:
    return x_EIO.mT


def _part(index: int, dim: int = 0, *, transposed: bool = False) -> Callable[..., Tensor]:
    """One half of a fused gate and up projection."""
    return lambda _, x: x.chunk(2, dim)[index].mT if transposed else x.chunk(2, dim)[index]


def _every_other(start: int) -> Callable[..., Tensor]:
    """One of a gate and up projection that alternate along the features out; experts [E, I, O]."""
    return lambda _, x: x[..., start::2].mT if x.ndim == 3 else x[..., start::2]


def _of_each_head(part: int) -> Callable[..., Tensor]:
    """Queries or their gates, which alternate by head."""
    return lambda block, x: x.unflatten(0, (block.heads, 2, -1))[:, part].flatten(0, 1)


def _next_qkvz(block: Any, x: Tensor) -> Tensor:
    """q, k, v, z of each key head in turn, as Qwen3-Next stores them."""
    of_v = block.v_heads // block.k_heads * block.v_head_dim
    sizes = [block.k_head_dim, block.k_head_dim, of_v, of_v]
    parts = x.unflatten(0, (block.k_heads, -1)).split(sizes, 1)
    return torch.cat([part.flatten(0, 1) for part in parts])


def _next_ba(block: Any, x: Tensor) -> Tensor:
    beta, decay = x.unflatten(0, (block.k_heads, -1)).chunk(2, 1)
    return torch.cat([beta.flatten(0, 1), decay.flatten(0, 1)])


def _same(ours: str, theirs: str, names: str) -> Rules:
    return {f"{ours}.{name}": f"{theirs}.{name}" for name in names.split()}


def _experts(theirs: str = "mlp", router: str = "gate", shared: str = "shared_experts") -> Rules:
    return {
        "moe.router": f"{theirs}.{router}",
        "moe.correction_bias": f"{theirs}.{router}.e_score_correction_bias",
        "moe.experts.gate_proj.weight": (_part(0, 1), f"{theirs}.experts.gate_up_proj"),
        "moe.experts.up_proj.weight": (_part(1, 1), f"{theirs}.experts.gate_up_proj"),
        "moe.experts.down_proj.weight": f"{theirs}.experts.down_proj",
        **_same("moe.shared", f"{theirs}.{shared}", MLP),
    }


def _mamba2(theirs: str) -> Rules:
    conv = {"mamba2.conv": (_taps, f"{theirs}.conv1d")}
    return conv | _same("mamba2", theirs, "in_proj A_log dt_bias D norm out_proj")


MLP = "gate_proj up_proj down_proj"
AROUND: Rules = {"embedding": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
PRE: Rules = {"mixer.norm_in": "input_layernorm", "feed.norm_in": "post_attention_layernorm"}
POST: Rules = {
    "mixer.norm_out": "post_attention_layernorm",
    "feed.norm_out": "post_feedforward_layernorm",
}
SANDWICH: Rules = POST | {
    "mixer.norm_in": "input_layernorm",
    "feed.norm_in": "pre_feedforward_layernorm",
}
ATTENTION = _same("attn", "self_attn", "q_proj k_proj v_proj o_proj q_norm k_norm sinks")
DENSE = _same("ffn", "mlp", MLP)
MLA = _same("mla", "self_attn", "q_proj q_a_proj q_b_proj kv_b_proj o_proj") | {
    "mla.q_a_norm": "self_attn.q_a_layernorm",
    "mla.kv_a_proj": "self_attn.kv_a_proj_with_mqa",
    "mla.kv_a_norm": "self_attn.kv_a_layernorm",
    "mla.indexer.q_b_proj": "self_attn.indexer.wq_b",
    "mla.indexer.k_proj": "self_attn.indexer.wk",
    "mla.indexer.k_norm": "self_attn.indexer.k_norm",
    "mla.indexer.head_proj": "self_attn.indexer.weights_proj",
}
GATED_ATTENTION = ATTENTION | {
    "attn.q_proj": (_of_each_head(0), "self_attn.q_proj"),
    "attn.gate_proj": (_of_each_head(1), "self_attn.q_proj"),
}
DELTA = _same("gdn", "linear_attn", "A_log dt_bias norm out_proj") | {
    "gdn.conv": (_taps, "linear_attn.conv1d"),
    "gdn.in_proj": (_stacked, "linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
    "gdn.gate_proj": (_stacked, "linear_attn.in_proj_b", "linear_attn.in_proj_a"),
}
LLAMA = AROUND | PRE | ATTENTION | DENSE
MIXTRAL = LLAMA | _experts()
DEEPSEEK = AROUND | PRE | MLA | DENSE | _experts()
QWEN_HYBRID = (
    AROUND
    | PRE
    | GATED_ATTENTION
    | DELTA
    | DENSE
    | _experts(shared="shared_expert")
    | {"moe.shared_gate": "mlp.shared_expert_gate"}
)
KIMI = DEEPSEEK | {
    "kda.in_proj": (_stacked, *(f"self_attn.{of}_proj" for of in "qkv")),
    "kda.conv": (_taps, "self_attn.conv1d"),
    "kda.decay_a_proj": "self_attn.forget_gate.f_a_proj",
    "kda.decay_b_proj": "self_attn.forget_gate.f_b_proj",
    "kda.A_log": (_flat, "self_attn.forget_gate.A_log"),
    "kda.dt_bias": "self_attn.forget_gate.dt_bias",
    "kda.beta_proj": "self_attn.b_proj",
    "kda.gate_a_proj": "self_attn.g_a_proj",
    "kda.gate_b_proj": "self_attn.g_b_proj",
    "kda.norm": "self_attn.o_norm",
    "kda.out_proj": "self_attn.o_proj",
}
COMPRESSED = _same(
    "compressed",
    "self_attn",
    "q_a_proj q_a_norm q_b_proj kv_proj kv_norm sinks o_a_proj o_b_proj",
)
for _place in ("compressor", "compressor.indexer"):
    COMPRESSED |= _same(
        f"compressed.{_place}",
        f"self_attn.{_place}",
        "position_bias kv_proj gate_proj kv_norm q_b_proj",
    )

FAMILIES: dict[str, Names] = {
    "llama": Names(rules=LLAMA),
    "mistral": Names(rules=LLAMA),
    "olmo2": Names(rules=AROUND | POST | ATTENTION | DENSE),
    "olmo3": Names(rules=AROUND | POST | ATTENTION | DENSE),
    "qwen3": Names(rules=LLAMA),
    "gemma2": Names(rules=AROUND | SANDWICH | ATTENTION | DENSE),
    "gemma3_text": Names(rules=AROUND | SANDWICH | ATTENTION | DENSE),
    "gemma4_text": Names(
        rules=AROUND
        | SANDWICH
        | ATTENTION
        | DENSE
        | {
            "ffn.norm_out": "post_feedforward_layernorm_1",
            "moe.norm_in": "pre_feedforward_layernorm_2",
            "moe.norm_out": "post_feedforward_layernorm_2",
            "moe.router.weight": "router.proj.weight",
            "moe.router.input_scale": "router.scale",
            "moe.router.expert_scale": "router.per_expert_scale",
            "moe.experts.gate_proj.weight": (_part(0, 1), "experts.gate_up_proj"),
            "moe.experts.up_proj.weight": (_part(1, 1), "experts.gate_up_proj"),
            "moe.experts.down_proj.weight": "experts.down_proj",
        }
    ),
    "mixtral": Names(rules=MIXTRAL),
    "qwen3_moe": Names(rules=MIXTRAL),
    "gpt_oss": Names(
        rules=LLAMA
        | {
            "moe.router": "mlp.router",
            "moe.experts.gate_proj.weight": (_every_other(0), "mlp.experts.gate_up_proj"),
            "moe.experts.up_proj.weight": (_every_other(1), "mlp.experts.gate_up_proj"),
            "moe.experts.down_proj.weight": (_transposed, "mlp.experts.down_proj"),
            "moe.experts.gate_proj.bias": (_every_other(0), "mlp.experts.gate_up_proj_bias"),
            "moe.experts.up_proj.bias": (_every_other(1), "mlp.experts.gate_up_proj_bias"),
            "moe.experts.down_proj.bias": "mlp.experts.down_proj_bias",
        }
    ),
    "phimoe": Names(rules=LLAMA | _experts(router="router")),
    "hunyuan_v1_moe": Names(
        rules=LLAMA
        | _experts(router="gate.wg", shared="shared_mlp")
        | {
            "attn.q_norm": "self_attn.query_layernorm",
            "attn.k_norm": "self_attn.key_layernorm",
        }
    ),
    "llama4_text": Names(
        rules=LLAMA
        | _same("ffn", "feed_forward", MLP)
        | _experts("feed_forward", "router", "shared_expert")
        | {
            "moe.experts.gate_proj.weight": (
                _part(0, 2, transposed=True),
                "feed_forward.experts.gate_up_proj",
            ),
            "moe.experts.up_proj.weight": (
                _part(1, 2, transposed=True),
                "feed_forward.experts.gate_up_proj",
            ),
            "moe.experts.down_proj.weight": (_transposed, "feed_forward.experts.down_proj"),
        }
    ),
    "minimax_m2": Names(rules=MIXTRAL | {"moe.correction_bias": "mlp.e_score_correction_bias"}),
    "minimax_m3_vl_text": Names(
        rules=MIXTRAL
        | _same("attn.index", "self_attn.indexer", "q_proj k_proj q_norm k_norm")
        | {
            "ffn.gate_proj": (_part(0), "mlp.gate_up_proj"),
            "ffn.up_proj": (_part(1), "mlp.gate_up_proj"),
            "moe.shared.gate_proj": (_part(0), "mlp.shared_experts.gate_up_proj"),
            "moe.shared.up_proj": (_part(1), "mlp.shared_experts.gate_up_proj"),
        }
    ),
    "mimo_v2_flash": Names(rules=MIXTRAL),
    "glm4_moe": Names(rules=MIXTRAL),
    "deepseek_v2": Names(rules=DEEPSEEK),
    "deepseek_v3": Names(rules=DEEPSEEK),
    "deepseek_v32": Names(rules=DEEPSEEK),
    "deepseek_v4": Names(
        rules=DEEPSEEK
        | COMPRESSED
        | {
            "compressed.compressor.indexer.head_proj": (
                "self_attn.compressor.indexer.scorer.weights_proj"
            ),
            "mixer.streams.mix.weight": "attn_hc.fn",
            **_same("mixer.streams", "attn_hc", "base scale"),
            "feed.streams.mix.weight": "ffn_hc.fn",
            **_same("feed.streams", "ffn_hc", "base scale"),
            "stream_head.mix.weight": "model.hc_head.hc_fn",
            "stream_head.base": "model.hc_head.hc_base",
            "stream_head.scale": "model.hc_head.hc_scale",
        }
    ),
    "kimi_linear": Names(rules=KIMI),
    "qwen3_next": Names(
        rules=QWEN_HYBRID
        | {
            "gdn.in_proj": (_next_qkvz, "linear_attn.in_proj_qkvz"),
            "gdn.gate_proj": (_next_ba, "linear_attn.in_proj_ba"),
        }
    ),
    "qwen3_5_text": Names(rules=QWEN_HYBRID),
    "qwen3_5_moe_text": Names(rules=QWEN_HYBRID),
    "olmo_hybrid": Names(
        rules=LLAMA
        | DELTA
        | {
            "attn.norm_out": "post_attention_layernorm",
            "feed.norm_out": "post_feedforward_layernorm",
            "gdn.in_proj": (_stacked, *(f"linear_attn.{of}_proj" for of in "qkvg")),
            "gdn.gate_proj": (_stacked, "linear_attn.b_proj", "linear_attn.a_proj"),
            "gdn.norm": "linear_attn.o_norm",
            "gdn.out_proj": "linear_attn.o_proj",
        }
    ),
    "mamba2": Names(
        layers="backbone.layers",
        one_each=True,
        rules=_mamba2("mixer")
        | {
            "embedding": "backbone.embeddings",
            "norm": "backbone.norm_f",
            "lm_head": "lm_head",
            "mixer.norm_in": "norm",
        },
    ),
    "nemotron_h": Names(
        one_each=True,
        rules=_mamba2("mixer")
        | _same("attn", "mixer", "q_proj k_proj v_proj o_proj")
        | _same("ffn", "mixer", MLP)
        | _experts("mixer")
        | {
            "embedding": "model.embeddings",
            "norm": "model.norm_f",
            "lm_head": "lm_head",
            "mixer.norm_in": "norm",
            "feed.norm_in": "norm",
            "moe.experts.up_proj.weight": "mixer.experts.up_proj",
            "moe.latent_in_proj": "mixer.fc1_latent_proj",
            "moe.latent_out_proj": "mixer.fc2_latent_proj",
        },
    ),
    "jamba": Names(
        rules=LLAMA
        | _same("ffn", "feed_forward", MLP)
        | _experts("feed_forward", "router")
        | _same("mamba1", "mamba", "in_proj x_proj A_log D out_proj")
        | {
            "norm": "model.final_layernorm",
            "feed.norm_in": "pre_ff_layernorm",
            "mamba1.conv": (_taps, "mamba.conv1d"),
            "mamba1.dt_proj": "mamba.dt_proj",
            "mamba1.dt_bias": "mamba.dt_proj.bias",
            **{f"mamba1.{of}_norm": f"mamba.{of}_layernorm" for of in ("dt", "b", "c")},
        }
    ),
    "zamba2": Names(
        one_each=True,
        rules={
            "embedding": "model.embed_tokens",
            "norm": "model.final_layernorm",
            "mixer.norm_in": "input_layernorm|mamba_decoder.input_layernorm",
            "mamba2.conv": (_taps, "mamba.conv1d|mamba_decoder.mamba.conv1d"),
            **{
                f"mamba2.{name}": f"mamba.{name}|mamba_decoder.mamba.{name}"
                for name in ("in_proj", "A_log", "dt_bias", "D", "norm", "out_proj")
            },
            **_same("shared", "shared_transformer.self_attn", "q_proj k_proj v_proj o_proj"),
            "shared.attention_norm": "shared_transformer.input_layernorm",
            "shared.ffn_norm": "shared_transformer.pre_ff_layernorm",
            "shared.gate_proj": (_part(0), "shared_transformer.feed_forward.gate_up_proj"),
            "shared.up_proj": (_part(1), "shared_transformer.feed_forward.gate_up_proj"),
            "shared.down_proj": "shared_transformer.feed_forward.down_proj",
            **{
                f"shared.adapter_{of}_proj": (
                    "shared_transformer.feed_forward.gate_up_proj_adapter_list.{use}" + f".{i}"
                )
                for i, of in enumerate("ab")
            },
            "shared.use_proj": "linear",
        },
    ),
    "falcon_h1": Names(
        rules=LLAMA
        | _mamba2("mamba")
        | _same("ffn", "feed_forward", MLP)
        | {"norm": "model.final_layernorm", "feed.norm_in": "pre_ff_layernorm"}
    ),
    "granitemoehybrid": Names(
        rules=LLAMA
        | _mamba2("mamba")
        | _experts("block_sparse_moe", "router")
        | {
            f"{ours}.{name}": source
            for ours in ("ffn", "moe.shared")
            for name, source in {
                "gate_proj": (_part(0), "shared_mlp.input_linear"),
                "up_proj": (_part(1), "shared_mlp.input_linear"),
                "down_proj": "shared_mlp.output_linear",
            }.items()
        }
    ),
    "minimax": Names(
        rules=MIXTRAL
        | {
            "lightning.in_proj": "self_attn.qkv_proj",
            "lightning.gate_proj": "self_attn.output_gate",
            **_same("lightning", "self_attn", "norm out_proj"),
        }
    ),
    "lfm2": Names(
        rules=LLAMA
        | {
            "norm": "model.embedding_norm",
            "mixer.norm_in": "operator_norm",
            "feed.norm_in": "ffn_norm",
            "attn.o_proj": "self_attn.out_proj",
            "attn.q_norm": "self_attn.q_layernorm",
            "attn.k_norm": "self_attn.k_layernorm",
            **_same("shortconv", "conv", "in_proj out_proj"),
            "shortconv.conv": (_taps, "conv.conv"),
            "ffn.gate_proj": "feed_forward.w1",
            "ffn.up_proj": "feed_forward.w3",
            "ffn.down_proj": "feed_forward.w2",
        }
    ),
    "recurrent_gemma": Names(
        rules={
            "embedding": "model.embed_tokens",
            "norm": "model.final_norm",
            "mixer.norm_in": "temporal_pre_norm",
            "feed.norm_in": "channel_pre_norm",
            **_same("attn", "temporal_block", "q_proj k_proj v_proj o_proj"),
            **_same("ffn", "mlp_block", MLP),
            "rglru.x_proj": "temporal_block.linear_x",
            "rglru.y_proj": "temporal_block.linear_y",
            "rglru.out_proj": "temporal_block.linear_out",
            "rglru.conv": (_taps, "temporal_block.conv_1d"),
            "rglru.Lambda": "temporal_block.rg_lru.recurrent_param",
            **{
                f"rglru.{gate}_gate.{part}": (function, f"temporal_block.rg_lru.{gate}_gate_{part}")
                for gate in ("input", "recurrent")
                for part, function in (("weight", _transposed), ("bias", _unchanged))
            },
        }
    ),
}

QKV = (_stacked, "q_proj", "k_proj", "v_proj")
QKV_CONV = (_stacked_taps, "q_conv1d", "k_conv1d", "v_conv1d")
LAYERS: dict[str, Rules] = {
    "rwkv7": {
        **{f"shift.{of}": (_flat, f"x_{of}") for of in "rwkvag"},
        **{f"{of}_proj": f"{of}_proj" for of in "rkv"},
        **{
            f"{ours}_{ab}_proj": f"{theirs}_lora.lora.{place}"
            for ours, theirs in {"decay": "w", "a": "a", "v": "v", "gate": "g"}.items()
            for ab, place in {"a": 0, "b": 2}.items()
        },
        "k_k": "k_k",
        "k_a": "k_a",
        "r_k": (_flat, "r_k"),
        "norm": "g_norm",
        "out_proj": "o_proj",
    },
    "rwkv7_cmix": {"shift.k": "x_k", "up_proj": "key", "down_proj": "value"},
    "gla": {
        "in_proj": QKV,
        "conv": QKV_CONV,
        "decay_a_proj": "gk_proj.0",
        "decay_b_proj": "gk_proj.1",
        "gate_proj": "g_proj",
        "norm": "g_norm_swish_gate",
        "out_proj": "o_proj",
    },
    "retention": {"in_proj": QKV, "gate_proj": "g_proj", "out_proj": "o_proj"},
    "gdn": {
        "in_proj": (*QKV, "g_proj"),
        "conv": QKV_CONV,
        "gate_proj": "b_proj",
        "norm": "o_norm",
        "out_proj": "o_proj",
    },
    "kda": {
        "in_proj": QKV,
        "conv": QKV_CONV,
        "decay_a_proj": "f_proj.0",
        "decay_b_proj": "f_proj.1",
        "A_log": "A_log",
        "dt_bias": "dt_bias",
        "beta_proj": "b_proj",
        "gate_a_proj": "g_proj.0",
        "gate_b_proj": "g_proj.1",
        "norm": "o_norm",
        "out_proj": "o_proj",
    },
}
