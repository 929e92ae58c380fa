"""YAML documents with line numbers, and errors that name file, line and field."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic_core import ErrorDetails

MAX_BYTES = 1 << 20
FieldPath = tuple[str | int, ...]
_RENAMED = {"laws": "architecture_constraints"}  # fields of older files, for the hint only
M = TypeVar("M", bound=BaseModel)


class Record(BaseModel):
    """Frozen plain data without unknown fields; the docstring of a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Terse(Record):
    """A record whose plain data omits defaults, except for `kind`.

    So a field that is added later changes neither files nor keys.
    """

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in dump(self).items()
            if name == "kind"
            or getattr(self, name) != fields[name].get_default(call_default_factory=True)
        }


class InputError(ValueError):
    """Invalid input of the user; the message has one line per finding."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A parsed YAML file: its plain data and the line of each field."""

    source: str
    text: str
    data: dict[str, Any]
    lines: dict[FieldPath, int]

    def error(self, path: Sequence[str | int], fault: str) -> InputError:
        """The error `file:line: field: fault`, at the nearest enclosing field that the file has."""
        where = tuple(path)
        while where and where not in self.lines:
            where = where[:-1]
        field = ".".join(_on_one_line(str(part)) for part in path) or "document"
        return InputError(f"{self.source}:{self.lines.get(where, 1)}: {field}: {fault}")


def _on_one_line(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def read_document(path: Path) -> Document:
    """Read a YAML mapping. Raises InputError: no file, a folder, too big, invalid YAML."""
    return parse_document(read_text(path, "YAML"), source=str(path))


def read_text(path: Path, format: Literal["YAML", "JSON"]) -> str:
    """The text of a file. Raises InputError: no file, a folder, too big, not UTF-8."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a {format} file")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        suffixes = (".yaml", ".yml") if format == "YAML" else (".json",)
        beside = [p.name for p in path.parent.glob("*") if p.suffix in suffixes]
        raise InputError(f"{path}: no such file{nearest(path.name, beside)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: a document may have at most {MAX_BYTES} bytes, got {len(raw)}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: must be UTF-8 text, got byte {error.object[error.start]:#x}"
        ) from None


def parse_document(text: str, *, source: str) -> Document:
    """Parse a YAML mapping with the safe loader.

    Raises InputError for invalid YAML, anchors, aliases and duplicate keys.
    """
    try:
        tokens = list(yaml.scan(text, Loader=yaml.CSafeLoader))
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        data = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        tab = "; YAML indents with spaces, this line has a tab" if "\t" in _line(text, line) else ""
        raise InputError(f"{source}:{line}: not valid YAML: {error.problem}{tab}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{source}:1: not valid YAML: {str(error).splitlines()[0]}") from None
    for token in tokens:
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
            line = token.start_mark.line + 1
            raise InputError(f"{source}:{line}: anchors and aliases are not allowed in this file")
    if data is None:
        raise InputError(f"{source}:1: the file is empty")
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{source}:1: expected a mapping of fields, got {type(data).__name__}")
    lines: dict[FieldPath, int] = {}
    _index(node, (), lines, source)
    return Document(source=source, text=text, data=data, lines=lines)


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number - 1] if number <= len(lines) else ""


def _index(node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int], source: str) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise InputError(f"{source}:{line}: {name}: the same field is given twice")
            seen.add(name)
            _index(value, (*path, name), lines, source)
            lines[(*path, name)] = line
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _index(value, (*path, index), lines, source)


def validate(kind: type[M], document: Document, data: object = None, at: FieldPath = ()) -> M:
    """Build a `kind` from the document's data, or from `data`, the part of it at `at`.

    Raises InputError with one line per finding: file, line, field, fault and value.
    """
    try:
        return kind.model_validate(document.data if data is None else data)
    except ValidationError as error:
        findings = [
            str(document.error((*at, *place_of(e)), constraint_of(e, kind))) for e in error.errors()
        ]
        raise InputError("\n".join(dict.fromkeys(findings))) from None


def place_of(error: ErrorDetails) -> FieldPath:
    """The path of a finding, without the tags of discriminated unions (they end in '!')."""
    return tuple(part for part in error["loc"] if not str(part).endswith("!"))


def constraint_of(error: ErrorDetails, kind: Any) -> str:
    """A finding in one line: the violated constraint and the value."""
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            *path, field = error["loc"]
            return f"unknown field{nearest(str(field), _fields_at(kind, path))}"
        case "missing":
            return "required field is missing"
        case "value_error":
            return str(context["error"])
        case "literal_error" | "unknown_kind":
            given = error["input"]
            given = given.get("kind") if isinstance(given, dict) else given
            known = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            return f"must be one of {', '.join(known)}, got {given!r}{_close(str(given), known)}"
        case "tuple_type" | "list_type":
            return f"must be a list, got {error['input']!r}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a mapping, got {error['input']!r}"
        case _:
            fault = error["msg"][0].lower() + error["msg"][1:]
            return f"{fault}, got {error['input']!r}"


def _fields_at(kind: Any, loc: Sequence[int | str]) -> list[str]:
    """The fields of the record at a finding's location."""
    kinds = [kind]
    for part in loc:
        records = [r for k in kinds for r in _records(k)]
        if str(part).endswith("!"):
            kinds = [r for r in records if r.model_fields["kind"].default == str(part)[:-1]]
        elif named := [r.model_fields[part].annotation for r in records if part in r.model_fields]:
            kinds = named
    return [field for k in kinds for r in _records(k) for field in r.model_fields]


def _records(kind: Any) -> list[type[BaseModel]]:
    """The record types in an annotation: A and B in dict[str, A | B]."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [record for inner in get_args(kind) for record in _records(inner)]


def _close(name: str, known: Sequence[str]) -> str:
    renamed = _RENAMED.get(name)
    close = [renamed] if renamed in known else difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for messages: `; did you mean 'x'?`, else the known names if they are few, else ''."""
    names = list(known)
    listed = f"; known: {', '.join(names)}" if 0 < len(names) <= 24 else ""
    return _close(name, names) or listed
