"""GPT: config, layers and initialisation of the second version of 2019, a decoder that reads from left to right.

Source: Radford et al. 2019, section 2.3 (norm before each block, a norm at the end, residual weights scaled by depth); Radford et al.
2018, section 4.1 (learned positions, GELU).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.models.inference.kv_cache import PromptCache
from stemformer.models.layers import (
    Dropout,
    FeedForward,
    MultiHeadAttention,
    PositionEmbedding,
    WordEmbedding,
    check_sizes,
    check_states,
    with_spare_places,
    with_spare_rows,
)


@dataclass(frozen=True)
class GptConfig:
    """Size and shape of a GPT, in the names that Hugging Face gives a BERT's; a folder has GPT-2's own (`n_embd` and others).

    Attributes:
        vocab_size: V.
        hidden_size: D.
        num_hidden_layers: L.
        num_attention_heads: H; must divide D.
        intermediate_size: F.
        hidden_act: A key of `layers.ACTIVATIONS`.
        hidden_dropout_prob: Dropout after the embeddings and after each block, in [0, 1).
        max_position_embeddings: Longest sequence.
        initializer_range: Standard deviation of fresh weights.
        layer_norm_eps: Added to the variance.
        eos_token_id: Of the token that ends a document, and stands before the first one.
    """

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.1
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 50256

    def __post_init__(self) -> None:
        check_sizes(
            self,
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
        )


class GptEmbeddings(nn.Module):
    """Word + position, with dropout."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.word = WordEmbedding(config.vocab_size, config.hidden_size)
        self.position = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Int[Tensor, "N"], position_ids: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        x: Tensor = self.dropout(self.word(input_ids) + self.position(position_ids))
        return x


