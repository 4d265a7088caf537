"""Heads on top of a body, each a module of its own.

Source: Devlin et al. 2019, section 3.1 (masked LM, next sentence), 4.1 (sequence), 4.2 (span), 4.4 (choice)
and 5.3 (token); the transform of the masked-LM head and the pooler of the sequence head are only in the
released code. GPT: Radford et al. 2018, sections 3.1 (causal LM) and 3.2 (sequence).
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from stemformer.models.bart import BartConfig
from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.models.layers import ACTIVATIONS, Dropout
from stemformer.models.llama import LlamaConfig
from stemformer.models.modernbert import ModernBertConfig

BodyConfig = BartConfig | BertConfig | GptConfig | LlamaConfig | ModernBertConfig


class LmHead(nn.Module):
    """Language-modeling head: states to vocabulary logits, by the word embedding or an own `decoder`."""

    decoder: nn.Embedding | None
    bias: nn.Parameter | None

    def projection(
        self, states: Float[Tensor, "*shape D"], embedding: Float[Tensor, "V D"]
    ) -> tuple[Float[Tensor, "*shape D"], Float[Tensor, "V D"], Float[Tensor, "V"] | None]:
        """Return features, output matrix and bias, of which the logits are the linear function."""
        return self.features(states), embedding if self.decoder is None else self.decoder.weight, self.bias

    def features(self, states: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return states


class Transform(nn.Module):
    """Linear layer, activation and norm of states before an output layer."""

    def __init__(self, config: BertConfig | ModernBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.has_bias)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.has_bias)

    def forward(self, states: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return self.norm(self.activation(self.dense(states)))


class MaskedLmHead(Transform, LmHead):
    """Masked-LM head: a transform of the states, the output matrix and a bias."""

    bias: nn.Parameter

    def __init__(self, config: BertConfig | ModernBertConfig, *, tied: bool = True) -> None:
        super().__init__(config)
        # With the identity, states start as about the embedding of the predicted token.
        self.dense.identity_scale = config.transform_identity_scale  # type: ignore[assignment]
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder = None if tied else nn.Embedding(config.vocab_size, config.hidden_size)

    def features(self, states: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return self(states)


class LinearLmHead(LmHead):
    """Language-modeling head that is the output matrix alone."""

    def __init__(self, config: BartConfig | GptConfig | LlamaConfig, *, tied: bool = True) -> None:
        super().__init__()
        self.bias = None
        self.decoder = None if tied else nn.Embedding(config.vocab_size, config.hidden_size)


class BiasedLmHead(LinearLmHead):
    """Language-modeling head of an output matrix and a bias; transformers' BART has one, but never trains it."""

    bias: nn.Parameter

    def __init__(self, config: BartConfig, *, tied: bool = True) -> None:
        super().__init__(config, tied=tied)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))


def _in_float32(linear: nn.Module, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape C"]:
    """Return class logits in float32 also under autocast: in bfloat16 many would be equal."""
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.float())


class NextSentenceHead(nn.Module):
    """Next-sentence head: state of `[CLS]` to logits of "follows" (0) and "does not" (1)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(self, states: Float[Tensor, "S D"]) -> Float[Tensor, "S 2"]:
        return self.classifier(torch.tanh(self.pooler(states)))


class ClassHead(nn.Module):
    """States of texts or words to class logits or a regression value.

    `has_pooler` as in BERT's released code (EuroBERT's has another activation), `has_transform` as in ModernBERT's.
    """

    def __init__(
        self,
        config: BodyConfig,
        num_labels: int,
        *,
        has_pooler: bool = False,
        pooler_activation: Callable[[Tensor], Tensor] = torch.tanh,
        has_transform: bool = False,
        has_dropout: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if has_pooler else None
        self.pooler_activation = pooler_activation
        self.transform = Transform(config) if has_transform else None  # type: ignore[arg-type]
        self.dropout = Dropout(config.hidden_dropout_prob if has_dropout else 0.0)
        self.classifier = nn.Linear(config.hidden_size, num_labels, bias=bias)

    def forward(self, states: Float[Tensor, "R D"]) -> Float[Tensor, "R C"]:
        x = states if self.pooler is None else self.pooler_activation(self.pooler(states))
        x = x if self.transform is None else self.transform(x)
        return _in_float32(self.classifier, self.dropout(x))


class SpanHead(nn.Module):
    """Span head: states of all tokens to logits of the answer's start and end."""

    def __init__(self, config: BodyConfig, num_labels: int = 2, *, has_transform: bool = False) -> None:
        super().__init__()
        self.transform = Transform(config) if has_transform else None  # type: ignore[arg-type]
        self.scores = nn.Linear(config.hidden_size, num_labels)

    def forward(self, states: Float[Tensor, "N D"]) -> Float[Tensor, "N 2"]:
        return _in_float32(self.scores, states if self.transform is None else self.transform(states))


# Parameters of a head for regression, and the norm before it.
_SCORE_WEIGHT, _SCORE_BIAS = "heads.sequence.classifier.weight", "heads.sequence.classifier.bias"
_NORM_BIAS = "body.norm.bias"


def can_shift_scores(state: Mapping[str, Tensor]) -> bool:
    """Return whether the head for regression, or the norm before it, has a bias; a Llama has neither."""
    return _SCORE_BIAS in state or _NORM_BIAS in state


def rescale_scores(state: Mapping[str, Tensor], *, scale: float, shift: float) -> dict[str, Tensor]:
    """Return the weights of a model that change if its head for regression gives `scale * score + shift`."""
    scaled = state[_SCORE_WEIGHT] * scale
    if _SCORE_BIAS in state:
        return {_SCORE_WEIGHT: scaled, _SCORE_BIAS: state[_SCORE_BIAS] * scale + shift}
    if shift == 0 and _NORM_BIAS not in state:
        return {_SCORE_WEIGHT: scaled}
    # GPT-2's head has no bias, but the norm before it has one.
    return {_SCORE_WEIGHT: scaled, _NORM_BIAS: state[_NORM_BIAS] + shift * scaled[0] / scaled.square().sum()}


def init_output_bias_from_unigrams(head: LmHead, counts: Integer[np.ndarray, "V"]) -> None:
    """Set the output bias to log unigram frequencies, add-one smoothed."""
    # Learning them takes about the first hundred steps otherwise (`docs/log.md`).
    assert head.bias is not None
    smoothed = torch.from_numpy(counts.astype(np.float64)) + 1
    head.bias.data.copy_((smoothed / smoothed.sum()).log())
