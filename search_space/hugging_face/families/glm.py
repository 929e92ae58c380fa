"""GLM-4.5."""

from ..attention import gqa, qk_norm
from ..family import family
from ..feed_forward import activation, dense_ffn, routed_experts, sigmoid_routing
from ..layers import every_layer, layers, leading_dense
from ..mapping import field
from ..model import mtp, top_level
from ..rope import rope

GLM4_MOE = family(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    top_level(d_model=4096, vocab_size=151_552, eps=1e-5),
    gqa("*", heads=96, kv_heads=8),
    field("*.qkv_bias", "attention_bias", False),
    qk_norm("*", "head", False),
    rope("*", partial=0.5),
    dense_ffn(10944),
    routed_experts(
        n_experts=128, top_k=8, d_expert=1408, n_name="n_routed_experts|num_local_experts"
    ),
    field("E.n_shared", "n_shared_experts", 1, least=0),
    field("E.norm_topk", "norm_topk_prob", True),
    field("E.scale", "routed_scaling_factor", 1.0),
    sigmoid_routing(1, 1),
    activation("- E"),
    layers(46, every_layer("*"), leading_dense("first_k_dense_replace", 1)),
    mtp("num_nextn_predict_layers|num_mtp_layers", "*E", 1),
)
