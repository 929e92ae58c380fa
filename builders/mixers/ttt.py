"""TTT-Linear: the state is a linear model trained by gradient descent on the tokens."""

# B batch, T tokens, C tokens per mini-batch, D model width, H heads, K head width

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.rows import op as rows
from ...search_space.blocks import ttt as record
from ..body import Pass
from ..caches import StateCache
from ..parameters import Parameters
from .recurrent import Recurrent, ShortConvolution, l2_normalized

NORM_EPS = 1e-6


class TTTLinear(Recurrent):
    """arXiv 2407.04620, sections 2.3 to 2.6: mini-batch gradient descent in its dual form.

    The gradients G_i of |LN(k_i W) + k_i - v_i|^2 / 2 are taken at the W with which a mini-batch
    begins; token t has o_t = q_t + LN(q_t (W - sum over i <= t of eta_i G_i)). W is [K, K] per
    head. Mini-batches count from the first token of a document.
    """

    fields = frozenset(record.TTTLinear.model_fields)

    def __init__(self, block: record.TTTLinear, params: Parameters) -> None:
        shape = (block.heads, block.head_dim, block.head_dim)
        super().__init__(shape, (block.conv - 1, 3 * block.width), params)
        self.block = block
        self.in_proj = params.linear("in_proj")
        self.conv = ShortConvolution(params)
        self.rate_proj = params.linear("rate_proj")
        self.W = params.normal("W", fp32=True)
        self.inner_norm = nn.ParameterDict(
            {
                "weight": params.constant("inner_norm.weight", 1.0),
                "bias": params.constant("inner_norm.bias", 0.0),
            }
        )
        self.norm = params.rms_norm("norm")
        self.gate_proj = params.linear("gate_proj")
        self.out_proj = params.linear("out_proj", to_residual=True)

    def new_cache(self, batch: int) -> StateCache:
        """`state`: W at the start of the open mini-batch. `step`: sum of eta_i G_i so far."""
        cache = super().new_cache(batch)
        cache["state"], cache["step"] = self._initial(batch)
        return cache

    def forward(self, x_BTD: Tensor, run: Pass, cache: StateCache | None = None) -> Tensor:
        heads = (self.block.heads, -1)
        q, k, v = self.conv(self.in_proj(x_BTD), run, cache).chunk(3, -1)
        q_BTHK, k_BTHK = (l2_normalized(x.unflatten(-1, heads)).to(self.fp32_dtype) for x in (q, k))
        v_BTHK = v.unflatten(-1, heads).to(self.fp32_dtype)
        eta_BTH = self.rate_proj(x_BTD).to(self.fp32_dtype).sigmoid() / self.block.head_dim
        initial = self._initial(len(x_BTD)) if cache is None else (cache["state"], cache["step"])
        if run.whole_rows:
            o_BTHK, *state = self._texts(q_BTHK, k_BTHK, v_BTHK, eta_BTH)
        else:
            o_BTHK, *state = self._tokens(q_BTHK, k_BTHK, v_BTHK, eta_BTH, run, *initial)
        if cache is not None:
            cache["state"], cache["step"] = state
        o = self.norm(o_BTHK.flatten(-2).to(x_BTD.dtype))
        return self.out_proj(rows.swiglu(self.gate_proj(x_BTD), o))

    def _texts(self, q: Tensor, k: Tensor, v: Tensor, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(o_BTHK, W, step) of whole texts, one mini-batch at a time."""
        W_BHKK, step_BHKK = self._initial(len(q))
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
        """(o_BTHK, W, step) token by token: rows may be at different points of their mini-batches."""
        (first, _), reads = self._initial(len(q)), []
        for t in range(q.shape[1]):
            position_B = run.positions_BT[:, t]
            fresh_B, full_B = position_B == 0, position_B % self.block.mini_batch == 0
            here_W = torch.where(
                _per_row(fresh_B), first, torch.where(_per_row(full_B), W - step, W)
            )
            here_step = step.masked_fill(_per_row(full_B), 0)
            q_BH1K, k_BH1K, v_BH1K = (x[:, t, :, None] for x in (q, k, v))
            slope = eta[:, t, :, None, None] * self._slope(here_W, k_BH1K, v_BH1K)
            here_step = here_step + k_BH1K.mT @ slope
            reads.append((q_BH1K + self._normed(q_BH1K @ (here_W - here_step)))[:, :, 0])
            if run.valid_BT is not None:
                valid = _per_row(run.valid_BT[:, t])
                here_W, here_step = (
                    torch.where(valid, x, y) for x, y in ((here_W, W), (here_step, step))
                )
            W, step = here_W, here_step
        return torch.stack(reads, 1), W, step

    def _initial(self, batch: int) -> tuple[Tensor, Tensor]:
        W_BHKK = self.W.expand(batch, -1, -1, -1)
        return W_BHKK, torch.zeros_like(W_BHKK)

    def _slope(self, W_BHKK: Tensor, k_BHCK: Tensor, v_BHCK: Tensor) -> Tensor:
        """Gradient of |LN(k W) + k - v|^2 / 2 with respect to k W, per token."""
        z = k_BHCK @ W_BHKK
        centered = z - z.mean(-1, keepdim=True)
        rstd = (centered.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        normed = centered * rstd
        gain, bias = (self.inner_norm[name][:, None] for name in ("weight", "bias"))
        slope = (normed * gain + bias + k_BHCK - v_BHCK) * gain
        along = (slope * normed).mean(-1, keepdim=True)
        return rstd * (slope - slope.mean(-1, keepdim=True) - normed * along)

    def _normed(self, z_BHCK: Tensor) -> Tensor:
        gain, bias = (self.inner_norm[name][:, None] for name in ("weight", "bias"))
        return F.layer_norm(z_BHCK, z_BHCK.shape[-1:], eps=NORM_EPS) * gain + bias


def _per_row(mask_B: Tensor) -> Tensor:
    return mask_B[:, None, None, None]
