"""Incremental decoding of an encoder-decoder, whose sources are encoded once."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.models.attention.varlen import attend_cached
from stemformer.models.bart import Bart, BartDecoderLayer
from stemformer.models.inference.cached_gpt import make_norm
from stemformer.models.inference.kv_cache import KeyValueCache, keep_rows
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
    # First token of the text of each source of the next batch, that of its language; None for `<s>`.
    first_tokens: Sequence[int] | None = None

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

    def start(self, sources: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the tokens before the first new one of each text, `</s> <s>` or `</s>` and a language."""
        first_tokens = self.first_tokens or [self.config.bos_token_id] * len(sources)
        return [[self.config.decoder_start_token_id, token] for _, token in zip(sources, first_tokens, strict=True)]

    @torch.inference_mode()
    def prefill(self, sources: Sequence[Sequence[int]], max_length: int, *, num_beams: int = 1) -> Float[Tensor, "S V"]:
        """Encode a new batch of sources and return the logits of each first token.

        Args:
            sources: Token ids with their special tokens.
            max_length: Maximum number of tokens of a text, those of `start` included.
            num_beams: Number of texts of each source.
        """
        device, lengths = self._position.device, list(map(len, sources))
        ids = torch.tensor([token for source in sources for token in source], device=device)  # (N,)
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        memory = self._body(ids, positions, torch.zeros_like(ids), cu_seqlens, max(lengths))  # (N, D)

        # Keys and values of each layer, padded to the longest source.
        is_token = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]  # (S, P)
        self._padding: Tensor | None = None  # (S, 1, P), -inf for padding
        if min(lengths) < max(lengths):
            zeros = torch.zeros(is_token.shape, device=device, dtype=memory.dtype)
            self._padding = zeros.masked_fill(~is_token, -torch.inf)[:, None]
        self._set_memory([layer.cross_keys_and_values(memory, is_token) for layer in self._layers])

        # The first tokens of each text are queries as beams are, of which each sees those before it.
        started = torch.tensor(self.start(sources), device=device)  # (S, 2)
        shape, options = self._cache_shape, {"device": device, "dtype": memory.dtype}
        number = started.shape[1]
        self.cache = KeyValueCache(shape, [number] * len(sources), max_length, num_beams=num_beams, **options)
        causal = torch.full((1, number, number), -torch.inf, **options).triu(1)
        position = self._position[:number].repeat(len(sources), 1)
        x = self._decode(started.view(-1), position, self.cache.prompt(), causal)
        return self._logits(x[number - 1 :: number])

    def _set_memory(self, memory: Sequence[tuple[Tensor, ...]]) -> None:
        self._memory = memory
        # Keys (S * H, K, P) and values (S * H, P, K) of each layer.
        self._memory_by_head = [tuple(part.flatten(0, 1) for part in parts) for parts in memory]

    @torch.inference_mode()
    def decode_step(self, tokens: Int[Tensor, "R"]) -> Float[Tensor, "R V"]:
        """Append one token to each text and return the logits of the next."""
        position = self._position[self.cache.length]
        blocks = self.cache.grow()
        return self._logits(self._decode(tokens, position, blocks, self.cache.mask()))

    def _decode(
        self, tokens: Int[Tensor, "R"], position: Tensor, blocks: Iterator[tuple[Tensor, ...]], mask: Tensor | None
    ) -> Float[Tensor, "R D"]:
        x = self._embeddings_norm(self._body.embeddings.words(tokens) + position)
        for layer, memory, (new, keys, values) in zip(self._layers, self._memory_by_head, blocks, strict=True):
            x = layer.decode_step(x, new, keys, values, mask, memory, self._padding)
        return x

    def _logits(self, states: Float[Tensor, "R D"]) -> Float[Tensor, "R V"]:
        logits = self._head(self._norm(states))
        return logits if logits.dtype == torch.float32 else logits.float()

    def select(self, sources: Int[Tensor, "Q"]) -> None:
        """Keep these sources in this order, with all their texts."""
        self.cache.select(sources)
        self._set_memory([tuple(keep_rows(part, sources) for part in parts) for parts in self._memory])
        self._padding = None if self._padding is None else self._padding.index_select(0, sources)

    def reorder(self, parents: Int[Tensor, "S B"]) -> None:
        """Let each text continue a text of its source."""
        self.cache.reorder(parents)


class _Layer:
    """`BartDecoderLayer` in evaluation mode, for single tokens."""

    def __init__(self, layer: BartDecoderLayer, make_kernel: Callable[..., LinearKernel]) -> None:
        self.norm_first = layer.norm_first
        self._num_heads, self._head_size = layer.attention.num_heads, layer.attention.head_size
        norms = layer.attention_norm, layer.cross_attention_norm, layer.feed_forward_norm
        self._norms = [make_norm(norm, norm.weight.dtype) for norm in norms]
        self._qkv, self._out = make_kernel(layer.attention.qkv), make_kernel(layer.attention.out)
        self._cross = layer.cross_attention
        self._query, self._cross_out = make_kernel(self._cross.query), make_kernel(self._cross.out)
        self._feed_forward = layer.feed_forward.with_kernels(make_kernel)

    def cross_keys_and_values(self, memory: Float[Tensor, "N D"], is_token: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys (S, H, K, P) and values (S, H, P, K) of all sources, padded with zeros."""
        padded = []
        for part in self._cross.keys_and_values(memory):
            block = part.new_zeros(*is_token.shape, *part.shape[1:])  # (S, P, H, K)
            block[is_token] = part
            padded.append(block.transpose(1, 2))  # (S, H, P, K)
        keys, values = padded
        return keys.mT.contiguous(), values.contiguous()

    def decode_step(
        self,
        x: Float[Tensor, "R D"],
        new: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        memory: tuple[Tensor, ...],
        padding: Tensor | None,
    ) -> Float[Tensor, "R D"]:
        num_beams, heads = new.shape[1], (self._num_heads, self._head_size)

        def attend(y: Tensor) -> Tensor:
            q, kv = self._qkv(y).view(len(y), 3, *heads).split_with_sizes((1, 2), 1)
            new.copy_(kv.view(new.shape))
            return self._out(attend_cached(q[:, 0], keys, values, mask=mask, num_beams=num_beams))

        def cross(y: Tensor) -> Tensor:
            q = self._query(y).view(len(y), *heads)
            return self._cross_out(attend_cached(q, *memory, mask=padding, num_beams=num_beams))

        for norm, function in zip(self._norms, (attend, cross, self._feed_forward), strict=True):
            x = x + function(norm(x)) if self.norm_first else norm(x + function(x))
        return x
