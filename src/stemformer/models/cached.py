"""A GPT that reads on: each token is looked at once, and its keys and values are kept for those that follow."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.models.attention import attend_cached
from stemformer.models.gpt import Gpt, GptConfig, GptLayer
from stemformer.models.heads import CausalLmHead
from stemformer.models.layers import KeyValueCache
from stemformer.models.model import Model
from stemformer.models.products import Product, make_product

__all__ = ["CachedGpt"]


class CachedGpt:
    """A GPT laid out for decoding: the same numbers as the model's own forward, from matrices that are read fast.

    On the CPU states are float32 whatever the weights are, and the matrices are copies (see `models.products`), so memory holds the
    weights twice. Making it takes as long as some steps do: who decodes several times with one model keeps it.

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
        self._word, self._position = body.embeddings.word.weight.detach(), body.embeddings.position.weight.detach()
        self._dtype = torch.float32 if self._word.device.type == "cpu" else self._word.dtype

        def lay_out(layer: nn.Linear) -> Product:
            return make_product(layer.weight, layer.bias, rows=rows, steps=steps)

        self._layers = [_Layer(layer, lay_out, self._dtype) for layer in body.layers if isinstance(layer, GptLayer)]
        self._norm = _make_norm(body.norm, self._dtype)
        head = model.heads["causal_lm"]
        assert isinstance(head, CausalLmHead)
        output = self._word if head.decoder is None else head.decoder.weight
        self._head = make_product(output, None, rows=rows, steps=steps)

    @torch.no_grad()
    def begin(self, texts: Sequence[Sequence[int]], room: int) -> Float[Tensor, "S V"]:
        """Returns scores of the token behind each text, and forgets all texts before.

        Args:
            texts: Ids, of whatever lengths; none is empty.
            room: Tokens of the longest, with those to come.
        """
        config, device = self.config, self._word.device
        self.cache = KeyValueCache(
            config.num_hidden_layers,
            list(map(len, texts)),
            room,
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
            device=device,
            dtype=self._dtype,
        )
        longest = max(map(len, texts))
        ids = torch.tensor([[0] * (longest - len(text)) + list(text) for text in texts], device=device)
        return self.scores(self.read(ids)[:, -1])

    def step(self, tokens: Int[Tensor, "S"]) -> Float[Tensor, "S V"]:
        """Returns scores of the token behind the next one of each text.

        Raises:
            ValueError: The cache has no room for it.
        """
        return self.scores(self.read(tokens[:, None])[:, 0])

    @torch.no_grad()
    def read(self, ids: Int[Tensor, "S T"]) -> Float[Tensor, "S T D"]:
        """Returns the last states of the next tokens of each text, and keeps their keys and values.

        Raises:
            ValueError: The cache has no room for them.
        """
        num_texts, num_new = ids.shape
        start, mask = self.cache.longest, self.cache.mask(num_new)
        positions = self.cache.positions(num_new).flatten()
        self.cache.grow(num_new)
        words, places = F.embedding(ids.flatten(), self._word), F.embedding(positions, self._position)
        x = words.to(self._dtype) + places.to(self._dtype)
        for layer, keys, values in zip(self._layers, self.cache.keys, self.cache.values, strict=True):
            x = layer(x, keys, values, start, mask)
        return self._norm(x).view(num_texts, num_new, -1)

    @torch.no_grad()
    def scores(self, states: Float[Tensor, "R D"]) -> Float[Tensor, "R V"]:
        """Returns the score of each token that may follow."""
        return self._head(states).float()


class _Layer:
    """What `models.gpt.GptLayer` does in evaluation mode, to some tokens of each text that follow those of a cache."""

    def __init__(self, layer: GptLayer, lay_out: Callable[[nn.Linear], Product], dtype: torch.dtype) -> None:
        self.attention_norm = _make_norm(layer.attention_norm, dtype)
        self.qkv, self.out = lay_out(layer.attention.qkv), lay_out(layer.attention.out)
        self.feed_forward_norm = _make_norm(layer.feed_forward_norm, dtype)
        self.up, self.down = lay_out(layer.feed_forward.up), lay_out(layer.feed_forward.down)
        self.activation = layer.feed_forward.activation
        self.num_heads = layer.attention.num_heads

    def __call__(
        self, x: Tensor, keys: Tensor, values: Tensor, start: int, mask: Tensor | None
    ) -> Float[Tensor, "R D"]:
        q, k, v = self.qkv(self.attention_norm(x)).view(len(keys), -1, 3, self.num_heads, keys.shape[3]).unbind(2)
        gathered = attend_cached(q, k, v, keys=keys, values=values, start=start, mask=mask)  # (S, T, H, K)
        x = x + self.out(gathered.reshape(x.shape))
        return x + self.down(self.activation(self.up(self.feed_forward_norm(x))))


def _make_norm(norm: nn.LayerNorm, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight, bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
    return lambda x: torch.layer_norm(x, weight.shape, weight, bias, norm.eps)
