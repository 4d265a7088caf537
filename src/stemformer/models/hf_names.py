"""Our parameter names and Hugging Face's: one table an architecture, read in both directions.

A row is `ours: theirs`. `{i}` stands for the number of a layer. Several names on the right are stacked along the first axis.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from stemformer.errors import CheckpointError

__all__ = ["BERT_NAMES", "from_hugging_face", "to_hugging_face"]

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

_OLD_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")
_NOT_PARAMETERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids", "cls.predictions.decoder.bias")


def to_hugging_face(
    state: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]] = BERT_NAMES
) -> dict[str, Tensor]:
    """Returns the same tensors under Hugging Face's names; stacked ones are taken apart.

    Args:
        state: Our `state_dict()`.
        names: The architecture's table.
    """
    out: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        row, layer = _row_of(ours)
        theirs = names[row]
        for name, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            out[name.format(i=layer)] = part.contiguous()
    return out


def from_hugging_face(
    state: Mapping[str, Tensor], wanted: Iterable[str], names: Mapping[str, tuple[str, ...]] = BERT_NAMES
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Returns tensors under our names, what was wanted but not there, and what was there but not wanted.

    Args:
        state: Tensors under Hugging Face's names, `gamma`/`beta` and a missing `bert.` prefix included.
        wanted: Our names.
        names: The architecture's table.

    Raises:
        CheckpointError: Only a part of a stacked parameter is there.
    """
    theirs = {_modern(name): tensor for name, tensor in state.items()}
    out: dict[str, Tensor] = {}
    missing: list[str] = []
    used: set[str] = set(_NOT_PARAMETERS)
    for ours in wanted:
        row, layer = _row_of(ours)
        parts = [name.format(i=layer) for name in names[row]]
        there = [name for name in parts if name in theirs]
        if there and len(there) < len(parts):
            lacking = next(name for name in parts if name not in theirs)
            raise CheckpointError(f"the weights hold {there[0]} but not {lacking}: the file is not whole", damaged=True)
        if not there:
            missing.append(ours)
            continue
        if len({theirs[name].shape for name in parts}) > 1:
            raise CheckpointError(f"the weights {', '.join(parts)} are of different shapes: not of one model")
        used.update(parts)
        out[ours] = torch.cat([theirs[name] for name in parts]) if len(parts) > 1 else theirs[parts[0]]
    return out, missing, [name for name in theirs if name not in used]


def _row_of(ours: str) -> tuple[str, str]:
    """Returns the table's row for one of our names, and the number of its layer ("" where it has none)."""
    found = re.search(r"\.layers\.(\d+)\.", ours)
    if found is None:
        return ours, ""
    return ours.replace(found.group(), ".layers.{i}.", 1), found.group(1)


def _modern(name: str) -> str:
    """Returns today's spelling of a parameter name of a Hugging Face or converted 2018 folder."""
    name = _OLD_NORM.sub(lambda m: "LayerNorm." + {"gamma": "weight", "beta": "bias"}[m.group(1)], name)
    return "bert." + name if name.startswith(("embeddings.", "encoder.", "pooler.")) else name
