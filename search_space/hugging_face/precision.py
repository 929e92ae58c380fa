"""Mapping of `quantization_config` to a precision plan, and back.

A config.json can express a plan with one FP8 format for every quantized matrix (scales per block of
128 x 128, or as compressed-tensors per row or per tensor), or FP4 for the experts; both together
only in DeepSeek-V4. A plan for some roles or layers only, or with an 8-bit KV cache, has no field.
"""

import re
from typing import Any, get_args

from ..architecture import Architecture, Precision
from ..blocks.block import PrecisionRole
from ..document import InputError
from .json_fields import Fields
from .mapping import Config

_BLOCK = [128, 128]
_STRATEGIES = {"block": "blockwise", "channel": "rowwise", "tensor": "tensorwise"}
_FP4_FORMATS = {"mxfp4-pack-quantized": "mxfp4", "nvfp4-pack-quantized": "nvfp4"}
# Modules that have no role in a precision plan and stay unquantized in any case.
_NEVER_QUANTIZED = re.compile(
    r"(lm_head|embed|router|norm|conv|bias|mtp|nextn|eh_proj|visual|vision|projector|dt_|A_log"
    r"|(^|[._])(gate|wg|in_proj_b|in_proj_a|in_proj_ba|weights_proj|shared_expert_gate)[$)]*$)"
)
_NOT_EXPERTS = (
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    "re:.*lm_head.*",
)


def quantizable_roles(architecture: Architecture) -> tuple[PrecisionRole, ...]:
    """The roles of the matrices in the blocks of an architecture, in the order of the schema."""
    found = {
        weight.role
        for block in architecture.blocks.values()
        for weight in block.weights(architecture.d_model)
    }
    roles: tuple[PrecisionRole, ...] = get_args(PrecisionRole)
    return tuple(role for role in roles if role in found)


def read_precision(fields: Fields, architecture: Architecture) -> Precision:
    """The precision plan of `quantization_config`, and of DeepSeek-V4's `expert_dtype`.

    Absent, it is the plan without quantization. A method or a field that has no place in a plan is
    marked as not expressed. Raises InputError for a field of the wrong type.
    """
    section = fields.section("quantization_config")
    roles = quantizable_roles(architecture)
    fp4 = _fp4_experts(fields, section, roles)
    if section is None:
        return Precision(fp4=fp4)
    method = section.text("quant_method")
    if method == "fp8":
        plan = _read_fp8(section, roles, fp4)
        _read_exceptions(section)
    elif method == "mxfp4" and "experts" in roles:  # gpt-oss, which quantizes only experts
        plan = {"fp4": ("experts",)}
        section.ignore("modules_to_not_convert")
    elif method == "compressed-tensors":
        plan = _read_groups(section, roles, fp4)
    else:
        plan = {"fp4": fp4}
        fields.mark_unexpressed("quantization_config")
        section.ignore(*section.data)
    return Precision.model_validate(plan)


def _fp4_experts(
    fields: Fields, section: Fields | None, roles: tuple[PrecisionRole, ...]
) -> tuple[PrecisionRole, ...]:
    """The experts role if `expert_dtype` is fp4 (DeepSeek-V4), else nothing."""
    for holder in (fields, section):
        given = holder and holder.text("expert_dtype")
        if holder is None or given is None:
            continue
        if given == "fp4" and "experts" in roles:
            return ("experts",)
        if given != "fp8" or section is None:
            holder.mark_unexpressed("expert_dtype")
    return ()


def _read_fp8(
    section: Fields, roles: tuple[PrecisionRole, ...], fp4: tuple[PrecisionRole, ...]
) -> dict[str, Any]:
    section.expect("fmt", "e4m3", "float8_e4m3fn")
    section.expect("activation_scheme", "dynamic")
    section.expect("scale_fmt", "ue8m0")
    block = section.value("weight_block_size")
    if block not in (None, _BLOCK):
        section.mark_unexpressed("weight_block_size")
    recipe = "tensorwise" if section.is_null("weight_block_size") else "blockwise"
    return {"fp8": tuple(r for r in roles if r not in fp4), "fp4": fp4, "recipe": recipe}


