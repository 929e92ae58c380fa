"""config.json import and export: an exact round trip, or a one-line error."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archfront.search_space import published
from archfront.search_space.architecture import Architecture, Precision
from archfront.search_space.document import InputError
from archfront.search_space.hugging_face.convert import (
    Imported,
    model_types,
    read_config,
    write_config,
)
from archfront.search_space.hugging_face.registry import FAMILIES

# Entries of the atlas that no family can express, and why.
NOT_EXPRESSIBLE = {
    "gshard_600b": "it has no public class",
    "moba_llama_8b": "it has no public class",
    "switch_base_128": "Switch Transformers can be read, not written",
}
EXPRESSIBLE = [name for name in published.names() if name not in NOT_EXPRESSIBLE]
# Entries that an earlier family in the registry can express too, with the family of their class.
OWN_FAMILY = {
    "qwen3.5_35b_a3b": "qwen3_5_moe_text",
    "qwen3.5_397b_a17b": "qwen3_5_moe_text",
}


def entry(name: str) -> Architecture:
    return published.entry(name).architecture


def read(config: object) -> Imported:
    return read_config(json.dumps(config), source="config.json")


def rejection(config: object) -> str:
    """The message for a config that cannot be read: one line that names the file."""
    text = config if isinstance(config, str) else json.dumps(config)
    with pytest.raises(InputError) as caught:
        read_config(text, source="config.json")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.json: ")
    return message.removeprefix("config.json: ")


def export_error(architecture: Architecture, model_type: str | None = None) -> str:
    """The message for an architecture that cannot be written: one line."""
    with pytest.raises(InputError) as caught:
        write_config(architecture, model_type)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_an_entry_reads_back_the_same_from_its_config(name: str) -> None:
    architecture = entry(name)
    back = read(write_config(architecture, OWN_FAMILY.get(name)))
    assert back.architecture.key == architecture.key
    assert back.not_expressed == ()


def test_every_family_expresses_an_entry() -> None:
    written = {write_config(entry(n), OWN_FAMILY.get(n))["model_type"] for n in EXPRESSIBLE}
    assert written == set(FAMILIES) - {"switch_transformers"}


@pytest.mark.parametrize("name", NOT_EXPRESSIBLE)
def test_an_entry_without_a_class_cannot_be_written(name: str) -> None:
    assert export_error(entry(name)).startswith(
        "no family of Hugging Face can express this architecture"
    )


YARN_V4 = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 16,
    "original_max_position_embeddings": 65536,
    "type": "yarn",
}
BLOCKWISE = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
# Published files without token ids and training fields; most have older spellings of fields.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama3_8b": {
        "model_type": "llama",
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
    },
    "gemma3_27b": {
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "text_config": {
            "model_type": "gemma3_text",
            "head_dim": 128,
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_attention_heads": 32,
            "num_hidden_layers": 62,
            "num_key_value_heads": 16,
            "query_pre_attn_scalar": 168,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rope_local_base_freq": 10000.0,
            "sliding_window": 1024,
            "sliding_window_pattern": 6,
        },
    },
    "gpt_oss_20b": {
        "model_type": "gpt_oss",
        "attention_bias": True,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072,
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "vocab_size": 201088,
    },
    "llama4_maverick": {
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text",
            "attention_bias": False,
            "attention_chunk_size": 8192,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 5120,
            "interleave_moe_layer_step": 2,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "num_attention_heads": 40,
            "num_experts_per_tok": 1,
            "num_hidden_layers": 48,
            "num_key_value_heads": 8,
            "num_local_experts": 128,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 500000.0,
            "use_qk_norm": False,
            "vocab_size": 202048,
        },
    },
    "minimax_m2": {
        "model_type": "minimax_m2",
        "attn_type_list": [1] * 62,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "mtp_transformer_layers": 1,
        "num_attention_heads": 48,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 62,
        "num_key_value_heads": 8,
        "num_local_experts": 256,
        "num_mtp_modules": 3,
        "qk_norm_type": "per_layer",
        "quantization_config": BLOCKWISE
        | {
            "fmt": "float8_e4m3fn",
            "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        },
        "rms_norm_eps": 1e-06,
        "rope_theta": 5000000,
        "rotary_dim": 64,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "tie_word_embeddings": False,
        "use_mtp": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "vocab_size": 200064,
    },
    "minimax_m3": {
        "model_type": "minimax_m3_vl",
        "text_config": {
            "dense_intermediate_size": 12288,
            "head_dim": 128,
            "hidden_act": "swigluoai",
            "hidden_size": 6144,
            "intermediate_size": 3072,
            "moe_layer_freq": [0] * 3 + [1] * 57,
            "n_shared_experts": 1,
            "num_attention_heads": 64,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 60,
            "num_key_value_heads": 4,
            "num_local_experts": 128,
            "qk_norm_type": "per_head",
            "rope_theta": 5000000,
            "rotary_dim": 64,
            "routed_scaling_factor": 2.0,
            "scoring_func": "sigmoid",
            "shared_intermediate_size": 3072,
            "sparse_attention_config": {
                "use_sparse_attention": True,
                "sparse_attention_freq": [0] * 3 + [1] * 57,
                "sparse_block_size": 128,
                "sparse_index_dim": 128,
                "sparse_init_block": 0,
                "sparse_local_block": 1,
                "sparse_num_index_heads": 4,
                "sparse_score_type": "max",
                "sparse_topk_blocks": 16,
            },
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "use_gemma_norm": True,
            "use_qk_norm": True,
            "use_routing_bias": True,
            "vocab_size": 200064,
        },
    },
    "mimo_v2_flash": {
        "model_type": "mimo_v2_flash",
        "add_full_attention_sink_bias": False,
        "add_swa_attention_sink_bias": True,
        "attention_bias": False,
        "attention_value_scale": 0.707,
        "head_dim": 192,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "hybrid_layer_pattern": [0] + ([1] * 4 + [0]) + ([1] * 5 + [0]) * 7,
        "intermediate_size": 16384,
        "layernorm_epsilon": 1e-05,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": [0] + [1] * 47,
        "n_group": 1,
        "n_routed_experts": 256,
        "n_shared_experts": None,
        "norm_topk_prob": True,
        "num_attention_heads": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.334,
        "quantization_config": BLOCKWISE,
        "rope_theta": 5000000,
        "routed_scaling_factor": None,
        "scoring_func": "sigmoid",
        "sliding_window": 128,
        "swa_head_dim": 192,
        "swa_num_attention_heads": 64,
        "swa_num_key_value_heads": 8,
        "swa_rope_theta": 10000,
        "swa_v_head_dim": 128,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
        "vocab_size": 152576,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        "attention_bias": False,
        "ep_size": 1,
        "first_k_dense_replace": 3,
        "hidden_act": "silu",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "quantization_config": BLOCKWISE,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
        "vocab_size": 129280,
    },
    "deepseek_v4_flash": {
        "model_type": "deepseek_v4",
        "attention_bias": False,
        "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
        "compress_rope_theta": 160000,
        "expert_dtype": "fp4",
        "hc_eps": 1e-06,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "head_dim": 512,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "index_head_dim": 128,
        "index_n_heads": 64,
        "index_topk": 512,
        "max_position_embeddings": 1048576,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 64,
        "num_experts_per_tok": 6,
        "num_hash_layers": 3,
        "num_hidden_layers": 43,
        "num_key_value_heads": 1,
        "num_nextn_predict_layers": 1,
        "o_groups": 8,
        "o_lora_rank": 1024,
        "q_lora_rank": 1024,
        "qk_rope_head_dim": 64,
        "quantization_config": BLOCKWISE | {"scale_fmt": "ue8m0"},
        "rms_norm_eps": 1e-06,
        "rope_scaling": YARN_V4,
        "rope_theta": 10000,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "sliding_window": 128,
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "vocab_size": 129280,
    },
    "kimi_linear_48b": {
        "model_type": "kimi_linear",
        "first_k_dense_replace": 1,
        "head_dim": 72,
        "hidden_act": "silu",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "kv_lora_rank": 512,
        "linear_attn_config": {
            "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
            "head_dim": 128,
            "kda_layers": [i for i in range(1, 27) if i % 4],
            "num_heads": 32,
            "short_conv_kernel_size": 4,
        },
        "mla_use_nope": True,
        "moe_intermediate_size": 1024,
        "moe_layer_freq": 1,
        "moe_renormalize": True,
        "moe_router_activation_func": "sigmoid",
        "num_attention_heads": 32,
        "num_expert_group": 1,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "num_hidden_layers": 27,
        "num_key_value_heads": 32,
        "num_nextn_predict_layers": 0,
        "num_shared_experts": 1,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.446,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "use_grouped_topk": True,
        "v_head_dim": 128,
        "vocab_size": 163840,
    },
    "kimi_k3": {
        "model_type": "kimi_k3",
        "text_config": {
            "model_type": "kimi_linear",
            "activation_situ_beta": 4.0,
            "activation_situ_linear_beta": 25.0,
            "attn_res_block_size": 12,
            "first_k_dense_replace": 1,
            "hidden_act": "situ",
            "hidden_size": 7168,
            "intermediate_size": 33792,
            "kv_lora_rank": 512,
            "latent_moe_use_norm": True,
            "linear_attn_config": {
                "full_attn_layers": [*range(4, 93, 4), 93],
                "gate_lower_bound": -5.0,
                "head_dim": 128,
                "kda_layers": [i for i in range(1, 93) if i % 4],
                "num_heads": 96,
                "short_conv_kernel_size": 4,
                "use_full_rank_gate": True,
            },
            "mla_use_nope": True,
            "mla_use_output_gate": True,
            "moe_intermediate_size": 3072,
            "moe_renormalize": True,
            "moe_router_activation_func": "sigmoid",
            "num_attention_heads": 96,
            "num_expert_group": 1,
            "num_experts": 896,
            "num_experts_per_token": 16,
            "num_hidden_layers": 93,
            "num_shared_experts": 2,
            "q_lora_rank": 1536,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "rms_norm_eps": 1e-05,
            "routed_expert_hidden_size": 3584,
            "routed_scaling_factor": 1.0,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "v_head_dim": 128,
            "vocab_size": 163840,
            "quantization_config": {
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
                "format": "mxfp4-pack-quantized",
                "ignore": ["re:.*self_attn.*", "re:.*shared_experts.*", "re:.*lm_head.*"],
                "quant_method": "compressed-tensors",
            },
        },
    },
    "qwen3.5_397b_a17b": {
        "model_type": "qwen3_5_moe",
        "text_config": {
            "model_type": "qwen3_5_moe_text",
            "attention_bias": False,
            "attn_output_gate": True,
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 15,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 64,
            "linear_value_head_dim": 128,
            "mlp_only_layers": [],
            "moe_intermediate_size": 1024,
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": 32,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "num_hidden_layers": 60,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "shared_expert_intermediate_size": 1024,
            "vocab_size": 248320,
        },
        "tie_word_embeddings": False,
    },
    "jamba_v0.1": {"model_type": "jamba"},  # the class's defaults are this model
    "nemotron_h_8b": {
        "model_type": "nemotron_h",
        "attention_bias": False,
        "attention_head_dim": 128,
        "conv_kernel": 4,
        "expand": 2,
        "hidden_size": 4096,
        "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        "intermediate_size": 21504,
        "layer_norm_epsilon": 1e-05,
        "mamba_head_dim": 64,
        "mamba_hidden_act": "silu",
        "mamba_num_heads": 128,
        "mamba_proj_bias": False,
        "mlp_bias": False,
        "mlp_hidden_act": "relu2",
        "n_groups": 8,
        "num_attention_heads": 32,
        "num_hidden_layers": 52,
        "num_key_value_heads": 8,
        "rope_theta": 10000,
        "ssm_state_size": 128,
        "tie_word_embeddings": False,
        "use_bias": False,
        "use_conv_bias": True,
        "vocab_size": 131072,
    },
    "hunyuan_a13b": {
        "model_type": "hunyuan_v1_moe",
        "attention_bias": False,
        "attention_head_dim": 128,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 3072,
        "moe_intermediate_size": [3072] * 32,
        "moe_topk": [8] * 32,
        "num_attention_heads": 32,
        "num_experts": 64,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_shared_expert": [1] * 32,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "alpha": 1000.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "type": "dynamic",
        },
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_qk_norm": True,
        "vocab_size": 128167,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_reads_as_its_atlas_entry(name: str) -> None:
    imported = read(PUBLISHED[name])
    assert imported.architecture.key == entry(name).key
    assert imported.not_expressed == ()


def llama(**fields: Any) -> dict[str, Any]:
    small = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    return {"model_type": "llama"} | small | fields


def test_absent_fields_are_the_defaults_of_the_class() -> None:
    architecture = read({"model_type": "llama"}).architecture
    assert architecture.pattern == "(*-)x32"
    assert architecture.plain()["blocks"] == {
        "*": {"kind": "attn", "heads": 32, "kv_heads": 32, "head_dim": 128},
        "-": {"kind": "ffn", "width": 11008},
    }


def test_both_spellings_of_rope_read_the_same() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    old = read(llama(rope_theta=5e5, rope_scaling=scaling))
    new = read(llama(rope_parameters=scaling | {"rope_theta": 5e5}))
    assert old.architecture == new.architecture


def test_yarn_starts_from_max_position_embeddings_if_no_original_length_is_given() -> None:
    config = llama(max_position_embeddings=2048, rope_scaling={"type": "yarn", "factor": 4.0})
    rope = read(config).architecture.plain()["blocks"]["*"]["rope"]
    assert rope["scaling"]["original_context"] == 2048


def test_sliding_window_size_without_the_current_token_becomes_one_more() -> None:
    config = PUBLISHED["mimo_v2_flash"] | {"sliding_window_size": 128, "sliding_window": None}
    assert read(config).architecture.plain()["blocks"]["W"]["window"] == 129


def test_qwen3_windows_start_at_max_window_layers() -> None:
    config = {"model_type": "qwen3", "num_hidden_layers": 4, "max_window_layers": 2}
    assert read(config).architecture.pattern == "(*-)x4"
    assert read(config | {"use_sliding_window": True}).architecture.pattern == "*-*-W-W-"


def test_granite_multipliers_become_softmax_scale_and_logit_scale() -> None:
    config = write_config(entry("granite4_h_small")) | {
        "attention_multiplier": 0.0078125,
        "logits_scaling": 16,
    }
    architecture = read(config).architecture
    assert architecture.logit_scale == 1 / 16
    assert architecture.plain()["blocks"]["*"]["softmax_scale"] == 0.0078125
    assert write_config(architecture)["logits_scaling"] == 16


def test_falcon_multipliers_without_a_field_of_ours_are_reported() -> None:
    config = write_config(entry("falcon_h1_0.5b")) | {
        "key_multiplier": 0.390625,
        "ssm_in_multiplier": 1.25,
        "ssm_multipliers": [0.5, 0.25, 0.5, 0.5, 0.5],
    }
    imported = read(config)
    scale = imported.architecture.plain()["blocks"]["*"]["softmax_scale"]
    assert scale == pytest.approx(0.390625 / 8)
    assert imported.not_expressed == (
        "ssm_in_multiplier=1.25",
        "ssm_multipliers=[0.5, 0.25, 0.5, 0.5, 0.5]",
    )


def test_fields_that_are_not_expressed_are_reported_without_bookkeeping() -> None:
    config = llama(
        clip_qkv=8.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000, "spiral": True},
        attention_dropout=0.0,
        bos_token_id=1,
        transformers_version="5.24.0",
        sliding_window=None,
    )
    assert read(config).not_expressed == ("clip_qkv=8.0", "rope_parameters.spiral=true")


def test_a_multimodal_file_reads_as_its_text_tower_and_the_rest_is_reported() -> None:
    outside = {"vision_config": {"depth": 27}, "image_token_index": 7}
    imported = read(PUBLISHED["gemma3_27b"] | outside)
    assert imported.model_type == "gemma3_text"
    assert imported.not_expressed == ('vision_config={"depth": 27}',)


def test_an_encoder_decoder_is_read() -> None:
    config = {
        "model_type": "switch_transformers",
        "d_ff": 3072,
        "num_layers": 12,
        "num_sparse_encoder_layers": 6,
        "num_sparse_decoder_layers": 6,
        "num_experts": 128,
    }
    assert read(config).architecture.key == entry("switch_base_128").key


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ("{]", "not valid JSON"),
        ("[1, 2]", "expected a JSON object, got [1, 2]"),
        ("[" * 100_000, "a config may be nested at most 16 levels deep"),
        ('{"a": ' * 40 + "1" + "}" * 40, "a config may be nested at most 16 levels deep"),
        ("nonsense " * 1_200_000, "a config may have at most 1048576 characters, got 10800000"),
        ('{"model_type": "llama", "model_type": "olmo2"}', "model_type: the field is given twice"),
        ('{"model_type": "llama", "rms_norm_eps": NaN}', "rms_norm_eps: must be a finite number"),
        ({}, "model_type: required field is missing"),
        ({"model_type": "lama"}, "unknown model_type 'lama'; did you mean 'llama'?"),
        ({"model_type": 3}, "model_type: must be a string, got 3"),
        ({"model_type": "llava", "text_config": {"model_type": "fuyu"}}, "model_type 'fuyu'"),
        ({"model_type": "gemma3", "text_config": [1]}, "text_config: must be an object, got [1]"),
        ({"model_type": "deepseek_v2"}, "num_experts_per_tok: required field is missing"),
        (llama(hidden_size="64"), 'hidden_size: must be an integer, got "64"'),
        (llama(hidden_size=-64), "hidden_size: must be from 1 to"),
        (llama(hidden_size=65), "hidden_size: must be a multiple of num_attention_heads=4, got 65"),
        (llama(num_key_value_heads=3), "blocks.*: kv_heads must divide heads, got heads=4,"),
        (llama(num_hidden_layers=10**9), "num_hidden_layers: must be at most 256, got 1000000000"),
        (llama(hidden_act="sillu"), "hidden_act: unknown name \"sillu\"; did you mean 'silu'?"),
        (llama(rope_scaling={"type": "yarm"}), 'rope_scaling.type: unknown name "yarm"'),
        (
            llama(rope_theta=1e4, rope_parameters={"rope_theta": 1e6}),
            "rope_theta: 10000.0 contradicts rope_parameters.rope_theta: 1000000.0",
        ),
        (
            {"model_type": "olmo3", "num_hidden_layers": 2, "layer_types": ["full_attention"]},
            "layer_types: must have one entry per layer, num_hidden_layers=2, got 1",
        ),
        (
            {"model_type": "olmo3", "num_hidden_layers": 1, "layer_types": ["fool_attention"]},
            "layer_types: unknown layer type 'fool_attention'; did you mean 'full_attention'?",
        ),
        (
            {"model_type": "mixtral", "num_experts": 4, "num_local_experts": 8},
            "num_local_experts: 8 contradicts num_experts: 4",
        ),
        (
            {
                "model_type": "kimi_linear",
                "linear_num_heads": 4,
                "linear_attn_config": {"num_heads": 8},
            },
            "linear_num_heads: 4 contradicts linear_attn_config.num_heads: 8",
        ),
        (
            {"model_type": "kimi_k3", "linear_attn_config": {"num_heads": 0}},
            "linear_attn_config.num_heads: must be from 1 to",
        ),
        (
            {
                "model_type": "llama4",
                "tie_word_embeddings": True,
                "text_config": {"tie_word_embeddings": False},
            },
            "tie_word_embeddings: true contradicts text_config.tie_word_embeddings: false",
        ),
        (
            {"model_type": "nemotron_h", "hybrid_override_pattern": "M-X"},
            "hybrid_override_pattern: unknown symbol 'X'",
        ),
        (
            {"model_type": "mamba2", "hidden_size": 64, "num_heads": 3, "head_dim": 64},
            "expand: times hidden_size=64 must be the width of all heads, 192, got 128",
        ),
    ],
)
def test_a_bad_config_is_rejected_in_one_line(config: object, message: str) -> None:
    assert message in rejection(config)


def test_model_types_include_aliases_and_multimodal_files() -> None:
    assert {"llama", "gemma3", "gemma3_text", "kimi_k2"} <= set(model_types())


@pytest.mark.parametrize(
    ("name", "model_type", "message"),
    [
        ("qwen3_8b", "lama", "unknown model_type 'lama'; did you mean 'llama'?"),
        (
            "qwen3_8b",
            "llama",
            'llama cannot express blocks.*.qk_norm: "head" would come back as "none"',
        ),
        (
            "deepseek_v3",
            "llama",
            'llama cannot express pattern: "L-L-L-(LE)x58" would come back as',
        ),
        (
            "mixtral_8x7b",
            "nemotron_h",
            "blocks.E.activation: mlp_hidden_act has no name for 'swiglu'",
        ),
        ("mamba2_2.7b", "llama", "each layer must be a mixer and a feed-forward, got 'M'"),
        ("switch_base_128", "switch_transformers", "this family can be read, not written"),
    ],
)
def test_a_family_rejects_what_it_cannot_express(name: str, model_type: str, message: str) -> None:
    assert message in export_error(entry(name), model_type)


def test_the_closest_family_is_named_if_none_fits() -> None:
    plain = entry("llama3_8b").plain() | {"embedding_norm": True}
    message = export_error(Architecture.model_validate(plain))
    assert message.endswith(
        "the closest: llama cannot express embedding_norm: true would come back as false"
    )


def precise(name: str, **plan: Any) -> Architecture:
    return Architecture.model_validate(entry(name).plain() | {"precision": plan})


DENSE = ["attention.qkv", "attention.out", "ffn.up", "ffn.down"]


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("llama3_8b", {"fp8": DENSE, "recipe": "blockwise"}),
        ("llama3_8b", {"fp8": DENSE, "recipe": "rowwise"}),
        ("llama3_8b", {"fp8": DENSE, "recipe": "tensorwise"}),
        ("mixtral_8x7b", {"fp4": ["experts"]}),
        ("mixtral_8x7b", {"fp4": ["experts"], "fp4_scales": "nvfp4"}),
    ],
)
def test_a_precision_plan_with_a_field_reads_back_the_same(name: str, plan: dict[str, Any]) -> None:
    architecture = precise(name, **plan)
    assert read(write_config(architecture)).architecture.key == architecture.key


@pytest.mark.parametrize(
    "plan",
    [
        {"fp8": ["ffn.up"]},
        {"fp8": DENSE, "keep_first_layers": 2},
        {"fp8": [*DENSE, "kv_cache"]},
        {"int8": ["kv_cache"]},
    ],
)
def test_a_precision_plan_without_a_field_is_rejected(plan: dict[str, Any]) -> None:
    assert "precision" in export_error(precise("llama3_8b", **plan), "llama")


@pytest.mark.parametrize(
    "plan",
    [
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "mxfp4"},  # of experts, which Llama does not have
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "strategy": "group"}}},
            "format": "pack-quantized",
        },
    ],
)
def test_a_quantization_without_a_precision_plan_is_reported(plan: dict[str, Any]) -> None:
    imported = read(llama(quantization_config=plan))
    assert imported.architecture.precision == Precision()
    assert imported.not_expressed[0].startswith("quantization_config")


def test_unquantized_modules_of_a_block_are_reported() -> None:
    plan = BLOCKWISE | {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"]}
    (reported,) = read(llama(quantization_config=plan)).not_expressed
    assert reported.startswith("quantization_config.modules_to_not_convert=")


NAMES = sorted({n for c in PUBLISHED.values() for n in {**c, **c.get("text_config", {})}})
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 200)
    | st.sampled_from([10**12, 10**400, 2**-1074, 0.5, 1e308, "silu", "auto", "full_attention"])
    | st.floats()
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)
WRITTEN = [{"model_type": name} for name in FAMILIES]
FUZZ = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def assert_reads_or_rejects(text: str) -> None:
    """The text reads as an architecture, or raises InputError with one line."""
    try:
        result = read_config(text, source="config.json").architecture.key
    except InputError as error:
        result = str(error).removeprefix("config.json: ")
    assert re.fullmatch(r".+", result)


@FUZZ
@given(st.text(max_size=60) | VALUES.map(json.dumps))
def test_any_text_is_read_or_rejected(text: str) -> None:
    assert_reads_or_rejects(text)


@FUZZ
@given(st.sampled_from(list(PUBLISHED.values()) + WRITTEN), st.data())
def test_any_change_of_a_config_is_read_or_rejected(config: dict[str, Any], data: Any) -> None:
    changed = json.loads(json.dumps(config))
    for _ in range(data.draw(st.integers(1, 3))):
        at, inner = changed, data.draw(st.booleans())
        while inner and (parts := [key for key, value in at.items() if isinstance(value, dict)]):
            at, inner = at[data.draw(st.sampled_from(parts))], data.draw(st.booleans())
        name = data.draw(st.sampled_from([*at, *NAMES]))
        if data.draw(st.booleans()):
            at[name] = data.draw(VALUES)
        else:
            at.pop(name, None)
    assert_reads_or_rejects(json.dumps(changed))
