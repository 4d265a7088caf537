"""Models in and out, as Hugging Face folders.

Whatever is saved here opens with `transformers`, and whatever is published as a BERT opens here, with the same numbers. Nothing is
unpickled: `.safetensors` is preferred, and a `.bin` file is read with `torch.load(weights_only=True)` or refused.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.huggingface.load import DECODER_BIAS, TASK_KEY
from stemformer.models.gpt import GptConfig
from stemformer.models.hf_names import GPT_CONFIG, to_hugging_face
from stemformer.models.model import ARCHITECTURES, BodyConfig, Model, architecture_of


def save_model(
    model: Model,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
    task: Mapping[str, Any] | None = None,
) -> None:
    """Writes a Hugging Face folder: `config.json`, `model.safetensors`, and the tokenizer's files if one is given.

    Args:
        model: Any body with any heads.
        folder: Made if it is not there. Not atomic by itself: the callers write to a temporary name and rename.
        tokenizer: Saved beside the weights.
        state: The weights by our names, on the CPU, where the model's own are spread over several ranks.
        task: What the model's head was trained for, kept in `config.json`: `labels` as transformers expects them, `problem_type`, and
            whatever else predicting needs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = state or {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    kind = ARCHITECTURES[architecture_of(model.config)]
    state = to_hugging_face(weights, kind.names)
    if not model.heads:
        state = {name.removeprefix(kind.names.prefix): tensor for name, tensor in state.items()}
    is_tied = "cls.predictions.decoder.weight" not in state and "lm_head.weight" not in state
    if not is_tied and "masked_lm" in model.heads:
        state[DECODER_BIAS] = state["cls.predictions.bias"].clone()
    config = {
        "architectures": [kind.classes[frozenset(model.heads)]],
        "model_type": architecture_of(model.config),
        **_written_config(model.config),
        "tie_word_embeddings": is_tied,
        "dtype": str(next(iter(state.values())).dtype).removeprefix("torch."),
        **_told_of_task(task),
    }
    bos_token_id = model.config.eos_token_id if isinstance(model.config, GptConfig) and task is not None else None
    if bos_token_id is not None:
        config["pad_token_id"] = bos_token_id  # transformers scores the last token that is another
    if tokenizer is not None:
        longest, is_bare = model.config.max_position_embeddings, isinstance(model.config, GptConfig)
        tokenizer.save(folder, model_max_length=longest, bos_token_id=bos_token_id, is_bare=is_bare)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_tensors(state, folder / "model.safetensors")


def _written_config(config: BodyConfig) -> dict[str, Any]:
    """Returns a config in the keys of `config.json`, with those that transformers asks for beside ours."""
    if isinstance(config, GptConfig):
        told = {theirs: getattr(config, ours) for ours, theirs in GPT_CONFIG.items()}
        return {
            **told,
            "embd_pdrop": config.hidden_dropout_prob,
            "attn_pdrop": 0.0,
            "bos_token_id": config.eos_token_id,
        }
    return {
        **asdict(config),
        "attention_probs_dropout_prob": 0.0,
        "position_embedding_type": "absolute",
        "use_cache": False,
    }


def _told_of_task(task: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what `config.json` says about a task, in transformers' words where it has them."""
    if task is None:
        return {}
    rest = {key: value for key, value in task.items() if key not in ("labels", "problem_type")}
    is_number = task.get("problem_type") == "regression"
    labels = ["LABEL_0"] if is_number else list(task["labels"])  # as transformers names the only one
    told: dict[str, Any] = {TASK_KEY: rest}
    if labels:
        told |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if task.get("problem_type"):
        told["problem_type"] = task["problem_type"]
    return told


def save_tensors(state: Mapping[str, Tensor], file: Path) -> None:
    """Writes named tensors to a safetensors file.

    Raises:
        OSError: As for any file that cannot be written; the library's own error hides its number.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(state), file, metadata={"format": "pt"})
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found.group(1)), os.strerror(int(found.group(1))), str(file)) from error
