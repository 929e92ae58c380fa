"""The module of each kind of block. A new mixer is a record, a module, and a name here."""

from .body import Body
from .experts import Moe
from .feed_forward import FeedForward
from .mixers.attention import Attention
from .mixers.compressed import CompressedAttention
from .mixers.gated_deltanet import GatedDeltaNet
from .mixers.kda import Kda
from .mixers.linear_attention import Gla, Lightning, Retention
from .mixers.mamba1 import Mamba1
from .mixers.mamba2 import Mamba2
from .mixers.mla import Mla
from .mixers.noop import NoOp
from .mixers.rglru import RgLru
from .mixers.rnn import Rnn
from .mixers.rwkv7 import Rwkv7, Rwkv7ChannelMix
from .mixers.shared import SharedBlock
from .mixers.short_conv import ShortConv
from .mixers.ttt import TttLinear

BODIES: dict[str, type[Body]] = {
    "attn": Attention,
    "mla": Mla,
    "compressed": CompressedAttention,
    "mamba2": Mamba2,
    "mamba1": Mamba1,
    "gdn": GatedDeltaNet,
    "kda": Kda,
    "lightning": Lightning,
    "retention": Retention,
    "gla": Gla,
    "rwkv7": Rwkv7,
    "rglru": RgLru,
    "ttt_linear": TttLinear,
    "shortconv": ShortConv,
    "rnn": Rnn,
    "ffn": FeedForward,
    "moe": Moe,
    "rwkv7_cmix": Rwkv7ChannelMix,
    "shared": SharedBlock,
    "noop": NoOp,
}
