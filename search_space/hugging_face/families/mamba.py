"""Mamba-2."""

from ..family import family
from ..layers import every_layer, layers
from ..mapping import block_kinds, expected, field
from ..model import top_level
from ..recurrent import expansion, mamba2_width

MAMBA2 = family(
    "mamba2",
    "Mamba2ForCausalLM",
    top_level(d_model=4096, vocab_size=32768, eps=1e-5, eps_name="layer_norm_epsilon"),
    block_kinds(mamba2="M"),
    field("M.heads", "num_heads", 128),
    field("M.head_dim", "head_dim", 64),
    expansion("expand", 2, "M.d_inner", mamba2_width),
    field("M.d_state", "state_size", 128),
    field("M.groups", "n_groups", 8),
    field("M.conv", "conv_kernel", 4),
    field("M.conv_bias", "use_conv_bias", True),
    layers(64, every_layer("M")),
    expected(use_bias=False, hidden_act="silu", rms_norm=True, norm_before_gate=False),
)
