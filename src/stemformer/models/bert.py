"""BERT: config, layers and initialization."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.config import check_at_least
from stemformer.models.body import Body, check_config
from stemformer.models.embeddings import PositionEmbedding, WordEmbedding
from stemformer.models.layers import Dropout, FeedForward, MultiHeadAttention, Rows
from stemformer.models.rotary import Rotation


@dataclass(frozen=True)
class BertConfig:
    """Sizes and settings of a BERT, under Hugging Face's names."""

    model_type: ClassVar[str] = "bert"
    # BERT has no token that ends a document.
    eos_token_id: ClassVar[None] = None
    has_bias: ClassVar[bool] = True
    # The initial transform of the masked-LM head is this times the identity, plus random weights.
    transform_identity_scale: ClassVar[float] = 0.0

    # V, D, L, H (a divisor of D) and F in shapes.
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    # A key of `layers.ACTIVATIONS`.
    hidden_act: str = "gelu"
    # Dropout after the embeddings and after each block.
    hidden_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    # Standard deviation of random weights.
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    # Unused by the model, kept for readers of the saved folder.
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        check_config(self, "type_vocab_size")
        check_at_least(0, self, "model.", "num_hidden_layers")


class BertEmbeddings(nn.Module):
    """Sum of word, position and segment embeddings, then norm and dropout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = WordEmbedding(config.vocab_size, config.hidden_size)
        self.position = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Int[Tensor, "*b"], position_ids: Int[Tensor, "*b"], token_type_ids: Int[Tensor, "*b"]
    ) -> Float[Tensor, "*b D"]:
        x = self.word(input_ids) + self.position(position_ids) + self.token_type(token_type_ids)
        return self.dropout(self.norm(x))


class BertLayer(nn.Module):
    """Post-norm Transformer layer: attention and feed-forward, each norm(x + f(x))."""

    norm_first: ClassVar[bool] = False
    theta: ClassVar[None] = None

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
        rows: Rows = None,
        rotations: dict[float, Rotation] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "R D"]:
        attended = self.dropout(self.attention(x, cu_seqlens, max_seqlen, rows, None, causal))
        x = self.attention_norm((x if rows is None else x.index_select(0, rows)) + attended)  # (R, D)
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Bert(Body):
    """BERT body: flat tokens to hidden states.

    | parameter | initialization |
    |---|---|
    | linear, word and segment weights | normal, standard deviation `initializer_range` |
    | position embeddings | sinusoids with this root mean square, trained like the other weights |
    | linear biases | 0 |
    | norm weights, biases | 1, 0 |
    | bias of the masked-LM head | 0; in pre-training log unigram frequencies (`init_output_bias_from_unigrams`) |

    The original truncates the normal distribution at two standard deviations, and uses it for the
    position embeddings too; sinusoids learn adjacent positions sooner (`docs/log.md`).

    Example:
        >>> import torch
        >>> body = Bert(BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
        >>> ids, positions, cu = torch.tensor([1, 5, 2, 1, 2]), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 3, 5])
        >>> body(ids, positions, torch.zeros_like(ids), cu.int(), 3).shape
        torch.Size([5, 8])

    Source: Devlin et al. 2019, section 3, figure 2 and appendix A.2; post-norm residual blocks and
    sinusoids: Vaswani et al. 2017, sections 3.1 and 3.5.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        # No final norm: each layer ends with one.
        self.norm = nn.Identity()
