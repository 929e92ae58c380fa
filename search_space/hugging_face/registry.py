"""The list of model families, with other names under which their files occur."""

from .families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, DEEPSEEK_V4, DEEPSEEK_V32
from .families.falcon import FALCON_H1
from .families.gemma import GEMMA2, GEMMA3_TEXT, GEMMA4_TEXT
from .families.glm import GLM4_MOE
from .families.gpt_oss import GPT_OSS
from .families.granite import GRANITEMOEHYBRID
from .families.hunyuan import HUNYUAN_V1_MOE
from .families.jamba import JAMBA
from .families.kimi import KIMI_K3, KIMI_LINEAR
from .families.lfm import LFM2
from .families.llama import LLAMA, LLAMA4_TEXT
from .families.mamba import MAMBA2
from .families.mimo import MIMO_V2_FLASH
from .families.minimax import MINIMAX, MINIMAX_M2, MINIMAX_M3_VL_TEXT
from .families.mistral import MISTRAL, MIXTRAL
from .families.nemotron import NEMOTRON_H
from .families.olmo import OLMO2, OLMO3, OLMO_HYBRID
from .families.phi import PHIMOE
from .families.qwen import QWEN3, QWEN3_5_MOE_TEXT, QWEN3_5_TEXT, QWEN3_MOE, QWEN3_NEXT
from .families.recurrent_gemma import RECURRENT_GEMMA
from .families.rwkv import RWKV7
from .families.switch import SWITCH_TRANSFORMERS
from .families.zamba import ZAMBA2
from .family import Family

# By model_type. Without a model_type, write_config takes the first family here that fits: families
# of plain attention stand first, and a family before those that extend it.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA,
        MISTRAL,
        OLMO2,
        OLMO3,
        QWEN3,
        GEMMA2,
        GEMMA3_TEXT,
        GEMMA4_TEXT,
        MIXTRAL,
        QWEN3_MOE,
        GPT_OSS,
        PHIMOE,
        HUNYUAN_V1_MOE,
        LLAMA4_TEXT,
        MINIMAX_M2,
        MINIMAX_M3_VL_TEXT,
        MIMO_V2_FLASH,
        GLM4_MOE,
        DEEPSEEK_V2,
        DEEPSEEK_V3,
        DEEPSEEK_V32,
        DEEPSEEK_V4,
        KIMI_LINEAR,
        KIMI_K3,
        QWEN3_NEXT,
        QWEN3_5_TEXT,
        QWEN3_5_MOE_TEXT,
        OLMO_HYBRID,
        MAMBA2,
        NEMOTRON_H,
        JAMBA,
        ZAMBA2,
        FALCON_H1,
        GRANITEMOEHYBRID,
        MINIMAX,
        RWKV7,
        LFM2,
        RECURRENT_GEMMA,
        SWITCH_TRANSFORMERS,
    )
}

# Other model_types of a family: multimodal files that contain it, older and compatible names.
ALIASES = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "minimax_m3": "minimax_m3_vl_text",
    "minimax_m3_text": "minimax_m3_vl_text",
    "minimax_text_01": "minimax",
    "mimo_v2": "mimo_v2_flash",
    "kimi_k2": "deepseek_v3",
}
