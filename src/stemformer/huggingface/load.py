"""Load models from Hugging Face folders, local or on the hub; nothing is unpickled."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from stemformer.config import SIMILAR, nearest_first, parse_toml
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.errors import CheckpointError, StemformerError
from stemformer.io import CHECKSUMS, OPTIMIZER_FILE, find_damage, read_json_object
from stemformer.models.heads import BodyConfig, LinearLmHead
from stemformer.models.hf_names import from_hugging_face
from stemformer.models.layers import initialize_weights
from stemformer.models.model import ARCHITECTURES, MIN_LENGTH, Architecture, Model, make_model

# Alias of `cls.predictions.bias` that transformers reads if the output matrix is not tied.
DECODER_BIAS = "cls.predictions.decoder.bias"
# Entry of config.json for what transformers has no key for.
TASK_KEY = "stemformer_task"

# transformers class -> name of its only head.
_HEAD_BY_CLASS = {
    name: next(iter(heads)) for a in ARCHITECTURES.values() for heads, name in a.hf_classes.items() if len(heads) == 1
}
# Parameters that show which pre-training heads a folder has.
_HEAD_WEIGHTS = {"masked_lm": "heads.masked_lm.bias", "next_sentence": "heads.next_sentence.classifier.weight"}
# Keys of `config.json` for the dropout of attention probabilities, by architecture.
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")
# Weights of task heads, one row per label.
_TASK_HEAD_WEIGHTS = ("classifier.weight", "qa_outputs.weight", "score.weight", "classification_head.out_proj.weight")
# Models may have this many embeddings without a token, to round up the vocabulary size.
_MAX_PADDING_IDS = 256


def find_model_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a model: itself, the newest model of a run folder, or a download by hub id."""
    if not os.fspath(path).strip():
        raise CheckpointError("The name of a model is empty. Pass a model folder, a run folder or a hub id.")
    folder = Path(path)
    checkpoints = sorted(folder.glob("checkpoints/step-????????"), reverse=True)
    for candidate in (folder, folder / "final", *checkpoints):
        if (candidate / "config.json").is_file():
            return candidate
    if folder.exists():
        raise CheckpointError(f"{folder} has no config.json, expected a Hugging Face model folder or a run folder.")
    name = os.fspath(path)
    # A folder of runs has no name of an owner on the hub.
    is_local = "/" in name and any(folder.parent.glob("*/config.toml"))
    if is_local or name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        hint = similar_folder(folder)
        raise CheckpointError(f"{name} does not exist{hint}, expected a model folder, a run folder or a hub id.")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.*", "merges.txt"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "pytorch_model.bin"]))
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = "the hub could not be reached"
        if isinstance(error, HFValidationError):
            reason = "it is no hub id"
        elif isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError):
            reason = f"the hub answered {error.response.status_code}"
        local = f"{name!r} is not a local folder{similar_folder(Path(name))}"
        problem = f"{local}, and no model could be downloaded from the hub under this name ({reason})"
        raise CheckpointError(f"{problem}. Check the spelling, or pass a folder.") from error


def similar_folder(path: Path) -> str:
    """Return " (did you mean 'x'?)" with the path of the sibling of the most similar name, or ""."""
    siblings = [entry.name for entry in path.parent.iterdir() if entry.exists()] if path.parent.is_dir() else []
    close = nearest_first(path.name, siblings, cutoff=SIMILAR)[:1]
    return "".join(f" (did you mean '{path.parent / name}'?)" for name in close)


