"""Hugging Face's `config.json` and our configs: one pair of functions per architecture."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stemformer.errors import CheckpointError
from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig

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
    if isinstance(ends := found.get("eos_token_id"), list) and ends:
        found["eos_token_id"] = ends[0]
        if len(ends) > 1:
            warnings.warn(f"{source}: eos_token_id is {ends}; only the first one ends texts here.", stacklevel=4)
    return {"intermediate_size": 4 * found.get("hidden_size", GptConfig.hidden_size), **found}


def write_gpt_config(config: GptConfig) -> dict[str, Any]:
    """Return the entries of `config.json`."""
    entries = {theirs: getattr(config, ours) for ours, keys in _GPT_KEYS.items() for theirs in keys}
    return {**entries, "attn_pdrop": 0.0}


def _check_supported(raw: Mapping[str, Any], source: str, supported: Mapping[str, Any]) -> None:
    for key, value in supported.items():
        if raw.get(key, value) != value:
            raise CheckpointError(f"{source}: {key} is {raw[key]!r}, only {value!r} is supported.")
