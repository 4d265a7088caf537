"""GPT-2: config, layers and initialization of a causal decoder."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.models.body import Body, check_config
from stemformer.models.embeddings import PositionEmbedding, WordEmbedding
from stemformer.models.layers import Dropout, FeedForward, MultiHeadAttention, PreNormLayer


@dataclass(frozen=True)
class GptConfig:
    """Sizes and settings of a GPT, named as in `BertConfig`; a saved folder has GPT-2's own names."""

    model_type: ClassVar[str] = "gpt2"

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
    # Ends a document and precedes the first one.
    eos_token_id: int = 50256

    def __post_init__(self) -> None:
        check_config(self, "num_hidden_layers")


class GptEmbeddings(nn.Module):
    """Sum of word and position embeddings, then dropout."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.word = WordEmbedding(config.vocab_size, config.hidden_size)
        self.position = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Int[Tensor, "*b"], position_ids: Int[Tensor, "*b"], token_type_ids: Tensor | None = None
    ) -> Float[Tensor, "*b D"]:
        # GPT has no segments.
        return self.dropout(self.word(input_ids) + self.position(position_ids))


class GptLayer(PreNormLayer):
    """Pre-norm Transformer layer with causal attention."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = MultiHeadAttention(config.hidden_size, config.num_attention_heads, causal=True)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size, activation=config.hidden_act)
        self.dropout = Dropout(config.hidden_dropout_prob)
        for residual in (self.attention.out, self.feed_forward.down):
            residual.init_scale = (2 * config.num_hidden_layers) ** -0.5


class Gpt(Body):
    """GPT body: flat tokens to hidden states that depend on no later token.

    | parameter | initialization |
    |---|---|
    | linear and word weights | normal, standard deviation `initializer_range` |
    | output weights of attention and feed-forward | the same, divided by sqrt(2 * number of layers) |
    | position embeddings | sinusoids with this root mean square, trained like the other weights |
    | linear biases | 0 |
    | norm weights, biases | 1, 0 |

    GPT-2 draws position embeddings from the normal distribution too; sinusoids learn adjacent
    positions sooner (`docs/log.md`).

    Source: Radford et al. 2019, section 2.3 (pre-norm blocks, final norm, residual weights scaled by
    depth); Radford et al. 2018, section 4.1 (GELU); sinusoids: Vaswani et al. 2017, section 3.5.
    """

    config: GptConfig
    norm: nn.LayerNorm

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = GptEmbeddings(config)
        self.layers = nn.ModuleList(GptLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
