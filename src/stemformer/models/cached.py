"""A GPT that reads on: each token is looked at once, and its keys and values are kept for those that follow."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.models.attention import attend_cached
from stemformer.models.gpt import Gpt, GptConfig, GptLayer
from stemformer.models.heads import CausalLmHead
from stemformer.models.model import Model
from stemformer.models.products import Product, make_product

__all__ = ["CachedGpt", "KeyValueCache"]


class KeyValueCache:
    """Keys and values of all tokens seen so far, for decoding: dense, with room for the longest text, written in place.

    All texts end at the same place: shorter ones begin later, after places that nothing looks at.

    Args:
        num_layers: L.
        lengths: Tokens of each of S texts that are read first, together; what stands before shorter ones is padding.
        room: Places, as many as the longest text may need.
        num_heads: H.
        head_size: K.
        device: Where it lies.
        dtype: Of keys and values.

    Attributes:
        longest: Places taken so far.
        room: All that there are.
    """

    def __init__(
        self,
        num_layers: int,
        lengths: Sequence[int],
        room: int,
        num_heads: int,
        head_size: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._keep(torch.empty(num_layers, 2, len(lengths), num_heads, room, head_size, device=device, dtype=dtype))
        self.longest, self.room = 0, room
        self._begins = max(lengths) - torch.tensor(lengths, device=device)  # (S,)
        self._hidden: Tensor | None = None  # (S, 1, 1, room), -inf before a text begins
        if len(set(lengths)) > 1:
            before = torch.arange(room, device=device) < self._begins[:, None, None, None]
            self._hidden = torch.zeros(before.shape, device=device, dtype=dtype).masked_fill(before, -torch.inf)

    def _keep(self, kept: Tensor) -> None:
        self._kept, by_head = kept, kept.flatten(2, 3)  # (L, 2, S, H, room, K), (L, 2, S * H, room, K)
        self._new = kept.permute(0, 2, 4, 1, 3, 5)  # what each step takes slices of
        self._keys, self._values = by_head[:, 0].mT, by_head[:, 1]

    @property
    def is_even(self) -> bool:
        """Whether all texts are of one length."""
        return self._hidden is None

    @property
    def lengths(self) -> Int[Tensor, "S"]:
        """Tokens of each text so far."""
        return self.longest - self._begins

    def positions(self, number: int) -> Int[Tensor, "S T"]:
        """Returns the places in their texts of so many tokens to come; 0 for padding."""
        places = torch.arange(self.longest, self.longest + number, device=self._begins.device)
        return (places - self._begins[:, None]).clamp(min=0)

    def mask(self, number: int) -> Float[Tensor, "*S T P"] | None:
        """Returns what is added to the scores of so many tokens to come; None where they see all places up to their own."""
        stop = self.longest + number
        hidden = None if self._hidden is None else self._hidden[..., :stop]
        if number == 1 or (self.longest == 0 and hidden is None):
            return hidden
        later = self._kept.new_full((number, stop), -torch.inf).triu(self.longest + 1)
        if hidden is None:
            return later
        mask = later + hidden
        mask.diagonal(self.longest, -2, -1).zero_()  # padding sees itself: a softmax over nothing is not a number
        return mask

    def grow(self, number: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Takes places for so many new tokens of each text.

        Returns:
            For each layer, where keys and values of the new tokens go, (S, T, 2, H, K), and the keys (S * H, K, P) and values
            (S * H, P, K) of all places up to theirs.

        Raises:
            ValueError: There is no room for them.
        """
        start, self.longest = self.longest, self.longest + number
        if self.longest > self.room:
            raise ValueError(f"{self.longest} tokens for a cache of {self.room}")
        new, keys = self._new.narrow(2, start, number), self._keys.narrow(3, 0, self.longest)
        values = self._values.narrow(2, 0, self.longest)
        return zip(new.unbind(), keys.unbind(), values.unbind(), strict=True)

    def select(self, rows: Int[Tensor, "R"]) -> None:
        """Keeps these texts, in this order; one may be kept several times. Memory is taken only where there are more than before."""
        if torch.equal(rows, torch.arange(len(self._begins), device=rows.device)):
            return
        seen = self._kept.narrow(4, 0, self.longest).index_select(2, rows)
        sizes = list(self._kept.shape)
        fewer = len(rows) <= sizes[2]
        self._keep(self._kept.narrow(2, 0, len(rows)) if fewer else seen.new_empty(*sizes[:2], len(rows), *sizes[3:]))
        self._kept.narrow(4, 0, self.longest).copy_(seen)
        self._begins = self._begins.index_select(0, rows)
        if self._hidden is not None:
            self._hidden = self._hidden.index_select(0, rows)


