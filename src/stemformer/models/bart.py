"""BART and mBART: configs, layers and initialization of an encoder-decoder."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.config import check_at_least
from stemformer.errors import ConfigError
from stemformer.models.attention.varlen import attend
from stemformer.models.body import Body, check_config
from stemformer.models.embeddings import PositionEmbedding, WordEmbedding
from stemformer.models.layers import Dropout, FeedForward, MultiHeadAttention, Rows, pad_to_bucket
from stemformer.models.rotary import Rotation


@dataclass(frozen=True)
class BartConfig:
    """Sizes and settings of a BART, named as in `BertConfig`.

    A saved folder has BART's own names.
    """

    model_type: ClassVar[str] = "bart"
    # Whether layers are pre-norm and both halves end with a norm.
    norm_first: ClassVar[bool] = False
    layer_norm_eps: ClassVar[float] = 1e-5

    vocab_size: int = 50265
    hidden_size: int = 768
    # Layers of the encoder.
    num_hidden_layers: int = 6
    num_decoder_layers: int = 6
    num_attention_heads: int = 12
    # None: as many as the encoder has.
    num_decoder_attention_heads: int | None = None
    intermediate_size: int = 3072
    # None: that of the encoder.
    decoder_intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    # Positions of the encoder, and of the decoder.
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02
    # Whether word embeddings are multiplied by sqrt(hidden_size).
    scale_embedding: bool = False
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    # First input of the decoder.
    decoder_start_token_id: int = 2

    def __post_init__(self) -> None:
        check_config(self, "num_hidden_layers", "num_decoder_layers")
        names = ("num_decoder_attention_heads", "decoder_intermediate_size")
        check_at_least(1, self, "model.", *(name for name in names if getattr(self, name) is not None))
        if self.hidden_size % (heads := self.num_decoder_attention_heads or self.num_attention_heads):
            problem = f"model.hidden_size {self.hidden_size} is not divisible by {heads} heads of the decoder"
            raise ConfigError(f"{problem}. Set model.num_decoder_attention_heads to a divisor.")


@dataclass(frozen=True)
class MBartConfig(BartConfig):
    """Config of an mBART: a BART with pre-norm layers."""

    model_type: ClassVar[str] = "mbart"
    norm_first: ClassVar[bool] = True

    scale_embedding: bool = True


class DecoderInput(NamedTuple):
    """Flat tokens of the decoder, in as many sequences as the encoder has."""

    input_ids: Int[Tensor, "T"]
    position_ids: Int[Tensor, "T"]
    cu_seqlens: Int[Tensor, "S1"]
    max_seqlen: int


class PositionedWords(nn.Module):
    """Sum of word and position embeddings, then norm and dropout."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__()
        self.position = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def add_positions(self, words: Float[Tensor, "*b D"], position_ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b D"]:
        """Return the embeddings of words at positions."""
        return self.dropout(self.norm(words + self.position(position_ids)))


class BartEmbeddings(PositionedWords):
    """Embeddings of the encoder, whose words are also those of the decoder."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config)
        self.word = WordEmbedding(config.vocab_size, config.hidden_size)
        self.scale = config.hidden_size**0.5 if config.scale_embedding else 1.0

    def forward(
        self, input_ids: Int[Tensor, "*b"], position_ids: Int[Tensor, "*b"], token_type_ids: Tensor | None = None
    ) -> Float[Tensor, "*b D"]:
        # BART has no segments.
        return self.add_positions(self.words(input_ids), position_ids)

    def words(self, input_ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b D"]:
        """Return word embeddings, scaled if the config says so."""
        words = self.word(input_ids)
        return words if self.scale == 1.0 else words * self.scale


class CrossAttention(nn.Module):
    """Multi-head attention from the tokens of a decoder to the states of its encoder.

    Source: Vaswani et al. 2017, section 3.2.3.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_size = hidden_size // num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.key_value.row_parts = (hidden_size, hidden_size)  # type: ignore[assignment]
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        memory: Float[Tensor, "N D"],
        cu_q: Int[Tensor, "S1"],
        cu_k: Int[Tensor, "S1"],
        max_q: int,
        max_k: int,
    ) -> Float[Tensor, "T D"]:
        q = self.query(x).view(len(x), self.num_heads, self.head_size)
        k, v = self.keys_and_values(memory)
        attended = attend(q, k, v, cu_q=cu_q, cu_k=cu_k, max_q=max_q, max_k=max_k, causal=False)
        return self.out(attended.flatten(1))

    def keys_and_values(self, memory: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N H K"], Float[Tensor, "N H K"]]:
        """Return the keys and values of encoder states."""
        keys, values = self.key_value(memory).view(len(memory), 2, self.num_heads, self.head_size).unbind(1)
        return keys, values


class BartLayer(nn.Module):
    """Layer of the encoder, attention and feed-forward; that of the decoder adds to it.

    Each is norm(x + f(x)), or x + f(norm(x)) if the config is pre-norm.
    """

    theta: ClassVar[None] = None

    def __init__(self, config: BartConfig, *, num_heads: int, intermediate_size: int, causal: bool = False) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.norm_first = config.norm_first
        self.attention = MultiHeadAttention(size, num_heads, causal=causal)
        self.attention_norm = nn.LayerNorm(size, eps=eps)
        self.feed_forward = FeedForward(size, intermediate_size, activation=config.hidden_act)
        self.feed_forward_norm = nn.LayerNorm(size, eps=eps)
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
        attended = self.attention(self._before(x, self.attention_norm), cu_seqlens, max_seqlen, rows, None, causal)
        x = self._after(x if rows is None else x.index_select(0, rows), attended, self.attention_norm)  # (R, D)
        return self._after(x, self.feed_forward(self._before(x, self.feed_forward_norm)), self.feed_forward_norm)

    def _before(self, x: Float[Tensor, "N D"], norm: nn.Module) -> Float[Tensor, "N D"]:
        return norm(x) if self.norm_first else x

    def _after(self, x: Float[Tensor, "N D"], update: Float[Tensor, "N D"], norm: nn.Module) -> Float[Tensor, "N D"]:
        x = x + self.dropout(update)
        return x if self.norm_first else norm(x)


class BartDecoderLayer(BartLayer):
    """Layer of the decoder: causal attention, cross-attention and feed-forward."""

    def __init__(self, config: BartConfig, *, num_heads: int, intermediate_size: int) -> None:
        super().__init__(config, num_heads=num_heads, intermediate_size=intermediate_size, causal=True)
        self.cross_attention = CrossAttention(config.hidden_size, num_heads)
        self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "T D"],
        memory: Float[Tensor, "N D"],
        cu_seqlens: Int[Tensor, "S1"],
        memory_cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        memory_max_seqlen: int,
    ) -> Float[Tensor, "T D"]:
        attended = self.attention(self._before(x, self.attention_norm), cu_seqlens, max_seqlen)
        x = self._after(x, attended, self.attention_norm)
        sides = cu_seqlens, memory_cu_seqlens, max_seqlen, memory_max_seqlen
        crossed = self.cross_attention(self._before(x, self.cross_attention_norm), memory, *sides)
        x = self._after(x, crossed, self.cross_attention_norm)
        return self._after(x, self.feed_forward(self._before(x, self.feed_forward_norm)), self.feed_forward_norm)


