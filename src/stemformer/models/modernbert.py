"""ModernBERT: config, layers and initialization of a pre-norm encoder with rotary positions and gated layers."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.config import check_at_least, check_fields
from stemformer.errors import ConfigError
from stemformer.models.body import Body, check_config
from stemformer.models.embeddings import WordEmbedding
from stemformer.models.layers import Dropout, GatedFeedForward, MultiHeadAttention, PreNormLayer

# Hugging Face's names of the two kinds of layers.
LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class ModernBertConfig:
    """Sizes and settings of a ModernBERT, named as in `BertConfig`."""

    model_type: ClassVar[str] = "modernbert"
    eos_token_id: ClassVar[None] = None
    # Neither linear layers nor norms have biases, except the output over the vocabulary.
    has_bias: ClassVar[bool] = False
    # The initial transform of the masked-LM head is this times the identity, plus random weights.
    transform_identity_scale: ClassVar[float] = 1.0

    vocab_size: int = 50368
    hidden_size: int = 768
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    intermediate_size: int = 1152
    hidden_act: str = "gelu"
    # Dropout after the embeddings and inside the feed-forward layers.
    hidden_dropout_prob: float = 0.0
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 0
    # One of `LAYER_TYPES` for each layer; empty: full attention in all.
    layer_types: tuple[str, ...] = ()
    # Tokens that a token of a sliding layer sees: half of them on each side.
    local_attention: int = 128
    # Wavelengths of the rotation (`rotary.rotation_at`) in full and in sliding layers.
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        check_config(self)
        check_at_least(0, self, "model.", "num_hidden_layers")
        check_at_least(2, self, "model.", "local_attention")
        check_fields(self, "model.", "a number above 1", lambda x: x > 1, "global_rope_theta", "local_rope_theta")
        if self.hidden_size // self.num_attention_heads % 2:
            problem = f"model.hidden_size {self.hidden_size} gives {self.num_attention_heads} heads of an odd size"
            raise ConfigError(f"{problem}; rotary positions need an even one. Set model.num_attention_heads.")
        if unknown := sorted({*self.layer_types} - {*LAYER_TYPES}):
            raise ConfigError(f"model.layer_types has {unknown[0]!r}; expected {' or '.join(LAYER_TYPES)}.")
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            problem = f"model.layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers"
            raise ConfigError(f"{problem}; give one for each layer, or none for full attention.")

    def is_sliding(self, layer: int) -> bool:
        """Return whether a layer sees only nearby tokens."""
        return bool(self.layer_types) and self.layer_types[layer] == "sliding_attention"


class ModernBertEmbeddings(nn.Module):
    """Word embeddings, then norm and dropout; positions are in the attention, segments do not exist."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.word = WordEmbedding(config.vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Int[Tensor, "*b"], position_ids: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Float[Tensor, "*b D"]:
        return self.dropout(self.norm(self.word(input_ids)))


class ModernBertLayer(PreNormLayer):
    """Pre-norm Transformer layer with rotary positions and a gated feed-forward."""

    def __init__(self, config: ModernBertConfig, number: int) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.theta = config.local_rope_theta if config.is_sliding(number) else config.global_rope_theta
        window = config.local_attention // 2 if config.is_sliding(number) else None
        # The embeddings are normed already.
        self.attention_norm = nn.LayerNorm(size, eps=config.layer_norm_eps, bias=False) if number else nn.Identity()
        self.attention = MultiHeadAttention(size, heads, bias=False, window=window)
        self.feed_forward_norm = nn.LayerNorm(size, eps=config.layer_norm_eps, bias=False)
        self.feed_forward = GatedFeedForward(
            size, config.intermediate_size, activation=config.hidden_act, dropout=config.hidden_dropout_prob
        )
        # No dropout of residuals.
        self.dropout = nn.Identity()
        # Queries and keys of normed states start with variance 1, so that attention starts sharp.
        self.attention.qkv.num_unit_rows = 2 * size  # type: ignore[assignment]
        # Attention starts by adding the mean of what it sees.
        self.attention.copy_scale = 0.3
        self.feed_forward.down.init_scale = (2 * config.num_hidden_layers) ** -0.5


class ModernBert(Body):
    """ModernBERT body: flat tokens to hidden states.

    | parameter | initialization |
    |---|---|
    | word and linear weights | normal, standard deviation `initializer_range` |
    | query and key weights | normal, standard deviation 1 / sqrt(`hidden_size`) |
    | value weights | orthogonal |
    | output weights of attention | transposed value weights, times 0.3 |
    | output weights of feed-forward | as linear weights, divided by sqrt(2 * number of layers) |
    | transform of the masked-LM head | as linear weights, plus the identity |
    | norm weights | 1 |
    | bias of the masked-LM head | 0; in pre-training log unigram frequencies (`init_output_bias_from_unigrams`) |

    So the first masked-LM scores are about inner products of embeddings with those of nearby tokens, which
    embeddings from co-occurrence make meaningful (`training.cooccurrence`). The original draws all weights
    from a normal distribution, cut at two standard deviations; ours learn sooner (`docs/log.md`).

    Source: Warner et al. 2024, section 2.1 (layers, alternating attention); Su et al. 2021, section 3
    (rotary positions); Shazeer 2020 (gated layers). Values and output that start near a multiple of the
    identity: Trockman and Kolter 2023, where it is negative, for images.
    """

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(ModernBertLayer(config, number) for number in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
