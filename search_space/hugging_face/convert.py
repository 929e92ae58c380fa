"""The doors: a config.json in, an architecture out, and the other way round.

    imported = read_config(path.read_text(), source=str(path))
    config = write_config(imported.architecture)

Reading takes the text tower of a multimodal file. What a file says about the architecture and our
schema has no place for is told in `not_expressed`, never dropped. Writing is exact or refused: what
is written, read again, is the same architecture. A name has no field; a precision plan has one
where precision.py can say it, else the plan is refused with the rest.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from ..architecture import Architecture
from ..document import InputError, constraint_of, nearest, place_of
from ..pattern import branches, compress, unroll
from . import delta, dense, experts, gemma, latent, mamba, recurrent, switch
from .family import Family
from .json_fields import Fields, says_nothing, shown
from .parts import Draft
from .precision import read_precision, write_precision

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for room in (dense, gemma, experts, latent, delta, mamba, recurrent, switch)
    for family in room.FAMILIES
}
# Other names of a family, most of them those of files whose text tower it is.
_ALIASES = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "minimax_m3": "minimax_m3_vl_text",
    "minimax_m3_text": "minimax_m3_vl_text",
    "minimax_text_01": "minimax",
    "mimo_v2": "mimo_v2_flash",
    "kimi_k2": "deepseek_v3",
}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a config.json says: the architecture, whose class it is for, and what is left over.

    `not_expressed` has `field=value` for each field that may say something about the architecture
    and has no place in it.
    """

    architecture: Architecture
    model_type: str
    not_expressed: tuple[str, ...]


class _Inexact(InputError):
    """What a family writes comes back with other values in so many fields."""

    def __init__(self, told: str, fields: int) -> None:
        super().__init__(told)
        self.fields = fields


def model_types() -> tuple[str, ...]:
    """The names that read_config knows, those of wrapping files included."""
    return tuple(sorted({*FAMILIES, *_ALIASES}))


def read_config(text: str, *, source: str) -> Imported:
    """Read a config.json; raises InputError, one line that names the file, for anything else."""
    fields, family, around = _text_tower(Fields.parse(text, source=source))
    architecture = _built(family.read(fields), source)
    precision = read_precision(fields, architecture)
    return Imported(
        architecture=architecture.changed(precision=precision),
        model_type=family.model_type,
        not_expressed=tuple(sorted({*around, *fields.unexpressed()})),
    )


def write_config(architecture: Architecture, model_type: str | None = None) -> dict[str, Any]:
    """The config.json from which the family's class builds this architecture, exactly.

    Without a model_type the first family is taken that can say all of it. Raises InputError with
    the first fields that would come back different, or the reason why there is no way.
    """
    if model_type is not None:
        name = _ALIASES.get(model_type, model_type)
        if name not in FAMILIES:
            raise InputError(
                f"unknown model_type {model_type!r}{nearest(model_type, model_types())}"
            )
        return _written(architecture, FAMILIES[name])
    closest = None
    for family in FAMILIES.values():
        try:
            return _written(architecture, family)
        except _Inexact as inexact:
            if closest is None or inexact.fields < closest.fields:
                closest = inexact
        except InputError:  # it has no such layers at all
            continue
    near = f"; the closest: {closest}" if closest else ""
    raise InputError(f"no family of Hugging Face can express this architecture{near}")


def _text_tower(fields: Fields) -> tuple[Fields, Family, list[str]]:
    """The fields of the language model, its family, and what stands around it."""
    outer = fields.text("model_type")
    inner = fields.part("text_config")
    names = [outer, inner.text("model_type") if inner else None]
    family = next((f for name in names if (f := _family(name)) is not None), None)
    if family is None:
        if names == [None, None]:
            raise fields.error("model_type", "required field is missing")
        told = str(names[1] or names[0])
        raise fields.error(
            "model_type", f"unknown model_type {told!r}{nearest(told, model_types())}"
        )
    if inner is None:
        return fields, family, []
    shared = ("tie_word_embeddings", "quantization_config", "expert_dtype")
    data = dict(inner.data)
    for name in shared:
        if fields.data.get(name) is None:
            continue
        if data.setdefault(name, fields.data[name]) != fields.data[name]:
            raise fields.error(name, f"contradicts that of text_config: {shown(fields.data[name])}")
    around = [
        f"{name}={shown(value)}"
        for name, value in fields.data.items()
        if name not in (*shared, "text_config") and not says_nothing(name, value)
    ]
    return Fields(data, source=fields.source, path=("text_config",)), family, around


def _family(name: str | None) -> Family | None:
    return FAMILIES.get(_ALIASES.get(name or "", name or ""))


def _built(draft: Draft, source: str) -> Architecture:
    """The architecture of a draft, of whose blocks it has those that occur."""
    inner = [part["pattern"] for name in ("mtp", "encoder") if (part := draft.outer.get(name))]
    stacks = [draft.symbols, *(unroll(pattern) for pattern in inner)]
    used = {symbol for stack in stacks for group in stack for symbol in branches(group)}
    plain = draft.outer | {
        "pattern": compress(draft.symbols),
        "blocks": {symbol: block for symbol, block in draft.blocks.items() if symbol in used},
    }
    if "norm" in plain:
        of_mixer = plain["norm"].get("of_mixer", {})
        plain["norm"]["of_mixer"] = {s: how for s, how in of_mixer.items() if s in used}
    try:
        return Architecture.model_validate(plain)
    except ValidationError as error:
        found = error.errors()[0]
        place = ".".join(str(part) for part in place_of(found)) or "architecture"
        raise InputError(f"{source}: {place}: {constraint_of(found, Architecture)}") from None


def _written(architecture: Architecture, family: Family) -> dict[str, Any]:
    """One family's config, shown to read back as the same architecture."""
    try:
        config = family.write(architecture)
        write_precision(architecture, config)
        config["dtype"] = "bfloat16"
        if family.text_type is not None:
            config = _wrapped(config, family.text_type)
        back = read_config(json.dumps(config), source="config.json").architecture
    except InputError as error:
        law = str(error).removeprefix("config.json: ")
        raise InputError(f"{family.model_type} cannot express this architecture: {law}") from None
    if back.key != architecture.key:
        found = [
            f"{path}: {shown(_plain(mine))} would come back as {shown(_plain(theirs))}"
            for path, mine, theirs in _differences(architecture, back, "")
        ]
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        told = f"{family.model_type} cannot express {'; '.join(found[:3])}{more}"
        raise _Inexact(told, len(found))
    return config


def _wrapped(config: dict[str, Any], text_type: str) -> dict[str, Any]:
    outer = {name: config.pop(name) for name in ("architectures", "model_type")}
    return outer | {"text_config": {"model_type": text_type} | config}


def _differences(mine: Any, theirs: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two records differ, from the outside in."""
    if isinstance(mine, BaseModel) and type(mine) is type(theirs):
        for name in type(mine).model_fields:
            if name != "name":
                yield from _differences(
                    getattr(mine, name), getattr(theirs, name), _join(path, name)
                )
    elif isinstance(mine, dict) and isinstance(theirs, dict):
        for name in {**mine, **theirs}:
            yield from _differences(mine.get(name), theirs.get(name), _join(path, name))
    elif mine != theirs:
        yield path, mine, theirs


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
