"""Layers shared by the architectures. All of them take flat tokens (N, D)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stemformer.models.attention.varlen import attend
from stemformer.models.rotary import Rotation, rotate_queries_and_keys

# Numbers of the tokens whose output is needed; None for all.
Rows = Int[Tensor, "R"] | None
# Hugging Face's activation names.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
}


def pad_to_bucket(x: Shaped[Tensor, "N *D"]) -> Shaped[Tensor, "N2 *D"]:
    """Pad states or token numbers on the CPU with at most 1 in 32 zeros, so that few different N occur.

    For each new shape, the CPU's matrix library compiles and caches a kernel (`docs/log.md`).
    Padding belongs to no sequence and has zero gradient.
    """
    padding = -len(x) % (1 << max(0, len(x).bit_length() - 6))
    return x if x.device.type != "cpu" else nn.functional.pad(x, (*(0, 0) * (x.ndim - 1), 0, padding))


class WordEmbedding(nn.Embedding):
    """Word embedding with a sparse or persistent gradient on the CPU."""

    # The lookup's gradient holds only the rows looked up, to be added to the dense gradient of a tied LM head.
    has_sparse_gradient = False
    # Dense gradient that persists over steps, for a matrix without another gradient: only rows looked up are zeroed.
    kept_gradient: Tensor | None = None

    def forward(self, input_ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        # On a GPU, sparse gradients are not reproducible and synchronize with the CPU.
        sparse = self.has_sparse_gradient and input_ids.device.type == "cpu"
        return nn.functional.embedding(input_ids, self.weight, sparse=sparse)

    def keep_gradient(self) -> None:
        """Make the gradient persistent; `clear_gradient` must then follow each optimizer step."""
        self.has_sparse_gradient = True
        self.kept_gradient = torch.zeros_like(self.weight)
        self.weight.grad = self.kept_gradient

    def clear_gradient(self, input_ids: Sequence[Tensor]) -> None:
        """Zero the persistent gradient, if any; `input_ids` are all ids since the last call."""
        if self.kept_gradient is not None:
            for ids in input_ids:
                self.kept_gradient.index_fill_(0, ids, 0)
            self.weight.grad = self.kept_gradient


class PositionEmbedding(nn.Embedding):
    """Learned position embedding, initialized with sinusoids (see `models.bert.Bert`)."""


def sinusoids(length: int, size: int) -> Float[Tensor, "T D"]:
    """Return interleaved sines and cosines (Vaswani et al. 2017, section 3.5)."""
    angles = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, size, 2) / size)  # (T, D / 2)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :size]


class Dropout(nn.Module):
    """Dropout: in training, zero each value with probability `rate` and scale the others up.

    On the CPU, one random byte decides for each value, several times faster than Bernoulli sampling;
    rate and scale are therefore rounded to multiples of 1/256 (0.1 becomes 26/256 = 0.1016).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"The dropout rate is {rate}; expected a number in [0, 1).")
        self.rate = rate
        self._threshold = min(round(rate * 256), 255)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not self.training or self._threshold == 0:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.rate)
        keep = _random_bytes(x) >= self._threshold
        return x * keep * (256 / (256 - self._threshold))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


