"""Parameter names: ours and Hugging Face's, one table per architecture, both directions.

A row is `ours: theirs`; `{i}` is the layer number. Several names on the right are concatenated
along the first axis; a name that ends in `^T` is stored transposed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stemformer.errors import CheckpointError

BERT_NAMES: dict[str, tuple[str, ...]] = {
    "body.embeddings.word.weight": ("bert.embeddings.word_embeddings.weight",),
    "body.embeddings.position.weight": ("bert.embeddings.position_embeddings.weight",),
    "body.embeddings.token_type.weight": ("bert.embeddings.token_type_embeddings.weight",),
    "body.embeddings.norm.weight": ("bert.embeddings.LayerNorm.weight",),
    "body.embeddings.norm.bias": ("bert.embeddings.LayerNorm.bias",),
    "body.layers.{i}.attention.qkv.weight": (
        "bert.encoder.layer.{i}.attention.self.query.weight",
        "bert.encoder.layer.{i}.attention.self.key.weight",
        "bert.encoder.layer.{i}.attention.self.value.weight",
    ),
    "body.layers.{i}.attention.qkv.bias": (
        "bert.encoder.layer.{i}.attention.self.query.bias",
        "bert.encoder.layer.{i}.attention.self.key.bias",
        "bert.encoder.layer.{i}.attention.self.value.bias",
    ),
    "body.layers.{i}.attention.out.weight": ("bert.encoder.layer.{i}.attention.output.dense.weight",),
    "body.layers.{i}.attention.out.bias": ("bert.encoder.layer.{i}.attention.output.dense.bias",),
    "body.layers.{i}.attention_norm.weight": ("bert.encoder.layer.{i}.attention.output.LayerNorm.weight",),
    "body.layers.{i}.attention_norm.bias": ("bert.encoder.layer.{i}.attention.output.LayerNorm.bias",),
    "body.layers.{i}.feed_forward.up.weight": ("bert.encoder.layer.{i}.intermediate.dense.weight",),
    "body.layers.{i}.feed_forward.up.bias": ("bert.encoder.layer.{i}.intermediate.dense.bias",),
    "body.layers.{i}.feed_forward.down.weight": ("bert.encoder.layer.{i}.output.dense.weight",),
    "body.layers.{i}.feed_forward.down.bias": ("bert.encoder.layer.{i}.output.dense.bias",),
    "body.layers.{i}.feed_forward_norm.weight": ("bert.encoder.layer.{i}.output.LayerNorm.weight",),
    "body.layers.{i}.feed_forward_norm.bias": ("bert.encoder.layer.{i}.output.LayerNorm.bias",),
    "heads.masked_lm.dense.weight": ("cls.predictions.transform.dense.weight",),
    "heads.masked_lm.dense.bias": ("cls.predictions.transform.dense.bias",),
    "heads.masked_lm.norm.weight": ("cls.predictions.transform.LayerNorm.weight",),
    "heads.masked_lm.norm.bias": ("cls.predictions.transform.LayerNorm.bias",),
    "heads.masked_lm.bias": ("cls.predictions.bias",),
    "heads.masked_lm.decoder.weight": ("cls.predictions.decoder.weight",),
    "heads.next_sentence.pooler.weight": ("bert.pooler.dense.weight",),
    "heads.next_sentence.pooler.bias": ("bert.pooler.dense.bias",),
    "heads.next_sentence.classifier.weight": ("cls.seq_relationship.weight",),
    "heads.next_sentence.classifier.bias": ("cls.seq_relationship.bias",),
    "heads.sequence.pooler.weight": ("bert.pooler.dense.weight",),
    "heads.sequence.pooler.bias": ("bert.pooler.dense.bias",),
    "heads.sequence.classifier.weight": ("classifier.weight",),
    "heads.sequence.classifier.bias": ("classifier.bias",),
    "heads.choice.pooler.weight": ("bert.pooler.dense.weight",),
    "heads.choice.pooler.bias": ("bert.pooler.dense.bias",),
    "heads.choice.classifier.weight": ("classifier.weight",),
    "heads.choice.classifier.bias": ("classifier.bias",),
    "heads.token.classifier.weight": ("classifier.weight",),
    "heads.token.classifier.bias": ("classifier.bias",),
    "heads.span.scores.weight": ("qa_outputs.weight",),
    "heads.span.scores.bias": ("qa_outputs.bias",),
}

GPT_NAMES: dict[str, tuple[str, ...]] = {
    "body.embeddings.word.weight": ("transformer.wte.weight",),
    "body.embeddings.position.weight": ("transformer.wpe.weight",),
    "body.layers.{i}.attention_norm.weight": ("transformer.h.{i}.ln_1.weight",),
    "body.layers.{i}.attention_norm.bias": ("transformer.h.{i}.ln_1.bias",),
    "body.layers.{i}.attention.qkv.weight": ("transformer.h.{i}.attn.c_attn.weight^T",),
    "body.layers.{i}.attention.qkv.bias": ("transformer.h.{i}.attn.c_attn.bias",),
    "body.layers.{i}.attention.out.weight": ("transformer.h.{i}.attn.c_proj.weight^T",),
    "body.layers.{i}.attention.out.bias": ("transformer.h.{i}.attn.c_proj.bias",),
    "body.layers.{i}.feed_forward_norm.weight": ("transformer.h.{i}.ln_2.weight",),
    "body.layers.{i}.feed_forward_norm.bias": ("transformer.h.{i}.ln_2.bias",),
    "body.layers.{i}.feed_forward.up.weight": ("transformer.h.{i}.mlp.c_fc.weight^T",),
    "body.layers.{i}.feed_forward.up.bias": ("transformer.h.{i}.mlp.c_fc.bias",),
    "body.layers.{i}.feed_forward.down.weight": ("transformer.h.{i}.mlp.c_proj.weight^T",),
    "body.layers.{i}.feed_forward.down.bias": ("transformer.h.{i}.mlp.c_proj.bias",),
    "body.norm.weight": ("transformer.ln_f.weight",),
    "body.norm.bias": ("transformer.ln_f.bias",),
    "heads.causal_lm.decoder.weight": ("lm_head.weight",),
    "heads.sequence.classifier.weight": ("score.weight",),
    "heads.token.classifier.weight": ("classifier.weight",),
    "heads.token.classifier.bias": ("classifier.bias",),
    "heads.span.scores.weight": ("qa_outputs.weight",),
    "heads.span.scores.bias": ("qa_outputs.bias",),
}


@dataclass(frozen=True)
class ParameterNames:
    """Hugging Face's parameter names of an architecture.

    Attributes:
        table: Our names -> theirs.
        prefix: Prefix of the body's parameters, which some folders omit.
        body: First parts of the body's names without the prefix.
        layer: Prefix of the parameters of layers.
        not_parameters: Entries of old folders that are not parameters.
    """

    table: Mapping[str, tuple[str, ...]]
    prefix: str
    body: tuple[str, ...]
    layer: str
    not_parameters: re.Pattern[str]


BERT = ParameterNames(
    BERT_NAMES,
    "bert.",
    ("embeddings.", "encoder.", "pooler."),
    "bert.encoder.layer.",
    re.compile(r"bert\.embeddings\.(position|token_type)_ids|cls\.predictions\.decoder\.bias"),
)
GPT = ParameterNames(
    GPT_NAMES,
    "transformer.",
    ("wte.", "wpe.", "h.", "ln_f."),
    "transformer.h.",
    re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"),
)

_OLD_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")


def to_hugging_face(state: Mapping[str, Tensor], names: ParameterNames = BERT) -> dict[str, Tensor]:
    """Convert our `state_dict()` to Hugging Face's names; concatenated tensors are split."""
    out: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        row, layer = _split_layer(ours)
        theirs = names.table[row]
        for name, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            plain = name.removesuffix("^T")
            out[plain.format(i=layer)] = (part if plain == name else part.t()).contiguous()
    return out


