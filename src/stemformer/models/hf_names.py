"""Parameter names: ours and Hugging Face's, one table per architecture, both directions.

A row is `our module: their modules`, concatenated along the first axis; both have the same `weight` and
`bias`. `{i}` is the layer number. Marks at the end of their names:

    ^T      the weight is stored transposed
    [2:]    it has two unused rows in front
    [0]     the name is that of the parameter itself, stored as a matrix of one row
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stemformer.errors import CheckpointError

_BERT_MODULES: dict[str, tuple[str, ...]] = {
    "body.embeddings.word": ("bert.embeddings.word_embeddings",),
    "body.embeddings.position": ("bert.embeddings.position_embeddings",),
    "body.embeddings.token_type": ("bert.embeddings.token_type_embeddings",),
    "body.embeddings.norm": ("bert.embeddings.LayerNorm",),
    "body.layers.{i}.attention.qkv": (
        "bert.encoder.layer.{i}.attention.self.query",
        "bert.encoder.layer.{i}.attention.self.key",
        "bert.encoder.layer.{i}.attention.self.value",
    ),
    "body.layers.{i}.attention.out": ("bert.encoder.layer.{i}.attention.output.dense",),
    "body.layers.{i}.attention_norm": ("bert.encoder.layer.{i}.attention.output.LayerNorm",),
    "body.layers.{i}.feed_forward.up": ("bert.encoder.layer.{i}.intermediate.dense",),
    "body.layers.{i}.feed_forward.down": ("bert.encoder.layer.{i}.output.dense",),
    "body.layers.{i}.feed_forward_norm": ("bert.encoder.layer.{i}.output.LayerNorm",),
    "heads.masked_lm": ("cls.predictions",),
    "heads.masked_lm.dense": ("cls.predictions.transform.dense",),
    "heads.masked_lm.norm": ("cls.predictions.transform.LayerNorm",),
    "heads.masked_lm.decoder": ("cls.predictions.decoder",),
    "heads.next_sentence.pooler": ("bert.pooler.dense",),
    "heads.next_sentence.classifier": ("cls.seq_relationship",),
    "heads.sequence.pooler": ("bert.pooler.dense",),
    "heads.sequence.classifier": ("classifier",),
    "heads.choice.pooler": ("bert.pooler.dense",),
    "heads.choice.classifier": ("classifier",),
    "heads.token.classifier": ("classifier",),
    "heads.span.scores": ("qa_outputs",),
}

_GPT_MODULES: dict[str, tuple[str, ...]] = {
    "body.embeddings.word": ("transformer.wte",),
    "body.embeddings.position": ("transformer.wpe",),
    "body.layers.{i}.attention_norm": ("transformer.h.{i}.ln_1",),
    "body.layers.{i}.attention.qkv": ("transformer.h.{i}.attn.c_attn^T",),
    "body.layers.{i}.attention.out": ("transformer.h.{i}.attn.c_proj^T",),
    "body.layers.{i}.feed_forward_norm": ("transformer.h.{i}.ln_2",),
    "body.layers.{i}.feed_forward.up": ("transformer.h.{i}.mlp.c_fc^T",),
    "body.layers.{i}.feed_forward.down": ("transformer.h.{i}.mlp.c_proj^T",),
    "body.norm": ("transformer.ln_f",),
    "heads.causal_lm.decoder": ("lm_head",),
    "heads.sequence.classifier": ("score",),
    "heads.token.classifier": ("classifier",),
    "heads.span.scores": ("qa_outputs",),
}


_MODERNBERT_MODULES: dict[str, tuple[str, ...]] = {
    "body.embeddings.word": ("model.embeddings.tok_embeddings",),
    "body.embeddings.norm": ("model.embeddings.norm",),
    "body.layers.{i}.attention_norm": ("model.layers.{i}.attn_norm",),
    "body.layers.{i}.attention.qkv": ("model.layers.{i}.attn.Wqkv",),
    "body.layers.{i}.attention.out": ("model.layers.{i}.attn.Wo",),
    "body.layers.{i}.feed_forward_norm": ("model.layers.{i}.mlp_norm",),
    "body.layers.{i}.feed_forward.up": ("model.layers.{i}.mlp.Wi",),
    "body.layers.{i}.feed_forward.down": ("model.layers.{i}.mlp.Wo",),
    "body.norm": ("model.final_norm",),
    "heads.masked_lm": ("decoder",),
    "heads.masked_lm.decoder": ("decoder",),
    "heads.masked_lm.dense": ("head.dense",),
    "heads.masked_lm.norm": ("head.norm",),
    **{
        f"heads.{head}.{ours}": (theirs,)
        for head in ("sequence", "token", "span", "choice")
        for ours, theirs in (("transform.dense", "head.dense"), ("transform.norm", "head.norm"))
    },
    "heads.sequence.classifier": ("classifier",),
    "heads.token.classifier": ("classifier",),
    "heads.choice.classifier": ("classifier",),
    "heads.span.scores": ("classifier",),
}

_LLAMA_MODULES: dict[str, tuple[str, ...]] = {
    "body.embeddings.word": ("model.embed_tokens",),
    "body.layers.{i}.attention_norm": ("model.layers.{i}.input_layernorm",),
    "body.layers.{i}.attention.qkv": (
        "model.layers.{i}.self_attn.q_proj",
        "model.layers.{i}.self_attn.k_proj",
        "model.layers.{i}.self_attn.v_proj",
    ),
    "body.layers.{i}.attention.q_norm": ("model.layers.{i}.self_attn.q_norm",),
    "body.layers.{i}.attention.k_norm": ("model.layers.{i}.self_attn.k_norm",),
    "body.layers.{i}.attention.out": ("model.layers.{i}.self_attn.o_proj",),
    "body.layers.{i}.feed_forward_norm": ("model.layers.{i}.post_attention_layernorm",),
    "body.layers.{i}.feed_forward.up": ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"),
    "body.layers.{i}.feed_forward.down": ("model.layers.{i}.mlp.down_proj",),
    "body.norm": ("model.norm",),
    "heads.causal_lm.decoder": ("lm_head",),
    "heads.sequence.classifier": ("score",),
    "heads.token.classifier": ("score",),
    "heads.span.scores": ("qa_outputs",),
}


_BART_MODULES: dict[str, tuple[str, ...]] = {
    "body.embeddings.word": ("model.shared",),
    **{
        f"{ours}.{part}": (f"{theirs}.{name}",)
        for ours, theirs in (("body.embeddings", "model.encoder"), ("body.decoder.embeddings", "model.decoder"))
        for part, name in (("position", "embed_positions[2:]"), ("norm", "layernorm_embedding"))
    },
    **{
        f"{ours}.layers.{{i}}.{part}": tuple(f"{theirs}.layers.{{i}}.{name}" for name in names)
        for ours, theirs in (("body", "model.encoder"), ("body.decoder", "model.decoder"))
        for part, names in {
            "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.out": ("self_attn.out_proj",),
            "attention_norm": ("self_attn_layer_norm",),
            "cross_attention.query": ("encoder_attn.q_proj",),
            "cross_attention.key_value": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
            "cross_attention.out": ("encoder_attn.out_proj",),
            "cross_attention_norm": ("encoder_attn_layer_norm",),
            "feed_forward.up": ("fc1",),
            "feed_forward.down": ("fc2",),
            "feed_forward_norm": ("final_layer_norm",),
        }.items()
    },
    # mBART's alone.
    "body.norm": ("model.encoder.layer_norm",),
    "body.decoder.norm": ("model.decoder.layer_norm",),
    "heads.seq2seq_lm": ("final_logits_bias[0]",),
    "heads.seq2seq_lm.decoder": ("lm_head",),
    "heads.sequence.pooler": ("classification_head.dense",),
    "heads.sequence.classifier": ("classification_head.out_proj",),
    "heads.token.classifier": ("classifier",),
    "heads.span.scores": ("qa_outputs",),
}


@dataclass(frozen=True)
class ParameterNames:
    """Hugging Face's parameter names of an architecture."""

    modules: Mapping[str, tuple[str, ...]]
    # Prefix of the body's parameters, which some folders omit, and first parts of their names after it.
    prefix: str
    body: tuple[str, ...]
    # Prefixes of the parameters of layers.
    layer: str | tuple[str, ...]
    # Entries of old folders that are not parameters.
    not_parameters: re.Pattern[str]
    # Other prefix of the body in models with a head.
    prefix_by_head: Mapping[str, str] = field(default_factory=dict)
    # Names of a parameter -> names of copies, of which a folder may have the first alone.
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def find(self, ours: str) -> tuple[list[str], str]:
        """Return their names of one of our parameters, and the mark of how it is stored, if any."""
        module, _, kind = ours.rpartition(".")
        theirs = self.modules[re.sub(r"(?<=\.)\d+", "{i}", module)]
        layer = "".join(re.findall(r"(?<=\.)\d+", module))
        mark = next((mark for mark in _STORED if theirs[0].endswith(mark)), "")
        names = [name.removesuffix(mark).format(i=layer) for name in theirs]
        if mark != "[0]":
            names = [f"{name}.{kind}" for name in names]
        return names, mark if kind == "weight" or mark == "[0]" else ""


