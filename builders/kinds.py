"""The module of each kind of block."""

from .body import Body
from .feed_forward import FeedForward
from .mixers.attention import Attention
from .mixers.compressed import CompressedAttention
from .mixers.gated_deltanet import GatedDeltaNet
from .mixers.kda import KDA
from .mixers.linear_attention import GLA, Lightning, Retention
from .mixers.mamba1 import Mamba1
from .mixers.mamba2 import Mamba2
from .mixers.mla import MLA
from .mixers.noop import NoOp
from .mixers.rglru import RGLRU
from .mixers.rnn import RNN
from .mixers.rwkv7 import RWKV7, RWKV7ChannelMix
from .mixers.shared import SharedBlock
from .mixers.short_conv import ShortConv
from .mixers.ttt import TTTLinear
from .moe import MoE

BODIES: dict[str, type[Body]] = {
    "attn": Attention,
    "mla": MLA,
    "compressed": CompressedAttention,
    "mamba2": Mamba2,
    "mamba1": Mamba1,
    "gdn": GatedDeltaNet,
    "kda": KDA,
    "lightning": Lightning,
    "retention": Retention,
    "gla": GLA,
    "rwkv7": RWKV7,
    "rglru": RGLRU,
    "ttt_linear": TTTLinear,
    "shortconv": ShortConv,
    "rnn": RNN,
    "ffn": FeedForward,
    "moe": MoE,
    "rwkv7_cmix": RWKV7ChannelMix,
    "shared": SharedBlock,
    "noop": NoOp,
}
