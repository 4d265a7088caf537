"""A GPT that reads on: each token is looked at once, and its keys and values are kept for those that follow."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.models.attention.varlen import attend, attend_cached
from stemformer.models.gpt import Gpt, GptConfig, GptLayer
from stemformer.models.heads import CausalLmHead
from stemformer.models.inference.kv_cache import KeyValueCache
from stemformer.models.inference.linear_kernels import LinearKernel, make_linear_kernel
from stemformer.models.layers import pad_to_bucket
from stemformer.models.model import Model


class GptDecoder:
    """A GPT laid out for decoding: the same numbers as the model's own forward, from matrices that are read fast.

    On the CPU states are float32 at least, whatever the weights are, and the matrices are copies (see `models.products`), so memory holds
    the weights twice, or three times where bfloat16 weights are copied to float32. Making it takes as long as some steps do: who decodes
    several times with one model keeps it.

    Args:
        model: A GPT with its head. What it is trained further does not arrive here.
        rows: How many texts go on at once, at most.
        steps: How many tokens are read one by one.

    Attributes:
        config: Of the body.
        cache: Of the texts that were begun last.

    Raises:
        ConfigError: The model is not a GPT with its head.

    Example:
        >>> from stemformer.models.model import make_model
        >>> config = GptConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> reader = CachedGpt(make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0)))
        >>> scores = reader.begin([[3, 1, 4], [1, 5]], room=10)
        >>> reader.step(scores.argmax(-1)).shape
        torch.Size([2, 50])
    """

    cache: KeyValueCache

    def __init__(self, model: Model, *, rows: int = 1, steps: float = torch.inf) -> None:
        body = model.body
        if not isinstance(body, Gpt) or "causal_lm" not in model.heads:
            raise ConfigError("this model was not trained on the next word, so it cannot generate: give a GPT")
        self.config: GptConfig = body.config
        self._word = body.embeddings.word.weight.detach()
        is_low = self._word.device.type == "cpu" and self._word.dtype.itemsize < 4
        self._dtype = torch.float32 if is_low else self._word.dtype
        self._position = body.embeddings.position.weight.detach().to(self._dtype)

        def lay_out(layer: nn.Linear, activation: nn.Module | None = None) -> LinearKernel:
            return make_linear_kernel(layer.weight, layer.bias, rows=rows, steps=steps, activation=activation)

        self._layers = [_Layer(layer, lay_out, self._dtype) for layer in body.layers if isinstance(layer, GptLayer)]
        self._norm = _make_norm(body.norm, self._dtype)
        head = model.heads["causal_lm"]
        assert isinstance(head, CausalLmHead)
        output = self._word if head.decoder is None else head.decoder.weight
        self._head = make_linear_kernel(output, None, rows=rows, steps=steps)

    def begin(self, texts: Sequence[Sequence[int]], room: int) -> Float[Tensor, "S V"]:
        """Returns scores of the token behind each text, and forgets all texts before. Nothing is padded but the cache.

        Args:
            texts: Ids, of whatever lengths; none is empty.
            room: Tokens of the longest, with those to come.

        Raises:
            ValueError: There is no room for the texts.
        """
        config, device = self.config, self._word.device
        lengths = list(map(len, texts))
        self.cache = KeyValueCache(
            config.num_hidden_layers,
            lengths,
            room,
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
            device=device,
            dtype=self._dtype,
        )
        ids = torch.tensor([token for text in texts for token in text], device=device)  # (N,)
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        places = torch.cat([torch.arange(length, device=device) for length in lengths])
        x = pad_to_bucket(self._embedded(ids, torch.embedding(self._position, places)))
        kept, at = self.cache.first_places(places)
        for layer, of_layer in zip(self._layers, kept, strict=True):
            x = layer.read(x, cu_seqlens, max(lengths), of_layer, at)
        return self._scores(self._norm(x[cu_seqlens[1:].long() - 1]))

    def step(self, tokens: Int[Tensor, "S"]) -> Float[Tensor, "S V"]:
        """Returns scores of the token behind the next one of each text.

        Raises:
            ValueError: The cache has no room for it.
        """
        cache = self.cache
        if cache.is_even:
            places = self._position.narrow(0, cache.longest, 1)
        else:
            places = torch.embedding(self._position, cache.positions)
        x = self._embedded(tokens, places)
        layers = cache.grow()
        mask = cache.mask()
        for layer, (new, keys, values) in zip(self._layers, layers, strict=True):
            x = layer(x, new, keys, values, mask)
        return self._scores(self._norm(x))

    def _embedded(self, ids: Int[Tensor, "R"], positions: Float[Tensor, "_ D"]) -> Float[Tensor, "R D"]:
        x = torch.embedding(self._word, ids)
        return (x if x.dtype == self._dtype else x.to(self._dtype)) + positions

    def _scores(self, states: Float[Tensor, "R D"]) -> Float[Tensor, "R V"]:
        scores = self._head(states)
        return scores if scores.dtype == torch.float32 else scores.float()


class _Layer:
    """What `models.gpt.GptLayer` does in evaluation mode, to texts as wholes and then to one token of each after the other."""

    def __init__(self, layer: GptLayer, lay_out: Callable[..., LinearKernel], dtype: torch.dtype) -> None:
        self.num_heads, self._dtype = layer.attention.num_heads, dtype
        self.attention_norm = _make_norm(layer.attention_norm, dtype)
        self.qkv, self.out = lay_out(layer.attention.qkv), lay_out(layer.attention.out)
        self.feed_forward_norm = _make_norm(layer.feed_forward_norm, dtype)
        feed_forward = layer.feed_forward
        self.up, self.down = lay_out(feed_forward.up, feed_forward.activation), lay_out(feed_forward.down)

    def read(
        self, x: Tensor, cu_seqlens: Tensor, longest: int, kept: Tensor, at: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "N D"]:
        """Returns states of whole texts, flat, and keeps their keys and values; rows behind the texts are left out."""
        qkv = self.qkv(self.attention_norm(x)).to(self._dtype).view(len(x), 3, self.num_heads, -1)
        q, k, v = qkv.unbind(1)
        kept.index_put_(at, qkv[: len(at[0]), 1:])
        out = attend(q, k, v, cu_q=cu_seqlens, cu_k=cu_seqlens, max_q=longest, max_k=longest, causal=True)
        return self._fed(x + self.out(out.flatten(1)))

    def __call__(
        self, x: Tensor, new: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Float[Tensor, "S D"]:
        """Returns states of the next token of each text."""
        num_texts, _, num_heads, size = new.shape
        qkv = self.qkv(self.attention_norm(x)).view(num_texts, 3, num_heads, size)
        return self._fed(x + self.out(attend_cached(qkv, new=new, keys=keys, values=values, mask=mask)))

    def _fed(self, x: Tensor) -> Float[Tensor, "R D"]:
        return x + self.down(self.up(self.feed_forward_norm(x)))


def _make_norm(norm: nn.LayerNorm, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight, bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
    return lambda x: torch.layer_norm(x, weight.shape, weight, bias, norm.eps)