class CachedGpt:
    """A GPT laid out for decoding: the same numbers as the model's own forward, from matrices that are read fast.

    On the CPU states are float32 at least, whatever the weights are, and the matrices are copies (see `models.products`), so memory holds
    the weights twice. Making it takes as long as some steps do: who decodes several times with one model keeps it.

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

        def lay_out(layer: nn.Linear, activation: nn.Module | None = None) -> Product:
            return make_product(layer.weight, layer.bias, rows=rows, steps=steps, activation=activation)

        self._layers = [_Layer(layer, lay_out, self._dtype) for layer in body.layers if isinstance(layer, GptLayer)]
        self._norm = _make_norm(body.norm, self._dtype)
        head = model.heads["causal_lm"]
        assert isinstance(head, CausalLmHead)
        output = self._word if head.decoder is None else head.decoder.weight
        self._head = make_product(output, None, rows=rows, steps=steps)

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
        return self._scores(self.read(ids)[:, -1])

    def step(self, tokens: Int[Tensor, "S"]) -> Float[Tensor, "S V"]:
        """Returns scores of the token behind the next one of each text.

        Raises:
            ValueError: The cache has no room for it.
        """
        return self._scores(self._read(tokens, 1))

    def read(self, ids: Int[Tensor, "S T"]) -> Float[Tensor, "S T D"]:
        """Returns the last states of the next tokens of each text, and keeps their keys and values.

        Raises:
            ValueError: The cache has no room for them.
        """
        return self._read(ids.flatten(), ids.shape[1]).view(*ids.shape, -1)

    def _read(self, ids: Int[Tensor, "R"], num_new: int) -> Float[Tensor, "R D"]:
        cache = self.cache
        mask, x = cache.mask(num_new), torch.embedding(self._word, ids)
        if cache.is_even and num_new in (1, len(ids)):  # all at one place, or of one text
            places = self._position.narrow(0, cache.longest, num_new)
        else:
            places = torch.embedding(self._position, cache.positions(num_new).flatten())
        x = (x if x.dtype == self._dtype else x.to(self._dtype)) + places
        for layer, (new, keys, values) in zip(self._layers, cache.grow(num_new), strict=True):
            x = layer(x, new, keys, values, mask)
        return self._norm(x)

    def _scores(self, states: Float[Tensor, "R D"]) -> Float[Tensor, "R V"]:
        scores = self._head(states)
        return scores if scores.dtype == torch.float32 else scores.float()


class _Layer:
    """What `models.gpt.GptLayer` does in evaluation mode, to some tokens of each text that follow those of a cache."""

    def __init__(self, layer: GptLayer, lay_out: Callable[..., Product], dtype: torch.dtype) -> None:
        self.attention_norm = _make_norm(layer.attention_norm, dtype)
        self.qkv, self.out = lay_out(layer.attention.qkv), lay_out(layer.attention.out)
        self.feed_forward_norm = _make_norm(layer.feed_forward_norm, dtype)
        feed_forward = layer.feed_forward
        self.up, self.down = lay_out(feed_forward.up, feed_forward.activation), lay_out(feed_forward.down)

    def __call__(
        self, x: Tensor, new: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Float[Tensor, "R D"]:
        num_texts, num_new, _, num_heads, size = new.shape
        qkv = self.qkv(self.attention_norm(x)).view(num_texts, num_new, 3, num_heads, size)
        x = x + self.out(attend_cached(qkv, new=new, keys=keys, values=values, mask=mask))
        return x + self.down(self.up(self.feed_forward_norm(x)))


def _make_norm(norm: nn.LayerNorm, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight, bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
    return lambda x: torch.layer_norm(x, weight.shape, weight, bias, norm.eps)