BERT = ParameterNames(
    _BERT_MODULES,
    "bert.",
    ("embeddings.", "encoder.", "pooler."),
    "bert.encoder.layer.",
    re.compile(r"bert\.embeddings\.(position|token_type)_ids|cls\.predictions\.decoder\.bias"),
)
GPT = ParameterNames(
    _GPT_MODULES,
    "transformer.",
    ("wte.", "wpe.", "h.", "ln_f."),
    "transformer.h.",
    re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"),
)

MODERNBERT = ParameterNames(
    _MODERNBERT_MODULES,
    "model.",
    ("embeddings.", "layers.", "final_norm."),
    "model.layers.",
    re.compile(r"model\.rotary_emb\..*"),
)
LLAMA = ParameterNames(
    _LLAMA_MODULES,
    "model.",
    ("embed_tokens.", "layers.", "norm."),
    "model.layers.",
    re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\..*"),
    {"span": "transformer."},
)
# The feed-forward layers of Arcee are not gated.
ARCEE = replace(LLAMA, modules={**_LLAMA_MODULES, "body.layers.{i}.feed_forward.up": ("model.layers.{i}.mlp.up_proj",)})
EUROBERT = replace(
    LLAMA,
    modules={
        **_LLAMA_MODULES,
        "heads.masked_lm.decoder": ("lm_head",),
        "heads.sequence.pooler": ("dense",),
        "heads.sequence.classifier": ("classifier",),
        "heads.token.classifier": ("classifier",),
    },
    prefix_by_head={},
)


