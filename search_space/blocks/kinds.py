"""The table of block kinds."""

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from .attention import Attention
from .block import Block
from .compressed import CompressedAttention
from .feed_forward import FeedForward
from .gated_deltanet import GatedDeltaNet
from .gla import GLA
from .kda import KDA
from .lightning import Lightning
from .mamba1 import Mamba1
from .mamba2 import Mamba2
from .mla import MLA
from .moe import MoE
from .noop import NoOp
from .retention import Retention
from .rglru import RGLRU
from .rnn import RNN
from .rwkv7 import RWKV7, RWKV7ChannelMix
from .shared import SharedBlock
from .short_conv import ShortConv
from .ttt import TTTLinear

RECORDS: tuple[type[Block], ...] = (
    Attention,
    MLA,
    CompressedAttention,
    Mamba2,
    Mamba1,
    GatedDeltaNet,
    KDA,
    Lightning,
    Retention,
    GLA,
    RWKV7,
    RGLRU,
    TTTLinear,
    ShortConv,
    RNN,
    FeedForward,
    MoE,
    RWKV7ChannelMix,
    SharedBlock,
    NoOp,
)
KINDS: dict[str, type[Block]] = {record.model_fields["kind"].default: record for record in RECORDS}


def _tag(block: Any) -> str:
    kind = block.get("kind") if isinstance(block, dict) else getattr(block, "kind", None)
    return f"{kind}!"  # the '!' marks a tag, see document.py


if TYPE_CHECKING:
    AnyBlock = Block
else:
    AnyBlock = Annotated[
        Union[tuple(Annotated[r, Tag(f"{kind}!")] for kind, r in KINDS.items())],  # noqa: UP007
        Discriminator(
            _tag,
            custom_error_type="unknown_kind",
            custom_error_message="unknown kind",
            custom_error_context={"expected": ", ".join(KINDS)},
        ),
    ]
