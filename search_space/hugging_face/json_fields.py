"""The fields of one JSON object: what each must be, and which of them were asked for."""

import json
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any, Self, TypeVar

from ..document import MAX_BYTES, InputError, nearest

MAX_DEPTH = 16
MAX_INTEGER = 1 << 40
MAX_NUMBER = 1e30
T = TypeVar("T")

# Fields that say nothing about the architecture: bookkeeping, training, generation, kernels.
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
_TOKEN_IDS = ("token_id", "token_ids", "token_index")


def says_nothing(name: str, value: Any) -> bool:
    """Whether a field may be passed over: bookkeeping, a token's id, nothing, a dropout of zero."""
    return (
        value in (None, [], {})
        or name in _BOOKKEEPING
        or name.startswith("_")
        or name.endswith(_TOKEN_IDS)
        or ("dropout" in name and value == 0)
        or (name in _STEP_LIMITS and value in _UNLIMITED)
    )


class Fields:
    """One object of the file, its fields checked as they are asked for.

    A field that is absent or null is None. `names` are several spellings of one fact: they may not
    contradict each other. Every complaint is an InputError that names file, field, law and value.
    """

    def __init__(self, data: dict[str, Any], *, source: str, path: tuple[str, ...] = ()) -> None:
        self.data, self.source, self.path = data, source, path
        self._used: set[str] = set()
        self._parts: dict[str, Fields] = {}
        self._left: list[str] = []

    @classmethod
    def parse(cls, text: str, *, source: str) -> Self:
        """The object that a file's text holds."""
        if len(text) > MAX_BYTES:
            raise InputError(
                f"{source}: a config may have at most {MAX_BYTES} characters, got {len(text)}"
            )
        try:
            data = json.loads(text, object_pairs_hook=lambda pairs: _once_each(pairs, source))
        except RecursionError:
            raise InputError(f"{source}: a config nests at most {MAX_DEPTH} levels") from None
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{source}: not valid JSON: {str(error).splitlines()[0]}") from None
        if _nests_deeper(data, MAX_DEPTH):
            raise InputError(f"{source}: a config nests at most {MAX_DEPTH} levels")
        if not isinstance(data, dict):
            raise InputError(f"{source}: expected an object of fields, got {shown(data)}")
        return cls(data, source=source)

    def error(self, name: str, law: str) -> InputError:
        return InputError(f"{self.source}: {'.'.join((*self.path, name))}: {law}")

    def given(self, *names: str) -> Any:
        """The value of a fact in any of its spellings, whatever its type."""
        found = [(name, self.data[name]) for name in names if self.data.get(name) is not None]
        self._used.update(names)
        if not found:
            return None
        (said, value), *others = found
        for name, other in others:
            if other != value:
                raise self.error(said, f"{shown(value)} contradicts {name}: {shown(other)}")
        return value

    def is_null(self, name: str) -> bool:
        """Whether a field is there to say that there is none."""
        return name in self.data and self.data[name] is None

    def integer(self, *names: str, least: int = 1) -> int | None:
        value = self._checked(names, lambda v: type(v) is int, "a whole number")
        if value is not None and not least <= value <= MAX_INTEGER:
            raise self.error(
                self._name(names), f"must be from {least} to {MAX_INTEGER}, got {value}"
            )
        return value

    def number(self, *names: str) -> float | None:
        value = self._checked(names, lambda v: type(v) in (int, float), "a number")
        if value is None:
            return None
        if not abs(value) <= MAX_NUMBER:
            raise self.error(self._name(names), f"must be a finite number, got {shown(value)}")
        return float(value)

    def flag(self, *names: str) -> bool | None:
        return self._checked(names, lambda v: type(v) is bool, "true or false")

    def text(self, *names: str) -> str | None:
        return self._checked(names, lambda v: type(v) is str, "a string")

    def choice(self, known: dict[str, T], *names: str) -> T | None:
        """What a name stands for, among those that are known."""
        value = self.text(*names)
        if value is None:
            return None
        if value not in known:
            raise self.error(
                self._name(names), f"unknown name {shown(value)}{nearest(value, known)}"
            )
        return known[value]

    def texts(self, *names: str) -> list[str] | None:
        return self._checked(names, lambda v: _all_of(v, str), "a list of strings")

    def integers(self, *names: str) -> list[int] | None:
        return self._checked(names, lambda v: _all_of(v, int), "a list of whole numbers")

    def numbers(self, *names: str) -> list[float] | None:
        found = self._checked(names, lambda v: _all_of(v, int, float), "a list of numbers")
        if found and not all(abs(value) <= MAX_NUMBER for value in found):
            raise self.error(self._name(names), f"must be finite numbers, got {shown(found)}")
        return found and [float(value) for value in found]

    def part(self, *names: str) -> "Fields | None":
        """The object that is the value of a field."""
        value = self._checked(names, lambda v: isinstance(v, dict), "an object")
        if value is None:
            return None
        name = self._name(names)
        if name not in self._parts:
            self._parts[name] = Fields(value, source=self.source, path=(*self.path, name))
        return self._parts[name]

    def pass_over(self, *names: str) -> None:
        """These fields have no effect here."""
        self._used.update(names)

    def expect(self, name: str, *values: Any) -> None:
        """A field that may only say what holds anyway; anything else stays unexpressed."""
        if self.data.get(name) in values:
            self._used.add(name)

    def leave(self, name: str, value: Any = None) -> None:
        """Count a field that was asked for, or its default, among those that are not expressed."""
        told = self.data.get(name) if value is None else value
        self._left.append(f"{'.'.join((*self.path, name))}={shown(told)}")

    def unexpressed(self) -> Iterator[str]:
        """The fields, with their values, that nothing asked for although they may say something."""
        yield from self._left
        for name, value in self.data.items():
            if name in self._parts:
                yield from self._parts[name].unexpressed()
            elif name not in self._used and not says_nothing(name, value):
                yield f"{'.'.join((*self.path, name))}={shown(value)}"

    def _name(self, names: Sequence[str]) -> str:
        return next((name for name in names if self.data.get(name) is not None), names[0])

    def _checked(self, names: Sequence[str], fits: Callable[[Any], bool], law: str) -> Any:
        value = self.given(*names)
        if value is not None and not fits(value):
            raise self.error(self._name(names), f"must be {law}, got {shown(value)}")
        return value


def first(*values: T | None) -> T:
    """The first value that was given; the last is a default and always is."""
    return next(value for value in values if value is not None)


def shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nests_deeper(data: Any, depth: int) -> bool:
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(depth):
        inner = [item.values() if isinstance(item, dict) else item for item in level if item]
        level = [value for items in inner for value in items if isinstance(value, dict | list)]
    return bool(level)


def _all_of(value: Any, *kinds: type) -> bool:
    return isinstance(value, list) and all(type(item) in kinds for item in value)


def _once_each(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"{source}: {name}: the same field is given twice")
        found[name] = value
    return found
