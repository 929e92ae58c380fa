"""Mappings of rotary position embedding (RoPE).

Both spellings are read: `rope_parameters` of transformers 5, and the older `rope_theta` with
`rope_scaling`. The first is written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..architecture import Architecture
from ..blocks.rope import Rope, RopeScaling
from .json_fields import Fields, coalesce
from .mapping import ArchitectureDraft, Config, first_block

_TYPES = ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional")
# Fields of RopeScaling, and their names in config.json.
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
_FIELDS_OF_TYPE = {
    "linear": ("factor",),
    "dynamic": ("factor", "alpha"),
    "yarn": (
        "factor", "original_context", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    ),
    "llama3": ("factor", "original_context", "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", "original_context", "short_factor", "long_factor", "mscale"),
    "proportional": ("factor",),
}  # fmt: skip
_PHI_MSCALES = ("short_mscale", "long_mscale")  # only in Phi-3.5-MoE, where both are equal


@dataclass(frozen=True, kw_only=True)
class RopeMapping:
    """The mapping that `rope` returns."""

    symbols: tuple[str, ...]
    theta: float
    partial: float
    interleaved: bool
    key: str | None
    old_theta: str
    old_scaling: str | None
    scaling: Mapping[str, Any] | None

    def read(self, fields: Fields, draft: ArchitectureDraft) -> None:
        for symbol in self.symbols:
            draft.set(f"{symbol}.rope", self.read_rope(fields, draft))

    def read_rope(self, fields: Fields, draft: ArchitectureDraft) -> dict[str, Any]:
        """The plain data of a Rope record."""
        section = fields.section("rope_parameters")
        if section is not None and self.key is not None:
            section = section.section(self.key)
        old = fields.section(self.old_scaling) if self.old_scaling else None
        section = old or section
        theta = self._theta(fields, section)
        partial = section and section.number("partial_rotary_factor")
        return {
            "theta": theta,
            "partial": coalesce(partial, self._old_partial(fields, draft), self.partial),
            "interleaved": self.interleaved,
            "scaling": self.scaling if section is None else read_scaling(section, fields),
        }

    def _theta(self, fields: Fields, section: Fields | None) -> float:
        inner = section and section.number("rope_theta")
        outer = fields.number(self.old_theta)
        if inner is not None and outer is not None and inner != outer and self.key is None:
            raise fields.error(
                self.old_theta, f"{outer} contradicts rope_parameters.rope_theta: {inner}"
            )
        return coalesce(inner, outer, self.theta)

    def _old_partial(self, fields: Fields, draft: ArchitectureDraft) -> float | None:
        """The rotated fraction of a head by `partial_rotary_factor` or `rotary_dim`."""
        given = fields.number("partial_rotary_factor")
        head_dim = draft.get(f"{self.symbols[0]}.head_dim")
        if head_dim is None:  # latent attention, which has qk_rope_head_dim instead
            return given
        rotated = fields.integer("rotary_dim")
        return rotated / head_dim if given is None and rotated is not None else given

    def write(self, architecture: Architecture, config: Config) -> None:
        block: Any = first_block(architecture, self.symbols)
        if block is not None and block.rope is not None:
            self.write_rope(block.rope, config)

    def write_rope(self, rope: Rope, config: Config) -> None:
        """Add rope_parameters, and max_position_embeddings where positions are scaled."""
        written: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
        if rope.partial != 1 or self.partial != 1:
            written["partial_rotary_factor"] = rope.partial
        if rope.scaling:
            written |= _write_scaling(rope.scaling)
            if rope.scaling.original_context:
                context = round(rope.scaling.factor * rope.scaling.original_context)
                config["max_position_embeddings"] = max(
                    context, config.get("max_position_embeddings", 0)
                )
        if self.key is None:
            config["rope_parameters"] = written
        else:
            config.setdefault("rope_parameters", {})[self.key] = written


def rope(
    symbols: str,
    *,
    theta: float = 10_000.0,
    partial: float = 1.0,
    interleaved: bool = False,
    key: str | None = None,
    old_theta: str = "rope_theta",
    old_scaling: str | None = "rope_scaling",
    scaling: Mapping[str, Any] | None = None,
) -> RopeMapping:
    """The RoPE that blocks share.

    `theta`, `partial` (the rotated fraction of a head) and `scaling` are the class's defaults;
    `scaling` holds where the file has no rope_parameters. `key` is the key in rope_parameters where
    it has one object per layer type. `old_theta` and `old_scaling` are the older field names.
    Reading raises InputError where the two spellings give different thetas.
    """
    return RopeMapping(
        symbols=tuple(symbols.split()),
        theta=theta,
        partial=partial,
        interleaved=interleaved,
        key=key,
        old_theta=old_theta,
        old_scaling=old_scaling,
        scaling=scaling,
    )


@dataclass(frozen=True, kw_only=True)
class OptionalRope:
    """RoPE that a file may switch off, leaving no positional encoding (NoPE).

    `enabled` reads the switch, `write_enabled` gives the fields for it.
    """

    rope: RopeMapping
    enabled: Callable[[Fields], bool]
    write_enabled: Callable[[bool], Config]

    def read(self, fields: Fields, draft: ArchitectureDraft) -> None:
        rope = self.rope.read_rope(fields, draft)
        for symbol in self.rope.symbols:
            draft.set(f"{symbol}.rope", rope if self.enabled(fields) else None)

    def write(self, architecture: Architecture, config: Config) -> None:
        block: Any = first_block(architecture, self.rope.symbols)
        if block is None:
            return
        if block.rope is not None:
            self.rope.write_rope(block.rope, config)
        config |= self.write_enabled(block.rope is not None)


def read_scaling(section: Fields, fields: Fields) -> dict[str, Any] | None:
    """The plain data of a RopeScaling record from its object, None for the type "default".

    `fields` is the object around it, which may have the context that scaling starts from.
    """
    section.ignore("type", *_NAMES.values())
    name = "rope_type" if section.data.get("rope_type") is not None else "type"
    options = {**{kind: kind for kind in _TYPES}, "default": None, "mrope": None}
    kind = section.choice(options, name)
    if kind is None:
        return None
    readers = {
        "original_context": lambda name: (
            section.integer(name)
            or fields.integer(name)
            or fields.integer("max_position_embeddings")
        ),
        "truncate": section.flag,
        "short_factor": section.numbers,
        "long_factor": section.numbers,
    }
    given = {
        ours: readers.get(ours, section.number)(_NAMES[ours]) for ours in _FIELDS_OF_TYPE[kind]
    }
    if kind == "longrope":
        given["mscale"] = section.number(*_PHI_MSCALES)
    return {"type": kind} | {ours: value for ours, value in given.items() if value is not None}


def _write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    values = {ours: getattr(scaling, ours) for ours in _FIELDS_OF_TYPE[scaling.type]}
    written = {_NAMES[ours]: value for ours, value in values.items() if value not in (None, ())}
    if scaling.type == "longrope" and (mscale := written.pop("mscale", None)) is not None:
        written |= dict.fromkeys(_PHI_MSCALES, mscale)
    lists = {name: list(v) if isinstance(v, tuple) else v for name, v in written.items()}
    return {"rope_type": scaling.type} | lists
