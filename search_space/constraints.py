"""Laws of a space: one comparison over an architecture's fields, written by the user.

    moe.top_k * 4 <= moe.n_experts
    mamba2.heads * mamba2.head_dim == 2 * d_model

A name is a field of the architecture or `kind.field` of its blocks; a law holds for every block of
that kind and says nothing where the architecture has none. The text is parsed, never executed.
"""

import ast
import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .architecture import Architecture
from .blocks.block import Block
from .blocks.kinds import KINDS
from .document import nearest

_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
FIELDS = ("d_model", "vocab_size", "num_layers")


@dataclass(frozen=True, kw_only=True)
class ArchitectureConstraint:
    """A parsed comparison and the block kinds it speaks of."""

    text: str
    comparison: ast.Compare
    kinds: tuple[str, ...]


def parse_constraint(text: str) -> ArchitectureConstraint:
    """Parse a law. Raises ValueError when it is no comparison of known names and numbers."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"a law must be a comparison such as 'moe.top_k <= 8', got {text!r}"
        ) from None
    if not isinstance(tree, ast.Compare):
        raise ValueError(f"a law must compare two sides with < <= > >= == !=, got {text!r}")
    kinds: dict[str, None] = {}
    for node in _terms(tree, text):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            kind, field = node.value.id, node.attr
            if kind not in KINDS:
                raise ValueError(f"law {text}: unknown block kind {kind!r}{nearest(kind, KINDS)}")
            if field not in KINDS[kind].model_fields:
                near = nearest(field, KINDS[kind].model_fields)
                raise ValueError(f"law {text}: {kind} has no field {field!r}{near}")
            kinds[kind] = None
        elif isinstance(node, ast.Name) and node.id not in FIELDS:
            raise ValueError(f"law {text}: unknown name {node.id!r}{nearest(node.id, FIELDS)}")
    return ArchitectureConstraint(text=text, comparison=tree, kinds=tuple(kinds))


def _terms(node: ast.expr, text: str) -> list[ast.expr]:
    """The names and numbers at the leaves; anything else that Python could say is refused."""
    match node:
        case ast.Compare(left=left, ops=ops, comparators=right) if all(
            type(o) in _OPERATORS for o in ops
        ):
            return [leaf for side in (left, *right) for leaf in _terms(side, text)]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _terms(left, text) + _terms(right, text)
        case ast.Constant(value=int() | float()) | ast.Name() | ast.Attribute(value=ast.Name()):
            return [node]
    raise ValueError(f"a law knows names, numbers, + - * / // % and comparisons, got {text!r}")


def broken(law: ArchitectureConstraint, architecture: Architecture) -> str | None:
    """None where the law holds, else the law with the values that break it."""
    of_kind = [
        [block for block in architecture.blocks.values() if block.kind == kind]
        for kind in law.kinds
    ]
    for blocks in itertools.product(*of_kind):
        names = dict(zip(law.kinds, blocks, strict=True))
        sides = [
            _value(side, architecture, names)
            for side in (law.comparison.left, *law.comparison.comparators)
        ]
        for op, left, right in zip(law.comparison.ops, sides, sides[1:], strict=False):
            if left is None or right is None:  # an optional field that is not given
                continue
            if not _OPERATORS[type(op)](left, right):
                return f"law {law.text} is broken by {left:g} and {right:g}"
    return None


def _value(node: ast.expr, architecture: Architecture, blocks: Mapping[str, Block]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return getattr(architecture, name)
        case ast.Attribute(value=ast.Name(id=kind), attr=field):
            return getattr(blocks[kind], field)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, architecture, blocks), _value(right, architecture, blocks)
            return None if a is None or b is None else _OPERATORS[type(op)](a, b)
    raise AssertionError(f"parse_constraint let {ast.dump(node)} through")
