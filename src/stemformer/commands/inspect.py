"""Describe a directory: tokenized data, run, experiment, model or tokenizer."""

from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

from stemformer.config import from_toml, parse_toml
from stemformer.data.shards.manifest import Manifest, read_manifest
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.errors import DataError, TokenizerError
from stemformer.huggingface.load import find_model_folder, load_model, read_task_info, similar_folder
from stemformer.io import find_damage, read_json_object, read_jsonl
from stemformer.models.model import Model
from stemformer.options import InspectOptions, accepts
from stemformer.training.config import RENAMED_SETTINGS, FinetuneConfig, read_run_config

EXPERIMENTS = {
    "trials.json": "run",
    "compare.json": "comparison",
    "scale.json": "scaling",
    "ablate.json": "ablation",
    "prompt.json": "prompts",
    "glue.json": "run",
    "squad.json": "run",
    "blimp.json": "run",
}
"""File that an experiment writes at its end, and the kind of its directory."""

# Of an experiment's lists of results, these are summaries; the others are left out.
_SUMMARIES = {"table", "sizes", "tasks", "differences", "pretraining", "failed"}


@accepts(InspectOptions)
def inspect(options: InspectOptions) -> dict[str, Any]:
    """Describe a directory: model, tokenizer, tokenized data or run.

    Raises:
        DataError: It holds none of these.
    """
    path = options.path
    folder = Path(path)
    if (folder / "manifest.json").is_file() or (folder / "progress.jsonl").is_file():
        return describe_dataset(path, read_manifest(folder))
    if (folder / "log.jsonl").is_file():
        return _describe_run(folder)
    for name, kind in EXPERIMENTS.items():
        if (folder / name).is_file():
            content = read_json_object(folder / name)
            tables = {key for key, v in content.items() if v and isinstance(v, list) and isinstance(v[0], dict)}
            result = {key: value for key, value in content.items() if key not in tables - _SUMMARIES}
            for size in result["sizes"] if name == "scale.json" else ():
                del size["curve"]
            return {kind: path, **result}
    if (folder / "config.json").is_file() or (not folder.exists() and path.count("/") == 1):
        return describe_model(path)
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.txt").is_file():
        return {"tokenizer": path, **_describe_tokenizer(load_tokenizer(folder))}
    if not folder.exists():
        expected = "Pass a directory of tokenized data, a run, a model or a tokenizer"
        raise DataError(f"{path} does not exist{similar_folder(folder)}. {expected}.")
    raise DataError(f"{path} holds neither tokenized data nor a run, a model or a tokenizer.")


def describe_dataset(path: str, manifest: Manifest) -> dict[str, Any]:
    """Return counts of tokenized data and of what was skipped."""
    counts = open_shards(Path(path), verify=False).unigram_counts
    unknown = load_tokenizer(Path(path, "tokenizer")).token_to_id("[UNK]")
    return {
        "data": path,
        "vocab_size": manifest.vocab_size,
        "fingerprint": manifest.fingerprint[:16],
        **{name: asdict(split) for name, split in manifest.splits.items()},
        # Fraction of [UNK] among the training tokens.
        "unknown": 0.0 if unknown is None else round(float(counts[unknown] / max(1, counts.sum())), 4),
        "skipped": dict(manifest.skipped),
        # Examples of removed duplicates.
        **({"duplicates": list(map(asdict, manifest.duplicates))} if manifest.duplicates else {}),
        "megabytes": round(sum(file.bytes for file in manifest.files.values()) / 1e6, 1),
    }


def is_finetuned(folder: Path) -> bool:
    """Return whether a directory holds a fine-tuning run, by its config."""
    file = folder / "config.toml"
    return file.is_file() and "task" in parse_toml(file.read_text(encoding="utf-8"), str(file))


def _describe_run(folder: Path) -> dict[str, Any]:
    text = (folder / "config.toml").read_text(encoding="utf-8")
    if is_finetuned(folder):
        config = from_toml(FinetuneConfig, text, source=str(folder), renamed=RENAMED_SETTINGS)
        data = {"train": list(config.train), "dev": list(config.dev)}
        origin = {"task": config.task.name, "init": config.model, **data}
    else:
        origin = {"recipe": read_run_config(text, source=str(folder)).recipe}
    last: dict[str, dict[str, Any]] = {line["kind"]: line for line in read_jsonl(folder / "log.jsonl")}
    metrics = last.get("evaluation", {})
    checkpoints = sorted(folder.glob("checkpoints/step-????????"))
    # Check those that a resumed run would: the newest, and older ones only if it is damaged.
    faults = ((path.name, find_damage(path)) for path in reversed(checkpoints))
    damaged = {name: fault for name, fault in takewhile(lambda item: item[1] is not None, faults)}
    return {
        "run": str(folder),
        **origin,
        "is_finished": (folder / "final" / "config.json").is_file(),
        "checkpoints": [path.name for path in checkpoints],
        **({"damaged_checkpoints": damaged} if damaged else {}),
        **last.get("train", {}),
        **{name: value for name, value in metrics.items() if name.startswith(("held_out", "dev_"))},
    }


def describe_model(path: str, model: Model | None = None) -> dict[str, Any]:
    """Describe a model: config, heads, number of parameters, task, tokenizer."""
    model = model or load_model(path)
    description: dict[str, Any] = {
        "model": str(find_model_folder(path)),
        **asdict(model.config),
        "max_length": model.max_length,
        "heads": list(model.heads),
        "parameters": model.num_parameters(),
        "parameters_in_layers": model.num_parameters(embeddings=False),
    }
    if task := read_task_info(path):
        description |= {"task": task.get("name", task["head"]), "labels": task["labels"]}
    if model.class_note is not None:
        description["note"] = model.class_note
    try:
        description["tokenizer"] = _describe_tokenizer(load_tokenizer(find_model_folder(path)))
    except TokenizerError:
        description["tokenizer"] = None
    return description


def _describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "lowercase": tokenizer.lowercase,
        **({"lowercase_is_guess": True} if tokenizer.lowercase_is_guess else {}),
        "fingerprint": tokenizer.fingerprint[:16],
    }
