"""GPT-2: config, layers and initialization of a causal decoder."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.models.body import Body, check_config
from stemformer.models.layers import Dropout, FeedForward, MultiHeadAttention, PositionEmbedding, Rows, WordEmbedding


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


class GptLayer(nn.Module):
    """Pre-norm Transformer layer: causal attention and feed-forward, each x + f(norm(x))."""

    norm_first: ClassVar[bool] = True

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = MultiHeadAttention(config.hidden_size, config.num_attention_heads, causal=True)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size, activation=config.hidden_act)
        self.dropout = Dropout(config.hidden_dropout_prob)
        for residual in (self.attention.out, self.feed_forward.down):
            residual.init_scale = (2 * config.num_hidden_layers) ** -0.5

    def forward(
        self, x: Float[Tensor, "N D"], cu_seqlens: Int[Tensor, "S1"], max_seqlen: int, rows: Rows = None
    ) -> Float[Tensor, "R D"]:
        attended = self.dropout(self.attention(self.attention_norm(x), cu_seqlens, max_seqlen, rows))
        return self._add_feed_forward((x if rows is None else x.index_select(0, rows)) + attended)  # (R, D)

    def prefill(self, x: Float[Tensor, "N D"], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return states, keys and values as the attention does, whose arguments these are."""
        attended, keys, values = self.attention.prefill(self.attention_norm(x), *arguments)
        return self._add_feed_forward(x + attended), keys, values

    def _add_feed_forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


@dataclass(frozen=True)
class PromptCache:
    """Flat key-value cache of prompts, with their boundaries, shared by their continuations."""

    keys: list[Tensor]  # (N, H, K) of each layer
    values: list[Tensor]  # (N, H, K) of each layer
    cu_seqlens: Int[Tensor, "S1"]


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

    def prefill(
        self,
        input_ids: Int[Tensor, "N"],
        cu_seqlens: Int[Tensor, "S1"],
        *,
        after: PromptCache | None = None,
        parents: Int[Tensor, "S"] | None = None,
    ) -> tuple[Float[Tensor, "N D"], PromptCache]:
        """Return the last states of sequences that continue cached prompts, and their cache.

        Continuations of one prompt share its cache, such as the demonstrations of a few-shot prompt.

        Args:
            input_ids: New tokens of all sequences, at least one each.
            cu_seqlens: int32 boundaries of the new tokens.
            after: Cache of the prompts, if any.
            parents: Index of the prompt in `after` of each sequence.
        """
        # Lengths (S,) of new tokens and prompts, and the start of each prompt in the cache.
        new = cu_seqlens.diff().long()
        old, prompt_starts = torch.zeros_like(new), torch.zeros_like(new)
        if after is not None:
            assert parents is not None, "a cache needs the prompt index of each sequence"
            old, prompt_starts = after.cu_seqlens.diff().long()[parents], after.cu_seqlens[parents].long()
        lengths = old + new
        max_length, limit = int(lengths.max()), self.config.max_position_embeddings
        if max_length > limit:
            raise ValueError(f"A sequence has {max_length} tokens; the model has {limit} positions.")

        # Index (M,) into cached, then new keys: each prompt followed by its continuation.
        cu_k = torch.cat([cu_seqlens[:1], lengths.cumsum(0).int()])
        positions = torch.arange(int(cu_k[-1]), device=input_ids.device) - cu_k[:-1].long().repeat_interleave(lengths)
        is_old = positions < old.repeat_interleave(lengths)
        new_starts = cu_seqlens[:-1].long() - old + (0 if after is None else len(after.keys[0]))
        starts = torch.where(is_old, prompt_starts.repeat_interleave(lengths), new_starts.repeat_interleave(lengths))
        order = positions + starts

        x = self.embeddings(input_ids, positions[~is_old])  # (N, D)
        keys, values = [], []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, GptLayer)
            cached = None if after is None else (after.keys[number], after.values[number])
            x, k, v = layer.prefill(x, cu_seqlens, int(new.max()), cached, order, cu_k, max_length)
            keys.append(k)
            values.append(v)
        return self.norm(x), PromptCache(keys, values, cu_k)
