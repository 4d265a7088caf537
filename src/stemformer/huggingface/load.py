"""Models in and out, as Hugging Face folders.

Whatever is saved here opens with `transformers`, and whatever is published as a BERT opens here, with the same numbers. Nothing is
unpickled: `.safetensors` is preferred, and a `.bin` file is read with `torch.load(weights_only=True)` or refused.
"""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from stemformer.config import nearest
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.errors import CheckpointError, StemformerError
from stemformer.models.gpt import GptConfig
from stemformer.models.heads import CausalLmHead, MaskedLmHead, initialize_weights
from stemformer.models.hf_names import GPT_CONFIG, from_hugging_face
from stemformer.models.model import ARCHITECTURES, BodyConfig, Model, architecture_of, make_model

DECODER_BIAS = "cls.predictions.decoder.bias"
"""A second name of `cls.predictions.bias`, which an untied folder needs: there transformers reads this one."""


_HEAD_OF = {
    name: head
    for kind in ARCHITECTURES.values()
    for heads, name in kind.classes.items()
    if len(heads) == 1
    for head in heads
}


_MOST_SPARE_IDS = 256
"""Rows without a token that models have to make their number round."""


TASK_KEY = "stemformer_task"


def find_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder of a model: a local one, the newest of a run folder, or one fetched from the hub.

    Args:
        path: A folder with `config.json`, a run folder, or a hub id such as `google/bert_uncased_L-4_H-256_A-4`.

    Raises:
        CheckpointError: There is no such folder, and no such model on the hub.
    """
    folder = Path(path)
    for candidate in (folder, folder / "final"):
        if (candidate / "config.json").is_file():
            return candidate
    steps = sorted(folder.glob("checkpoints/step-????????/config.json"))
    if steps:
        return steps[-1].parent
    if folder.exists():
        raise CheckpointError(f"{folder} holds no config.json: expected a Hugging Face model folder or a run folder")
    looks_local = str(path).startswith((".", "/", "~")) or str(path).count("/") > 1
    if looks_local:
        raise CheckpointError(f"{folder} does not exist: expected a model folder, a run folder or a hub id")
    return _from_hub(str(path))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.txt"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "pytorch_model.bin"]))
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason, path = str(error).strip().splitlines()[0], Path(name)
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(
            f"{name!r} is neither a folder here{nearest(path.name, beside)} nor a model that could be fetched from the hub ({reason}): "
            "check the spelling or give a folder"
        ) from error


def load_model(
    path: str | os.PathLike[str],
    heads: Sequence[str] | None = None,
    *,
    num_labels: int | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Returns the model of a folder, in evaluation mode and float32.

    Args:
        path: As for `find_folder`.
        heads: Names of the heads wanted. One that the folder lacks is drawn afresh, and a warning says so. None takes what is there.
        num_labels: What a head for labelled data tells apart; the folder's own number by default.
        generator: Source of what is drawn afresh. Given, nothing is said about it, and a part of a head that is of another size in the
            folder is drawn too.

    Raises:
        CheckpointError: Not a BERT, weights that are missing, damaged or of another size, or only a pickle that is not plain weights.

    Example:
        >>> load_model("google/bert_uncased_L-2_H-128_A-2", ["masked_lm"])  # doctest: +SKIP
    """
    folder = find_folder(path)
    config, raw = _read_config(folder)
    state = _read_weights(folder)
    kind = ARCHITECTURES[architecture_of(config)]
    _, _, extra = from_hugging_face(state, [], kind.names)
    if heads is None:
        heads = _heads_there(raw, extra)
    if strange := [head for head in heads if head not in (*kind.heads, *kind.task_heads)]:
        raise CheckpointError(
            f"{folder} is a {architecture_of(config)}, which has no head {', '.join(strange)}: give another model"
        )
    if num_labels is None:
        num_labels = next((len(state[name]) for name in _LABELLED if name in state), None)
    if num_labels is None and generator is None and set(heads) & kind.task_heads.keys():
        raise CheckpointError(f"{folder} has no head for labelled data: give a model made by `stemformer finetune`")
    model = make_model(config, heads, num_labels=num_labels)
    _untie_if_needed(model, state, raw)
    if not raw.get("tie_word_embeddings", True) and DECODER_BIAS in state:  # then this one counts, in transformers too
        state["cls.predictions.bias"] = state[DECODER_BIAS]
    wanted = model.state_dict()
    found, missing, unused = from_hugging_face(state, wanted, kind.names)
    if generator is not None:
        resized = [name for name in found if name.startswith("heads.") and found[name].shape != wanted[name].shape]
        missing += resized
        found = {name: tensor for name, tensor in found.items() if name not in resized}
    if extra_layers := [name for name in unused if name.startswith(kind.names.layer)]:
        raise CheckpointError(
            f"{folder} holds {extra_layers[0]}, config.json says {config.num_hidden_layers} layers: "
            "the weights and the config are not of the same model"
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, config.json says {tuple(wanted[name].shape)}: "
                "the weights and the config are not of the same model"
            )
    if lacking := [name for name in missing if name.startswith("body.")]:
        raise CheckpointError(
            f"{folder} lacks {len(lacking)} weights of the body, {lacking[0]} first: not a whole model"
        )
    if missing:
        if generator is None:
            warnings.warn(f"{folder} has no {', '.join(missing)}: drawn afresh", stacklevel=2)
        generator = generator or torch.Generator().manual_seed(0)
        for head in sorted({name.split(".")[1] for name in missing}):
            initialize_weights(model.heads[head], std=config.initializer_range, generator=generator)
    model.load_state_dict(found, strict=False)
    return model.eval()


