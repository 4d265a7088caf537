"""Incremental decoding of causal models with a key-value cache."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.models.attention.varlen import attend_cached
from stemformer.models.inference.kv_cache import KeyValueCache
from stemformer.models.inference.linear_kernels import LinearKernel, make_linear_kernel
from stemformer.models.layers import MultiHeadAttention, PreNormLayer, RmsNorm, pad_to_bucket
from stemformer.models.model import Model

# Cosine and signed sine (R, 1, K) of the angle of each token and coordinate, for each theta of the layers.
_Rotations = dict[float, tuple[Tensor, Tensor]]


class GptDecoder:
    """A GPT or Llama prepared for decoding, with matrices laid out for fast reads.

    On the CPU, states are at least float32 and the matrices are copies (`inference.linear_kernels`).
    Construction takes as long as some decoding steps: keep the decoder to decode several times.

    Args:
        model: A causal model with its causal-LM head. Later training of it has no effect here.
        rows: Maximum number of sequences decoded in parallel.
        steps: Expected number of decoding steps.

    Example:
        >>> from stemformer.models.gpt import GptConfig
        >>> from stemformer.models.model import make_model
        >>> config = GptConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> decoder = GptDecoder(make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0)))
        >>> logits = decoder.prefill([[3, 1, 4], [1, 5]], max_length=10)
        >>> decoder.decode_step(logits.argmax(-1)).shape
        torch.Size([2, 50])
    """

    # Cache of the current batch.
    cache: KeyValueCache

    def __init__(self, model: Model, *, rows: int = 1, steps: float = torch.inf) -> None:
        if "causal_lm" not in model.heads:
            raise ConfigError("This model has no causal-LM head, so it cannot generate text. Use a GPT or Llama.")
        body, layer = model.body, model.body.layers[0]
        self.config: Any = body.config
        self.max_length = model.max_length
        self._word = body.embeddings.word.weight.detach()
        device = self._word.device
        is_low_precision = device.type == "cpu" and self._word.dtype.itemsize < 4
        self._dtype = torch.float32 if is_low_precision else self._word.dtype
        attention: Any = layer.attention
        self._cache_shape = (len(body.layers), attention.num_key_value_heads, attention.head_size)

        # Embedding and rotation of each position, as far as the architecture has them.
        position = body.embeddings.position
        self._position = None if position is None else position.weight.detach().to(self._dtype)
        positions = torch.arange(self.config.max_position_embeddings, device=device)
        self._rotations: _Rotations = {}
        for theta, (cos, sin) in body.rotations(positions).items():
            signed = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
            self._rotations[theta] = (signed[0].to(self._dtype), signed[1].to(self._dtype))

        def make_kernel(layer: nn.Linear, activation: nn.Module | None = None) -> LinearKernel:
            return make_linear_kernel(layer.weight, layer.bias, rows=rows, steps=steps, activation=activation)

        self._layers = [_Layer(layer, make_kernel, self._dtype) for layer in body.layers]  # type: ignore[arg-type]
        self._norm = make_norm(body.norm, self._dtype)
        decoder = model.lm_head.decoder
        output = self._word if decoder is None else decoder.weight
        self._head = make_linear_kernel(output, None, rows=rows, steps=steps)

    def start(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the tokens before the first new one of each text, the prompts."""
        return list(map(list, prompts))

    def prefill(self, prompts: Sequence[Sequence[int]], max_length: int, *, num_beams: int = 1) -> Float[Tensor, "S V"]:
        """Start a new batch of prompts and return the logits of each next token.

        Args:
            max_length: Maximum number of tokens of a text, new ones included.
            num_beams: Number of beams that continue each prompt.
        """
        device, lengths = self._word.device, list(map(len, prompts))
        options: dict[str, Any] = {"device": device, "dtype": self._dtype, "num_beams": num_beams}
        self.cache = KeyValueCache(self._cache_shape, lengths, max_length, **options)
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)  # (N,)
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        x = pad_to_bucket(self._embed(ids, lambda table: torch.embedding(table, positions)))
        padded = pad_to_bucket(positions)
        rotations = self._rotations_at(lambda table: torch.embedding(table, padded))
        blocks, slots = self.cache.prompt_slots(positions)
        for layer, block in zip(self._layers, blocks, strict=True):
            x = layer.prefill(x, cu_seqlens, max(lengths), block, slots, rotations)
        return self._logits(self._norm(x[cu_seqlens[1:].long() - 1]))

    def decode_step(self, tokens: Int[Tensor, "R"]) -> Float[Tensor, "R V"]:
        """Append one token to each beam of each sequence and return the logits of the next."""
        cache = self.cache

        def select(table: Tensor) -> Tensor:
            """Return the rows of the positions of the new tokens."""
            return torch.embedding(table, cache.positions) if cache.has_padding else table.narrow(0, cache.length, 1)

        x, rotations = self._embed(tokens, select), self._rotations_at(select)
        blocks, mask = cache.grow(), cache.mask()
        for layer, (new, keys, values) in zip(self._layers, blocks, strict=True):
            x = layer.decode_step(x, new, keys, values, mask, rotations)
        return self._logits(self._norm(x))

    def select(self, sequences: Int[Tensor, "Q"]) -> None:
        """Keep these sequences in this order."""
        self.cache.select(sequences)

    def reorder(self, parents: Int[Tensor, "S B"]) -> None:
        """Let each beam continue a beam of its sequence."""
        self.cache.reorder(parents)

    def _embed(self, ids: Int[Tensor, "R"], select: Callable[[Tensor], Tensor]) -> Float[Tensor, "R D"]:
        x = torch.embedding(self._word, ids)
        x = x if x.dtype == self._dtype else x.to(self._dtype)
        return x if self._position is None else x + select(self._position)

    def _rotations_at(self, select: Callable[[Tensor], Tensor]) -> _Rotations:
        return {theta: (select(cos)[:, None], select(sin)[:, None]) for theta, (cos, sin) in self._rotations.items()}

    def _logits(self, states: Float[Tensor, "R D"]) -> Float[Tensor, "R V"]:
        logits = self._head(states)
        return logits if logits.dtype == torch.float32 else logits.float()


