"""A model: one body with heads, and the registry of architectures."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.models import hf_config, hf_names
from stemformer.models.bart import Bart, BartConfig, MBartConfig
from stemformer.models.bert import Bert, BertConfig
from stemformer.models.body import Body
from stemformer.models.embeddings import KeptGradients
from stemformer.models.gpt import Gpt, GptConfig
from stemformer.models.heads import (
    BiasedLmHead,
    BodyConfig,
    ClassHead,
    LinearLmHead,
    LmHead,
    MaskedLmHead,
    NextSentenceHead,
    SpanHead,
)
from stemformer.models.layers import Dropout, initialize_weights
from stemformer.models.llama import ArceeConfig, EuroBertConfig, Llama, LlamaConfig, Qwen3Config
from stemformer.models.modernbert import ModernBert, ModernBertConfig


@dataclass(frozen=True)
class Architecture:
    """Registry entry: the parts of an architecture."""

    config: type[Any]
    body: type[Any]
    # Pre-training heads, constructed from a config.
    heads: dict[str, type[nn.Module]]
    # Task heads, constructed from a config and the number of labels.
    task_heads: dict[str, Callable[..., nn.Module]]
    parameter_names: hf_names.ParameterNames
    # Head names of a model -> transformers class.
    hf_classes: dict[frozenset[str], str]
    is_causal: bool
    # Name of the head that predicts tokens.
    lm_head: str
    # Fields of a config from Hugging Face's `config.json` and its path, and the reverse.
    read_config: Callable[[Mapping[str, Any], str], dict[str, Any]]
    write_config: Callable[[Any], dict[str, Any]]
    # Whether a `config.json` that does not say so ties the output matrix to the word embeddings.
    is_tied_by_default: bool = True
    # Task heads without a class in transformers; `hf_classes` has the name that it would have.
    own_heads: frozenset[str] = frozenset()


# Tokens of the shortest maximum length.
MIN_LENGTH = 8

_POOLED_HEAD = partial(ClassHead, has_pooler=True)
_LAST_TOKEN_HEAD = partial(ClassHead, has_dropout=False, bias=False)
_TRANSFORMED_HEAD = partial(ClassHead, has_transform=True)


def _llama(config: type[LlamaConfig], name: str, names: hf_names.ParameterNames = hf_names.LLAMA) -> Architecture:
    """Return the entry of a Llama or a variant, whose transformers classes start with `name`."""
    return Architecture(
        config=config,
        body=Llama,
        heads={"causal_lm": LinearLmHead},
        task_heads={"sequence": _LAST_TOKEN_HEAD, "token": ClassHead, "span": SpanHead},
        parameter_names=names,
        hf_classes={
            frozenset[str](): f"{name}Model",
            frozenset({"causal_lm"}): f"{name}ForCausalLM",
            frozenset({"sequence"}): f"{name}ForSequenceClassification",
            frozenset({"token"}): f"{name}ForTokenClassification",
            frozenset({"span"}): f"{name}ForQuestionAnswering",
        },
        is_causal=True,
        lm_head="causal_lm",
        read_config=hf_config.read_llama_config,
        write_config=hf_config.write_llama_config,
        is_tied_by_default=False,
    )


def _bart(config: type[BartConfig], name: str) -> Architecture:
    """Return the entry of a BART or mBART, whose transformers classes start with `name`."""
    return Architecture(
        config=config,
        body=Bart,
        heads={"seq2seq_lm": BiasedLmHead},
        task_heads={"sequence": _POOLED_HEAD, "token": ClassHead, "span": SpanHead},
        parameter_names=hf_names.BART,
        hf_classes={
            frozenset[str](): f"{name}Model",
            frozenset({"seq2seq_lm"}): f"{name}ForConditionalGeneration",
            frozenset({"sequence"}): f"{name}ForSequenceClassification",
            frozenset({"token"}): f"{name}ForTokenClassification",
            frozenset({"span"}): f"{name}ForQuestionAnswering",
        },
        is_causal=False,
        lm_head="seq2seq_lm",
        read_config=hf_config.read_bart_config,
        write_config=hf_config.write_bart_config,
        own_heads=frozenset({"token"}),
    )


# Keys are the `model_type` of a config and of a Hugging Face folder. To add an architecture: models/<name>.py with a
# config and a `Body`, an entry here, its names in hf_names.py and hf_config.py, its run config in training/config.py
# (`RUN_CONFIGS`) and a recipe; a causal one also needs a decoder (inference/cached_gpt.py).
ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(
        config=BertConfig,
        body=Bert,
        heads={"masked_lm": MaskedLmHead, "next_sentence": NextSentenceHead},
        task_heads={"sequence": _POOLED_HEAD, "token": ClassHead, "span": SpanHead, "choice": _POOLED_HEAD},
        parameter_names=hf_names.BERT,
        hf_classes={
            frozenset[str](): "BertModel",
            frozenset({"masked_lm"}): "BertForMaskedLM",
            frozenset({"next_sentence"}): "BertForNextSentencePrediction",
            frozenset({"masked_lm", "next_sentence"}): "BertForPreTraining",
            frozenset({"sequence"}): "BertForSequenceClassification",
            frozenset({"token"}): "BertForTokenClassification",
            frozenset({"span"}): "BertForQuestionAnswering",
            frozenset({"choice"}): "BertForMultipleChoice",
        },
        is_causal=False,
        lm_head="masked_lm",
        read_config=hf_config.read_bert_config,
        write_config=hf_config.write_bert_config,
    ),
    "modernbert": Architecture(
        config=ModernBertConfig,
        body=ModernBert,
        heads={"masked_lm": MaskedLmHead},
        task_heads={
            "sequence": _TRANSFORMED_HEAD,
            "token": _TRANSFORMED_HEAD,
            "span": partial(SpanHead, has_transform=True),
            "choice": _TRANSFORMED_HEAD,
        },
        parameter_names=hf_names.MODERNBERT,
        hf_classes={
            frozenset[str](): "ModernBertModel",
            frozenset({"masked_lm"}): "ModernBertForMaskedLM",
            frozenset({"sequence"}): "ModernBertForSequenceClassification",
            frozenset({"token"}): "ModernBertForTokenClassification",
            frozenset({"span"}): "ModernBertForQuestionAnswering",
            frozenset({"choice"}): "ModernBertForMultipleChoice",
        },
        is_causal=False,
        lm_head="masked_lm",
        read_config=hf_config.read_modernbert_config,
        write_config=hf_config.write_modernbert_config,
    ),
    "gpt2": Architecture(
        config=GptConfig,
        body=Gpt,
        heads={"causal_lm": LinearLmHead},
        task_heads={"sequence": _LAST_TOKEN_HEAD, "token": ClassHead, "span": SpanHead},
        parameter_names=hf_names.GPT,
        hf_classes={
            frozenset[str](): "GPT2Model",
            frozenset({"causal_lm"}): "GPT2LMHeadModel",
            frozenset({"sequence"}): "GPT2ForSequenceClassification",
            frozenset({"token"}): "GPT2ForTokenClassification",
            frozenset({"span"}): "GPT2ForQuestionAnswering",
        },
        is_causal=True,
        lm_head="causal_lm",
        read_config=hf_config.read_gpt_config,
        write_config=hf_config.write_gpt_config,
    ),
    "bart": _bart(BartConfig, "Bart"),
    "mbart": _bart(MBartConfig, "MBart"),
    "llama": _llama(LlamaConfig, "Llama"),
    "qwen3": _llama(Qwen3Config, "Qwen3"),
    "arcee": _llama(ArceeConfig, "Arcee", hf_names.ARCEE),
    "eurobert": Architecture(
        config=EuroBertConfig,
        body=Llama,
        heads={"masked_lm": LinearLmHead},
        task_heads={
            "sequence": partial(ClassHead, has_pooler=True, pooler_activation=nn.functional.gelu),
            "token": ClassHead,
        },
        parameter_names=hf_names.EUROBERT,
        hf_classes={
            frozenset[str](): "EuroBertModel",
            frozenset({"masked_lm"}): "EuroBertForMaskedLM",
            frozenset({"sequence"}): "EuroBertForSequenceClassification",
            frozenset({"token"}): "EuroBertForTokenClassification",
        },
        is_causal=False,
        lm_head="masked_lm",
        read_config=hf_config.read_eurobert_config,
        write_config=hf_config.write_eurobert_config,
        is_tied_by_default=False,
    ),
}


class Model(nn.Module):
    """A body and its heads by name.

    Attributes:
        max_length: Tokens of the longest sequence in training; later positions are random.
        kept_gradients: Gradients that training keeps over its steps.
    """

    def __init__(self, config: BodyConfig, body: Body, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.body = body
        self.heads = nn.ModuleDict(heads)
        self.max_length: int = config.max_position_embeddings
        self.kept_gradients = KeptGradients([])

    @property
    def lm_head(self) -> LmHead:
        """The language-modeling head; a model has at most one."""
        return next(head for head in self.heads.values() if isinstance(head, LmHead))

    def lm_logits(self, states: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Return vocabulary logits: of masked tokens (masked LM) or of next tokens (causal LM)."""
        return nn.functional.linear(*self.lm_projection(states))

    def lm_projection(
        self, states: Float[Tensor, "*shape D"]
    ) -> tuple[Float[Tensor, "*shape D"], Float[Tensor, "V D"], Float[Tensor, "V"] | None]:
        """Return features, weight and bias, with logits = features @ weight.T + bias."""
        return self.lm_head.projection(states, self.body.embeddings.word.weight)

    def share_word_gradient(self) -> None:
        """Use sparse lookup gradients if the LM head is tied, whose gradient is dense unless it is kept."""
        self.body.embeddings.word.has_sparse_gradient = self.lm_head.decoder is None

    def set_dropout(self, rate: float) -> None:
        """Set the dropout of hidden states, in the config too."""
        self.config = replace(self.config, hidden_dropout_prob=rate)
        for module in self.modules():
            if isinstance(module, Dropout):
                module.set_rate(rate)

    @property
    def class_note(self) -> str | None:
        """Return a note on a head that transformers has no class for; None if there is none."""
        architecture = ARCHITECTURES[self.config.model_type]
        if not architecture.own_heads & self.heads.keys():
            return None
        name = architecture.hf_classes[frozenset(self.heads)]
        return f"transformers has no {name}: the model opens in stemformer alone"

    def check_max_length(self, requested: int | None) -> int:
        """Return the maximum tokens of a sequence: those of training, or as requested, with a warning beyond them."""
        trained, positions = self.max_length, self.config.max_position_embeddings
        if requested is None:
            return trained
        if not MIN_LENGTH <= requested <= positions:
            expected = f"expected at least {MIN_LENGTH}, and at most the model's {positions} positions"
            raise ConfigError(f"--max-length {requested}: {expected}; it was trained on up to {trained} tokens.")
        if requested > trained:
            problem = f"positions {trained} to {requested - 1} were never trained"
            advice = f"The model was trained on up to {trained} tokens, the default."
            warnings.warn(f"--max-length {requested}: {problem}. {advice}", stacklevel=3)
        return requested

    def warn_beyond_training(self, length: int) -> None:
        """Warn of a text of `length` tokens that is longer than those of training."""
        if length > self.max_length:
            problem = f"Some texts have more than the {self.max_length} tokens that the model was trained on"
            warnings.warn(f"{problem}: later positions were never trained, and their scores mean little.", stacklevel=3)

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Count parameters; `embeddings=False` counts the layers, which set a token's cost."""
        counted: list[nn.Module] = [self] if embeddings else self.body.blocks
        return sum(p.numel() for part in counted for p in part.parameters())


def make_model(
    config: BodyConfig,
    heads: Sequence[str] = (),
    *,
    num_labels: int | None = None,
    tied: bool = True,
    generator: torch.Generator | None = None,
) -> Model:
    """Make a model with random weights, or with weights to be loaded if there is no generator.

    The body's weights do not depend on the heads; `num_labels` is the output size of a task head. Unless `tied`, the
    language-modeling head has an output matrix of its own instead of the word embeddings.

    Example:
        >>> config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0)).num_parameters()
        57218
    """
    architecture = ARCHITECTURES[config.model_type]
    task_heads = {name: partial(head, num_labels=num_labels) for name, head in architecture.task_heads.items()}
    make_head: dict[str, Callable[..., nn.Module]] = {**architecture.heads, **task_heads}
    if not tied:
        make_head[architecture.lm_head] = partial(make_head[architecture.lm_head], tied=False)
    # PyTorch's default initialization, overwritten below, must not advance the global generator.
    with torch.random.fork_rng(devices=[]):
        model = Model(config, architecture.body(config), {name: make_head[name](config) for name in heads})
    if generator is not None:
        initialize_weights(model, std=config.initializer_range, generator=generator)
    return model
