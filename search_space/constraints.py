"""Architecture constraints of a space: comparisons over fields, written by the user.

    moe.top_k * 4 <= moe.n_experts
    mamba2.heads * mamba2.head_dim == 2 * d_model

A name is a field of the architecture or `kind.field` of its blocks. A constraint applies to every
block of that kind, and is satisfied where the architecture has none. The text is parsed, never
executed.
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
    """A parsed comparison and the block kinds that it names."""

    text: str
    comparison: ast.Compare
    kinds: tuple[str, ...]


def parse_constraint(text: str) -> ArchitectureConstraint:
    """Parse a constraint. Raises ValueError if it is no comparison of known names and numbers."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"a constraint must be a comparison such as 'moe.top_k <= 8', got {text!r}"
        ) from None
    if not isinstance(tree, ast.Compare):
        raise ValueError(f"a constraint must compare with < <= > >= == or !=, got {text!r}")
    kinds: dict[str, None] = {}
    for node in _terms(tree, text):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            kind, field = node.value.id, node.attr
            if kind not in KINDS:
                near = nearest(kind, KINDS)
                raise ValueError(f"constraint {text}: unknown block kind {kind!r}{near}")
            if field not in KINDS[kind].model_fields:
                near = nearest(field, KINDS[kind].model_fields)
                raise ValueError(f"constraint {text}: {kind} has no field {field!r}{near}")
            kinds[kind] = None
        elif isinstance(node, ast.Name) and node.id not in FIELDS:
            near = nearest(node.id, FIELDS)
            raise ValueError(f"constraint {text}: unknown name {node.id!r}{near}")
    return ArchitectureConstraint(text=text, comparison=tree, kinds=tuple(kinds))


def _terms(node: ast.expr, text: str) -> list[ast.expr]:
    """The names and numbers at the leaves. Raises ValueError for any other expression."""
    match node:
        case ast.Compare(left=left, ops=ops, comparators=right) if all(
            type(o) in _OPERATORS for o in ops
        ):
            return [leaf for side in (left, *right) for leaf in _terms(side, text)]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _terms(left, text) + _terms(right, text)
        case ast.Constant(value=int() | float()) | ast.Name() | ast.Attribute(value=ast.Name()):
            return [node]
    raise ValueError(
        f"a constraint consists of names, numbers, + - * / // % and comparisons, got {text!r}"
    )


def violation(constraint: ArchitectureConstraint, architecture: Architecture) -> str | None:
    """The constraint with the values that violate it; None if it is satisfied."""
    of_kind = [
        [block for block in architecture.blocks.values() if block.kind == kind]
        for kind in constraint.kinds
    ]
    for blocks in itertools.product(*of_kind):
        names = dict(zip(constraint.kinds, blocks, strict=True))
        sides = [
            _value(side, architecture, names)
            for side in (constraint.comparison.left, *constraint.comparison.comparators)
        ]
        for op, left, right in zip(constraint.comparison.ops, sides, sides[1:], strict=False):
            if left is None or right is None:  # an optional field without a value
                continue
            if not _OPERATORS[type(op)](left, right):
                return f"constraint {constraint.text} is violated by {left:g} and {right:g}"
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
