"""Hugging Face's `config.json` and our configs: one pair of functions per architecture."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stemformer.errors import CheckpointError
from stemformer.models.bart import BartConfig
from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.models.layers import ACTIVATIONS
from stemformer.models.llama import EuroBertConfig, LlamaConfig
from stemformer.models.modernbert import LAYER_TYPES, ModernBertConfig

# Fields of `GptConfig` -> GPT-2's keys; the first one is read, all are written.
_GPT_KEYS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner",),
    "hidden_act": ("activation_function",),
    "hidden_dropout_prob": ("resid_pdrop", "embd_pdrop"),
    "max_position_embeddings": ("n_positions",),
    "initializer_range": ("initializer_range",),
    "layer_norm_eps": ("layer_norm_epsilon",),
    "eos_token_id": ("eos_token_id", "bos_token_id"),
}
# Fields of `ModernBertConfig` -> ModernBERT's keys.
_MODERNBERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_activation",
    "hidden_dropout_prob": "embedding_dropout",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "norm_eps",
    "pad_token_id": "pad_token_id",
    "local_attention": "local_attention",
}
_MODERNBERT_SUPPORTED = {
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "decoder_bias": True,
    "classifier_bias": False,
    "attention_dropout": 0.0,
}
# Fields of `LlamaConfig` -> Llama's keys; the first one is read, all are written.
_LLAMA_KEYS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size",),
    "num_hidden_layers": ("num_hidden_layers",),
    "num_attention_heads": ("num_attention_heads",),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_size": ("head_dim",),
    "intermediate_size": ("intermediate_size",),
    "hidden_act": ("hidden_act",),
    # transformers has no such dropout.
    "hidden_dropout_prob": ("hidden_dropout_prob",),
    "max_position_embeddings": ("max_position_embeddings",),
    "initializer_range": ("initializer_range",),
    "layer_norm_eps": ("rms_norm_eps",),
    "eos_token_id": ("eos_token_id", "bos_token_id"),
}
_LLAMA_SUPPORTED = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
# Fields of `BartConfig` -> BART's keys; the first one is read, all are written.
_BART_KEYS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("d_model",),
    "num_hidden_layers": ("encoder_layers", "num_hidden_layers"),
    "num_decoder_layers": ("decoder_layers",),
    "num_attention_heads": ("encoder_attention_heads",),
    "num_decoder_attention_heads": ("decoder_attention_heads",),
    "intermediate_size": ("encoder_ffn_dim",),
    "decoder_intermediate_size": ("decoder_ffn_dim",),
    "hidden_act": ("activation_function",),
    "hidden_dropout_prob": ("dropout",),
    "max_position_embeddings": ("max_position_embeddings",),
    "initializer_range": ("init_std",),
    "scale_embedding": ("scale_embedding",),
    "bos_token_id": ("bos_token_id",),
    "pad_token_id": ("pad_token_id",),
    "eos_token_id": ("eos_token_id",),
    "decoder_start_token_id": ("decoder_start_token_id",),
}
_BART_SUPPORTED = {"normalize_embedding": True, "static_position_embeddings": False, "extra_pos_embeddings": 2}
# Ends of the names of transformers' classes whose heads read one state of each text.
_POOLED_CLASSES = ("ForSequenceClassification", "ForMultipleChoice")
_ROPE_SUPPORTED = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
_SUPPORTED = {"position_embedding_type": "absolute", "is_decoder": False}
_GPT_SUPPORTED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def read_bert_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the fields of a `BertConfig`; refuse settings that are not supported."""
    _check_supported(raw, source, _SUPPORTED)
    return {key: value for key, value in raw.items() if key in BertConfig.__dataclass_fields__}


def write_bert_config(config: BertConfig) -> dict[str, Any]:
    """Return the entries of `config.json`."""
    constants = {"attention_probs_dropout_prob": 0.0, "position_embedding_type": "absolute", "use_cache": False}
    return {**asdict(config), **constants}


