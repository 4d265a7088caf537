"""Layers shared by the architectures. All of them take flat tokens (N, D)."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stemformer.models.attention.varlen import attend
from stemformer.models.embeddings import PositionEmbedding, sinusoids
from stemformer.models.rotary import Rotation, rotate_queries_and_keys

# Numbers of the tokens whose output is needed; None for all.
Rows = Int[Tensor, "R"] | None


class ReluSquared(nn.Module):
    """Square of the positive part (So et al. 2021, section 4.2)."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return nn.functional.relu(x).square()


# Hugging Face's activation names.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "relu2": ReluSquared,
    "silu": nn.SiLU,
}


def pad_to_bucket(x: Shaped[Tensor, "N *D"], *, multiple: int = 1) -> Shaped[Tensor, "N2 *D"]:
    """Pad states or token numbers on the CPU with at most 1 in 32 zeros, so that few different N occur.

    For each new shape, the CPU's matrix library compiles and caches a kernel (`docs/log.md`).
    Padding belongs to no sequence and has zero gradient. N2 is a multiple of `multiple`, a power of two.
    """
    padding = -len(x) % max(multiple, 1 << max(0, len(x).bit_length() - 6))
    return x if x.device.type != "cpu" else nn.functional.pad(x, (*(0, 0) * (x.ndim - 1), 0, padding))


class Dropout(nn.Module):
    """Dropout: in training, zero each value with probability `rate` and scale the others up.

    On the CPU, one random byte decides for each value, several times faster than Bernoulli sampling;
    rate and scale are therefore rounded to multiples of 1/256 (0.1 becomes 26/256 = 0.1016).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Set the probability, in [0, 1)."""
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


