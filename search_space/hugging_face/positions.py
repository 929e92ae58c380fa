"""Rotary positions: rope_parameters of transformers 5 and the older rope_theta, rope_scaling."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..architecture import Architecture
from ..blocks.rope import Rope, RopeScaling
from .json_fields import Fields, first
from .parts import Config, Draft, first_block

_TYPES = {
    name: name for name in ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional")
}
# The names of our fields in theirs, and which of them a type has.
_NAMES = {
    "factor": "factor",
    "original_context": "original_max_position_embeddings",
    "alpha": "alpha",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "short_factor": "short_factor",
    "long_factor": "long_factor",
}
_OF_TYPE = {
    "linear": ("factor",),
    "dynamic": ("factor", "alpha"),
    "yarn": (
        "factor", "original_context", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    ),
    "llama3": ("factor", "original_context", "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", "original_context", "short_factor", "long_factor", "mscale"),
    "proportional": ("factor",),
}  # fmt: skip
_PHI_MSCALES = ("short_mscale", "long_mscale")  # alike in Phi-3.5-MoE, the only one to have them


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """The rotary positions that the blocks of some symbols share.

    With `label` they have a part of their own in rope_parameters. `old_theta` and `old_scaling`
    name the older spelling. `scaling` is what the class has where a file has no rope_parameters.
    """

    symbols: tuple[str, ...]
    theta: float
    partial: float
    interleaved: bool
    label: str | None
    old_theta: str
    old_scaling: str | None
    scaling: Mapping[str, Any] | None

    def read(self, fields: Fields, draft: Draft) -> None:
        for symbol in self.symbols:
            draft.put(f"{symbol}.rope", self.rope(fields, draft))

    def rope(self, fields: Fields, draft: Draft) -> dict[str, Any]:
        """Our record of them, as plain data."""
        part = fields.part("rope_parameters")
        if part is not None and self.label is not None:
            part = part.part(self.label)
        old = fields.part(self.old_scaling) if self.old_scaling else None
        part = old or part
        theta = self._theta(fields, part)
        partial = part and part.number("partial_rotary_factor")
        rope: dict[str, Any] = {
            "theta": theta,
            "partial": first(partial, self._old_partial(fields, draft), self.partial),
            "interleaved": self.interleaved,
        }
        scaling = self.scaling if part is None else read_scaling(part, fields)
        return rope | {"scaling": scaling}

    def _theta(self, fields: Fields, part: Fields | None) -> float:
        inner = part and part.number("rope_theta")
        outer = fields.number(self.old_theta)
        if inner is not None and outer is not None and inner != outer and self.label is None:
            raise fields.error(
                self.old_theta, f"{outer} contradicts rope_theta={inner} of rope_parameters"
            )
        return first(inner, outer, self.theta)

    def _old_partial(self, fields: Fields, draft: Draft) -> float | None:
        given = fields.number("partial_rotary_factor")
        head_dim = draft.get(f"{self.symbols[0]}.head_dim")
        if head_dim is None:  # latent attention, of whose heads a part of its own is rotated
            return given
        rotated = fields.integer("rotary_dim")
        return rotated / head_dim if given is None and rotated is not None else given

    def write(self, architecture: Architecture, config: Config) -> None:
        block: Any = first_block(architecture, self.symbols)
        if block is not None and block.rope is not None:
            self.write_rope(block.rope, config)

    def write_rope(self, rope: Rope, config: Config) -> None:
        """Their record of ours, and the context that it reaches."""
        written: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
        if rope.partial != 1 or self.partial != 1:
            written["partial_rotary_factor"] = rope.partial
        if rope.scaling:
            written |= _write_scaling(rope.scaling)
            if rope.scaling.original_context:
                reach = round(rope.scaling.factor * rope.scaling.original_context)
                config["max_position_embeddings"] = max(
                    reach, config.get("max_position_embeddings", 0)
                )
        if self.label is None:
            config["rope_parameters"] = written
        else:
            config.setdefault("rope_parameters", {})[self.label] = written


def rotary(
    symbols: str,
    *,
    theta: float = 10_000.0,
    partial: float = 1.0,
    interleaved: bool = False,
    label: str | None = None,
    old_theta: str = "rope_theta",
    old_scaling: str | None = "rope_scaling",
    scaling: Mapping[str, Any] | None = None,
) -> Rotary:
    """The rotary positions of the blocks with these symbols, with the class's defaults."""
    return Rotary(
        symbols=tuple(symbols.split()),
        theta=theta,
        partial=partial,
        interleaved=interleaved,
        label=label,
        old_theta=old_theta,
        old_scaling=old_scaling,
        scaling=scaling,
    )


@dataclass(frozen=True, kw_only=True)
class Switched:
    """Rotary positions that a file may switch off; without them there is no position (NoPE)."""

    rotary: Rotary
    on: Callable[[Fields], bool]
    said: Callable[[bool], Config]

    def read(self, fields: Fields, draft: Draft) -> None:
        rope = self.rotary.rope(fields, draft)
        for symbol in self.rotary.symbols:
            draft.put(f"{symbol}.rope", rope if self.on(fields) else None)

    def write(self, architecture: Architecture, config: Config) -> None:
        block: Any = first_block(architecture, self.rotary.symbols)
        if block is None:
            return
        if block.rope is not None:
            self.rotary.write_rope(block.rope, config)
        config |= self.said(block.rope is not None)


def read_scaling(part: Fields, fields: Fields) -> dict[str, Any] | None:
    """How positions are stretched, from their part or from the file around it."""
    part.pass_over("type", *_NAMES.values())
    name = "rope_type" if part.data.get("rope_type") is not None else "type"
    kind = part.choice({**_TYPES, "default": None, "mrope": None}, name)
    if kind is None:
        return None
    read = {
        "original_context": lambda name: (
            part.integer(name) or fields.integer(name) or fields.integer("max_position_embeddings")
        ),
        "truncate": part.flag,
        "short_factor": part.numbers,
        "long_factor": part.numbers,
    }  # fmt: skip
    given = {ours: read.get(ours, part.number)(_NAMES[ours]) for ours in _OF_TYPE[kind]}
    if kind == "longrope":
        given["mscale"] = part.number(*_PHI_MSCALES)
    return {"type": kind} | {ours: value for ours, value in given.items() if value is not None}


def _write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    values = {ours: getattr(scaling, ours) for ours in _OF_TYPE[scaling.type]}
    said = {_NAMES[ours]: value for ours, value in values.items() if value not in (None, ())}
    if scaling.type == "longrope" and (mscale := said.pop("mscale", None)) is not None:
        said |= dict.fromkeys(_PHI_MSCALES, mscale)
    lists = {name: list(v) if isinstance(v, tuple) else v for name, v in said.items()}
    return {"rope_type": scaling.type} | lists
