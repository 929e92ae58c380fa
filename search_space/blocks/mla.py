"""Multi-head latent attention: keys and values of all heads come from one small latent."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from .block import Block, Cache, Weight, linear, vector


class Mla(Block):
    """DeepSeek-V2's attention (arXiv 2405.04434) with decoupled rotary keys.

    A token caches `kv_lora_rank + qk_rope_head_dim` numbers, whatever `heads` is.
    `q_lora_rank: null` projects queries directly.
    """

    kind: Literal["mla"] = "mla"
    heads: PositiveInt
    q_lora_rank: PositiveInt | None = None
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt
    rope_theta: float = Field(default=10_000.0, gt=0)

    @model_validator(mode="after")
    def _laws(self) -> Self:
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim must be even, got {self.qk_rope_head_dim}")
        return self

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        q_width = self.heads * self.qk_head_dim
        if self.q_lora_rank is None:
            queries = (linear("q_proj", q_width, d_model, "attention.qkv"),)
        else:
            queries = (
                linear("q_a_proj", self.q_lora_rank, d_model, "attention.qkv"),
                vector("q_a_norm.weight", self.q_lora_rank),
                linear("q_b_proj", q_width, self.q_lora_rank, "attention.qkv"),
            )
        expanded = self.heads * (self.qk_nope_head_dim + self.v_head_dim)
        return (
            *queries,
            linear(
                "kv_a_proj", self.kv_lora_rank + self.qk_rope_head_dim, d_model, "attention.qkv"
            ),
            vector("kv_a_norm.weight", self.kv_lora_rank),
            linear("kv_b_proj", expanded, self.kv_lora_rank, "attention.qkv"),
            linear("o_proj", d_model, self.heads * self.v_head_dim, "attention.out"),
        )

    def cache(self) -> Cache:
        return Cache(kv_elements=self.kv_lora_rank + self.qk_rope_head_dim, kv_scales=1)

    def mixing_flops(self, visible: float) -> float:
        """In the expanded form, as trained; the absorbed form of decoding is the cost model's."""
        return 2 * self.heads * (self.qk_head_dim + self.v_head_dim) * visible
