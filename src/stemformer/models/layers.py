"""Layers that more than one architecture is made of. All of them see flat tokens (N, D)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.models.attention.varlen import attend

ACTIVATIONS: dict[str, type[nn.Module] | tuple[type[nn.Module], dict[str, str]]] = {
    "gelu": nn.GELU,
    "gelu_new": (nn.GELU, {"approximate": "tanh"}),
    "gelu_pytorch_tanh": (nn.GELU, {"approximate": "tanh"}),
    "relu": nn.ReLU,
}
"""Hugging Face's names of activations -> module class, or class and arguments."""


def check_sizes(config: Any, *names: str) -> None:
    """Refuses the config of a body that nothing can be built of.

    Args:
        config: With the fields that bodies share.
        names: Fields that must be at least 1.

    Raises:
        ConfigError: Which field, its value, and what was expected.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"model.{name} is {getattr(config, name)}: expected at least 1")
    if not (0 <= config.initializer_range < float("inf") and 0 < config.layer_norm_eps < float("inf")):
        raise ConfigError("model.initializer_range and layer_norm_eps: expected positive, finite numbers")
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"model.hidden_size {config.hidden_size} cannot be shared among {config.num_attention_heads} heads: "
            "set model.num_attention_heads to a divisor"
        )
    if config.hidden_act not in ACTIVATIONS:
        raise ConfigError(f"model.hidden_act is {config.hidden_act!r}: expected one of {', '.join(ACTIVATIONS)}")
    if not 0 <= config.hidden_dropout_prob < 1:
        raise ConfigError(f"model.hidden_dropout_prob is {config.hidden_dropout_prob}: expected a number in [0, 1)")


def check_states(
    num_layers: int,
    num_tokens: int,
    cu_seqlens: Int[Tensor, "S1"],
    return_layers: tuple[int, ...],
    replace: Mapping[int, Tensor],
    rows: Int[Tensor, "R"] | None,
) -> None:
    """Refuses what a body's forward cannot do; the arguments are those of `models.bert.Bert.forward`.

    Raises:
        ValueError: A layer that does not exist, states of another number of tokens, boundaries that do not end with the tokens.
    """
    if wrong := {*return_layers, *replace} - set(range(num_layers + 1)):
        raise ValueError(f"layers {sorted(wrong)} do not exist: expected numbers from 0 to {num_layers}")
    if short := {number: len(states) for number, states in replace.items() if len(states) != num_tokens}:
        raise ValueError(f"states put in the place of layers hold {short} tokens: expected {num_tokens}")
    if cu_seqlens.device.type == "cpu" and int(cu_seqlens[-1]) != num_tokens:
        raise ValueError(f"cu_seqlens ends at {int(cu_seqlens[-1])}, there are {num_tokens} tokens")
    assert rows is None or not (return_layers or replace), "rows are of the last layer, and alone"


def make_activation(name: str) -> nn.Module:
    """Returns the activation of this Hugging Face name."""
    entry = ACTIVATIONS[name]
    return entry[0](**entry[1]) if isinstance(entry, tuple) else entry()


def with_spare_rows(x: Float[Tensor, "N D"]) -> Float[Tensor, "N2 D"]:
    """Returns the states on the CPU followed by rows of zeros, at most 1 in 32, so that few different N occur; elsewhere as they are.

    For each new shape the CPU's matrix library makes and keeps a program of its own, which costs a small model time and memory where
    every batch has another N (`docs/log.md`). Nothing looks at the rows, and their gradient is zero.

    Example:
        >>> with_spare_rows(torch.ones(2001, 4)).shape
        torch.Size([2016, 4])
    """
    return x if x.device.type != "cpu" else nn.functional.pad(x, (0, 0, 0, spare_rows(len(x))))


def spare_rows(n: int) -> int:
    """Returns how many rows `with_spare_rows` adds to `n`."""
    return -n % (1 << max(0, n.bit_length() - 6))


def with_spare_places(rows: Int[Tensor, "R"]) -> Int[Tensor, "R2"]:
    """Returns numbers of tokens followed by some zeros, as many as `with_spare_rows` would add, and for the same reason."""
    return nn.functional.pad(rows, (0, spare_rows(len(rows)) if rows.device.type == "cpu" else 0))


class WordEmbedding(nn.Embedding):
    """A vector for each word.

    Attributes:
        has_sparse_gradient: On the CPU, the gradient of looking words up holds only the rows that were looked up. Where the loss has a
            dense gradient of the same matrix anyway, adding these few rows to it saves a block of zeros of the whole size.
        kept_gradient: The gradient, held from step to step, where nothing else has a gradient of it: only the rows that were looked up are
            then set to zero again. None lets each step make a new one.
    """

    has_sparse_gradient = False
    kept_gradient: Tensor | None = None

    def forward(self, input_ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        # A GPU adds rows up in any order, so that a run would not repeat, and waits for the CPU to do so.
        sparse = self.has_sparse_gradient and input_ids.device.type == "cpu"
        return nn.functional.embedding(input_ids, self.weight, sparse=sparse)

    def keep_gradient(self) -> None:
        """Holds the gradient from now on; `clear_gradient` must then follow each step of an optimizer."""
        self.has_sparse_gradient = True
        self.kept_gradient = torch.zeros_like(self.weight)
        self.weight.grad = self.kept_gradient

    def clear_gradient(self, input_ids: Sequence[Tensor]) -> None:
        """Sets a gradient that is kept to zero.

        Args:
            input_ids: What was looked up since it was last cleared, (N,) each batch.
        """
        if self.kept_gradient is not None:
            for ids in input_ids:
                self.kept_gradient.index_fill_(0, ids, 0)
            self.weight.grad = self.kept_gradient


class PositionEmbedding(nn.Embedding):
    """A learned vector for each place; its first values are sinusoids, see `models.bert.Bert`."""


def sinusoids(length: int, size: int) -> Float[Tensor, "T D"]:
    """Returns, for each place, sines and cosines of wavelengths from 2 pi to 10,000 x 2 pi, in turn.

    Example:
        >>> sinusoids(2, 4)[0]
        tensor([0., 1., 0., 1.])

    Source: Vaswani et al. 2017, section 3.5.
    """
    angles = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, size, 2) / size)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :size]


class Dropout(nn.Module):
    """Sets each value to zero with probability `rate` and scales the rest up, while training.

    On the CPU the decision is one random byte a value, eight of which are drawn at once: several times faster than a Bernoulli draw a
    value. The rate is therefore rounded to a multiple of 1/256 (0.1 becomes 26/256 = 0.1016), and the scale is that of the rounded rate.

    Args:
        rate: Probability of a zero, in [0, 1).

    Source: Srivastava et al. 2014, section 4.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"dropout rate {rate}: expected a number from 0 up to, but not including, 1")
        self.rate = rate
        self._threshold = min(round(rate * 256), 255)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not self.training or self._threshold == 0:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.rate)
        keep = _random_bytes(x) >= self._threshold
        y: Tensor = x * keep * (256 / (256 - self._threshold))
        return y

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


