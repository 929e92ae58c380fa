"""The timing units of an architecture: each distinct sub-block, and embedding with head."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ...search_space.architecture import Architecture, Precision
from ...search_space.blocks.attention import Attention
from ...search_space.blocks.noop import NoOp
from ...search_space.blocks.rwkv7 import RWKV7
from ...search_space.pattern import branches, compress
from ..lowering import EMBEDDING_AND_HEAD

SMALL_VOCABULARY = 16
UnitKind = Literal["block", "embedding_and_head"]


@dataclass(frozen=True, kw_only=True)
class TimingUnit:
    """A small architecture of full width that is timed in place of a part of a larger one.

    Of a "block" the last sub-block is timed; of "embedding_and_head" the embedding, the last norm
    and the head. The larger architecture has it `count` times, in the layer group `group`.
    """

    architecture: Architecture
    kind: UnitKind
    count: int
    group: str

    @property
    def key(self) -> str:
        """`KIND:ARCHITECTURE_KEY`, as timings are stored."""
        return f"{self.kind}:{self.architecture.key}"


def timing_units(architecture: Architecture) -> tuple[TimingUnit, ...]:
    """The distinct timing units of an architecture.

    Number formats and norm placement belong to the unit: sub-blocks that differ in them are
    different units. The counts of the blocks add up to the number of sub-blocks.
    """
    found: dict[str, TimingUnit] = {}
    for unit in _units(architecture):
        before = found.get(unit.key)
        found[unit.key] = replace(unit, count=before.count + 1) if before else unit
    return tuple(found.values())


def _units(architecture: Architecture) -> Iterator[TimingUnit]:
    plan = architecture.precision
    for index, group in enumerate(architecture.symbols):
        stack = (*_needed_before(architecture, index), group)
        used = {symbol for member in stack for symbol in branches(member)}
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
            # validated, since a copy would keep the cached formats of the whole plan
            precision=Precision.model_validate(
                plan.model_dump()
                | of_format
                | {"keep_first_layers": 0, "keep_last_layers": 0, "keep_before_attention": False}
            ),
        )
        yield TimingUnit(architecture=small, kind="block", count=1, group=group)
    no_blocks = architecture.changed(
        name=None,
        pattern=".",
        blocks={".": NoOp()},
        joins={},
        norm=architecture.norm.model_copy(update={"of_mixer": {}}),
        mtp=None,
        precision=plan.model_copy(update={"keep_first_layers": 0, "keep_last_layers": 0}),
    )
    yield TimingUnit(
        architecture=no_blocks, kind=EMBEDDING_AND_HEAD, count=1, group=EMBEDDING_AND_HEAD
    )


def _needed_before(architecture: Architecture, index: int) -> tuple[str, ...]:
    """The earlier sub-block whose keys or values this one reads, where it reads any."""
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
