"""Llama and its variants: configs, layers and initialization.

Variants: Qwen3 (normed queries and keys), Arcee (squared ReLU), EuroBERT (an encoder: without causal mask).
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.config import check_at_least, check_fields
from stemformer.errors import ConfigError
from stemformer.models.body import Body, check_config
from stemformer.models.embeddings import WordEmbedding
from stemformer.models.layers import Dropout, FeedForward, GatedFeedForward, MultiHeadAttention, PreNormLayer, RmsNorm


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and settings of a Llama, named as in `BertConfig`; a saved folder has Llama's own names."""

    model_type: ClassVar[str] = "llama"
    # Whether a token sees the earlier ones only.
    is_causal: ClassVar[bool] = True
    # Whether queries and keys are normed in each head.
    has_qk_norm: ClassVar[bool] = False
    # Whether the feed-forward layers are gated linear units.
    is_gated: ClassVar[bool] = True

    vocab_size: int = 32000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    # Heads of keys and values, each shared by a group of query heads; None: as many as of queries.
    num_key_value_heads: int | None = None
    # Coordinates of a head; None: hidden_size / num_attention_heads.
    head_size: int | None = None
    intermediate_size: int = 2048
    hidden_act: str = "silu"
    # Dropout after the embeddings and of the output of attention and feed-forward layers.
    hidden_dropout_prob: float = 0.0
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    # Wavelengths of the rotation (`rotary.rotation_at`).
    rope_theta: float = 10_000.0
    # Ends a document and precedes the first one.
    eos_token_id: int = 2

    def __post_init__(self) -> None:
        check_config(self, "num_hidden_layers")
        check_at_least(1, self, "model.", "num_key_value_heads", "head_size")
        check_fields(self, "model.", "a number above 1", lambda x: x > 1, "rope_theta")
        if self.num_attention_heads % (groups := self.num_key_value_heads or self.num_attention_heads):
            problem = f"model.num_attention_heads {self.num_attention_heads} is not divisible by {groups} heads of keys"
            raise ConfigError(f"{problem}. Set model.num_key_value_heads to a divisor.")
        if (size := self.head_size or self.hidden_size // self.num_attention_heads) % 2:
            problem = f"model.head_size is {size}; rotary positions need an even one"
            raise ConfigError(f"{problem}. Set model.num_attention_heads or model.head_size.")


@dataclass(frozen=True)
class Qwen3Config(LlamaConfig):
    """Config of a Qwen3: a Llama whose queries and keys are normed in each head."""

    model_type: ClassVar[str] = "qwen3"
    has_qk_norm: ClassVar[bool] = True


@dataclass(frozen=True)
class ArceeConfig(LlamaConfig):
    """Config of an Arcee: a Llama whose feed-forward layers are not gated, with squared ReLU."""

    model_type: ClassVar[str] = "arcee"
    is_gated: ClassVar[bool] = False

    hidden_act: str = "relu2"
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class EuroBertConfig(LlamaConfig):
    """Config of a EuroBERT: a Llama in which each token sees all others."""

    model_type: ClassVar[str] = "eurobert"
    is_causal: ClassVar[bool] = False
    eos_token_id: ClassVar[None] = None  # type: ignore[misc]

    layer_norm_eps: float = 1e-5
    pad_token_id: int = 0
    mask_token_id: int = 0


class LlamaEmbeddings(nn.Module):
    """Word embeddings, then dropout; positions are in the attention, segments do not exist."""

    position: ClassVar[None] = None

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.word = WordEmbedding(config.vocab_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Int[Tensor, "*b"], position_ids: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Float[Tensor, "*b D"]:
        return self.dropout(self.word(input_ids))


class LlamaLayer(PreNormLayer):
    """Pre-norm Transformer layer with RMS norm and rotary positions; no biases."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.theta = config.rope_theta
        self.attention_norm = RmsNorm(size, eps=eps)
        self.attention = MultiHeadAttention(
            size,
            config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_size=config.head_size,
            causal=config.is_causal,
            bias=False,
            qk_norm_eps=eps if config.has_qk_norm else None,
        )
        self.feed_forward_norm = RmsNorm(size, eps=eps)
        sizes, activation = (size, config.intermediate_size), config.hidden_act
        self.feed_forward = (
            GatedFeedForward(*sizes, activation=activation)
            if config.is_gated
            else FeedForward(*sizes, activation=activation, bias=False)
        )
        self.dropout = Dropout(config.hidden_dropout_prob)
        if not config.has_qk_norm:
            # Queries and keys of normed states start with variance 1, so that attention starts sharp.
            self.attention.qkv.num_unit_rows = sum(self.attention.qkv.row_parts[:2])  # type: ignore[assignment,index]
        for residual in (self.attention.out, self.feed_forward.down):
            residual.init_scale = (2 * config.num_hidden_layers) ** -0.5


class Llama(Body):
    """Llama body: flat tokens to hidden states, of earlier tokens if the config is causal.

    | parameter | initialization |
    |---|---|
    | word and linear weights | normal, standard deviation `initializer_range` |
    | query and key weights without norm | normal, standard deviation 1 / sqrt(`hidden_size`) |
    | output weights of attention and feed-forward | as linear weights, divided by sqrt(2 * number of layers) |
    | norm weights | 1 |

    Source: Touvron et al. 2023, section 2.2 (pre-norm with RMS norm, gated layers, rotary positions);
    Ainslie et al. 2023, section 2.2 (grouped heads); Yang et al. 2025, section 2 (Qwen3: normed queries and
    keys); So et al. 2021, section 4.2 (Arcee: squared ReLU); Boizard et al. 2025 (EuroBERT).
    The initialization is ours.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = LlamaEmbeddings(config)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, eps=config.layer_norm_eps)
