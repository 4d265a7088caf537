"""BERT: config, layers and initialisation, in the order of the original.

Source: Devlin et al. 2019, section 3; residual and norm order of Vaswani et al. 2017 (norm after the residual).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.errors import ConfigError
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
class BertConfig:
    """Size and shape of a BERT, in Hugging Face's names.

    Attributes:
        vocab_size: V.
        hidden_size: D.
        num_hidden_layers: L.
        num_attention_heads: H; must divide D.
        intermediate_size: F.
        hidden_act: A key of `layers.ACTIVATIONS`.
        hidden_dropout_prob: Dropout after the embeddings and after each block, in [0, 1).
        max_position_embeddings: Longest sequence, special tokens included.
        type_vocab_size: Kinds of segment (two: text A and text B).
        initializer_range: Standard deviation of fresh weights.
        layer_norm_eps: Added to the variance.
        pad_token_id: The id of `[PAD]`; never seen by the model, kept for those who read the folder.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        check_sizes(
            self,
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        )
        if self.num_hidden_layers < 0:
            raise ConfigError(f"model.num_hidden_layers is {self.num_hidden_layers}: expected 0 or more")


class BertEmbeddings(nn.Module):
    """Word + position + segment, normed, with dropout. Source: Devlin et al. 2019, figure 2."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = WordEmbedding(config.vocab_size, config.hidden_size)
        self.position = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Int[Tensor, "N"], position_ids: Int[Tensor, "N"], token_type_ids: Int[Tensor, "N"]
    ) -> Float[Tensor, "N D"]:
        x = self.word(input_ids) + self.position(position_ids) + self.token_type(token_type_ids)
        y: Tensor = self.dropout(self.norm(x))
        return y


class BertLayer(nn.Module):
    """Attention, then feed-forward; each added to its input, then normed."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config.hidden_size, config.num_attention_heads)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size, activation=config.hidden_act)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        x: Float[Tensor, "N D"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        rows: Int[Tensor, "R"] | None = None,
    ) -> Float[Tensor, "R D"]:
        """Returns the states of all tokens, or of those in `rows`, which still look at all."""
        gathered = self.dropout(self.attention(x, cu_seqlens, max_seqlen, rows))
        x = self.attention_norm((x if rows is None else x.index_select(0, rows)) + gathered)
        y: Tensor = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return y


class Bert(nn.Module):
    """The body: flat tokens to hidden states.

    | parameter | initialisation |
    |---|---|
    | linear, word and segment weights | normal, standard deviation `initializer_range` |
    | position vectors | sinusoids of that root mean square, which are then learned like the rest |
    | linear biases | 0 |
    | norm weights, biases | 1, 0 |

    The output bias of the masked-LM head begins at 0, and in a pre-training run at the logarithm of word frequency
    (`heads.start_from_frequency`). The 2018 code cuts the normal at two standard deviations; like Hugging Face's, ours does not. It draws
    positions too: from sinusoids the model finds its neighbours sooner (`docs/log.md`).

    Args:
        config: Sizes.

    Example:
        >>> import torch
        >>> config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> body = Bert(config)
        >>> ids, positions, cu = torch.tensor([1, 5, 2, 1, 2]), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 3, 5])
        >>> body(ids, positions, torch.zeros_like(ids), cu.int(), 3).shape
        torch.Size([5, 8])

    Source: Devlin et al. 2019, section 3 and appendix A.2; sinusoids: Vaswani et al. 2017, section 3.5.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

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
            token_type_ids: Segment of each token.
            cu_seqlens: int32 offsets at which sequences begin, the last entry N.
            max_seqlen: Length of the longest sequence.
            return_layers: Layers whose states are wanted: 0 the embeddings, `i` the output of the i-th layer.
            replace: States (N, D) put in the place of a layer's own, numbered in the same way.
            rows: Tokens whose last states (R, D) are wanted, in this order. The last layer then does for these alone what it does for each
                token by itself, which is three quarters of its work: where few tokens are scored, a good part of a small model's step.
        """
        replace = replace or {}
        n = len(input_ids)
        check_states(len(self.layers), n, cu_seqlens, return_layers, replace, rows)
        kept: dict[int, Tensor] = {}
        x = with_spare_rows(self.embeddings(input_ids, position_ids, token_type_ids))
        for number in range(len(self.layers) + 1):
            if number and number == len(self.layers) and rows is not None:
                return self.layers[number - 1](x, cu_seqlens, max_seqlen, with_spare_places(rows))[: len(rows)]
            if number:
                x = self.layers[number - 1](x, cu_seqlens, max_seqlen)
            if number in replace:
                x = with_spare_rows(replace[number])
            if number in return_layers:
                kept[number] = x[:n]
        if rows is not None:  # of a body without layers
            return x.index_select(0, rows)
        return kept if return_layers else x[:n]
