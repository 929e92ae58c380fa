"""TTT-Linear: the state is a linear model that is trained on each token it reads."""

# B batch, T tokens, C tokens of a mini-batch, D model width, H heads, K head width

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.rows import op as rows
from ...search_space.blocks import ttt as record
from ..body import Pass
from ..caches import StateCache
from ..parts import Parts
from .recurrent import Recurrent, ShortConvolution, unit

NORM_EPS = 1e-6


class TTTLinear(Recurrent):
    """arXiv 2407.04620, sections 2.3 to 2.6: mini-batch gradient descent in its dual form.

    Within a mini-batch that began with W, the gradients G_i of its tokens are taken at W, and token
    t reads with W - sum over i <= t of eta_i G_i. Mini-batches begin anew with each document.
    """

    fields = frozenset(record.TTTLinear.model_fields)

    def __init__(self, block: record.TTTLinear, parts: Parts) -> None:
        shape = (block.heads, block.head_dim, block.head_dim)
        super().__init__(shape, (block.conv - 1, 3 * block.width), parts)
        self.block = block
        self.in_proj = parts.linear("in_proj")
        self.conv = ShortConvolution(parts)
        self.rate_proj = parts.linear("rate_proj")
        self.W = parts.normal("W", wide=True)
        self.inner_norm = nn.ParameterDict(
            {
                "weight": parts.filled("inner_norm.weight", 1.0),
                "bias": parts.filled("inner_norm.bias", 0.0),
            }
        )
        self.norm = parts.rms_norm("norm")
        self.gate_proj = parts.linear("gate_proj")
        self.out_proj = parts.linear("out_proj", to_residual=True)

    def new_cache(self, batch: int) -> StateCache:
        """The inner model that a mini-batch began with, and the step of its tokens so far."""
        cache = super().new_cache(batch)
        cache["state"], cache["step"] = self._begun(batch)
        return cache

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        heads = (self.block.heads, -1)
        q, k, v = self.conv(self.in_proj(x_BTD), run, cache).chunk(3, -1)
        q_BTHK, k_BTHK = (unit(x.unflatten(-1, heads)).to(self.wide) for x in (q, k))
        v_BTHK = v.unflatten(-1, heads).to(self.wide)
        eta_BTH = self.rate_proj(x_BTD).to(self.wide).sigmoid() / self.block.head_dim
        begun = self._begun(len(x_BTD)) if cache is None else (cache["state"], cache["step"])
        if run.reads_texts:
            o_BTHK, *begun = self._texts(q_BTHK, k_BTHK, v_BTHK, eta_BTH)
        else:
            o_BTHK, *begun = self._tokens(q_BTHK, k_BTHK, v_BTHK, eta_BTH, run, *begun)
        if cache is not None:
            cache["state"], cache["step"] = begun
        o = self.norm(o_BTHK.flatten(-2).to(x_BTD.dtype))
        return self.out_proj(rows.swiglu(self.gate_proj(x_BTD), o))

    def _texts(self, q: Tensor, k: Tensor, v: Tensor, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(o_BTHK, W, step) of whole texts, a mini-batch at a time."""
        W_BHKK, step_BHKK = self._begun(len(q))
        reads = []
        for start in range(0, q.shape[1], self.block.mini_batch):
            W_BHKK = W_BHKK - step_BHKK
            part = slice(start, start + self.block.mini_batch)
            q_BHCK, k_BHCK, v_BHCK = (x[:, part].transpose(1, 2) for x in (q, k, v))
            slope_BHCK = self._slope(W_BHKK, k_BHCK, v_BHCK)
            taken_BHCK = eta[:, part].transpose(1, 2)[..., None] * slope_BHCK
            met_BHCC = (q_BHCK @ k_BHCK.mT).tril()
            read_BHCK = q_BHCK @ W_BHKK - met_BHCC @ taken_BHCK
            reads.append((q_BHCK + self._normed(read_BHCK)).transpose(1, 2))
            step_BHKK = k_BHCK.mT @ taken_BHCK
        return torch.cat(reads, 1), W_BHKK, step_BHKK

    def _tokens(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        eta: Tensor,
        run: Pass,
        W: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same token by token, for rows that are at different places of their mini-batches."""
        (first, _), reads = self._begun(len(q)), []
        for t in range(q.shape[1]):
            position_B = run.positions_BT[:, t]
            fresh_B, full_B = position_B == 0, position_B % self.block.mini_batch == 0
            here_W = torch.where(_wide(fresh_B), first, torch.where(_wide(full_B), W - step, W))
            here_step = step.masked_fill(_wide(full_B), 0)
            q_BH1K, k_BH1K, v_BH1K = (x[:, t, :, None] for x in (q, k, v))
            slope = eta[:, t, :, None, None] * self._slope(here_W, k_BH1K, v_BH1K)
            here_step = here_step + k_BH1K.mT @ slope
            reads.append((q_BH1K + self._normed(q_BH1K @ (here_W - here_step)))[:, :, 0])
            if run.valid_BT is not None:
                valid = _wide(run.valid_BT[:, t])
                here_W, here_step = (
                    torch.where(valid, x, y) for x, y in ((here_W, W), (here_step, step))
                )
            W, step = here_W, here_step
        return torch.stack(reads, 1), W, step

    def _begun(self, batch: int) -> tuple[Tensor, Tensor]:
        W_BHKK = self.W.expand(batch, -1, -1, -1)
        return W_BHKK, torch.zeros_like(W_BHKK)

    def _slope(self, W_BHKK: Tensor, k_BHCK: Tensor, v_BHCK: Tensor) -> Tensor:
        """The gradient of |LN(k W) + k - v|^2 / 2 by k W, of each token."""
        z = k_BHCK @ W_BHKK
        centerd = z - z.mean(-1, keepdim=True)
        rstd = (centerd.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        normed = centerd * rstd
        gain, bias = (self.inner_norm[name][:, None] for name in ("weight", "bias"))
        slope = (normed * gain + bias + k_BHCK - v_BHCK) * gain
        along = (slope * normed).mean(-1, keepdim=True)
        return rstd * (slope - slope.mean(-1, keepdim=True) - normed * along)

    def _normed(self, z_BHCK: Tensor) -> Tensor:
        gain, bias = (self.inner_norm[name][:, None] for name in ("weight", "bias"))
        return F.layer_norm(z_BHCK, z_BHCK.shape[-1:], eps=NORM_EPS) * gain + bias


def _wide(mask_B: Tensor) -> Tensor:
    return mask_B[:, None, None, None]