def from_hugging_face(
    state: Mapping[str, Tensor], wanted: Iterable[str], names: ParameterNames = BERT
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Convert tensors to our names.

    Args:
        state: Tensors under Hugging Face's names; `gamma`/`beta` and a missing prefix are accepted.
        wanted: Our names of the parameters to convert.
        names: Names of the architecture.

    Returns:
        The tensors found, our names of those missing, and their names of those unused.

    Raises:
        CheckpointError: A part of a concatenated parameter is missing, or its parts differ in
            shape.
    """
    theirs = {_current_name(name, names): tensor for name, tensor in state.items()}
    out: dict[str, Tensor] = {}
    missing: list[str] = []
    used = {name for name in theirs if names.not_parameters.fullmatch(name)}
    for ours in wanted:
        row, layer = _split_layer(ours)
        is_transposed = names.table[row][0].endswith("^T")
        parts = [name.removesuffix("^T").format(i=layer) for name in names.table[row]]
        found = [name for name in parts if name in theirs]
        if found and len(found) < len(parts):
            lacking = next(name for name in parts if name not in theirs)
            raise CheckpointError(
                f"The weights contain {found[0]} but not {lacking}; the file is incomplete.", damaged=True
            )
        if not found:
            missing.append(ours)
            continue
        if len({theirs[name].shape for name in parts}) > 1:
            raise CheckpointError(f"The weights {', '.join(parts)} have different shapes; they are not of one model.")
        used.update(parts)
        tensors = [theirs[name].t().contiguous() if is_transposed else theirs[name] for name in parts]
        out[ours] = torch.cat(tensors) if len(parts) > 1 else tensors[0]
    return out, missing, [name for name in theirs if name not in used]


def _split_layer(ours: str) -> tuple[str, str]:
    """Return the table row of one of our names, and its layer number ("" if it has none)."""
    found = re.search(r"\.layers\.(\d+)\.", ours)
    if found is None:
        return ours, ""
    return ours.replace(found.group(), ".layers.{i}.", 1), found.group(1)


def _current_name(name: str, names: ParameterNames) -> str:
    """Return today's spelling of a parameter name of an old folder or checkpoint."""
    name = _OLD_NORM.sub(lambda m: "LayerNorm." + {"gamma": "weight", "beta": "bias"}[m.group(1)], name)
    return names.prefix + name if name.startswith(names.body) else name
