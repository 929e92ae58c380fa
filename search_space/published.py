"""The atlas: published architectures in our own schema, each with the figures that verify it.

Every entry is one file of `atlas/`, named by its id. It may stand wherever an architecture may: in a
comparison, in a profile, as the start of a search.
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
    """What the publisher says, in the publisher's words."""

    total: str
    active: str | None = None
    source: str


class Figures(Record):
    """What an architecture counts to; caches in BF16 and recurrent states in fp32 unless said."""

    total: PositiveInt | None = None
    active: PositiveInt | None = None
    active_no_input_embedding: PositiveInt | None = None
    active_no_embeddings: PositiveInt | None = None
    mtp: PositiveInt | None = None  # the parameters of all MTP modules
    kv_bytes_per_token: NonNegativeInt | NonNegativeFloat | None = None
    index_bytes_per_token: NonNegativeInt | NonNegativeFloat | None = None
    windowed_kv_bytes_cap: NonNegativeInt | None = None
    state_bytes_per_sequence: NonNegativeInt | None = None


class Reference(Figures):
    """Figures reached without our formulas; null where none could be verified.

    `verified_by`: a public model class counted on the meta device, the tensors of the real
    checkpoint, or another closed formula.
    """

    verified_by: tuple[Literal["model class", "checkpoint", "formula"], ...] = ()


class Entry(Record):
    """One published model. `num_layers` is the publisher's own count, `doubts` are real."""

    name: str
    family: str
    publisher: str
    release: str
    num_layers: PositiveInt
    max_context: PositiveInt | None = None
    published: Stated
    architecture: Architecture
    reference: Reference
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def figures(
    architecture: Architecture,
    *,
    kv: NumberFormat | None = "bf16",
    state: StateFormat = "fp32",
    mtp: bool = False,
) -> Figures:
    """The figures by our formulas; `kv`, `state` and `mtp` bear on the caches."""
    counts = parameters(architecture)
    caches = cache_bytes(architecture, kv=kv, state=state, mtp=mtp)
    modules = parameters(architecture, mtp=True).total - counts.total
    return Figures(mtp=modules or None, **vars(counts), **vars(caches))


_FOLDER = files("archfront.search_space").joinpath("atlas")


@cache
def names() -> tuple[str, ...]:
    """The ids of all entries, in the order of the alphabet."""
    return tuple(sorted(f.name.removesuffix(".yaml") for f in _FOLDER.iterdir()))


@cache
def entry(name: str) -> Entry:
    """The entry of that id. Raises InputError with near names."""
    found = find(name)
    if found is None:
        raise InputError(f"the atlas has no {name!r}{nearest(name, names())}")
    source = f"atlas/{found}.yaml"
    return validate(Entry, parse_document(_text(found), source=source))


def find(name: str) -> str | None:
    """The id that a name means: the id itself, the model's own name, or the start of one id alone."""
    wanted = name.lower().replace("-", "_").replace(" ", "_")
    if wanted in names():
        return wanted
    starts = [known for known in names() if known.startswith(wanted)]
    return starts[0] if len(starts) == 1 else None


def _text(name: str) -> str:
    return _FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
