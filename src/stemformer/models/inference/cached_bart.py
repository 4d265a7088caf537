"""Incremental decoding of an encoder-decoder, whose sources are encoded once."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.models.attention.varlen import attend_cached
from stemformer.models.bart import Bart, BartDecoderLayer
from stemformer.models.inference.kv_cache import KeyValueCache
from stemformer.models.inference.linear_kernels import LinearKernel, make_linear_kernel
from stemformer.models.model import Model


class BartTextDecoder:
    """A BART prepared for decoding, as `GptDecoder` is a GPT.

    Rows are the texts in progress: one for each source, or several beams of each, which share the keys and values
    of their source.

    Args:
        model: An encoder-decoder with its head. Later training of it has no effect here.
        rows: Maximum number of texts decoded in parallel.
        steps: Expected number of decoding steps.
    """

    # Cache of the decoder's own tokens.
    cache: KeyValueCache

    def __init__(self, model: Model, *, rows: int = 1, steps: float = torch.inf) -> None:
        body = model.body
        if "seq2seq_lm" not in model.heads or not isinstance(body, Bart):
            raise ConfigError("This model has no decoder for a source text. Use a BART.")
        self.config: Any = body.config
        self.max_length = model.max_length
        self._body = body
        self._position = body.decoder.embeddings.position.weight.detach()
        self._embeddings_norm = body.decoder.embeddings.norm
        self._norm = body.decoder.norm

        def make_kernel(layer: nn.Linear, activation: nn.Module | None = None) -> LinearKernel:
            return make_linear_kernel(layer.weight, layer.bias, rows=rows, steps=steps, activation=activation)

        layers: Any = body.decoder.layers
        self._layers = [_Layer(layer, make_kernel) for layer in layers]
        attention = layers[0].attention
        self._cache_shape = (len(layers), attention.num_heads, attention.head_size)
        head = model.lm_head
        output = body.embeddings.word.weight if head.decoder is None else head.decoder.weight
        self._head = make_linear_kernel(output, head.bias, rows=rows, steps=steps)

    @torch.inference_mode()
    def prefill(self, sources: Sequence[Sequence[int]], max_length: int) -> Float[Tensor, "S V"]:
        """Encode a new batch of sources and return the logits of each first token.

        Sources have their special tokens. `max_length` is that of the texts, whose two first tokens, `</s> <s>`,
        are not chosen.
        """
        device, lengths = self._position.device, list(map(len, sources))
        ids = torch.tensor([token for source in sources for token in source], device=device)  # (N,)
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        memory = self._body(ids, positions, torch.zeros_like(ids), cu_seqlens, max(lengths))  # (N, D)

        # Keys and values of each layer, padded to the longest source.
        is_token = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]  # (S, P)
        self._mask: Tensor | None = None
        if min(lengths) < max(lengths):
            padding = torch.zeros(is_token.shape, device=device, dtype=memory.dtype)
            self._mask = padding.masked_fill(~is_token, -torch.inf)[:, None, None, :]  # (S, 1, 1, P)
        self._memory: list[tuple[Tensor, ...]] = [
            layer.cross_keys_and_values(memory, is_token) for layer in self._layers
        ]
        self._owners = torch.arange(len(sources), device=device)

        starts = [0] * len(sources)
        self.cache = KeyValueCache(self._cache_shape, starts, max_length, device=device, dtype=memory.dtype)
        for token in (self.config.decoder_start_token_id, self.config.bos_token_id):
            logits = self.decode_step(torch.full((len(sources),), token, device=device))
        return logits

    @torch.inference_mode()
    def decode_step(self, tokens: Int[Tensor, "R"]) -> Float[Tensor, "R V"]:
        """Append one token to each text and return the logits of the next."""
        words = self._body.embeddings.words(tokens)
        x = self._embeddings_norm(words + self._position[self.cache.length])
        for layer, memory, (new, keys, values) in zip(self._layers, self._memory, self.cache.grow(), strict=True):
            x = layer.decode_step(x, new, keys, values, memory, self._mask)
        logits = self._head(self._norm(x))
        return logits if logits.dtype == torch.float32 else logits.float()

    def select(self, rows: Int[Tensor, "Q"]) -> None:
        """Keep these texts in this order, as many of each source that is left."""
        self.cache.select(rows)
        owners = self._owners.index_select(0, rows)
        # Beams of a source are adjacent.
        is_first = torch.ones_like(owners, dtype=torch.bool)
        is_first[1:] = owners[1:] != owners[:-1]
        kept, heads = owners[is_first], self._cache_shape[1]
        assert len(owners) % len(kept) == 0, "all sources have as many beams"
        if len(kept) < len(self._memory[0][0]) // heads:
            index = (kept[:, None] * heads + torch.arange(heads, device=kept.device)).view(-1)
            self._memory = [tuple(part.index_select(0, index) for part in parts) for parts in self._memory]
            self._mask = None if self._mask is None else self._mask.index_select(0, kept)
            owners = torch.arange(len(kept), device=kept.device).repeat_interleave(len(owners) // len(kept))
        self._owners = owners


class _Layer:
    """`BartDecoderLayer` in evaluation mode, for single tokens."""

    def __init__(self, layer: BartDecoderLayer, make_kernel: Callable[..., LinearKernel]) -> None:
        self.norm_first = layer.norm_first
        self._num_heads, self._head_size = layer.attention.num_heads, layer.attention.head_size
        self._norms = layer.attention_norm, layer.cross_attention_norm, layer.feed_forward_norm
        self._qkv, self._out = make_kernel(layer.attention.qkv), make_kernel(layer.attention.out)
        self._cross = layer.cross_attention
        self._query, self._cross_out = make_kernel(self._cross.query), make_kernel(self._cross.out)
        self._feed_forward = layer.feed_forward.with_kernels(make_kernel)

    def cross_keys_and_values(self, memory: Float[Tensor, "N D"], is_token: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys (S * H, K, P) and values (S * H, P, K) of all sources, padded with zeros."""
        padded = []
        for part in self._cross.keys_and_values(memory):
            block = part.new_zeros(*is_token.shape, *part.shape[1:])  # (S, P, H, K)
            block[is_token] = part
            padded.append(block.transpose(1, 2).flatten(0, 1))  # (S * H, P, K)
        keys, values = padded
        return keys.mT.contiguous(), values.contiguous()

    def decode_step(
        self,
        x: Float[Tensor, "R D"],
        new: Tensor,
        keys: Tensor,
        values: Tensor,
        memory: tuple[Tensor, ...],
        mask: Tensor | None,
    ) -> Float[Tensor, "R D"]:
        def attend(y: Tensor) -> Tensor:
            q, kv = self._qkv(y).view(len(y), 3, self._num_heads, self._head_size).split_with_sizes((1, 2), 1)
            new.copy_(kv)
            return self._out(attend_cached(q[:, 0], keys, values))

        def cross(y: Tensor) -> Tensor:
            return self._cross_out(self._attend_to_sources(self._query(y), memory, mask))

        for norm, function in zip(self._norms, (attend, cross, self._feed_forward), strict=True):
            x = x + function(norm(x)) if self.norm_first else norm(x + function(x))
        return x

    def _attend_to_sources(
        self, q: Float[Tensor, "R D"], memory: tuple[Tensor, ...], mask: Tensor | None
    ) -> Float[Tensor, "R D"]:
        """Attend from the beams of each source, as queries of one product, to its keys."""
        keys, values = memory
        num_sources = len(keys) // self._num_heads
        beams = len(q) // num_sources
        grouped = q.view(num_sources, beams, self._num_heads, self._head_size).transpose(1, 2)  # (S, H, B, K)
        scores = torch.bmm(grouped.reshape(-1, beams, self._head_size) * self._head_size**-0.5, keys)  # (S * H, B, P)
        if mask is not None:
            scores.view(num_sources, self._num_heads, beams, -1).add_(mask)
        out = torch.bmm(scores.softmax(-1), values).view(num_sources, self._num_heads, beams, self._head_size)
        return out.transpose(1, 2).reshape(q.shape)
