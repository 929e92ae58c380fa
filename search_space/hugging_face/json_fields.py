"""Typed access to the fields of a JSON object, with a record of the fields that nothing read."""

import json
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any, Self, TypeVar

from ..document import MAX_BYTES, InputError, nearest

MAX_DEPTH = 16
MAX_INTEGER = 1 << 40
MAX_NUMBER = 1e30
T = TypeVar("T")

# Fields that do not describe the architecture: bookkeeping, training, generation, kernel choice.
_BOOKKEEPING = frozenset(
    [
        "architectures",
        "auto_map",
        "custom_pipelines",
        "torch_dtype",
        "dtype",
        "model_type",
        "transformers_version",
        "transformers.js_config",
        "name_or_path",
        "language_model_only",
        "tokenizer_class",
        "use_cache",
        "cache_implementation",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "num_logits_to_keep",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "is_decoder",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "max_position_embeddings",
        "model_max_length",
        "initializer_range",
        "initializer_factor",
        "init_std",
        "initializer_std",
        "w_init_variance_scale",
        "final_w_init_variance_scale",
        "rescale_prenorm_residual",
        "time_step_min",
        "time_step_max",
        "time_step_floor",
        "time_step_rank",
        "linear_a_log_min",
        "linear_a_log_max",
        "linear_dt_min",
        "linear_dt_max",
        "linear_dt_init_floor",
        "mamba_dt_min",
        "mamba_dt_max",
        "mamba_dt_init_floor",
        "router_aux_loss_coef",
        "router_z_loss_coef",
        "aux_loss_alpha",
        "seq_aux",
        "router_jitter_noise",
        "input_jitter_noise",
        "add_router_probs",
        "router_dtype",
        "moe_router_dtype",
        "router_ignore_padding_tokens",
        "pretraining_tp",
        "ep_size",
        "use_mamba_kernels",
        "use_mambapy",
        "use_associative_scan",
        "use_mem_eff_path",
        "mamba_ssm_cache_dtype",
        "mamba_ssm_dtype",
        "chunk_size",
        "mamba_chunk_size",
        "block_size",
        "residual_in_fp32",
        "fuse_norm",
        "fuse_cross_entropy",
        "fuse_linear_cross_entropy",
        "use_l2warp",
        "attn_mode",
        "use_flash_attn",
        "use_bfloat16",
        "pruned_heads",
        "bad_words_ids",
        "suppress_tokens",
        "tie_encoder_decoder",
        "temperature",
        "top_p",
        "task_specific_params",
        "prefix",
        "torchscript",
    ]
)
_STEP_LIMITS = ("time_step_limit", "mamba_dt_limit")
_UNLIMITED = ([0, inf], [0, {"__float__": "Infinity"}])
_TOKEN_ID_SUFFIXES = ("token_id", "token_ids", "token_index")


def is_ignorable(name: str, value: Any) -> bool:
    """Whether a field does not describe the architecture.

    True for bookkeeping, token ids, empty values, dropout of zero and an unlimited step size.
    """
    return (
        value in (None, [], {})
        or name in _BOOKKEEPING
        or name.startswith("_")
        or name.endswith(_TOKEN_ID_SUFFIXES)
        or ("dropout" in name and value == 0)
        or (name in _STEP_LIMITS and value in _UNLIMITED)
    )


