"""The atlas: published architectures, each with the figures that verify it.

Every entry is one file of `atlas/`, named by its id, and is accepted wherever an architecture is:
in a comparison, in a profile, as the start of a search.
"""

from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from .accounting import StateFormat, cache_bytes, parameters
from .architecture import Architecture
from .document import InputError, Record, nearest, parse_document, validate
from .operators import NumberFormat


class Stated(Record):
    """Parameter counts as the publisher states them."""

    total: str
    """Total parameters."""
    active: str | None = None
    """Active parameters."""
    source: str
    """Where it is stated."""


class Figures(Record):
    """Counts of an architecture; caches in BF16 and recurrent states in fp32 by default."""

    total: PositiveInt | None = None
    """All parameters, MTP modules excluded."""
    active: PositiveInt | None = None
    """Parameters used per token, embedding tables included."""
    active_no_input_embedding: PositiveInt | None = None
    """Active parameters without an untied input table."""
    active_no_embeddings: PositiveInt | None = None
    """Active parameters without input table and head."""
    mtp: PositiveInt | None = None
    """Parameters of all MTP modules."""
    kv_bytes_per_token: NonNegativeInt | NonNegativeFloat | None = None
    """KV-cache growth per token, in bytes."""
    index_bytes_per_token: NonNegativeInt | NonNegativeFloat | None = None
    """Growth of the indexers' key caches per token, in bytes."""
    windowed_kv_bytes_cap: NonNegativeInt | None = None
    """Largest size of the windowed KV caches per sequence, in bytes."""
    state_bytes_per_sequence: NonNegativeInt | None = None
    """Recurrent and convolution state per sequence, in bytes."""


class Reference(Figures):
    """Figures from independent sources; null where none could be verified."""

    verified_by: tuple[Literal["model class", "checkpoint", "formula"], ...] = ()
    """A public model class counted on the meta device, the tensors of the real checkpoint, or
    another closed formula."""


class Entry(Record):
    """One published model."""

    name: str
    """Name of the model."""
    family: str
    """Model family."""
    publisher: str
    """Publisher."""
    release: str
    """Release date or month."""
    num_layers: PositiveInt
    """Layers by the publisher's own count."""
    max_context: PositiveInt | None = None
    """Longest context that the publisher states, in tokens."""
    published: Stated
    """What the publisher states."""
    architecture: Architecture
    """The architecture."""
    reference: Reference
    """Figures that verify the architecture."""
    sources: tuple[str, ...]
    """Where the architecture was read."""
    notes: tuple[str, ...] = ()
    """Remarks."""
    doubts: tuple[str, ...] = ()
    """What the sources leave open."""


def figures(
    architecture: Architecture,
    *,
    kv: NumberFormat | None = "bf16",
    state: StateFormat = "fp32",
    mtp: bool = False,
) -> Figures:
    """The figures by formula; for `kv`, `state` and `mtp` see `accounting.cache_bytes`."""
    counts = parameters(architecture)
    caches = cache_bytes(architecture, kv=kv, state=state, mtp=mtp)
    modules = parameters(architecture, mtp=True).total - counts.total
    return Figures(mtp=modules or None, **vars(counts), **vars(caches))


_FOLDER = files("archfront.search_space").joinpath("atlas")


@cache
def names() -> tuple[str, ...]:
    """The ids of all entries, sorted."""
    return tuple(sorted(f.name.removesuffix(".yaml") for f in _FOLDER.iterdir()))


@cache
def entry(name: str) -> Entry:
    """The entry with that id or name, see `find`. Raises InputError if there is none."""
    found = find(name)
    if found is None:
        raise InputError(f"the atlas has no {name!r}{nearest(name, names())}")
    source = f"atlas/{found}.yaml"
    return validate(Entry, parse_document(_text(found), source=source))


def find(name: str) -> str | None:
    """The entry's id for an id, a model name or an unambiguous prefix; None if there is none."""
    wanted = name.lower().replace("-", "_").replace(" ", "_")
    if wanted in names():
        return wanted
    starts = [known for known in names() if known.startswith(wanted)]
    return starts[0] if len(starts) == 1 else None


def _text(name: str) -> str:
    return _FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