class GptLayer(nn.Module):
    """Attention to oneself and what lies before, then feed-forward; each sees its input normed, and is added to it."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = MultiHeadAttention(config.hidden_size, config.num_attention_heads, causal=True)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size, activation=config.hidden_act)
        self.dropout = Dropout(config.hidden_dropout_prob)
        for last in (self.attention.out, self.feed_forward.down):
            last.first_scale = (2 * config.num_hidden_layers) ** -0.5

    def forward(
        self,
        x: Float[Tensor, "N D"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        rows: Int[Tensor, "R"] | None = None,
    ) -> Float[Tensor, "R D"]:
        """Returns the states of all tokens, or of those in `rows`, which still look at all before them."""
        gathered = self.dropout(self.attention(self.attention_norm(x), cu_seqlens, max_seqlen, rows))
        return self._fed((x if rows is None else x.index_select(0, rows)) + gathered)

    def read(
        self, x: Float[Tensor, "N D"], *where: Any
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M H K"], Float[Tensor, "M H K"]]:
        """Returns the states of tokens that go on from others, and keys and values; `where` as for `MultiHeadAttention.read`."""
        gathered, keys, values = self.attention.read(self.attention_norm(x), *where)
        return self._fed(x + gathered), keys, values

    def _fed(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        y: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return y


class Gpt(nn.Module):
    """The body: flat tokens to hidden states, each of which has seen nothing behind its token.

    | parameter | initialisation |
    |---|---|
    | linear and word weights | normal, standard deviation `initializer_range` |
    | last linear of attention and of feed-forward | the same, divided by the root of the number of both in all layers |
    | position vectors | sinusoids of that root mean square, which are then learned like the rest |
    | linear biases | 0 |
    | norm weights, biases | 1, 0 |

    GPT-2 draws positions too: from sinusoids a model finds its neighbours sooner (`docs/log.md`).

    Args:
        config: Sizes.

    Example:
        >>> import torch
        >>> config = GptConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> body = Gpt(config)
        >>> ids, positions, cu = torch.tensor([1, 5, 2, 1, 2]), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 3, 5])
        >>> body(ids, positions, torch.zeros_like(ids), cu.int(), 3).shape
        torch.Size([5, 8])

    Source: Radford et al. 2019, section 2.3; sinusoids: Vaswani et al. 2017, section 3.5.
    """

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = GptEmbeddings(config)
        self.layers = nn.ModuleList(GptLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        input_ids: Int[Tensor, "N"],
        position_ids: Int[Tensor, "N"],
        token_type_ids: Int[Tensor, "N"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        *,
        return_layers: tuple[int, ...] = (),
        replace: Mapping[int, Tensor] | None = None,
        rows: Int[Tensor, "R"] | None = None,
    ) -> Any:
        """Returns the last hidden states (N, D), with `rows` those of some tokens (R, D), with `return_layers` `{layer: (N, D)}`.

        Args:
            input_ids: Token ids of all sequences, one after the other.
            position_ids: Place of each token in its sequence, from 0.
            token_type_ids: Not looked at: a GPT has no segments. All bodies are called alike.
            cu_seqlens: int32 offsets at which sequences begin, the last entry N.
            max_seqlen: Length of the longest sequence.
            return_layers: Layers whose states are wanted: 0 the embeddings, `i` the output of the i-th layer, of the last one normed.
            replace: States (N, D) put in the place of a layer's own, numbered in the same way.
            rows: Tokens whose last states (R, D) are wanted, in this order; see `models.bert.Bert.forward`.
        """
        replace = replace or {}
        last = len(self.layers)
        n = len(input_ids)
        check_states(len(self.layers), n, cu_seqlens, return_layers, replace, rows)
        kept: dict[int, Tensor] = {}
        x = with_spare_rows(self.embeddings(input_ids, position_ids))
        for number in range(last + 1):
            if number and number == last and rows is not None:
                return self.norm(
                    self.layers[number - 1](x, cu_seqlens, max_seqlen, with_spare_places(rows))[: len(rows)]
                )
            if number:
                x = self.layers[number - 1](x, cu_seqlens, max_seqlen)
            if number == last:
                x = self.norm(x)
            if number in replace:
                x = with_spare_rows(replace[number])
            if number in return_layers:
                kept[number] = x[:n]
        return kept if return_layers else x[:n]

    def read(
        self,
        input_ids: Int[Tensor, "N"],
        cu_seqlens: Int[Tensor, "S1"],
        *,
        after: PromptCache | None = None,
        parents: Int[Tensor, "S"] | None = None,
    ) -> tuple[Float[Tensor, "N D"], PromptCache]:
        """Returns the last hidden states of texts that may go on from others, and what the next ones need to go on from these.

        So answers to one question share its reading, and questions that of the examples before them. Nothing is padded.

        Args:
            input_ids: New tokens of all texts, one after the other.
            cu_seqlens: int32 offsets at which they begin, the last entry N; each has a token.
            after: What was read before; None if nothing was.
            parents: Number of the text in `after` that each goes on from.

        Raises:
            ValueError: A text is longer than the model has positions.

        Example:
            >>> import torch
            >>> body = Gpt(GptConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
            >>> _, question = body.read(torch.tensor([1, 2, 3]), torch.tensor([0, 3], dtype=torch.int32))
            >>> answers, ends = torch.tensor([4, 5, 6]), torch.tensor([0, 1, 3], dtype=torch.int32)
            >>> body.read(answers, ends, after=question, parents=torch.tensor([0, 0]))[1].cu_seqlens
            tensor([0, 4, 9], dtype=torch.int32)
        """
        new = cu_seqlens.diff().long()
        if after is None:
            old, begins = torch.zeros_like(new), torch.zeros_like(new)
        else:
            assert parents is not None, "texts that go on say from where"
            old, begins = after.cu_seqlens.diff().long()[parents], after.cu_seqlens[parents].long()
        longest = int((old + new).max())
        if longest > self.config.max_position_embeddings:
            raise ValueError(f"a text of {longest} tokens for {self.config.max_position_embeddings} positions")
        cu_k = torch.cat([cu_seqlens[:1], (old + new).cumsum(0).int()])
        place = torch.arange(int(cu_k[-1]), device=input_ids.device) - cu_k[:-1].long().repeat_interleave(old + new)
        is_old = place < old.repeat_interleave(old + new)
        shift = cu_seqlens[:-1].long() - old + (0 if after is None else len(after.keys[0]))
        order = place + torch.where(is_old, begins.repeat_interleave(old + new), shift.repeat_interleave(old + new))
        x = self.embeddings(input_ids, place[~is_old])
        keys, values = [], []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, GptLayer)
            before = None if after is None else (after.keys[number], after.values[number])
            x, k, v = layer.read(x, cu_seqlens, int(new.max()), before, order, cu_k, longest)
            keys.append(k)
            values.append(v)
        return self.norm(x), PromptCache(keys, values, cu_k)
