"""Mappings of the fields outside the layers: sizes, norm, tied embeddings, MTP modules."""

from ..architecture import Architecture
from .json_fields import Fields, coalesce
from .mapping import ArchitectureDraft, Config, CustomMapping, FieldMapping, field


def top_level(
    *,
    d_model: int,
    vocab_size: int,
    eps: float,
    eps_name: str = "rms_norm_eps",
    tied: bool = False,
    tied_name: str = "tie_word_embeddings",
) -> tuple[FieldMapping, ...]:
    """Model width, vocabulary, tied embeddings and the epsilon of norms, with their defaults."""
    return (
        field("d_model", "hidden_size", d_model),
        field("vocab_size", "vocab_size", vocab_size),
        field("tied_embeddings", tied_name, tied),
        field("norm.eps", eps_name, eps),
    )


def mtp(name: str, pattern: str, default: int = 0) -> FieldMapping:
    """The number of multi-token prediction modules; each has one layer, the blocks of `pattern`."""
    names = tuple(name.split("|"))

    def read(fields: Fields, draft: ArchitectureDraft) -> None:
        if depth := coalesce(fields.integer(*names, least=0), default):
            draft.set("mtp", {"depth": depth, "pattern": pattern})

    def write(architecture: Architecture, config: Config) -> None:
        config[names[0]] = architecture.mtp.depth if architecture.mtp else 0

    return CustomMapping(read=read, write=write)
