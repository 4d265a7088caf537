"""A model: one body and the heads on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stemformer.models import hf_names
from stemformer.models.bert import Bert, BertConfig
from stemformer.models.gpt import Gpt, GptConfig
from stemformer.models.heads import (
    CausalLmHead,
    ChoiceHead,
    GptSequenceHead,
    MaskedLmHead,
    NextSentenceHead,
    SequenceHead,
    SpanHead,
    TokenHead,
    initialize_weights,
)

BodyConfig = BertConfig | GptConfig
"""Sizes of a body of any architecture."""


@dataclass(frozen=True)
class Architecture:
    """What belongs to a body.

    Attributes:
        config: Its config dataclass.
        body: Its module, made from a config.
        heads: Name of a head that is pre-trained -> module class, made from a config.
        task_heads: Name of a head for labelled data -> module class, made from a config and a number of labels.
        names: Of its parameters in a Hugging Face folder.
        classes: Names of the heads of a model -> transformers' class for it.
    """

    config: type[Any]
    body: type[Any]
    heads: dict[str, type[nn.Module]]
    task_heads: dict[str, type[nn.Module]]
    names: hf_names.Names
    classes: dict[frozenset[str], str]


ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(
        config=BertConfig,
        body=Bert,
        heads={"masked_lm": MaskedLmHead, "next_sentence": NextSentenceHead},
        task_heads={"sequence": SequenceHead, "token": TokenHead, "span": SpanHead, "choice": ChoiceHead},
        names=hf_names.BERT,
        classes={
            frozenset[str](): "BertModel",
            frozenset({"masked_lm"}): "BertForMaskedLM",
            frozenset({"next_sentence"}): "BertForNextSentencePrediction",
            frozenset({"masked_lm", "next_sentence"}): "BertForPreTraining",
            frozenset({"sequence"}): "BertForSequenceClassification",
            frozenset({"token"}): "BertForTokenClassification",
            frozenset({"span"}): "BertForQuestionAnswering",
            frozenset({"choice"}): "BertForMultipleChoice",
        },
    ),
    "gpt2": Architecture(
        config=GptConfig,
        body=Gpt,
        heads={"causal_lm": CausalLmHead},
        task_heads={"sequence": GptSequenceHead, "token": TokenHead, "span": SpanHead},
        names=hf_names.GPT,
        classes={
            frozenset[str](): "GPT2Model",
            frozenset({"causal_lm"}): "GPT2LMHeadModel",
            frozenset({"sequence"}): "GPT2ForSequenceClassification",
            frozenset({"token"}): "GPT2ForTokenClassification",
            frozenset({"span"}): "GPT2ForQuestionAnswering",
        },
    ),
}
"""`model_type` of a Hugging Face folder -> architecture."""


def architecture_of(config: BodyConfig) -> str:
    """Returns the key of `ARCHITECTURES` that a config belongs to."""
    return next(name for name, kind in ARCHITECTURES.items() if isinstance(config, kind.config))


class Model(nn.Module):
    """A body, its config and its heads by name.

    Args:
        config: Of the body.
        body: Flat tokens to states.
        heads: States to scores, by name.
    """

    def __init__(self, config: BodyConfig, body: Bert | Gpt, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.body = body
        self.heads = nn.ModuleDict(heads)

    def masked_lm_logits(self, states: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Returns the score of each word at each of the given places."""
        logits: Tensor = self.heads["masked_lm"](states, self.body.embeddings.word.weight)
        return logits

    def before_masked_lm_scores(
        self, states: Float[Tensor, "M D"]
    ) -> tuple[Float[Tensor, "M D"], Float[Tensor, "V D"], Float[Tensor, "V"]]:
        """Returns states, matrix and bias of which those scores are a linear function, for a loss that never holds them all."""
        head = self.heads["masked_lm"]
        assert isinstance(head, MaskedLmHead)
        return head.before_scores(states, self.body.embeddings.word.weight)

    def next_sentence_logits(self, states: Float[Tensor, "S D"]) -> Float[Tensor, "S 2"]:
        """Returns, from the state of each `[CLS]`, the score of "belongs together" and of "does not"."""
        logits: Tensor = self.heads["next_sentence"](states)
        return logits

    def causal_lm_logits(self, states: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Returns the score of each word that may follow."""
        logits: Tensor = self.heads["causal_lm"](states, self.body.embeddings.word.weight)
        return logits

    def before_causal_lm_scores(
        self, states: Float[Tensor, "M D"]
    ) -> tuple[Float[Tensor, "M D"], Float[Tensor, "V D"], None]:
        """Returns states and matrix of which those scores are the products."""
        head = self.heads["causal_lm"]
        assert isinstance(head, CausalLmHead)
        return head.before_scores(states, self.body.embeddings.word.weight)

    def share_word_gradient(self) -> None:
        """Says that each loss has a dense gradient of the word embedding, as that of a tied head has; see `layers.WordEmbedding`."""
        head = next(head for head in self.heads.values() if isinstance(head, MaskedLmHead | CausalLmHead))
        self.body.embeddings.word.has_sparse_gradient = head.decoder is None

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Counts parameters; without `embeddings`, those of the layers alone, which set the cost of a token."""
        counted: nn.Module = self if embeddings else self.body.layers
        return sum(p.numel() for p in counted.parameters())


def make_model(
    config: BodyConfig,
    heads: Sequence[str] = (),
    *,
    num_labels: int | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Returns a model; with a generator freshly initialised, else left to be filled from a file.

    Args:
        config: Sizes.
        heads: Names of heads, from the architecture's tables.
        num_labels: What a head for labelled data tells apart.
        generator: Source of the fresh weights. The body is drawn before the heads, so it does not depend on them.

    Example:
        >>> config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0)).num_parameters()
        5266
    """
    kind = ARCHITECTURES[architecture_of(config)]

    def make_head(name: str) -> nn.Module:
        return kind.heads[name](config) if name in kind.heads else kind.task_heads[name](config, num_labels)

    with torch.random.fork_rng(
        devices=[]
    ):  # torch's own first weights, which do not stay, come from its global generator
        model = Model(config, kind.body(config), {name: make_head(name) for name in heads})
    if generator is not None:
        initialize_weights(model, std=config.initializer_range, generator=generator)
    return model