def read_gpt_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the fields of a `GptConfig`; refuse settings that are not supported."""
    _check_supported(raw, source, {**_SUPPORTED, **_GPT_SUPPORTED})
    found = {ours: raw[theirs] for ours, (theirs, *_) in _GPT_KEYS.items() if raw.get(theirs) is not None}
    _use_first_end(found, source)
    return {"intermediate_size": 4 * found.get("hidden_size", GptConfig.hidden_size), **found}


def write_gpt_config(config: GptConfig) -> dict[str, Any]:
    """Return the entries of `config.json`."""
    entries = {theirs: getattr(config, ours) for ours, keys in _GPT_KEYS.items() for theirs in keys}
    return {**entries, "attn_pdrop": 0.0}


def read_modernbert_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the fields of a `ModernBertConfig`; refuse settings that are not supported."""
    _check_supported(raw, source, _MODERNBERT_SUPPORTED)
    found = {ours: raw[theirs] for ours, theirs in _MODERNBERT_KEYS.items() if raw.get(theirs) is not None}
    num_layers = found.get("num_hidden_layers", ModernBertConfig.num_hidden_layers)
    # Older folders give the distance of layers with full attention, and theta as a key of its own.
    period = raw.get("global_attn_every_n_layers", 3)
    default = ["sliding_attention" if i % period else "full_attention" for i in range(num_layers)]
    found["layer_types"] = raw.get("layer_types") or default
    for field, kind in (("global_rope_theta", "full_attention"), ("local_rope_theta", "sliding_attention")):
        rope = (raw.get("rope_parameters") or {}).get(kind) or {}
        _check_supported(rope, f"{source}, rope_parameters.{kind}", {"rope_type": "default"})
        if (theta := rope.get("rope_theta", raw.get(field))) is not None:
            found[field] = theta
    if scaling := raw.get("rope_scaling"):
        _check_supported(scaling, f"{source}, rope_scaling", dict.fromkeys(scaling) | _ROPE_SUPPORTED)
    # The masked-LM head and the task heads share an activation, which is here that of the layers.
    activation = found.get("hidden_act", ModernBertConfig.hidden_act)
    if activation in ACTIVATIONS:
        _check_supported({"classifier_activation": "gelu", **raw}, source, {"classifier_activation": activation})
    if any(name.endswith(_POOLED_CLASSES) for name in raw.get("architectures") or ()):
        _check_supported(raw, source, {"classifier_pooling": "cls"})
    return found


def write_modernbert_config(config: ModernBertConfig) -> dict[str, Any]:
    """Return the entries of `config.json`."""
    entries = {theirs: getattr(config, ours) for ours, theirs in _MODERNBERT_KEYS.items()}
    thetas = {"full_attention": config.global_rope_theta, "sliding_attention": config.local_rope_theta}
    return {
        **entries,
        **_MODERNBERT_SUPPORTED,
        "layer_types": [LAYER_TYPES[config.is_sliding(i)] for i in range(config.num_hidden_layers)],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
        "mlp_dropout": config.hidden_dropout_prob,
        "classifier_activation": config.hidden_act,
        "classifier_pooling": "cls",
        # Ids of the tokenizer's special tokens, which transformers does not need.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
    }


