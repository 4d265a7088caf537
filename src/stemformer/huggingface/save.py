"""Save models as Hugging Face folders, which `transformers` opens with the same numbers."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.huggingface.load import DECODER_BIAS, TASK_KEY
from stemformer.models.heads import rescale_scores
from stemformer.models.hf_names import to_hugging_face
from stemformer.models.layers import row_parts
from stemformer.models.model import ARCHITECTURES, Model


def save_model(
    model: Model,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
    task: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer, if any, to a folder; not atomically.

    Args:
        state: `state_dict()` on the CPU, if the model's weights are sharded over ranks.
        task: `labels`, `problem_type` and other entries of `config.json` for prediction (`Task.metadata`). A head
            with standardized scores is saved so that it gives the original unit.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    architecture = ARCHITECTURES[model.config.model_type]

    # Weights, by Hugging Face's names.
    weights = state or {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    weights = {**weights, **unstandardized_weights(weights, task)}
    state = to_hugging_face(weights, architecture.parameter_names, row_parts(model))
    if not model.heads:
        state = {name.removeprefix(architecture.parameter_names.prefix): tensor for name, tensor in state.items()}
    is_tied = f"heads.{architecture.lm_head}.decoder.weight" not in weights
    if not is_tied and "cls.predictions.bias" in state:
        state[DECODER_BIAS] = state["cls.predictions.bias"].clone()

    config = {
        "architectures": [architecture.hf_classes[frozenset(model.heads)]],
        "model_type": model.config.model_type,
        **architecture.write_config(model.config),
        "tie_word_embeddings": is_tied,
        "dtype": str(next(iter(state.values())).dtype).removeprefix("torch."),
        **_task_entries(task),
    }
    # Texts of causal models start with EOS here, unless the folder that they come from says otherwise.
    eos_token_id = model.config.eos_token_id if architecture.is_causal else None
    known = None if tokenizer is None else tokenizer.bos_token_id
    bos_token_id = eos_token_id if known is None else known
    suffix: tuple[int, ...] = ()
    prefix: tuple[int, ...] | None = None if eos_token_id is None or bos_token_id is None else (bos_token_id,)
    pad_token_id = None if tokenizer is None else tokenizer.token_to_id("[PAD]")
    pad_token_id = eos_token_id if pad_token_id is None else pad_token_id
    if eos_token_id is not None:
        config["bos_token_id"] = bos_token_id
    if task is not None and eos_token_id is not None:
        # transformers scores the last token that is not padding.
        config["pad_token_id"] = pad_token_id
    elif eos_token_id is not None:
        ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None and tokenizer.prompt_prefix is not None:
            prefix = tokenizer.prompt_prefix
    if hasattr(model.config, "decoder_start_token_id"):
        # transformers would stop after 20 tokens.
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        ids = {name: getattr(model.config, name) for name in names} | {"max_length": model.max_length}
        # Languages of all sources and targets.
        source, target = ((task or {}).get(f"{side}_language") for side in ("source", "target"))
        if tokenizer is not None and tokenizer.language_ids and not (task is None and tokenizer.requires_languages):
            # An earlier training may have left its language; a published mBART keeps its own default.
            first = tokenizer.cls_token_id if source is None else tokenizer.language_id(source)
            prefix, suffix = (first,), (tokenizer.sep_token_id,)
        if tokenizer is not None and target is not None:
            ids["forced_bos_token_id"] = tokenizer.language_id(target)
        (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(
            folder,
            model_max_length=model.max_length,
            prefix=prefix,
            suffix=suffix,
            eos_token_id=eos_token_id,
        )
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_tensors(state, folder / "model.safetensors")


def unstandardized_weights(weights: Mapping[str, Tensor], task: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Return the weights that change if the head gives scores in the original unit; {} if it does."""
    if task is None or not task.get("is_standardized"):
        return {}
    return rescale_scores(weights, scale=task["target_std"], shift=task.get("target_offset", task["target_mean"]))


def _task_entries(task: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the entries of `config.json` for a task, in transformers' keys where they exist."""
    if task is None:
        return {}
    apart = ("labels", "problem_type", "is_standardized", "target_offset")
    entries: dict[str, Any] = {TASK_KEY: {k: v for k, v in task.items() if k not in apart}}
    # transformers names the only output of a regression LABEL_0.
    labels = ["LABEL_0"] if task.get("problem_type") == "regression" else list(task["labels"])
    if labels:
        entries |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return {**entries, "problem_type": task["problem_type"]} if task.get("problem_type") else entries


def save_tensors(state: Mapping[str, Tensor], file: Path) -> None:
    """Write named tensors to a safetensors file; `OSError` as by the system, which the library hides."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # The library makes a file of mode 0600; take that of any other new file, which follows the umask.
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(dict(state), file, metadata={"format": "pt"})
        file.chmod(mode)
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(number := int(found.group(1)), os.strerror(number), str(file)) from error
        raise