@torch.library.custom_op("stemformer::random_bytes", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _random_bytes(like: Tensor) -> Tensor:
    """Returns uniform bytes in the shape of `like`: an operator, so that compiled and eager runs draw the same."""
    words = torch.empty((like.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[: like.numel()].view(like.shape)


@_random_bytes.register_fake
def _random_bytes_fake(like: Tensor) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.uint8)


class MultiHeadAttention(nn.Module):
    """Attention of each sequence to itself, through `num_heads` heads.

    Query, key and value are one matrix product; its rows are query, key and value in this order.

    Args:
        hidden_size: D.
        num_heads: H; must divide D.
        causal: A token sees itself and what lies before it.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        x: Float[Tensor, "N D"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        rows: Int[Tensor, "R"] | None = None,
    ) -> Float[Tensor, "R D"]:
        """Returns what each token gathers, or with `rows` what those tokens do."""
        n, d = x.shape
        q, k, v = self.qkv(x).view(n, 3, self.num_heads, d // self.num_heads).unbind(1)  # (N, H, K)
        out = attend(q, k, v, cu_q=cu_seqlens, cu_k=cu_seqlens, max_q=max_seqlen, max_k=max_seqlen, causal=self.causal)
        out = out.reshape(n, d)
        y: Tensor = self.out(out if rows is None else out.index_select(0, rows))
        return y

    def read(
        self,
        x: Float[Tensor, "N D"],
        cu_q: Int[Tensor, "S1"],
        max_q: int,
        before: tuple[Tensor, Tensor] | None,
        order: Int[Tensor, "M"],
        cu_k: Int[Tensor, "S1"],
        max_k: int,
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M H K"], Float[Tensor, "M H K"]]:
        """Returns what tokens gather from their own text and from what it goes on from, and the keys and values of both together.

        Args:
            x: Of the new tokens.
            cu_q: Where their texts begin.
            max_q: New tokens of a text at most.
            before: Keys and values that were read before.
            order: For each place of the texts as wholes its row among those of `before` followed by the new ones.
            cu_k: Where the whole texts begin.
            max_k: Tokens of a whole text at most.
        """
        n, d = x.shape
        q, k, v = self.qkv(x).view(n, 3, self.num_heads, d // self.num_heads).unbind(1)  # (N, H, K)
        if before is not None:
            k, v = (torch.cat(pair).index_select(0, order) for pair in zip(before, (k, v), strict=True))
        out = attend(q, k, v, cu_q=cu_q, cu_k=cu_k, max_q=max_q, max_k=max_k, causal=True)
        return self.out(out.reshape(n, d)), k, v


class FeedForward(nn.Module):
    """Two linear layers with an activation between.

    Args:
        hidden_size: D.
        intermediate_size: F.
        activation: A key of `ACTIVATIONS`.

    Source: Vaswani et al. 2017, section 3.3.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, *, activation: str) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.activation = make_activation(activation)
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        y: Tensor = self.down(self.activation(self.up(x)))  # (N, F) between
        return y
