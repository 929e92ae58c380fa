"""What an architecture is made of, for timing: each distinct sub-block once, and the two ends."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...search_space.architecture import Architecture, Precision
from ...search_space.blocks.attention import Attention
from ...search_space.blocks.noop import NoOp
from ...search_space.blocks.rwkv7 import RWKV7
from ...search_space.pattern import branches, compress

SMALL_VOCABULARY = 16
Part = Literal["block", "ends"]


@dataclass(frozen=True, kw_only=True)
class TimingUnit:
    """A small architecture of full width: of a block its last sub-block is timed, of the ends the
    table, the last norm and the head. `times`: how often the architecture has it."""

    architecture: Architecture
    part: Part
    times: int
    symbol: str

    @property
    def key(self) -> str:
        return f"{self.part}:{self.architecture.key}"


def pieces(architecture: Architecture) -> tuple[TimingUnit, ...]:
    """All pieces, alike ones counted together. Formats and norms are those of the place."""
    found: dict[str, TimingUnit] = {}
    for piece in _pieces(architecture):
        known = found.get(piece.key)
        times = piece.times + (known.times if known else 0)
        found[piece.key] = TimingUnit(
            architecture=piece.architecture, part=piece.part, times=times, symbol=piece.symbol
        )
    return tuple(found.values())


def _pieces(architecture: Architecture) -> Iterator[TimingUnit]:
    plan = architecture.precision
    for index, group in enumerate(architecture.symbols):
        stack = (*_needed_before(architecture, index), group)
        used = {symbol for part in stack for symbol in branches(part)}
        formats = architecture.formats(index)
        of_format = {
            name: tuple(role for role, given in formats.items() if given == name)
            for name in ("fp8", "fp4", "int8")
        }
        norm = architecture.norm.model_copy(
            update={"placement": architecture.norm_placement(index), "of_mixer": {}}
        )
        small = architecture.changed(
            name=None,
            vocab_size=SMALL_VOCABULARY,
            tied_embeddings=True,
            lm_head_bias=False,
            pattern=compress(stack),
            blocks={
                symbol: architecture.blocks[symbol]
                for symbol in architecture.blocks
                if symbol in used
            },
            joins={g: join for g, join in architecture.joins.items() if g in stack},
            norm=norm,
            mtp=None,
            # validated, not copied: a copy would keep the formats that the plan has worked out
            precision=Precision.model_validate(
                plan.model_dump()
                | of_format
                | {"keep_first_layers": 0, "keep_last_layers": 0, "keep_before_attention": False}
            ),
        )
        yield TimingUnit(architecture=small, part="block", times=1, symbol=group)
    ends = architecture.changed(
        name=None,
        pattern=".",
        blocks={".": NoOp()},
        joins={},
        norm=architecture.norm.model_copy(update={"of_mixer": {}}),
        mtp=None,
        precision=plan.model_copy(update={"keep_first_layers": 0, "keep_last_layers": 0}),
    )
    yield TimingUnit(architecture=ends, part="ends", times=1, symbol="ends")


def _needed_before(architecture: Architecture, index: int) -> tuple[str, ...]:
    """An earlier sub-block without which this one cannot run: whose keys or values it reads."""
    earlier = architecture.symbols[:index]
    for symbol in branches(architecture.symbols[index]):
        block = architecture.blocks[symbol]
        if isinstance(block, Attention) and block.kv_reuse:
            return (next(g for g in reversed(earlier) if _makes_keys(architecture, g)),)
        if isinstance(block, RWKV7):
            return tuple(g for g in earlier if isinstance(architecture.blocks.get(g), RWKV7))[:1]
    return ()


def _makes_keys(architecture: Architecture, group: str) -> bool:
    return any(
        isinstance(block, Attention) and not block.kv_reuse
        for block in (architecture.blocks[symbol] for symbol in branches(group))
    )