_LABELLED = ("classifier.weight", "qa_outputs.weight", "score.weight")
"""What a head for labelled data is known by: its rows are its labels."""


def _heads_there(raw: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Returns which heads a folder holds, by the names of its weights and the class in its `config.json`."""
    classes = raw.get("architectures") or [""]
    is_labelled = any(name in names for name in _LABELLED)
    if raw.get("model_type") == "gpt2" and not is_labelled:  # whose head has no weights of its own
        return [] if classes[0] == "GPT2Model" else ["causal_lm"]
    there = {"masked_lm": "cls.predictions.bias", "next_sentence": "cls.seq_relationship.weight"}
    heads = [head for head, name in there.items() if name in names]
    if is_labelled:
        heads += [head for name in classes if (head := _HEAD_OF.get(name)) and head not in heads]
    return heads


def read_task(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what a folder says about the labelled data that its model was trained for; {} where it says nothing.

    Args:
        path: As for `find_folder`.

    Returns:
        `head`, `labels` in their order, `problem_type`, and what `save_model` was given as `task`.
    """
    raw = _read_config(find_folder(path))[1]
    head = next((_HEAD_OF[name] for name in raw.get("architectures") or () if name in _HEAD_OF), None)
    if head not in ARCHITECTURES["bert"].task_heads:
        return {}
    unsaid = {"0": "LABEL_0", "1": "LABEL_1"} if head in ("sequence", "token") else {}  # transformers leaves these out
    names = raw.get("id2label") or unsaid
    labels = [] if raw.get("problem_type") == "regression" else [names[number] for number in sorted(names, key=int)]
    return {"head": head, "labels": labels, "problem_type": raw.get("problem_type"), **raw.get(TASK_KEY, {})}


def attention_dropout(path: str | os.PathLike[str]) -> float:
    """Returns the dropout rate of attention probabilities that a folder's `config.json` asks for; ours has none."""
    raw = _read_config(find_folder(path))[1]
    return float(raw.get("attention_probs_dropout_prob", raw.get("attn_pdrop", 0.0)))


def load_with_tokenizer(
    path: str | os.PathLike[str], heads: Sequence[str] | None = None, **of_heads: Any
) -> tuple[Model, Tokenizer]:
    """Returns a folder's model and tokenizer, after checking that they belong together.

    Args:
        path: As for `load_model`, like the others.
        heads: Names of the heads wanted.
        of_heads: `num_labels` and `generator`.

    Raises:
        CheckpointError: The tokenizer has more ids than the model has rows, or one of them lacks the token that begins a text.
    """
    folder = find_folder(path)
    model, tokenizer = load_model(folder, heads, **of_heads), load_tokenizer(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} ids, config.json says {model.config.vocab_size:,}: "
            "use the tokenizer that the model was trained with"
        )
    if model.config.vocab_size - tokenizer.vocab_size > _MOST_SPARE_IDS:
        warnings.warn(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} ids, the model {model.config.vocab_size:,}: it may be another model's",
            stacklevel=2,
        )
    if isinstance(model.config, GptConfig):
        tokenizer.bos_token_id = model.config.eos_token_id
        is_of_task = bool(model.heads.keys() & ARCHITECTURES["gpt2"].task_heads.keys())
        num_ids = tokenizer.vocab_size if is_of_task else model.config.vocab_size
        if not 0 <= tokenizer.bos_token_id < num_ids:
            raise CheckpointError(
                f"{folder}/config.json: eos_token_id is {tokenizer.bos_token_id:,} (GPT-2's, if it is not said), there are {num_ids:,} ids: "
                "set it to that of the token that ends a document, and stands before a text"
            )
        if read_task(folder) and TASK_KEY not in _read_config(folder)[1]:
            warnings.warn(
                f"{folder} was fine-tuned elsewhere, perhaps on texts with nothing before them: "
                f"here {tokenizer.tokens[tokenizer.bos_token_id]} stands before each",
                stacklevel=2,
            )
    return model, tokenizer