class Fields:
    """One JSON object of a config.json, its fields checked as they are read.

    Readers return None for a field that is absent or null. Several `names` are alternative
    spellings of one field: any of them is read, and two that are present must agree. A name with a
    dot is a field of a nested object, `linear_attn_config.num_heads`. All readers raise InputError
    `file: field: constraint, got value` for a value of the wrong type or range.
    """

    def __init__(self, data: dict[str, Any], *, source: str, path: tuple[str, ...] = ()) -> None:
        self.data, self.source, self.path = data, source, path
        self._read: set[str] = set()
        self._sections: dict[str, Fields] = {}
        self._unexpressed: list[str] = []

    @classmethod
    def parse(cls, text: str, *, source: str) -> Self:
        """Parse the text of a file; `source` is its name in messages.

        Raises InputError where the text is too long, nested too deeply, not JSON, not an object,
        or gives a field twice.
        """
        if len(text) > MAX_BYTES:
            raise InputError(
                f"{source}: a config may have at most {MAX_BYTES} characters, got {len(text)}"
            )
        try:
            data = json.loads(text, object_pairs_hook=lambda pairs: _unique_keys(pairs, source))
        except RecursionError:
            raise InputError(
                f"{source}: a config may be nested at most {MAX_DEPTH} levels deep"
            ) from None
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{source}: not valid JSON: {str(error).splitlines()[0]}") from None
        if _is_deeper_than(data, MAX_DEPTH):
            raise InputError(f"{source}: a config may be nested at most {MAX_DEPTH} levels deep")
        if not isinstance(data, dict):
            raise InputError(f"{source}: expected a JSON object, got {as_json(data)}")
        return cls(data, source=source)

    def error(self, name: str, constraint: str) -> InputError:
        """The error `file: field: constraint` for a field of this object."""
        return InputError(f"{self.source}: {'.'.join((*self.path, name))}: {constraint}")

    def value(self, *names: str) -> Any:
        """The value of a field under any of its spellings, of any type."""
        found = [(name, value) for name in names if (value := self._get(name)) is not None]
        self.ignore(*names)
        if not found:
            return None
        (name, value), *others = found
        for other_name, other in others:
            if other != value:
                raise self.error(
                    name, f"{as_json(value)} contradicts {other_name}: {as_json(other)}"
                )
        return value

    def is_null(self, name: str) -> bool:
        """Whether the field is present with the value null."""
        holder, key = self._holder(name)
        return holder is not None and key in holder.data and holder.data[key] is None

    def integer(self, *names: str, least: int = 1) -> int | None:
        """An integer of at least `least`."""
        value = self._checked(names, lambda v: type(v) is int, "an integer")
        if value is not None and not least <= value <= MAX_INTEGER:
            raise self.error(
                self._present(names), f"must be from {least} to {MAX_INTEGER}, got {value}"
            )
        return value

    def number(self, *names: str) -> float | None:
        """A finite number, as a float."""
        value = self._checked(names, lambda v: type(v) in (int, float), "a number")
        if value is None:
            return None
        if not abs(value) <= MAX_NUMBER:
            raise self.error(self._present(names), f"must be a finite number, got {as_json(value)}")
        return float(value)

    def flag(self, *names: str) -> bool | None:
        """A boolean."""
        return self._checked(names, lambda v: type(v) is bool, "true or false")

    def text(self, *names: str) -> str | None:
        """A string."""
        return self._checked(names, lambda v: type(v) is str, "a string")

    def choice(self, options: dict[str, T], *names: str) -> T | None:
        """A string that is a key of `options`, as the value it stands for there."""
        value = self.text(*names)
        if value is None:
            return None
        if value not in options:
            raise self.error(
                self._present(names), f"unknown name {as_json(value)}{nearest(value, options)}"
            )
        return options[value]

    def texts(self, *names: str) -> list[str] | None:
        """A list of strings."""
        return self._checked(names, lambda v: _all_of(v, str), "a list of strings")

    def integers(self, *names: str) -> list[int] | None:
        """A list of integers."""
        return self._checked(names, lambda v: _all_of(v, int), "a list of integers")

    def numbers(self, *names: str) -> list[float] | None:
        """A list of finite numbers, as floats."""
        found = self._checked(names, lambda v: _all_of(v, int, float), "a list of numbers")
        if found and not all(abs(value) <= MAX_NUMBER for value in found):
            raise self.error(self._present(names), f"must be finite numbers, got {as_json(found)}")
        return found and [float(value) for value in found]

    def section(self, *names: str) -> "Fields | None":
        """The nested object that a field holds, the same one at each call."""
        value = self._checked(names, lambda v: isinstance(v, dict), "an object")
        if value is None:
            return None
        name = self._present(names)
        if name not in self._sections:
            self._sections[name] = Fields(value, source=self.source, path=(*self.path, name))
        return self._sections[name]

    def ignore(self, *names: str) -> None:
        """Count these fields as read: the family's class does not use them."""
        for holder, key in map(self._holder, names):
            if holder is not None:
                holder._read.add(key)

    def expect(self, name: str, *values: Any) -> None:
        """Count a field as read if it has one of these values; any other stays unexpressed."""
        if self._get(name) in values:
            self.ignore(name)

    def mark_unexpressed(self, name: str, value: Any = None) -> None:
        """Report a field as not expressed; `value` is the class's default where it is absent."""
        value = self._get(name) if value is None else value
        self._unexpressed.append(f"{'.'.join((*self.path, name))}={as_json(value)}")

    def unexpressed(self) -> Iterator[str]:
        """`field=value` for the fields that nothing read and that may describe the architecture.

        Fields of nested objects are included if the object was read with `section`.
        """
        yield from self._unexpressed
        for name, value in self.data.items():
            if name in self._sections:
                yield from self._sections[name].unexpressed()
            elif name not in self._read and not is_ignorable(name, value):
                yield f"{'.'.join((*self.path, name))}={as_json(value)}"

    def _holder(self, name: str) -> "tuple[Fields | None, str]":
        """The object that has a field, None where that is absent, and the field's key in it."""
        section_name, _, key = name.partition(".")
        if not key:
            return self, name
        section = self.section(section_name)
        return (None, key) if section is None else section._holder(key)

    def _get(self, name: str) -> Any:
        holder, key = self._holder(name)
        return None if holder is None else holder.data.get(key)

    def _present(self, names: Sequence[str]) -> str:
        """The first spelling that the file has."""
        return next((name for name in names if self._get(name) is not None), names[0])

    def _checked(self, names: Sequence[str], fits: Callable[[Any], bool], kind: str) -> Any:
        value = self.value(*names)
        if value is not None and not fits(value):
            raise self.error(self._present(names), f"must be {kind}, got {as_json(value)}")
        return value


def coalesce(*values: T | None) -> T:
    """The first value that is not None; the last one, a default, must not be."""
    return next(value for value in values if value is not None)


def as_json(value: Any) -> str:
    """A value as JSON for a message, cut after 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_deeper_than(data: Any, depth: int) -> bool:
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(depth):
        inner = [item.values() if isinstance(item, dict) else item for item in level if item]
        level = [value for items in inner for value in items if isinstance(value, dict | list)]
    return bool(level)


def _all_of(value: Any, *types: type) -> bool:
    return isinstance(value, list) and all(type(item) in types for item in value)


def _unique_keys(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"{source}: {name}: the field is given twice")
        found[name] = value
    return found