def read_llama_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the fields of a `LlamaConfig`; refuse settings that are not supported."""
    _check_supported(raw, source, _LLAMA_SUPPORTED)
    if other := sorted({*(raw.get("layer_types") or ())} - {"full_attention"}):
        raise CheckpointError(f"{source}: layer_types has {other[0]!r}, only 'full_attention' is supported.")
    # Older folders have theta as a key of its own.
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    _check_supported(rope, f"{source}, rope_parameters", _ROPE_SUPPORTED)
    found = {ours: raw[theirs] for ours, (theirs, *_) in _LLAMA_KEYS.items() if raw.get(theirs) is not None}
    if (theta := rope.get("rope_theta", raw.get("rope_theta"))) is not None:
        found["rope_theta"] = theta
    if "eos_token_id" not in found:
        raise CheckpointError(f"{source} has no eos_token_id. Set it to the id of the end-of-text token.")
    _use_first_end(found, source)
    # What follows from other fields is None.
    heads = found.get("num_attention_heads", LlamaConfig.num_attention_heads)
    size = found.get("hidden_size", LlamaConfig.hidden_size)
    implied = {"num_key_value_heads": heads, "head_size": size // heads if heads else None}
    return {key: value for key, value in found.items() if implied.get(key) != value}


def write_llama_config(config: LlamaConfig) -> dict[str, Any]:
    """Return the entries of `config.json`."""
    entries = {theirs: getattr(config, ours) for ours, keys in _LLAMA_KEYS.items() for theirs in keys}
    head_size = config.head_size or config.hidden_size // config.num_attention_heads
    return {
        **entries,
        "num_key_value_heads": config.num_key_value_heads or config.num_attention_heads,
        "head_dim": head_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        # For readers of older folders.
        "rope_theta": config.rope_theta,
        "attention_dropout": 0.0,
        "attention_bias": False,
    }


def read_eurobert_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the fields of a `EuroBertConfig`; refuse settings that are not supported."""
    if any(name.endswith(_POOLED_CLASSES) for name in raw.get("architectures") or ()):
        _check_supported({"classifier_pooling": "late", **raw}, source, {"classifier_pooling": "bos"})
    found = read_llama_config({**raw, "eos_token_id": 0}, source)
    ids = {key: raw.get(key) or 0 for key in ("pad_token_id", "mask_token_id")}
    return {**{key: value for key, value in found.items() if key != "eos_token_id"}, **ids}


def write_eurobert_config(config: EuroBertConfig) -> dict[str, Any]:
    """Return the entries of `config.json`."""
    ids = {"pad_token_id": config.pad_token_id, "mask_token_id": config.mask_token_id}
    return {**write_llama_config(config), **ids, "classifier_pooling": "bos"}


def read_bart_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the fields of a `BartConfig` or `MBartConfig`; refuse settings that are not supported."""
    is_pre_norm = raw.get("model_type") == "mbart"
    _check_supported(raw, source, {**_BART_SUPPORTED, "normalize_before": is_pre_norm})
    found = {ours: raw[theirs] for ours, (theirs, *_) in _BART_KEYS.items() if raw.get(theirs) is not None}
    _use_first_end(found, source)
    # What follows from other fields is None.
    implied = {
        "num_decoder_attention_heads": found.get("num_attention_heads"),
        "decoder_intermediate_size": found.get("intermediate_size"),
    }
    return {key: value for key, value in found.items() if key not in implied or implied[key] != value}


def write_bart_config(config: BartConfig) -> dict[str, Any]:
    """Return the entries of `config.json`; CTranslate2 reads where the norms are."""
    values = {
        **asdict(config),
        "num_decoder_attention_heads": config.num_decoder_attention_heads or config.num_attention_heads,
        "decoder_intermediate_size": config.decoder_intermediate_size or config.intermediate_size,
    }
    return {
        **{theirs: values[ours] for ours, keys in _BART_KEYS.items() for theirs in keys},
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "is_encoder_decoder": True,
        "normalize_before": config.norm_first,
        "normalize_embedding": True,
        "add_final_layer_norm": config.norm_first,
    }


def _use_first_end(found: dict[str, Any], source: str) -> None:
    """Replace a list of tokens that end texts by its first one."""
    if isinstance(ends := found.get("eos_token_id"), list) and ends:
        found["eos_token_id"] = ends[0]
        if len(ends) > 1:
            warnings.warn(f"{source}: eos_token_id is {ends}; only the first one ends texts here.", stacklevel=5)


def _check_supported(raw: Mapping[str, Any], source: str, supported: Mapping[str, Any]) -> None:
    for key, value in supported.items():
        if raw.get(key, value) != value:
            raise CheckpointError(f"{source}: {key} is {raw[key]!r}, only {value!r} is supported.")
