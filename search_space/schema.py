"""JSON Schemas of space files and architecture files, and the reference of their fields.

    python -m archfront.search_space.schema > docs/SPACE.md

Structure, types, bounds and descriptions are those of the records that read the files.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter

from .architecture import Architecture, Norm, Precision
from .blocks.block import Block
from .blocks.kinds import KINDS
from .constraints import FIELDS
from .domain import Choices, LogRange, Range
from .layout import Layout
from .metrics import METRICS
from .pattern import MAX_LENGTH, SYMBOL, SYMBOLS
from .plan import Plan
from .published import Entry, names
from .space import FREE, FREE_FIELDS, SpaceFile
from .workload import WORKLOADS

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
COMMON = tuple(name for name in Block.model_fields if name != "kind")  # of all blocks
EXPONENT = r"^[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+$"  # of a number
IN_SPACE = "InSpace"  # ends the name of a definition whose values may be choices
MAPPINGS = {"norm": Norm, "precision": Precision}  # no choice as a whole, only in their fields


def space_schema() -> Schema:
    """JSON Schema (2020-12) of a space file, for editors to complete and check.

    It accepts every valid file. Relations between fields, such as a choice of an undefined block,
    are found by `archfront space check` only.
    """
    plain = {**_definitions(Architecture), **_definitions(SpaceFile), **_definitions(Layout)}
    templates = {name + IN_SPACE: _template(record) for name, record in plain.items()}
    templates["Block" + IN_SPACE] = _block_in_space()
    file = plain.pop("SpaceFile")
    file["properties"]["architecture"] = {
        **_architecture_in_space(templates.pop("Architecture" + IN_SPACE)),
        "description": file["properties"]["architecture"]["description"],
    }
    _describe_names(file)
    free_block = {
        "anyOf": [
            {"properties": {field: {"const": FREE}}, "required": [field]} for field in FREE_FIELDS
        ]
    }
    none_is_free = {"additionalProperties": {"not": free_block}}
    nothing_to_solve = {
        "properties": {"architecture": {"properties": {"blocks": none_is_free}}},
    }
    return _used(
        {
            "$schema": DIALECT,
            "title": "archfront search space",
            **file,
            "if": nothing_to_solve,
            "then": {"properties": {"budget": {"type": "null"}}},
            "else": {"required": ["budget"], "properties": {"budget": {"type": "object"}}},
            "$defs": plain | templates | {"When": _when()},
        }
    )


def architecture_schema() -> Schema:
    """JSON Schema (2020-12) of an architecture file.

    The architecture is the whole file or its field `architecture`, as in entries of the atlas,
    which are checked as a whole, and in exported files, of which `profile` is checked too.
    """
    found = _definitions(Architecture) | _definitions(Plan) | _definitions(Entry)
    architecture = found["Architecture"]
    architecture["properties"]["n_layers"] = {
        "type": "integer",
        "description": "Layers or sub-blocks, checked against the pattern.",
    }
    exported = {
        "type": "object",
        "properties": {
            "architecture": {"$ref": "#/$defs/Architecture", "description": "The architecture."},
            "profile": {"$ref": "#/$defs/Plan", "description": "How it is evaluated."},
        },
    }
    within = {
        "if": {"required": ["published", "reference"]},
        "then": {"$ref": "#/$defs/Entry"},
        "else": exported,
    }
    return _used(
        {
            "$schema": DIALECT,
            "title": "archfront architecture",
            "description": "An architecture, or a file with an architecture in it.",
            "if": {"type": "object", "required": ["architecture"]},
            "then": within,
            "else": {"$ref": "#/$defs/Architecture"},
            "$defs": found,
        }
    )


def _definitions(record: type[BaseModel]) -> dict[str, Schema]:
    """The schema of a record and of all records in it, by name."""
    whole = TypeAdapter(record).json_schema()
    found = {**whole.pop("$defs", {}), record.__name__: whole}
    if record is Architecture:
        found["Block"] = {"oneOf": whole["properties"]["blocks"]["additionalProperties"]["oneOf"]}
    for name, schema in found.items():
        _without_titles(schema)
        if (properties := schema.get("properties")) is not None and "kind" in properties:
            kind = properties["kind"]
            kind.pop("default", None)
            kind["description"] = f"The kind of block: {name}."
            schema["required"] = ["kind", *schema.get("required", [])]
        for field, value in (properties or {}).items():
            if field == "pattern":
                value["maxLength"] = MAX_LENGTH
            if field in ("blocks", "of_mixer") and name in ("Architecture", "Norm"):
                value["propertyNames"] = {"pattern": f"^{SYMBOL}$"}
            if field == "blocks" and name == "Architecture":
                value["additionalProperties"] = {"$ref": "#/$defs/Block"}
            if field == "joins":
                value["propertyNames"] = {"pattern": rf"^\[{SYMBOL}(\|{SYMBOL})+\]$"}
    return found


def _without_titles(schema: Any) -> None:
    """Drop the titles that repeat the names of fields."""
    if isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        for inner in schema.values():
            _without_titles(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _without_titles(inner)


def _template(record: Schema) -> Schema:
    """The record with choices allowed for the value of each field."""
    if "properties" not in record:
        return record
    fields = {name: _or_choice(value) for name, value in record["properties"].items()}
    for name in FREE_FIELDS:
        if name in fields and "kind" in fields:
            free = {"const": FREE, "description": "Solved by the budget."}
            fields[name]["anyOf"].append(free)
    if "kind" in fields:
        fields["kind"] = record["properties"]["kind"]
    return {**record, "properties": fields}


def _or_choice(value: Schema) -> Schema:
    """A value, or a choice among such values in any of its notations."""
    about = {key: value[key] for key in ("description", "default") if key in value}
    plain = {key: inner for key, inner in value.items() if key not in about}
    listed = {"type": "array", "items": plain, "minItems": 1, "uniqueItems": True}
    alternatives: list[Schema] = [_in_template(plain), _choice(Choices, "choices", listed)]
    if number := next((a for a in plain.get("anyOf", [plain]) if _is_number(a)), None):
        step = {"type": number["type"], "exclusiveMinimum": 0}
        alternatives.append(_choice(Range, "range", _items(number, number, step)))
        positive = number if "exclusiveMinimum" in number else {**number, "exclusiveMinimum": 0}
        alternatives.append(_choice(LogRange, "log_range", _items(positive, positive)))
    return {**about, "anyOf": alternatives}


def _is_number(schema: Schema) -> bool:
    return schema.get("type") in ("integer", "number")


def _items(*values: Schema) -> Schema:
    count = len(values)
    return {"type": "array", "prefixItems": list(values), "minItems": count, "maxItems": count}


def _choice(record: type[BaseModel], field: str, values: Schema) -> Schema:
    described = {**values, "description": record.model_fields[field].description}
    return {
        "type": "object",
        "properties": {field: described, "when": {"$ref": "#/$defs/When"}},
        "required": [field],
        "additionalProperties": False,
    }


def _in_template(plain: Schema) -> Schema:
    """The schema of a value in a space, where records in it may have choices."""
    if "$ref" in plain:
        return {**plain, "$ref": plain["$ref"] + IN_SPACE}
    if "anyOf" in plain:
        return {**plain, "anyOf": [_in_template(inner) for inner in plain["anyOf"]]}
    if isinstance(inner := plain.get("additionalProperties"), dict):
        inside = _in_template(inner) if "$ref" in inner else _or_choice(inner)
        return {**plain, "additionalProperties": inside}
    return plain


def _block_in_space() -> Schema:
    """A block by its kind; of a block whose kind is a choice the other fields are not checked."""
    kind = {"enum": list(KINDS), "description": "Kind of the block."}
    chosen = _or_choice(kind)
    by_kind = [
        {
            "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
            "then": {"$ref": f"#/$defs/{record.__name__}{IN_SPACE}"},
        }
        for name, record in KINDS.items()
    ]
    return {
        "type": "object",
        "properties": {"kind": chosen},
        "required": ["kind"],
        "allOf": by_kind,
    }


def _architecture_in_space(template: Schema) -> Schema:
    """The architecture of a space: with a layout in place of the pattern, and without a name."""
    fields = {name: value for name, value in template["properties"].items() if name != "name"}
    for name, record in MAPPINGS.items():
        whole = {"$ref": f"#/$defs/{record.__name__}{IN_SPACE}", "minProperties": 1}
        fields[name] = {"description": fields[name]["description"], **whole}
    fields["blocks"] = {
        "description": fields["blocks"]["description"],
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^{SYMBOL}$"},
        "additionalProperties": {"$ref": f"#/$defs/Block{IN_SPACE}"},
    }
    layout = {"$ref": f"#/$defs/Layout{IN_SPACE}", "description": Layout.__doc__}
    return {
        "type": "object",
        "properties": {**fields, "layout": layout},
        "required": ["d_model", "vocab_size", "blocks"],
        "oneOf": [{"required": ["layout"]}, {"required": ["pattern"]}],
        "additionalProperties": False,
    }


def _describe_names(file: Schema) -> None:
    """Restrict the names that a space file uses to those that exist."""
    fields = file["properties"]
    objectives = [m.name for m in METRICS.values() if m.better]
    fields["objectives"] |= {"items": _metric(objectives), "uniqueItems": True}
    fields["constraints"]["propertyNames"] = _metric(list(METRICS))
    fields["architecture_constraints"]["items"] = {"type": "string", "pattern": _comparison()}
    fields["warm_start"]["items"] = {"anyOf": [{"enum": list(names())}, {"type": "string"}]}


def _metric(known: list[str]) -> Schema:
    """A metric among those known, at a workload where it depends on one."""
    at = "|".join(name for name in known if METRICS[name].per_workload)
    return {"anyOf": [{"enum": known}, {"type": "string", "pattern": f"^({at})@[^@]+$"}]}


def _comparison() -> str:
    """The regular expression of an architecture constraint, balance of parentheses excepted."""
    of_kinds = [
        rf"{kind}\.({'|'.join(record.model_fields)})" for kind, record in sorted(KINDS.items())
    ]
    term = rf"({'|'.join([*FIELDS, *of_kinds])}|[0-9][0-9_]*(\.[0-9]*)?([eE][+-]?[0-9]+)?)"
    side = rf"[\s(]*{term}[\s)]*((\+|-|\*|//?|%)[\s(]*{term}[\s)]*)*"
    return rf"^{side}((<=?|>=?|==|!=){side})+$"


def _when() -> Schema:
    layout = "|".join(Layout.model_fields)
    parts = [f"layout\\.({layout})", "blocks\\..+", *(rf"{name}(\..+)?" for name in _top_fields())]
    return {
        "type": "object",
        "propertyNames": {"pattern": f"^({'|'.join(parts)})$"},
        "description": Choices.model_fields["when"].description,
    }


def _top_fields() -> list[str]:
    return [name for name in Architecture.model_fields if name not in ("name", "blocks")]


def _used(schema: Schema) -> Schema:
    """The schema with the definitions that it refers to, and names of workloads allowed."""
    definitions = schema["$defs"]
    if "Plan" in definitions:
        workloads = definitions["Plan"]["properties"]["workloads"]
        named = {"enum": list(WORKLOADS), "description": "Name of a known workload."}
        workloads |= {"items": {"anyOf": [named, workloads["items"]]}, "uniqueItems": True}
        workloads["default"] = [WORKLOADS["chat-4k"].name]
    reached: set[str] = set()
    todo = [{key: value for key, value in schema.items() if key != "$defs"}]
    while todo:
        for name in set(_references(todo.pop())) - reached:
            reached.add(name)
            todo.append(definitions[name])
    kept = {name: definitions[name] for name in definitions if name in reached}
    return _with_exponents({**schema, "$defs": kept})


def _with_exponents(schema: Any) -> Any:
    """The schema where a number may be `1.0e6`, which YAML 1.1 reads as text."""
    if isinstance(schema, list):
        return [_with_exponents(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _with_exponents(inner) for key, inner in schema.items()}
    if found.get("type") == "number":
        found |= {"type": ["number", "string"], "pattern": EXPONENT}
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference.removeprefix("#/$defs/")
        for inner in schema.values():
            yield from _references(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _references(inner)


INTRODUCTION = """\
# Space files and architecture files

