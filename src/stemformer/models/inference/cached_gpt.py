"""Incremental GPT decoding with a key-value cache."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.models.attention.varlen import attend, attend_cached
from stemformer.models.gpt import Gpt, GptConfig, GptLayer
from stemformer.models.inference.kv_cache import KeyValueCache
from stemformer.models.inference.linear_kernels import LinearKernel, make_linear_kernel
from stemformer.models.layers import pad_to_bucket
from stemformer.models.model import Model


class GptDecoder:
    """A GPT prepared for decoding, with matrices laid out for fast reads.

    On the CPU, states are at least float32 and the matrices are copies (`inference.linear_kernels`).
    Construction takes as long as some decoding steps: keep the decoder to decode several times.

    Args:
        model: A GPT with its causal-LM head. Later training of it has no effect here.
        rows: Maximum number of sequences decoded in parallel.
        steps: Expected number of decoding steps.

    Example:
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
            raise ConfigError("This model has no causal-LM head, so it cannot generate text. Use a GPT.")
        body = model.body
        assert isinstance(body, Gpt)
        self.config: GptConfig = body.config
        self.max_length = model.max_length
        self._word = body.embeddings.word.weight.detach()
        is_low_precision = self._word.device.type == "cpu" and self._word.dtype.itemsize < 4
        self._dtype = torch.float32 if is_low_precision else self._word.dtype
        self._position = body.embeddings.position.weight.detach().to(self._dtype)

        def make_kernel(layer: nn.Linear, activation: nn.Module | None = None) -> LinearKernel:
            return make_linear_kernel(layer.weight, layer.bias, rows=rows, steps=steps, activation=activation)

        self._layers = [_Layer(layer, make_kernel, self._dtype) for layer in body.layers]  # type: ignore[arg-type]
        self._norm = _make_norm(body.norm, self._dtype)
        decoder = model.lm_head.decoder
        output = self._word if decoder is None else decoder.weight
        self._head = make_linear_kernel(output, None, rows=rows, steps=steps)

    def prefill(self, prompts: Sequence[Sequence[int]], max_length: int) -> Float[Tensor, "S V"]:
        """Start a new batch of prompts and return the logits of each next token; `max_length` includes new tokens."""
        device, lengths = self._word.device, list(map(len, prompts))
        self.cache = KeyValueCache(self.config, lengths, max_length, device=device, dtype=self._dtype)
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)  # (N,)
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        x = pad_to_bucket(self._embed(ids, torch.embedding(self._position, positions)))
        blocks, slots = self.cache.prompt_slots(positions)
        for layer, block in zip(self._layers, blocks, strict=True):
            x = layer.prefill(x, cu_seqlens, max(lengths), block, slots)
        return self._logits(self._norm(x[cu_seqlens[1:].long() - 1]))

    def decode_step(self, tokens: Int[Tensor, "S"]) -> Float[Tensor, "S V"]:
        """Append one token to each sequence and return the logits of the next."""
        cache, table = self.cache, self._position
        one_position = not cache.has_padding
        positions = table.narrow(0, cache.length, 1) if one_position else torch.embedding(table, cache.positions)
        x = self._embed(tokens, positions)
        blocks, mask = cache.grow(), cache.mask()
        for layer, (new, keys, values) in zip(self._layers, blocks, strict=True):
            x = layer.decode_step(x, new, keys, values, mask)
        return self._logits(self._norm(x))

    def _embed(self, ids: Int[Tensor, "R"], positions: Float[Tensor, "_ D"]) -> Float[Tensor, "R D"]:
        x = torch.embedding(self._word, ids)
        return (x if x.dtype == self._dtype else x.to(self._dtype)) + positions

    def _logits(self, states: Float[Tensor, "R D"]) -> Float[Tensor, "R V"]:
        logits = self._head(states)
        return logits if logits.dtype == torch.float32 else logits.float()


class _Layer:
    """`models.gpt.GptLayer` in evaluation mode, for prompts and for single tokens."""

    def __init__(self, layer: GptLayer, make_kernel: Callable[..., LinearKernel], dtype: torch.dtype) -> None:
        self.num_heads, self._dtype = layer.attention.num_heads, dtype
        self.attention_norm = _make_norm(layer.attention_norm, dtype)
        self.qkv, self.out = make_kernel(layer.attention.qkv), make_kernel(layer.attention.out)
        self.feed_forward_norm = _make_norm(layer.feed_forward_norm, dtype)
        feed_forward = layer.feed_forward
        self.up, self.down = make_kernel(feed_forward.up, feed_forward.activation), make_kernel(feed_forward.down)

    def prefill(
        self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, block: Tensor, slots: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "N D"]:
        # Keys and values of all but padding go to the cache.
        qkv = self.qkv(self.attention_norm(x)).to(self._dtype).view(len(x), 3, self.num_heads, -1)
        q, k, v = qkv.unbind(1)  # (N, H, K)
        block.index_put_(slots, qkv[: len(slots[0]), 1:])
        out = attend(q, k, v, cu_q=cu_seqlens, cu_k=cu_seqlens, max_q=max_seqlen, max_k=max_seqlen, causal=True)
        return self._add_feed_forward(x + self.out(out.flatten(1)))

    def decode_step(self, x: Tensor, new: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        num_sequences, _, num_heads, size = new.shape
        qkv = self.qkv(self.attention_norm(x)).view(num_sequences, 3, num_heads, size)
        return self._add_feed_forward(x + self.out(attend_cached(qkv, new=new, keys=keys, values=values, mask=mask)))

    def _add_feed_forward(self, x: Tensor) -> Float[Tensor, "R D"]:
        return x + self.down(self.up(self.feed_forward_norm(x)))


def _make_norm(norm: nn.LayerNorm, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight, bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
    return lambda x: torch.layer_norm(x, weight.shape, weight, bias, norm.eps)