def load_model(
    path: str | os.PathLike[str],
    heads: Sequence[str] | None = None,
    *,
    num_labels: int | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Load a model in evaluation mode and float32.

    Args:
        heads: Heads to load (None: those of the folder); missing ones are random, with a warning.
        num_labels: Number of labels of a task head; None means that of the folder.
        generator: Source of random weights, without a warning; also for weights of a head that have
            another shape in the folder.
    """
    folder = find_model_folder(path)
    # A copied checkpoint may lack the optimizer, which is not loaded here.
    if (folder / CHECKSUMS).is_file() and (fault := find_damage(folder, ignore=OPTIMIZER_FILE)) is not None:
        raise CheckpointError(f"{folder}: {fault}. Copy it again, or use another checkpoint.", damaged=True)
    config, raw = _read_config(folder)
    state = _read_weights(folder)
    architecture = ARCHITECTURES[config.model_type]
    names = architecture.parameter_names

    # Heads and number of labels.
    if heads is None:
        heads = _find_heads(architecture, raw, from_hugging_face(state, [], names)[2])
    if "seq2seq_lm" in heads:
        _add_output_bias(folder, architecture, raw, state)
    if unknown := ", ".join(head for head in heads if head not in (*architecture.heads, *architecture.task_heads)):
        raise CheckpointError(f"{folder} is a {config.model_type}, which has no head {unknown}. Use another model.")
    if num_labels is None:
        num_labels = next((len(state[name]) for name in _TASK_HEAD_WEIGHTS if name in state), None)
    if num_labels is None and generator is None and set(heads) & architecture.task_heads.keys():
        raise CheckpointError(f"{folder} has no task head. Use a model trained by `stemformer finetune`.")
    model = make_model(config, heads, num_labels=num_labels)
    _untie_lm_head(model, architecture, state, raw)
    if not raw.get("tie_word_embeddings", architecture.is_tied_by_default) and DECODER_BIAS in state:
        state["cls.predictions.bias"] = state[DECODER_BIAS]

    # Weights by our names, checked.
    expected = model.state_dict()
    found, missing, unused = from_hugging_face(state, expected, names)
    if generator is not None:
        resized = [name for name in found if name.startswith("heads.") and found[name].shape != expected[name].shape]
        missing += resized
        found = {name: tensor for name, tensor in found.items() if name not in resized}
    mismatch = "The weights and the config belong to different models."
    if extra := next((name for name in unused if name.startswith(names.layer)), None):
        raise CheckpointError(f"{folder} holds {extra}, config.json says {config.num_hidden_layers} layers. {mismatch}")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            shapes = f"has shape {tuple(tensor.shape)}, config.json says {tuple(expected[name].shape)}"
            raise CheckpointError(f"{folder}: {name} {shapes}. {mismatch}")
    if body := [name for name in missing if name.startswith("body.")]:
        raise CheckpointError(
            f"{folder} lacks {len(body)} weights of the body, the first is {body[0]}: it is incomplete."
        )

    # Random initialization of missing heads.
    if missing:
        if generator is None:
            warnings.warn(f"{folder} has no {', '.join(missing)}: initialized randomly.", stacklevel=2)
        generator = generator or torch.Generator().manual_seed(0)
        for head in sorted({name.split(".")[1] for name in missing}):
            initialize_weights(model.heads[head], std=config.initializer_range, generator=generator)
    model.load_state_dict(found, strict=False)
    model.max_length = _trained_length(folder, config.max_position_embeddings, raw.get(TASK_KEY, {}))
    return model.eval()


def load_model_and_tokenizer(
    path: str | os.PathLike[str], heads: Sequence[str] | None = None, **options: Any
) -> tuple[Model, Tokenizer]:
    """Load a model with its tokenizer, which must fit; the arguments are those of `load_model`."""
    folder = find_model_folder(path)
    model, tokenizer = load_model(folder, heads, **options), load_tokenizer(folder)
    num_ids, num_tokens = model.config.vocab_size, tokenizer.vocab_size
    sizes = f"{folder}: the tokenizer has {num_tokens:,} ids, the model {num_ids:,}"
    if num_tokens > num_ids:
        raise CheckpointError(f"{sizes}. Use the tokenizer that the model was trained with.")
    if num_ids - num_tokens > _MAX_PADDING_IDS:
        warnings.warn(f"{sizes}; it may belong to another model.", stacklevel=2)
    architecture = ARCHITECTURES[model.config.model_type]
    if architecture.is_causal:
        eos_token_id = model.config.eos_token_id
        assert eos_token_id is not None, "a causal model ends its texts"
        max_id = num_tokens if model.heads.keys() & architecture.task_heads.keys() else num_ids
        if not 0 <= eos_token_id < max_id:
            problem = (
                f"eos_token_id is {eos_token_id:,} (the default if config.json has none), but there are {max_id:,} ids"
            )
            raise CheckpointError(f"{folder}/config.json: {problem}. Set it to the id of the end-of-text token.")
        tokenizer.prompt_prefix = _prompt_prefix(folder, tokenizer, eos_token_id)
        # A published Llama has a token of its own before texts.
        tokenizer.bos_token_id = (tokenizer.prompt_prefix or (eos_token_id,))[0]
        if read_task_info(folder) and TASK_KEY not in _read_config(folder)[1]:
            elsewhere = f"{folder} was fine-tuned elsewhere, possibly on texts with no token before them"
            token = tokenizer.tokens[tokenizer.bos_token_id]
            warnings.warn(f"{elsewhere}; here each text is preceded by {token}.", stacklevel=2)
    return model, tokenizer


def _prompt_prefix(folder: Path, tokenizer: Tokenizer, eos_token_id: int) -> tuple[int, ...] | None:
    """Return the ids that transformers puts before a prompt, by the files of the tokenizer."""
    if not _run_config(folder).is_file():
        return tokenizer.added_prefix
    # In our runs the end-of-text token comes first, which earlier versions did not store, or that of a published model.
    bos_token_id = _read_config(folder)[1].get("bos_token_id", eos_token_id)
    return None if bos_token_id == eos_token_id else (bos_token_id,)


def _run_config(folder: Path) -> Path:
    """Return the path of the configuration of a model's run, if it is one."""
    return (folder.parent if folder.name == "final" else folder) / "config.toml"


def read_task_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return `head`, `labels`, `problem_type` and the other task entries; {} without a task."""
    config, raw = _read_config(find_model_folder(path))
    head = next((_HEAD_BY_CLASS[name] for name in raw.get("architectures") or () if name in _HEAD_BY_CLASS), None)
    if head == "seq2seq_lm" and TASK_KEY in raw:
        return {"head": head, "labels": [], "problem_type": None, **raw[TASK_KEY]}
    if head not in ARCHITECTURES[config.model_type].task_heads:
        return {}
    # transformers omits its default labels.
    number = raw.get("num_labels", 2) if head in ("sequence", "token") else 0
    default = {str(i): f"LABEL_{i}" for i in range(number)}
    names = raw.get("id2label") or default
    # As in transformers, a single output is a number by default.
    problem_type = raw.get("problem_type") or ("regression" if head == "sequence" and len(names) == 1 else None)
    labels = [] if problem_type == "regression" else [str(names[number]) for number in sorted(names, key=int)]
    return {"head": head, "labels": labels, "problem_type": problem_type, **raw.get(TASK_KEY, {})}


def read_attention_dropout(path: str | os.PathLike[str]) -> float:
    """Return the attention dropout of a folder's `config.json`, which is not applied here."""
    raw = _read_config(find_model_folder(path))[1]
    return float(next((raw[key] for key in _ATTENTION_DROPOUT if key in raw), 0.0))


def _trained_length(folder: Path, positions: int, task: Mapping[str, Any]) -> int:
    """Return the tokens of the longest sequence in training, as far as a model's folder says, at most its positions."""
    file = folder / "tokenizer_config.json"
    stored = read_json_object(file).get("model_max_length") if file.is_file() else None
    lengths: list[Any] = [task.get("max_length"), stored]
    # Earlier versions stored the number of positions; the configuration of the run knows better.
    file = _run_config(folder)
    if stored == positions and file.is_file():
        run = parse_toml(file.read_text(encoding="utf-8"), str(file))
        phases = [] if "init" in run else [run.get("batch", {}), *run.get("phases", [])]
        found = [phase.get("sequence_length", phase.get("row_length", positions)) for phase in phases]
        lengths.append(max(found, default=positions))
    return int(min([positions, *(n for n in lengths if isinstance(n, int | float) and n >= MIN_LENGTH)]))


def _find_heads(architecture: Architecture, raw: Mapping[str, Any], weights: Sequence[str]) -> list[str]:
    """Return the heads of a folder by its weights and the class in its `config.json`."""
    classes = raw.get("architectures") or [""]
    has_task_head = any(name in weights for name in _TASK_HEAD_WEIGHTS)
    has_linear_head = issubclass(architecture.heads[architecture.lm_head], LinearLmHead)
    if has_linear_head and not has_task_head:
        # If it is tied, it has no weights of its own. BART is published as a body.
        if architecture.lm_head == "seq2seq_lm":
            return ["seq2seq_lm"]
        return [] if classes[0] == architecture.hf_classes[frozenset()] else [architecture.lm_head]
    find = architecture.parameter_names.find
    known = {} if has_linear_head else _HEAD_WEIGHTS
    heads = [head for head, name in known.items() if head in architecture.heads and find(name)[0][0] in weights]
    if has_task_head:
        heads += [head for name in classes if (head := _HEAD_BY_CLASS.get(name)) and head not in heads]
    return heads


def _add_output_bias(
    folder: Path, architecture: Architecture, raw: Mapping[str, Any], state: dict[str, Tensor]
) -> None:
    """Add the output bias that a folder of an encoder-decoder may lack; refuse other classes."""
    name = (raw.get("architectures") or [""])[0]
    known = architecture.hf_classes.values()
    if name and name not in known:
        problem = f"{folder}/config.json: architectures has {name}, which is not supported"
        raise CheckpointError(f"{problem}; expected {' or '.join(known)}.")
    state.setdefault("final_logits_bias", torch.zeros(1, int(raw.get("vocab_size", 0))))


def _untie_lm_head(model: Model, architecture: Architecture, state: dict[str, Tensor], raw: dict[str, Any]) -> None:
    """Give the LM head its own output matrix if `config.json` says so, as `transformers` does."""
    head = architecture.lm_head
    if head not in model.heads:
        return
    if not raw.get("tie_word_embeddings", architecture.is_tied_by_default):
        model.heads[head] = architecture.heads[head](model.config, tied=False)
        return
    names = (f"heads.{head}.decoder.weight", "body.embeddings.word.weight")
    decoder, word = (state.get(architecture.parameter_names.find(name)[0][0]) for name in names)
    if decoder is not None and word is not None and not torch.equal(decoder, word):
        warnings.warn(
            "The folder has an output matrix that differs from the word embeddings, but its config.json says that they "
            "are tied: the word embeddings are used (set tie_word_embeddings to false to use the matrix).",
            stacklevel=3,
        )


def _read_config(folder: Path) -> tuple[BodyConfig, dict[str, Any]]:
    source = folder / "config.json"
    try:
        raw = msgspec.convert(json.loads(source.read_text(encoding="utf-8")), dict[str, Any])
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{source} cannot be read ({error}).", damaged=True) from error
    architecture = ARCHITECTURES.get(model_type := raw.get("model_type", "bert"))
    if architecture is None:
        expected = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{folder} holds a model of type {model_type!r}, expected one of {expected}.")
    values = architecture.read_config(raw, str(source))
    try:
        return msgspec.convert(values, architecture.config), raw
    except (StemformerError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} cannot be read ({error!r}).", damaged=True) from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, listed in {index.name}.", damaged=True)
    if all((folder / name).is_file() for name in names):
        try:
            state = {key: tensor for name in names for key, tensor in load_file(folder / name).items()}
        except (SafetensorError, OSError) as error:
            problem = f"{folder}/{names[0]} cannot be read ({error}). Copy it again, or use another checkpoint."
            raise CheckpointError(problem, damaged=True) from error
    elif (folder / "pytorch_model.bin").is_file():
        state = _read_bin(folder / "pytorch_model.bin")
    else:
        raise CheckpointError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin exists.")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _read_bin(file: Path) -> dict[str, Tensor]:
    import pickle

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        problem = f"{file} contains pickled objects other than tensors and was not opened. Convert it to safetensors."
        raise CheckpointError(problem) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}).", damaged=True) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file} is not a state_dict of tensors.")
    return state