Generated by `python -m archfront.search_space.schema`; `archfront space schema` prints the same
fields as a JSON Schema for editors.

A space file is an architecture in which some values are choices, with objectives and the plan by
which candidates are evaluated. Wherever a space's `architecture` has a value, it may have one of

{choices}

A choice in a block exists only while the layout uses that block. {free} of a block may be `free`:
the budget solves it. An architecture file has the fields of an [architecture](#architecture), as
the whole file or under `architecture`.
"""


def space_markdown() -> str:
    """The reference of all fields of space files and architecture files, as Markdown."""
    plain = {**_definitions(Architecture), **_definitions(SpaceFile), **_definitions(Layout)}
    choices = "\n".join(
        f"- `{{{field}: ...}}`: {_one_line(record.model_fields[field].description or '')}"
        for field, record in (("choices", Choices), ("range", Range), ("log_range", LogRange))
    )
    when = _one_line(Choices.model_fields["when"].description or "")
    choices += f"\n\neach with an optional `when`. {when}"
    free = " or ".join(f"`{name}`" for name in FREE_FIELDS)
    blocks = {record.__name__: kind for kind, record in KINDS.items()}
    order = ["SpaceFile", "Layout", "Architecture"]
    records = [name for name in plain if name not in (*order, *blocks, "Block")]
    sections = [INTRODUCTION.format(choices=choices, free=free)]
    sections += [_section(name, plain[name]) for name in order]
    symbols = [(f"`{symbol}`", block) for symbol, block in SYMBOLS.items()]
    sections.append(f"## Symbols\n\n{_table(('symbol', 'block'), symbols)}")
    sections.append(_section("Block", _block_fields(plain["Attention"])))
    sections += [_section(f"{name} (`kind: {blocks[name]}`)", plain[name]) for name in blocks]
    sections += [_section(name, plain[name]) for name in sorted(records)]
    rows = [(f"`{m.name}`", m.unit, m.better or "", m.description) for m in METRICS.values()]
    header = ("metric", "unit", "better", "description")
    sections.append(f"## Metrics\n\n{_table(header, rows)}")
    return "\n".join(sections)


def _block_fields(block: Schema) -> Schema:
    """The fields of all blocks."""
    fields = {name: block["properties"][name] for name in COMMON}
    about = "Fields of every block, beside its `kind` and the fields of that kind."
    return {"description": about, "properties": fields}


def _section(title: str, record: Schema) -> str:
    required = record.get("required", [])
    common = () if title == "Block" else ("kind", *COMMON)
    own = {name: v for name, v in record.get("properties", {}).items() if name not in common}
    rows = [
        (f"`{name}`", _kind_of(value), _default(name in required, value), value["description"])
        for name, value in own.items()
    ]
    table = _table(("field", "value", "default", "description"), rows) if rows else ""
    return f"## {title}\n\n{record.get('description', '')}\n\n{table}"


def _default(required: bool, value: Schema) -> str:
    if required:
        return "required"
    default = value.get("default")
    return "" if default == "" or isinstance(default, dict) else f"`{json.dumps(default)}`"


def _kind_of(schema: Schema) -> str:
    """The type of a value in words."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return "a block" if name == "Block" else f"[{name}](#{name.lower()})"
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_kind_of(inner) for inner in alternatives)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    match schema.get("type"):
        case "integer" | "number" as kind:
            return " ".join(
                ["whole number" if kind == "integer" else kind, ", ".join(_bounds(schema))]
            ).strip()
        case "array":
            items = schema.get("items")
            return f"list of {_kind_of(items)}" if items else "list"
        case "object":
            inner = schema.get("additionalProperties")
            return f"mapping to {_kind_of(inner)}" if isinstance(inner, dict) else "mapping"
        case "null":
            return "null"
        case kind:
            return str(kind or "any value")


def _bounds(schema: Schema) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for name, sign in signs.items():
        if name in schema:
            yield f"{sign} {schema[name]:.10g}"


def _table(header: tuple[str, ...], rows: Any) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(
        "| " + " | ".join(_one_line(cell).replace("|", r"\|") for cell in line) + " |\n"
        for line in lines
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.stdout.write(space_markdown())
