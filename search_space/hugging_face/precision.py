"""quantization_config both ways: which of our precision plans a config.json can say.

Said are one format for every matrix that a plan may place (`fp8`, in blocks of 128 or, as
compressed-tensors, by row or tensor), and `fp4` experts alone or, in DeepSeek-V4, beside it. A plan
that leaves out roles or layers, and a cache in 8 bits, have no field.
"""

import re
from typing import Any, get_args

from ..architecture import Architecture, Precision
from ..blocks.block import PrecisionRole
from ..document import InputError
from .json_fields import Fields
from .parts import Config

_BLOCK = [128, 128]
_STRATEGIES = {"block": "blockwise", "channel": "rowwise", "tensor": "tensorwise"}
_FP4_FORMATS = {"mxfp4-pack-quantized": "mxfp4", "nvfp4-pack-quantized": "nvfp4"}
# Modules outside every role of ours: to leave them as they are says nothing new.
_NEVER_PLACED = re.compile(
    r"(lm_head|embed|router|norm|conv|bias|mtp|nextn|eh_proj|visual|vision|projector|dt_|A_log"
    r"|(^|[._])(gate|wg|in_proj_b|in_proj_a|in_proj_ba|weights_proj|shared_expert_gate)[$)]*$)"
)
_NOT_EXPERTS = (
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    "re:.*lm_head.*",
)


def placed_roles(architecture: Architecture) -> tuple[PrecisionRole, ...]:
    """The roles that matrices of this architecture's blocks play, in the order of the schema."""
    played = {
        weight.role
        for block in architecture.blocks.values()
        for weight in block.weights(architecture.d_model)
    }
    roles: tuple[PrecisionRole, ...] = get_args(PrecisionRole)
    return tuple(role for role in roles if role in played)


def read_precision(fields: Fields, architecture: Architecture) -> Precision:
    """The plan that quantization_config says; what of it has no place in ours stays unexpressed."""
    part = fields.part("quantization_config")
    roles = placed_roles(architecture)
    fp4 = _fp4_experts(fields, part, roles)
    if part is None:
        return Precision(fp4=fp4)
    method = part.text("quant_method")
    if method == "fp8":
        plan = _read_fp8(part, roles, fp4)
        _read_exceptions(part)
    elif (
        method == "mxfp4" and "experts" in roles
    ):  # gpt-oss: experts alone, whatever else it excepts
        plan = {"fp4": ("experts",)}
        part.pass_over("modules_to_not_convert")
    elif method == "compressed-tensors":
        plan = _read_groups(part, roles, fp4)
    else:
        plan = {"fp4": fp4}
        fields.leave("quantization_config")
        part.pass_over(*part.data)
    return Precision.model_validate(plan)


def _fp4_experts(
    fields: Fields, part: Fields | None, roles: tuple[PrecisionRole, ...]
) -> tuple[PrecisionRole, ...]:
    """Experts in a format of their own (DeepSeek-V4)."""
    for holder in (fields, part):
        given = holder and holder.text("expert_dtype")
        if holder is None or given is None:
            continue
        if given == "fp4" and "experts" in roles:
            return ("experts",)
        if given != "fp8" or part is None:
            holder.leave("expert_dtype")
    return ()


def _read_fp8(
    part: Fields, roles: tuple[PrecisionRole, ...], fp4: tuple[PrecisionRole, ...]
) -> dict[str, Any]:
    part.expect("fmt", "e4m3", "float8_e4m3fn")
    part.expect("activation_scheme", "dynamic")
    part.expect("scale_fmt", "ue8m0")
    block = part.given("weight_block_size")
    if block not in (None, _BLOCK):
        part.leave("weight_block_size")
    recipe = "tensorwise" if part.is_null("weight_block_size") else "blockwise"
    return {"fp8": tuple(r for r in roles if r not in fp4), "fp4": fp4, "recipe": recipe}


def _read_groups(
    part: Fields, roles: tuple[PrecisionRole, ...], fp4: tuple[PrecisionRole, ...]
) -> dict[str, Any]:
    """A compressed-tensors config of one group."""
    for name in ("quantization_status", "version", "global_compression_ratio"):
        part.pass_over(name)
    form = part.text("format")
    kept = set(part.texts("ignore") or ())
    if form in _FP4_FORMATS and "experts" in roles and kept >= set(_NOT_EXPERTS[:2]):
        part.pass_over("config_groups", "ignore")
        return {"fp4": ("experts",), "fp4_scales": _FP4_FORMATS[form]}
    weights = _weights_of_one_group(part)
    part.pass_over("config_groups")
    recipe = _STRATEGIES.get(str(weights.get("strategy")))
    if form == "float-quantized" and recipe and weights.get("num_bits") == 8:
        _read_exceptions(part)
        return {"fp8": tuple(r for r in roles if r not in fp4), "fp4": fp4, "recipe": recipe}
    part.leave("config_groups")
    part.pass_over("ignore")
    return {"fp4": fp4}


def _weights_of_one_group(part: Fields) -> dict[str, Any]:
    """How the weights of the only group are stored; nothing where there is not one group."""
    groups = part.given("config_groups")
    inner = list(groups.values()) if isinstance(groups, dict) else []
    weights = inner[0].get("weights") if len(inner) == 1 and isinstance(inner[0], dict) else None
    return weights if isinstance(weights, dict) else {}


def _read_exceptions(part: Fields) -> None:
    """Modules that are named as exceptions and that a plan of ours would place."""
    for name in ("modules_to_not_convert", "ignored_layers", "ignore"):
        listed = part.texts(name)
        if listed and not all(_NEVER_PLACED.search(module) for module in listed):
            part.leave(name)


def write_precision(architecture: Architecture, config: Config) -> None:
    """Add the quantization_config; raises InputError where the plan has no field."""
    plan, roles = architecture.precision, placed_roles(architecture)
    if plan == Precision():
        return
    fp4 = plan.fp4
    fp8 = tuple(role for role in roles if role not in fp4)
    if fp4 not in ((), ("experts",)) or plan.fp8 not in ((), fp8) or plan.int8:
        raise InputError(
            f"precision: a config.json places fp8 in all of {list(fp8)} and fp4 in experts alone, "
            f"got fp8={list(plan.fp8)}, fp4={list(fp4)}, int8={list(plan.int8)}"
        )
    if plan.fp8 and fp4 and config["model_type"] != "deepseek_v4":
        raise InputError("precision: only deepseek_v4 has a field for fp4 experts beside fp8")
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
        kept = ["self_attn", "mlp.router", "embed_tokens", "lm_head"]
        config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
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
    form = next(form for form, scales in _FP4_FORMATS.items() if scales == plan.fp4_scales)
    size = {"mxfp4": 32, "nvfp4": 16}[plan.fp4_scales]
    weights = {
        "num_bits": 4, "type": "float", "strategy": "group", "group_size": size, "symmetric": True,
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": list(_NOT_EXPERTS),
    }