class BartDecoder(nn.Module):
    """Decoder: embeddings, layers and, if pre-norm, a final norm."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__()
        self.embeddings = PositionedWords(config)
        num_heads = config.num_decoder_attention_heads or config.num_attention_heads
        intermediate_size = config.decoder_intermediate_size or config.intermediate_size
        self.layers = nn.ModuleList(
            BartDecoderLayer(config, num_heads=num_heads, intermediate_size=intermediate_size)
            for _ in range(config.num_decoder_layers)
        )
        self.norm = _final_norm(config)

    def forward(
        self,
        words: Float[Tensor, "T D"],
        tokens: DecoderInput,
        memory: Float[Tensor, "N D"],
        memory_cu_seqlens: Int[Tensor, "S1"],
        memory_max_seqlen: int,
    ) -> Float[Tensor, "T D"]:
        x = pad_to_bucket(self.embeddings.add_positions(words, tokens.position_ids))  # (T', D)
        for layer in self.layers:
            x = layer(x, memory, tokens.cu_seqlens, memory_cu_seqlens, tokens.max_seqlen, memory_max_seqlen)
        return self.norm(x)[: len(words)]


def _final_norm(config: BartConfig) -> nn.Module:
    # Post-norm layers end with a norm.
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.norm_first else nn.Identity()


class Bart(Body):
    """BART body: an encoder of flat tokens, and a causal decoder that attends to its states.

    | parameter | initialization |
    |---|---|
    | linear and word weights | normal, standard deviation `initializer_range` |
    | position embeddings | sinusoids with this root mean square, trained like the other weights |
    | linear biases | 0 |
    | norm weights, biases | 1, 0 |

    Source: Lewis et al. 2020, section 2.1 (BERT's encoder, GELU, cross-attention); Liu et al. 2020, section 2
    (mBART: final norms); Vaswani et al. 2017, section 3.1. Sinusoids as in `Bert`.
    """

    config: BartConfig

    def __init__(self, config: BartConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BartEmbeddings(config)
        sizes: dict[str, Any] = {
            "num_heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size,
        }
        self.layers = nn.ModuleList(BartLayer(config, **sizes) for _ in range(config.num_hidden_layers))
        self.norm = _final_norm(config)
        self.decoder = BartDecoder(config)

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.layers, *self.decoder.layers]

    def forward(
        self,
        input_ids: Int[Tensor, "N"],
        position_ids: Int[Tensor, "N"],
        token_type_ids: Int[Tensor, "N"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        *,
        decoder: DecoderInput | None = None,
        rows: Int[Tensor, "R"] | None = None,
        **options: Any,
    ) -> Any:
        """Return the last states of the decoder (T, D), or of its `rows` (R, D).

        Without `decoder`, return those of the encoder, as `Body.forward` does with its other options.
        """
        tokens = input_ids, position_ids, token_type_ids, cu_seqlens, max_seqlen
        if decoder is None:
            return super().forward(*tokens, rows=rows, **options)
        memory = super().forward(*tokens, **options)  # (N, D)
        states = self.decode(decoder, memory, cu_seqlens, max_seqlen)
        return states if rows is None else states.index_select(0, rows)

    def decode(
        self,
        decoder: DecoderInput,
        memory: Float[Tensor, "N D"],
        memory_cu_seqlens: Int[Tensor, "S1"],
        memory_max_seqlen: int,
    ) -> Float[Tensor, "T D"]:
        """Return the last states of the decoder's tokens, which attend to the encoder's states."""
        if len(decoder.cu_seqlens) != len(memory_cu_seqlens):
            numbers = f"{len(decoder.cu_seqlens) - 1} sequences, the encoder {len(memory_cu_seqlens) - 1}"
            raise ValueError(f"The decoder has {numbers}; expected as many.")
        words = self.embeddings.words(decoder.input_ids)
        return self.decoder(words, decoder, pad_to_bucket(memory), memory_cu_seqlens, memory_max_seqlen)
