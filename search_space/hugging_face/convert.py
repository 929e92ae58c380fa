"""Public API: convert a Hugging Face config.json to an architecture, and back.

    imported = read_config(path.read_text(), source=str(path))
    config = write_config(imported.architecture)

Fields of a file that describe the architecture and have no place in our schema are listed in
`not_expressed`. Writing is exact or raises InputError: what is written reads back as the same
architecture, apart from its name. families/ has the mapping of fields of each model family.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from ..architecture import Architecture
from ..document import InputError, constraint_of, nearest, place_of
from ..pattern import branches, compress, unroll
from .family import Family
from .json_fields import Fields, as_json, is_ignorable
from .mapping import ArchitectureDraft
from .precision import read_precision, write_precision
from .registry import ALIASES, FAMILIES


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The result of read_config.

    `model_type` is that of the family, of the language model in a multimodal file. `not_expressed`
    has `field=value` for each field that may describe the architecture and has no place in it.
    """

    architecture: Architecture
    model_type: str
    not_expressed: tuple[str, ...]


class _InexactError(InputError):
    """A config that reads back as another architecture; `num_fields` of it differ."""

    def __init__(self, message: str, num_fields: int) -> None:
        super().__init__(message)
        self.num_fields = num_fields


def model_types() -> tuple[str, ...]:
    """The model_types that read_config accepts, sorted, with aliases and multimodal ones."""
    return tuple(sorted({*FAMILIES, *ALIASES}))


def read_config(text: str, *, source: str) -> Imported:
    """Read the text of a config.json; `source` names the file in messages.

    In a multimodal file only the language model, `text_config`, is read. Absent fields have the
    defaults of the family's class in transformers. `quantization_config` becomes the precision.

    Raises InputError, one line `source: field: constraint, got value`: not a JSON object, an
    unknown model_type, a field of the wrong type or range, fields that contradict each other, or an
    architecture that our schema rejects.
    """
    fields, family, outside = _text_tower(Fields.parse(text, source=source))
    architecture = _architecture(family.read(fields), source)
    precision = read_precision(fields, architecture)
    return Imported(
        architecture=architecture.changed(precision=precision),
        model_type=family.model_type,
        not_expressed=tuple(sorted({*outside, *fields.unexpressed()})),
    )


def write_config(architecture: Architecture, model_type: str | None = None) -> dict[str, Any]:
    """The config.json from which the family's class builds this architecture, exactly.

    Without a model_type, that of the first family in the registry that can express the
    architecture. Raises InputError where none can, with the reasons of the closest, or where the
    family given cannot: the fields that would read back different, or the constraint violated.
    """
    if model_type is not None:
        name = ALIASES.get(model_type, model_type)
        if name not in FAMILIES:
            raise InputError(
                f"unknown model_type {model_type!r}{nearest(model_type, model_types())}"
            )
        return _write(architecture, FAMILIES[name])
    closest = None
    for family in FAMILIES.values():
        try:
            return _write(architecture, family)
        except _InexactError as inexact:
            if closest is None or inexact.num_fields < closest.num_fields:
                closest = inexact
        except InputError:  # the family has no such layers
            continue
    near = f"; the closest: {closest}" if closest else ""
    raise InputError(f"no family of Hugging Face can express this architecture{near}")


def _text_tower(fields: Fields) -> tuple[Fields, Family, list[str]]:
    """The fields of the language model, its family, and `field=value` of those outside it."""
    outer_type = fields.text("model_type")
    inner = fields.section("text_config")
    names = [outer_type, inner.text("model_type") if inner else None]
    family = next((f for name in names if (f := _family(name)) is not None), None)
    if family is None:
        if names == [None, None]:
            raise fields.error("model_type", "required field is missing")
        unknown = str(names[1] or names[0])
        raise fields.error(
            "model_type", f"unknown model_type {unknown!r}{nearest(unknown, model_types())}"
        )
    if inner is None:
        return fields, family, []
    shared = ("tie_word_embeddings", "quantization_config", "expert_dtype")
    data = dict(inner.data)
    for name in shared:
        if fields.data.get(name) is None:
            continue
        if data.setdefault(name, fields.data[name]) != fields.data[name]:
            raise fields.error(
                name,
                f"{as_json(fields.data[name])} contradicts text_config.{name}: "
                f"{as_json(data[name])}",
            )
    outside = [
        f"{name}={as_json(value)}"
        for name, value in fields.data.items()
        if name not in (*shared, "text_config") and not is_ignorable(name, value)
    ]
    return Fields(data, source=fields.source, path=("text_config",)), family, outside


def _family(name: str | None) -> Family | None:
    return FAMILIES.get(ALIASES.get(name or "", name or ""))


def _architecture(draft: ArchitectureDraft, source: str) -> Architecture:
    """The architecture of a draft, with only those of its blocks that occur in a pattern."""
    inner = [part["pattern"] for name in ("mtp", "encoder") if (part := draft.top_level.get(name))]
    stacks = [draft.symbols, *(unroll(pattern) for pattern in inner)]
    used = {symbol for stack in stacks for group in stack for symbol in branches(group)}
    plain = draft.top_level | {
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


def _write(architecture: Architecture, family: Family) -> dict[str, Any]:
    """The config of one family; raises InputError unless it reads back the same."""
    try:
        config = family.write(architecture)
        write_precision(architecture, config)
        config["dtype"] = "bfloat16"
        if family.text_type is not None:
            config = _nest(config, family.text_type)
        back = read_config(json.dumps(config), source="config.json").architecture
    except InputError as error:
        reason = str(error).removeprefix("config.json: ")
        raise InputError(
            f"{family.model_type} cannot express this architecture: {reason}"
        ) from None
    if back.key != architecture.key:
        found = [
            f"{path}: {as_json(_plain(value))} would come back as {as_json(_plain(other))}"
            for path, value, other in _differences(architecture, back, "")
        ]
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        message = f"{family.model_type} cannot express {'; '.join(found[:3])}{more}"
        raise _InexactError(message, len(found))
    return config


def _nest(config: dict[str, Any], text_type: str) -> dict[str, Any]:
    """The config with the fields of the language model in text_config."""
    outer = {name: config.pop(name) for name in ("architectures", "model_type")}
    return outer | {"text_config": {"model_type": text_type} | config}


def _differences(value: Any, other: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The path and both values of each field in which two records differ, names excepted."""
    if isinstance(value, BaseModel) and type(value) is type(other):
        for name in type(value).model_fields:
            if name != "name":
                yield from _differences(
                    getattr(value, name), getattr(other, name), _join(path, name)
                )
    elif isinstance(value, dict) and isinstance(other, dict):
        for name in {**value, **other}:
            yield from _differences(value.get(name), other.get(name), _join(path, name))
    elif value != other:
        yield path, value, other


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