BART = ParameterNames(
    _BART_MODULES,
    "model.",
    ("shared.", "encoder.", "decoder."),
    ("model.encoder.layers.", "model.decoder.layers."),
    re.compile(r"model\.(encoder|decoder)\.embed_tokens\.weight|lm_head\.weight"),
    copies={
        "model.shared.weight": (
            "model.encoder.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
            "lm_head.weight",
        )
    },
)

# Mark -> our parameter as it is stored, and the reverse.
_STORED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "^T": (Tensor.t, Tensor.t),
    "[2:]": (lambda x: torch.cat([x.new_zeros(2, *x.shape[1:]), x]), lambda x: x[2:]),
    "[0]": (lambda x: x[None], lambda x: x[0]),
}


def to_hugging_face(
    state: Mapping[str, Tensor], names: ParameterNames = BERT, parts: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Convert our `state_dict()` to Hugging Face's names; concatenated tensors are split.

    `parts` has the rows of those that are not split equally, by our name (`layers.row_parts`).
    """
    out: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        theirs, mark = names.find(ours)
        rows = (parts or {}).get(ours, ())
        split = tensor.split_with_sizes(tuple(rows)) if len(rows) == len(theirs) else tensor.chunk(len(theirs))
        store = _STORED[mark][0] if mark else Tensor.contiguous
        out |= {name: store(part).contiguous() for name, part in zip(theirs, split, strict=True)}
    for head, prefix in names.prefix_by_head.items():
        if any(ours.startswith(f"heads.{head}.") for ours in state):
            out = {re.sub(f"^{re.escape(names.prefix)}", prefix, name): tensor for name, tensor in out.items()}
    return out


def from_hugging_face(
    state: Mapping[str, Tensor], wanted: Iterable[str], names: ParameterNames = BERT
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return the parameters `wanted`, our names of those missing, and their names of those unused.

    `state` has Hugging Face's names; old spellings and a missing prefix are accepted.
    """
    available = {}
    for name, tensor in state.items():
        # Today's spelling of the names of old folders.
        new = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        for prefix in names.prefix_by_head.values():
            new = re.sub(f"^{re.escape(prefix)}", names.prefix, new)
        available[names.prefix + new if new.startswith(names.body) else new] = tensor
    for name, copies in names.copies.items():
        if (copy := next((x for x in copies if x in available), None)) is not None:
            available.setdefault(name, available[copy])
    out: dict[str, Tensor] = {}
    missing: list[str] = []
    used = {name for name in available if names.not_parameters.fullmatch(name)}
    for ours in wanted:
        theirs, mark = names.find(ours)
        tensors = {name: available[name] for name in theirs if name in available}
        if not tensors:
            missing.append(ours)
            continue
        if absent := [name for name in theirs if name not in tensors]:
            message = f"The weights contain {next(iter(tensors))} but not {absent[0]}; the file is incomplete."
            raise CheckpointError(message, damaged=True)
        if len({tensor.shape[1:] for tensor in tensors.values()}) > 1:
            raise CheckpointError(f"The weights {', '.join(theirs)} have different shapes; they are not of one model.")
        used.update(theirs)
        tensor = torch.cat(list(tensors.values())) if len(theirs) > 1 else tensors[theirs[0]]
        out[ours] = _STORED[mark][1](tensor).contiguous() if mark else tensor
    return out, missing, [name for name in available if name not in used]