class RmsNorm(nn.Module):
    """Norm without mean and bias: x / root mean square * weight, in float32 at least (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Float[Tensor, "*shape D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*shape D"]:
    """Compute `RmsNorm` in the dtype of `x`."""
    wide = x if x.dtype.itemsize >= 4 else x.float()
    weight = weight.to(wide.dtype)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _RmsNormOnCpu.apply(wide, weight, eps).to(x.dtype)  # type: ignore[no-untyped-call]
    return nn.functional.rms_norm(wide, weight.shape, weight, eps).to(x.dtype)


class _RmsNormOnCpu(torch.autograd.Function):
    """RMS norm with the fused backward of layer norm: a quarter of the time of its elementary operations."""

    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, scale = ctx.saved_tensors
        grad, size, mean = grad.contiguous(), x.shape[-1], torch.zeros_like(scale)
        out, out_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x.contiguous(), [size], mean, scale, weight, None, [True, True, False]
        )
        # Layer norm subtracts the mean of grad * weight.
        return out.add_((grad @ weight)[..., None].mul_(scale).div_(size)), out_weight, None


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention within each sequence (Vaswani et al. 2017, section 3.2.2).

    Args:
        num_key_value_heads: Heads of keys and values, each shared by a group of query heads (Ainslie et al.
            2023, section 2.2); None: as many as of queries.
        head_size: None: `hidden_size / num_heads`.
        window: Largest distance that a token sees on each side; None is the full sequence.
        qk_norm_eps: If set, queries and keys are normed in each head (Henry et al. 2020, with RMS norm).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_key_value_heads: int | None = None,
        head_size: int | None = None,
        causal: bool = False,
        bias: bool = True,
        window: int | None = None,
        qk_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads or num_heads
        self.head_size = head_size or hidden_size // num_heads
        self.causal = causal
        self.window = window
        # Rows of queries, keys, values.
        rows = [heads * self.head_size for heads in (num_heads, *[self.num_key_value_heads] * 2)]
        self.qkv = nn.Linear(hidden_size, sum(rows), bias=bias)
        self.qkv.row_parts = tuple(rows)  # type: ignore[assignment]
        self.out = nn.Linear(rows[0], hidden_size, bias=bias)
        has_norm = qk_norm_eps is not None
        # If set, the initial weights of values and output multiply to this times the identity.
        self.copy_scale: float | None = None
        self.q_norm = RmsNorm(self.head_size, eps=qk_norm_eps) if has_norm else None  # type: ignore[arg-type]
        self.k_norm = RmsNorm(self.head_size, eps=qk_norm_eps) if has_norm else None  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "N D"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        rows: Rows = None,
        rotation: Rotation | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "R D"]:
        q, k, v = self.split_heads(self.qkv(x), rotation)
        sides: dict[str, Any] = {"cu_q": cu_seqlens, "cu_k": cu_seqlens, "max_q": max_seqlen, "max_k": max_seqlen}
        out = self.attend(q, k, v, causal=causal, **sides).flatten(1)
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
        *,
        rotation: Rotation | None = None,
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M G K"], Float[Tensor, "M G K"]]:
        """Return the causal attention output of new tokens `x`, and all keys and values.

        `cached` are keys and values (P, G, K) of the prompts; `order` is the index of each token of
        the full sequences (`cu_k`, `max_k`) in the cached tokens followed by the new ones.
        """
        q, k, v = self.split_heads(self.qkv(x), rotation)
        if cached is not None:
            k, v = (torch.cat(pair).index_select(0, order) for pair in zip(cached, (k, v), strict=True))  # (M, G, K)
        return self.out(self.attend(q, k, v, cu_q=cu_q, cu_k=cu_k, max_q=max_q, max_k=max_k).flatten(1)), k, v

    def split_heads(
        self,
        qkv: Float[Tensor, "N P"],
        rotation: Rotation | None,
    ) -> tuple[Float[Tensor, "N H K"], Float[Tensor, "N G K"], Float[Tensor, "N G K"]]:
        """Return queries, keys and values from the output of `qkv`, normed and rotated.

        Rotated coordinates come in the order of `rotate_queries_and_keys`.
        """
        heads, groups = self.num_heads, self.num_key_value_heads
        qkv = qkv.view(len(qkv), heads + 2 * groups, self.head_size)
        if self.q_norm is None and rotation is not None:
            qk, v = rotate_queries_and_keys(qkv, heads + groups, rotation)
            q, k = qk.split_with_sizes((heads, groups), 1)
            return q, k, v
        q, k, v = qkv.split_with_sizes((heads, groups, groups), 1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            qk, _ = rotate_queries_and_keys(torch.cat([q, k], 1), heads + groups, rotation)
            q, k = qk.split_with_sizes((heads, groups), 1)
        return q, k, v

    def attend(
        self,
        q: Float[Tensor, "N H K"],
        k: Float[Tensor, "M G K"],
        v: Float[Tensor, "M G K"],
        *,
        causal: bool = False,
        **sides: Any,
    ) -> Float[Tensor, "N H K"]:
        """Call `attend` with keys and values repeated for the query heads of their group."""
        size = self.num_heads // self.num_key_value_heads
        k, v = repeat_heads(k, size), repeat_heads(v, size)
        return attend(q, k, v, **sides, causal=causal or self.causal, window=self.window)


def repeat_heads(x: Float[Tensor, "*b G K"], size: int) -> Float[Tensor, "*b H K"]:
    """Repeat each head `size` times: the heads of a group of queries are adjacent."""
    return x if size == 1 else x[..., None, :].expand(*x.shape[:-1], size, x.shape[-1]).flatten(-3, -2)


class FeedForward(nn.Module):
    """Two linear layers with an activation between them (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, activation: str, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return self.down(self.activation(self.up(x)))  # (N, D) -> (N, F) -> (N, D)

    def with_kernels(self, make_kernel: Callable[..., Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
        """Return the function of evaluation mode, with linear layers by `make_kernel(layer, activation)`."""
        up, down = make_kernel(self.up, self.activation), make_kernel(self.down)
        return lambda x: down(up(x))


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

    def with_kernels(self, make_kernel: Callable[..., Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
        """Return the function of evaluation mode, with linear layers by `make_kernel(layer)`."""
        up, down, activation = make_kernel(self.up), make_kernel(self.down), self.activation

        def forward(x: Tensor) -> Tensor:
            a, b = up(x).chunk(2, -1)
            return down(activation(a) * b)

        return forward

    def gate(self, x: Float[Tensor, "*shape F2"]) -> Float[Tensor, "*shape F"]:
        """Return activation(a) * b of the halves a and b."""
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            apply: Any = _GateOnCpu.apply
            if isinstance(self.activation, nn.SiLU):
                return apply(x, nn.functional.silu, torch.ops.aten.silu_backward)
            if isinstance(self.activation, nn.GELU):
                kind = self.activation.approximate
                gelu = partial(nn.functional.gelu, approximate=kind)
                return apply(x, gelu, partial(torch.ops.aten.gelu_backward, approximate=kind))
        a, b = x.chunk(2, -1)
        return self.activation(a) * b


class _GateOnCpu(torch.autograd.Function):
    """activation(a) * b of (N, 2 F), with the gradients of both halves written into one tensor."""

    @staticmethod
    def forward(ctx, x, activation, backward):  # type: ignore[no-untyped-def]
        ctx.functions = activation, backward
        ctx.save_for_backward(x)
        a, b = x.chunk(2, -1)
        return activation(a).mul_(b)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,), (activation, backward) = ctx.saved_tensors, ctx.functions
        (a, b), out = x.chunk(2, -1), torch.empty_like(x)
        out_a, out_b = out.chunk(2, -1)
        torch.mul(grad, activation(a), out=out_b)
        out_a.copy_(backward(grad * b, a))
        return out, None, None


class PreNormLayer(nn.Module):
    """Pre-norm Transformer layer: attention and feed-forward, each x + dropout(f(norm(x))); subclasses set the parts."""

    norm_first: ClassVar[bool] = True
    # Wavelength of the rotation of queries and keys; None without.
    theta: float | None = None

    attention_norm: nn.Module
    attention: MultiHeadAttention
    feed_forward_norm: nn.Module
    feed_forward: FeedForward | GatedFeedForward
    dropout: nn.Module

    def forward(
        self,
        x: Float[Tensor, "N D"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        rows: Rows = None,
        rotations: dict[float, Rotation] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "R D"]:
        rotation = None if self.theta is None or rotations is None else rotations[self.theta]
        attended = self.attention(self.attention_norm(x), cu_seqlens, max_seqlen, rows, rotation, causal)
        attended = self.dropout(attended)
        return self._add_feed_forward((x if rows is None else x.index_select(0, rows)) + attended)  # (R, D)

    def prefill(
        self, x: Float[Tensor, "N D"], *arguments: Any, rotations: dict[float, Rotation] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return states, keys and values as the attention does, whose other arguments these are."""
        rotation = None if self.theta is None or rotations is None else rotations[self.theta]
        attended, keys, values = self.attention.prefill(self.attention_norm(x), *arguments, rotation=rotation)
        return self._add_feed_forward(x + attended), keys, values

    def _add_feed_forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


def row_parts(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the name of each weight that stacks several matrices, such as queries, keys and values, and their rows."""
    parts = {f"{name}.weight": getattr(part, "row_parts", ()) for name, part in module.named_modules()}
    return {name: rows for name, rows in parts.items() if rows}


def initialize_weights(module: nn.Module, *, std: float, generator: torch.Generator) -> None:
    """Initialize in place, in definition order, by the body's table.

    A layer's `init_scale` multiplies `std`; `identity_scale` times the identity is added to its weight. The
    weights of attention with `copy_scale` come last.
    """
    for part in module.modules():
        if isinstance(part, PositionEmbedding):
            part.weight.data.copy_(sinusoids(*part.weight.shape) * std * 2**0.5)
        elif isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std * getattr(part, "init_scale", 1.0), generator=generator)
            # Rows whose outputs have variance 1 for normed inputs.
            part.weight.data[: getattr(part, "num_unit_rows", 0)] *= part.weight.shape[1] ** -0.5 / std
            if identity_scale := getattr(part, "identity_scale", 0.0):
                part.weight.data += identity_scale * torch.eye(*part.weight.shape)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm | RmsNorm):
            nn.init.ones_(part.weight)
            if (bias := getattr(part, "bias", None)) is not None:
                nn.init.zeros_(bias)
    for part in module.modules():
        if isinstance(part, MultiHeadAttention) and part.copy_scale is not None:
            assert part.num_key_value_heads == part.num_heads, "grouped values cannot copy"
            values, out = part.qkv.weight.data[-part.out.weight.shape[1] :], part.out.weight.data
            nn.init.orthogonal_(values, generator=generator)
            out.copy_(part.copy_scale * values.t())