@torch.library.custom_op("stemformer::random_bytes", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _random_bytes(like: Tensor) -> Tensor:
    """Return random bytes in the shape of `like`; an operator, so that compiled runs agree."""
    words = torch.empty((like.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[: like.numel()].view(like.shape)


@_random_bytes.register_fake
def _random_bytes_fake(like: Tensor) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.uint8)


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention within each sequence (Vaswani et al. 2017, section 3.2.2).

    `window` is the largest distance that a token sees on each side; None for all tokens.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, *, causal: bool = False, bias: bool = True, window: int | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.window = window
        # Its rows are queries, keys, values.
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.out = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "N D"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        rows: Rows = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "R D"]:
        n, d = x.shape
        qkv = self.qkv(x).view(n, 3 * self.num_heads, d // self.num_heads)
        if rotation is None:
            q, k, v = qkv.view(n, 3, self.num_heads, -1).unbind(1)  # (N, H, K)
        else:
            qk, v = rotate_queries_and_keys(qkv, 2 * self.num_heads, rotation)
            q, k = qk.view(n, 2, self.num_heads, -1).unbind(1)
        sides: dict[str, Any] = {"cu_q": cu_seqlens, "cu_k": cu_seqlens, "max_q": max_seqlen, "max_k": max_seqlen}
        out = attend(q, k, v, **sides, causal=self.causal, window=self.window).reshape(n, d)
        return self.out(out if rows is None else out.index_select(0, rows))  # (R, D)

    def prefill(
        self,
        x: Float[Tensor, "N D"],
        cu_q: Int[Tensor, "S1"],
        max_q: int,
        cached: tuple[Tensor, Tensor] | None,
        order: Int[Tensor, "M"],
        cu_k: Int[Tensor, "S1"],
        max_k: int,
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M H K"], Float[Tensor, "M H K"]]:
        """Return the causal attention output of new tokens `x`, and all keys and values.

        `cached` are keys and values (P, H, K) of the prompts; `order` is the index of each token of
        the full sequences (`cu_k`, `max_k`) in the cached tokens followed by the new ones.
        """
        n, d = x.shape
        q, k, v = self.qkv(x).view(n, 3, self.num_heads, d // self.num_heads).unbind(1)  # (N, H, K)
        if cached is not None:
            k, v = (torch.cat(pair).index_select(0, order) for pair in zip(cached, (k, v), strict=True))  # (M, H, K)
        out = attend(q, k, v, cu_q=cu_q, cu_k=cu_k, max_q=max_q, max_k=max_k, causal=True)
        return self.out(out.reshape(n, d)), k, v


class FeedForward(nn.Module):
    """Two linear layers with an activation between them (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, activation: str) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return self.down(self.activation(self.up(x)))  # (N, D) -> (N, F) -> (N, D)


class GatedFeedForward(nn.Module):
    """Gated linear unit: down(activation(a) * b), where `up` gives a and b (Shazeer 2020, equation 6)."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, activation: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = Dropout(dropout)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return self.down(self.dropout(self.gate(self.up(x))))  # (N, D) -> (N, 2 F) -> (N, F) -> (N, D)

    def gate(self, x: Float[Tensor, "*shape F2"]) -> Float[Tensor, "*shape F"]:
        """Return activation(a) * b of the halves a and b."""
        if isinstance(self.activation, nn.GELU) and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _GegluOnCpu.apply(x, self.activation.approximate)  # type: ignore[no-untyped-call]
        a, b = x.chunk(2, -1)
        return self.activation(a) * b


class _GegluOnCpu(torch.autograd.Function):
    """GELU(a) * b of (N, 2 F), with the gradients of both halves written into one tensor."""

    @staticmethod
    def forward(ctx, x, approximate):  # type: ignore[no-untyped-def]
        ctx.approximate = approximate
        ctx.save_for_backward(x)
        a, b = x.chunk(2, -1)
        return nn.functional.gelu(a, approximate=approximate).mul_(b)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        (a, b), out = x.chunk(2, -1), torch.empty_like(x)
        out_a, out_b = out.chunk(2, -1)
        torch.mul(grad, nn.functional.gelu(a, approximate=ctx.approximate), out=out_b)
        out_a.copy_(torch.ops.aten.gelu_backward(grad * b, a, approximate=ctx.approximate))
        return out, None


def initialize_weights(module: nn.Module, *, std: float, generator: torch.Generator) -> None:
    """Initialize in place, in definition order, by the body's table; a layer's `init_scale` multiplies `std`."""
    for part in module.modules():
        if isinstance(part, PositionEmbedding):
            part.weight.data.copy_(sinusoids(*part.weight.shape) * std * 2**0.5)
        elif isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std * getattr(part, "init_scale", 1.0), generator=generator)
            # Rows whose outputs have variance 1 for normed inputs.
            part.weight.data[: getattr(part, "num_unit_rows", 0)] *= part.weight.shape[1] ** -0.5 / std
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
