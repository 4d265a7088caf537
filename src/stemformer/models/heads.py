"""What sits on top of a body: each head is a module of its own."""

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.models.layers import Dropout, PositionEmbedding, make_activation, sinusoids


class MaskedLmHead(nn.Module):
    """States of masked places to a score for each word of the vocabulary.

    Shown only the `M` places that are scored, never all `N`. The output matrix is handed in: the body's word embedding, unless the
    model was not tied (then `decoder` holds its own).

    Args:
        config: Of the body.
        tied: False gives the head an output matrix of its own.

    Source: Devlin et al. 2019, section 3.1, task 1; the transform before the decoder is in the released code only.
    """

    def __init__(self, config: BertConfig, *, tied: bool = True) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = make_activation(config.hidden_act)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder = None if tied else nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, states: Float[Tensor, "M D"], embedding: Float[Tensor, "V D"]) -> Float[Tensor, "M V"]:
        return nn.functional.linear(*self.before_scores(states, embedding))

    def before_scores(
        self, states: Float[Tensor, "M D"], embedding: Float[Tensor, "V D"]
    ) -> tuple[Float[Tensor, "M D"], Float[Tensor, "V D"], Float[Tensor, "V"]]:
        """Returns what the scores are a linear function of: transformed states, output matrix and bias."""
        x = self.norm(self.activation(self.dense(states)))
        return x, embedding if self.decoder is None else self.decoder.weight, self.bias


class CausalLmHead(nn.Module):
    """States to a score for each word that may come next: products with the body's word embedding, unless the model was not tied.

    Args:
        config: Of the body.
        tied: False gives the head an output matrix of its own.

    Source: Radford et al. 2018, section 3.1.
    """

    def __init__(self, config: GptConfig, *, tied: bool = True) -> None:
        super().__init__()
        self.decoder = None if tied else nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, states: Float[Tensor, "*shape D"], embedding: Float[Tensor, "V D"]) -> Float[Tensor, "*shape V"]:
        return nn.functional.linear(*self.before_scores(states, embedding))

    def before_scores(
        self, states: Float[Tensor, "*shape D"], embedding: Float[Tensor, "V D"]
    ) -> tuple[Float[Tensor, "*shape D"], Float[Tensor, "V D"], None]:
        """Returns what the scores are a linear function of: states, output matrix, and no bias."""
        return states, embedding if self.decoder is None else self.decoder.weight, None


def _in_float32(linear: nn.Module, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape C"]:
    """Returns the scores of a few labels, in float32 also under autocast: in bfloat16 many would come out alike."""
    with torch.autocast(x.device.type, enabled=False):
        scores: Tensor = linear(x.float())
    return scores


class NextSentenceHead(nn.Module):
    """The state of `[CLS]` to two scores: text B follows text A (0), or comes from elsewhere (1).

    Args:
        config: Of the body.

    Source: Devlin et al. 2019, section 3.1, task 2.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(self, states: Float[Tensor, "S D"]) -> Float[Tensor, "S 2"]:
        scores: Tensor = self.classifier(torch.tanh(self.pooler(states)))
        return scores


class SequenceHead(nn.Module):
    """The state of `[CLS]` to a score for each class, or to a number.

    Args:
        config: Of the body.
        num_labels: C; 1 for a number.

    Source: Devlin et al. 2019, section 4.1; the pooler before the classifier is in the released code only.
    """

    def __init__(self, config: BertConfig, num_labels: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(self, states: Float[Tensor, "S D"]) -> Float[Tensor, "S C"]:
        return _in_float32(self.classifier, self.dropout(torch.tanh(self.pooler(states))))


class ChoiceHead(SequenceHead):
    """The state of each option's `[CLS]` to one score, to be compared with those of the other options.

    Args:
        config: Of the body.
        num_labels: 1.

    Source: Devlin et al. 2019, section 4.4.
    """


class GptSequenceHead(nn.Module):
    """The state of the last token to a score for each class, or to a number: one matrix.

    Args:
        config: Of the body.
        num_labels: C; 1 for a number.

    Source: Radford et al. 2018, section 3.2.
    """

    def __init__(self, config: GptConfig, num_labels: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, num_labels, bias=False)

    def forward(self, states: Float[Tensor, "S D"]) -> Float[Tensor, "S C"]:
        return _in_float32(self.classifier, states)


class TokenHead(nn.Module):
    """States of words to a score for each tag.

    Args:
        config: Of the body.
        num_labels: C.

    Source: Devlin et al. 2019, section 5.3.
    """

    def __init__(self, config: BertConfig | GptConfig, num_labels: int) -> None:
        super().__init__()
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(self, states: Float[Tensor, "M D"]) -> Float[Tensor, "M C"]:
        return _in_float32(self.classifier, self.dropout(states))


class SpanHead(nn.Module):
    """States of all tokens to how likely an answer starts at each, and ends at each.

    Args:
        config: Of the body.
        num_labels: 2, start and end.

    Source: Devlin et al. 2019, section 4.2.
    """

    def __init__(self, config: BertConfig | GptConfig, num_labels: int = 2) -> None:
        super().__init__()
        self.scores = nn.Linear(config.hidden_size, num_labels)

    def forward(self, states: Float[Tensor, "N D"]) -> Float[Tensor, "N 2"]:
        return _in_float32(self.scores, states)


def init_output_bias_from_unigrams(head: nn.Module, counts: Integer[np.ndarray, "V"]) -> None:
    """Sets the output bias to the logarithm of how frequent each word is, so that a fresh model's first guess is word frequency.

    Without it, that is what the first hundred steps learn (`docs/log.md`).

    Args:
        head: A `MaskedLmHead`, filled in place.
        counts: How often each word stands in the training text; one is added to each, so that none is impossible.
    """
    assert isinstance(head, MaskedLmHead)
    smoothed = torch.from_numpy(counts.astype(np.float64)) + 1
    head.bias.data.copy_((smoothed / smoothed.sum()).log())


def initialize_weights(module: nn.Module, *, std: float, generator: torch.Generator) -> None:
    """Fills a body or head with fresh weights, by the table in the body's docstring; a linear's `first_scale` is what it says there.

    Args:
        module: Filled in place, submodules in the order of their definition.
        std: Standard deviation of linear and embedding weights.
        generator: Where the random numbers come from.
    """
    for part in module.modules():
        if isinstance(part, PositionEmbedding):
            part.weight.data.copy_(sinusoids(*part.weight.shape) * std * 2**0.5)
        elif isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std * getattr(part, "first_scale", 1.0), generator=generator)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