class _Layer:
    """`models.layers.PreNormLayer` in evaluation mode, for prompts and for single tokens."""

    def __init__(self, layer: PreNormLayer, make_kernel: Callable[..., LinearKernel], dtype: torch.dtype) -> None:
        attention = layer.attention
        self._dtype, self._theta, self._attend = dtype, layer.theta, attention.attend
        self._num_heads, self._num_groups = attention.num_heads, attention.num_key_value_heads
        self._head_size, self._norm_queries_and_keys = attention.head_size, _make_head_norm(attention, dtype)
        self.attention_norm = make_norm(layer.attention_norm, dtype)
        self.qkv, self.out = make_kernel(layer.attention.qkv), make_kernel(layer.attention.out)
        self.feed_forward_norm = make_norm(layer.feed_forward_norm, dtype)
        self.feed_forward = layer.feed_forward.with_kernels(make_kernel)

    def prefill(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        block: Tensor,
        slots: tuple[Tensor, Tensor],
        rotations: _Rotations,
    ) -> Float[Tensor, "N D"]:
        # Keys and values of all but padding go to the cache.
        q, kv = self._split_heads(self.qkv(self.attention_norm(x)).to(self._dtype), rotations)
        block.index_put_(slots, kv[: len(slots[0])])
        sides: dict[str, Any] = {"cu_q": cu_seqlens, "cu_k": cu_seqlens, "max_q": max_seqlen, "max_k": max_seqlen}
        return self._add_feed_forward(x + self.out(self._attend(q, *kv.unbind(1), **sides).flatten(1)))

    def decode_step(
        self, x: Tensor, new: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, rotations: _Rotations
    ) -> Float[Tensor, "R D"]:
        # Keys and values of the new tokens go to the last columns of the cache.
        q, kv = self._split_heads(self.qkv(self.attention_norm(x)), rotations)
        new.copy_(kv.view(new.shape))
        return self._add_feed_forward(x + self.out(attend_cached(q, keys, values, mask=mask, num_beams=new.shape[1])))

    def _split_heads(
        self, qkv: Float[Tensor, "R P"], rotations: _Rotations
    ) -> tuple[Float[Tensor, "R H K"], Float[Tensor, "R 2 G K"]]:
        """Return queries, and keys with values, as `MultiHeadAttention.split_heads`, in few operations."""
        num_heads, num_groups, size = self._num_heads, self._num_groups, self._head_size
        heads = qkv.view(len(qkv), -1, size)
        if self._theta is None:
            q, kv = heads.split_with_sizes((num_heads, 2 * num_groups), 1)
            return q, kv.view(-1, 2, num_groups, size)
        qk, v = heads.split_with_sizes((num_heads + num_groups, num_groups), 1)
        qk = qk if self._norm_queries_and_keys is None else self._norm_queries_and_keys(qk)
        # Each coordinate and the one that it is rotated with.
        cos, sin = rotations[self._theta]
        partners = qk.view(len(qk), -1, 2, size // 2).flip(2).view(qk.shape)
        q, k = (qk * cos).addcmul_(partners, sin).split_with_sizes((num_heads, num_groups), 1)
        return q, torch.stack([k, v], 1)

    def _add_feed_forward(self, x: Tensor) -> Float[Tensor, "R D"]:
        return x + self.feed_forward(self.feed_forward_norm(x))


def make_norm(norm: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return the function of a norm, without the cost of a module's call."""
    assert isinstance(norm, nn.LayerNorm | RmsNorm)
    weight, eps = norm.weight.detach().to(dtype), norm.eps
    if isinstance(norm, RmsNorm):
        return lambda x: F.rms_norm(x, weight.shape, weight, eps)
    bias = norm.bias.detach().to(dtype)
    return lambda x: torch.layer_norm(x, weight.shape, weight, bias, eps)


def _make_head_norm(attention: MultiHeadAttention, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """Return the norm of the heads of queries and keys (R, H + G, K), if any."""
    q_norm, k_norm = attention.q_norm, attention.k_norm
    if q_norm is None or k_norm is None:
        return None
    pairs = ((q_norm, attention.num_heads), (k_norm, attention.num_key_value_heads))
    weight = torch.cat([norm.weight.detach().to(dtype).expand(number, -1) for norm, number in pairs])  # (H + G, K)
    return lambda x: F.rms_norm(x, weight.shape[1:], None, q_norm.eps) * weight