def _read_groups(
    section: Fields, roles: tuple[PrecisionRole, ...], fp4: tuple[PrecisionRole, ...]
) -> dict[str, Any]:
    """The plan of a compressed-tensors config with one group."""
    for name in ("quantization_status", "version", "global_compression_ratio"):
        section.ignore(name)
    storage = section.text("format")
    unquantized = set(section.texts("ignore") or ())
    if storage in _FP4_FORMATS and "experts" in roles and unquantized >= set(_NOT_EXPERTS[:2]):
        section.ignore("config_groups", "ignore")
        return {"fp4": ("experts",), "fp4_scales": _FP4_FORMATS[storage]}
    weights = _weights_of_one_group(section)
    section.ignore("config_groups")
    recipe = _STRATEGIES.get(str(weights.get("strategy")))
    if storage == "float-quantized" and recipe and weights.get("num_bits") == 8:
        _read_exceptions(section)
        return {"fp8": tuple(r for r in roles if r not in fp4), "fp4": fp4, "recipe": recipe}
    section.mark_unexpressed("config_groups")
    section.ignore("ignore")
    return {"fp4": fp4}


def _weights_of_one_group(section: Fields) -> dict[str, Any]:
    """The `weights` of the only group; empty unless there is exactly one."""
    groups = section.value("config_groups")
    inner = list(groups.values()) if isinstance(groups, dict) else []
    weights = inner[0].get("weights") if len(inner) == 1 and isinstance(inner[0], dict) else None
    return weights if isinstance(weights, dict) else {}


def _read_exceptions(section: Fields) -> None:
    """Mark lists of unquantized modules that name one which a plan would quantize."""
    for name in ("modules_to_not_convert", "ignored_layers", "ignore"):
        listed = section.texts(name)
        if listed and not all(_NEVER_QUANTIZED.search(module) for module in listed):
            section.mark_unexpressed(name)


def write_precision(architecture: Architecture, config: Config) -> None:
    """Add the `quantization_config` of an architecture's precision, nothing for the default plan.

    Raises InputError where a config.json cannot express the plan.
    """
    plan, roles = architecture.precision, quantizable_roles(architecture)
    if plan == Precision():
        return
    fp4 = plan.fp4
    fp8 = tuple(role for role in roles if role not in fp4)
    if fp4 not in ((), ("experts",)) or plan.fp8 not in ((), fp8) or plan.int8:
        raise InputError(
            f"precision: a config.json has fp8 only in all of {list(fp8)}, fp4 only in experts, "
            f"got fp8={list(plan.fp8)}, fp4={list(fp4)}, int8={list(plan.int8)}"
        )
    if plan.fp8 and fp4 and config["model_type"] != "deepseek_v4":
        raise InputError(
            "precision: only deepseek_v4 has fields for both fp8 and fp4 experts, "
            f"got fp8={list(plan.fp8)}, fp4={list(fp4)}"
        )
    if plan.fp8 and plan.recipe == "blockwise":
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(_BLOCK),
        }
        if fp4:
            config["expert_dtype"] = "fp4"
    elif plan.fp8:
        config["quantization_config"] = _float_groups(plan)
    elif config["model_type"] == "gpt_oss" and plan.fp4_scales == "mxfp4":
        unquantized = ["self_attn", "mlp.router", "embed_tokens", "lm_head"]
        config["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": unquantized,
        }
    else:
        config["quantization_config"] = _fp4_groups(plan)


def _float_groups(plan: Precision) -> dict[str, Any]:
    strategy = next(name for name, recipe in _STRATEGIES.items() if recipe == plan.recipe)
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}
    inputs = weights | {
        "strategy": "token" if plan.recipe == "rowwise" else "tensor",
        "dynamic": True,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights | {"dynamic": False},
        "input_activations": inputs,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _fp4_groups(plan: Precision) -> dict[str, Any]:
    storage = next(name for name, scales in _FP4_FORMATS.items() if scales == plan.fp4_scales)
    size = {"mxfp4": 32, "nvfp4": 16}[plan.fp4_scales]
    weights = {
        "num_bits": 4, "type": "float", "strategy": "group", "group_size": size, "symmetric": True,
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": storage,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": list(_NOT_EXPERTS),
    }