def _read_config(folder: Path) -> tuple[BodyConfig, Mapping[str, Any]]:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read ({error})", damaged=True) from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{folder}/config.json holds a {type(raw).__name__}: expected an object", damaged=True)
    kind = raw.get("model_type", "bert")
    if kind not in ARCHITECTURES:
        raise CheckpointError(f"{folder} holds a model of type {kind!r}: expected one of {', '.join(ARCHITECTURES)}")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(
            f"{folder}: position_embedding_type is {raw['position_embedding_type']!r}: only 'absolute' can be computed here"
        )
    if raw.get("is_decoder", False):
        raise CheckpointError(f"{folder}: is_decoder is true: expected a BERT that sees both sides")
    of_kind = ARCHITECTURES[kind].config
    given = _read_gpt(raw, folder) if kind == "gpt2" else raw
    known = {f.name for f in fields(of_kind)}
    try:
        return msgspec.convert({name: value for name, value in given.items() if name in known}, of_kind), raw
    except (StemformerError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from error


def _read_gpt(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the values of a GPT-2's `config.json` under our names."""
    usual = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    for key, value in usual.items():
        if raw.get(key, value) != value:
            raise CheckpointError(f"{folder}: {key} is {raw[key]}: only {value} can be computed here")
    given = {ours: raw[theirs] for ours, theirs in GPT_CONFIG.items() if raw.get(theirs) is not None}
    if isinstance(ends := given.get("eos_token_id"), list) and ends:
        given["eos_token_id"] = ends[0]
        if len(ends) > 1:
            warnings.warn(f"{folder}/config.json: of eos_token_id {ends}, the first one ends texts here", stacklevel=3)
    return {"intermediate_size": 4 * given.get("hidden_size", GptConfig.hidden_size), **given}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} cannot be read ({error!r})", damaged=True) from error
        if lacking := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(f"{folder} lacks {', '.join(lacking)}, which {index.name} names", damaged=True)
    if all((folder / name).is_file() for name in names):
        try:
            state = {key: tensor for name in names for key, tensor in load_file(folder / name).items()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{folder}/{names[0]} cannot be read ({error}): copy it again, or give another checkpoint", damaged=True
            ) from error
    elif (folder / "pytorch_model.bin").is_file():
        state = _read_bin(folder / "pytorch_model.bin")
    else:
        raise CheckpointError(
            f"{folder} holds neither model.safetensors nor pytorch_model.bin: the weights are missing"
        )
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _read_bin(file: Path) -> dict[str, Tensor]:
    import pickle

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than plain weights and was not opened: convert it to safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})", damaged=True) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file} is not a table of weights: expected a saved state_dict")
    return state


def _untie_if_needed(model: Model, state: Mapping[str, Tensor], raw: Mapping[str, Any]) -> None:
    """Gives the head an output matrix of its own where `config.json` says so, as `transformers` does."""
    if "masked_lm" not in model.heads and "causal_lm" not in model.heads:
        return
    is_causal = "causal_lm" in model.heads
    if not raw.get("tie_word_embeddings", True):
        if isinstance(model.config, GptConfig):
            model.heads["causal_lm"] = CausalLmHead(model.config, tied=False)
        else:
            model.heads["masked_lm"] = MaskedLmHead(model.config, tied=False)
        return
    names = (
        ("lm_head", "transformer.wte") if is_causal else ("cls.predictions.decoder", "bert.embeddings.word_embeddings")
    )
    decoder, word = (state.get(f"{name}.weight") for name in names)
    if decoder is not None and word is not None and not torch.equal(decoder, word):
        warnings.warn(
            "the folder holds an output matrix that differs from the word embeddings, but its config.json says that they are tied: "
            "the word embeddings are used (set tie_word_embeddings to false to use the matrix)",
            stacklevel=3,
        )
