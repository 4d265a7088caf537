"""What a folder holds: prepared data, a run, the results of several, a model or a tokenizer."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from stemformer.config import from_toml, parse_toml
from stemformer.data.shards.manifest import Manifest, read_manifest
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.errors import DataError, TokenizerError
from stemformer.huggingface.load import find_model_folder, load_model, read_task_info
from stemformer.io import read_json_object, read_jsonl
from stemformer.models.model import Model
from stemformer.options import InspectOptions, accepts
from stemformer.training.config import RENAMED_SETTINGS, FinetuneConfig, RunConfig, read_run_config

EXPERIMENTS = {
    "trials.json": "run",
    "compare.json": "comparison",
    "scale.json": "scaling",
    "prompt.json": "prompts",
    "glue.json": "run",
    "squad.json": "run",
}
"""File that an experiment writes at its end, and the kind of its directory."""


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
        return _told_of_run(folder)
    for name, what in EXPERIMENTS.items():
        if (folder / name).is_file():
            told = read_json_object(folder / name)
            for long in ("cells", "points", "figures"):
                told.pop(long, None)
            for size in told["sizes"] if name == "scale.json" else ():
                del size["curve"]
            return {what: path, **told}
    if (folder / "config.json").is_file() or (not folder.exists() and path.count("/") == 1):
        return describe_model(path)
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.txt").is_file():
        return {"tokenizer": path, **_told_of_tokenizer(load_tokenizer(folder))}
    if not folder.exists():
        raise DataError(f"{path} does not exist: give a folder of prepared data, a run, a model or a tokenizer")
    raise DataError(f"{path} holds neither prepared data nor a run, a model or a tokenizer")


def describe_dataset(path: str, manifest: Manifest) -> dict[str, Any]:
    """Returns counts of prepared data and of what was skipped."""
    return {
        "data": path,
        "vocab_size": manifest.vocab_size,
        "fingerprint": manifest.fingerprint[:16],
        **{name: asdict(counts) for name, counts in manifest.splits.items()},
        "unknown": _share_of_unknown(Path(path)),
        "skipped": dict(manifest.skipped),
        "megabytes": round(sum(file.bytes for file in manifest.files.values()) / 1e6, 1),
    }


def _share_of_unknown(folder: Path) -> float:
    """Returns how much of the training tokens is [UNK], which a model can learn nothing from."""
    counts = open_shards(folder, verify=False).unigram_counts
    unknown = load_tokenizer(folder / "tokenizer").token_to_id("[UNK]")
    return 0.0 if unknown is None else round(float(counts[unknown] / max(1, counts.sum())), 4)


def is_finetuned(folder: Path) -> bool:
    """Returns whether a folder holds a fine-tuning run, by its configuration."""
    file = folder / "config.toml"
    return file.is_file() and "task" in parse_toml(file.read_text(encoding="utf-8"), str(file))


def _told_of_run(folder: Path) -> dict[str, Any]:
    text = (folder / "config.toml").read_text(encoding="utf-8")
    config: RunConfig | FinetuneConfig
    if is_finetuned(folder):
        config = from_toml(FinetuneConfig, text, source=str(folder), renamed=RENAMED_SETTINGS)
        of_config = {
            "task": config.task.name,
            "init": config.model,
            "train": list(config.train),
            "dev": list(config.dev),
        }
    else:
        config = read_run_config(text, source=str(folder))
        of_config = {"recipe": config.recipe}
    lines = read_jsonl(folder / "log.jsonl")
    last: dict[str, dict[str, Any]] = {
        kind: next((x for x in reversed(lines) if x["kind"] == kind), {}) for kind in ("train", "evaluation")
    }
    return {
        "run": str(folder),
        **of_config,
        "is_finished": (folder / "final" / "config.json").is_file(),
        "checkpoints": sorted(path.name for path in folder.glob("checkpoints/step-????????")),
        **last["train"],
        **{name: value for name, value in last["evaluation"].items() if name.startswith(("held_out", "dev_"))},
    }


def describe_model(path: str, model: Model | None = None) -> dict[str, Any]:
    """Describe the model of a directory, which is loaded unless it is passed: config, heads, parameters, task, tokenizer."""
    model = model or load_model(path)
    description: dict[str, Any] = {
        "model": str(find_model_folder(path)),
        **asdict(model.config),
        "heads": list(model.heads),
        "parameters": model.num_parameters(),
        "parameters_in_layers": model.num_parameters(embeddings=False),
    }
    if task := read_task_info(path):
        description |= {"task": task.get("name", task["head"]), "labels": task["labels"]}
    try:
        description["tokenizer"] = _told_of_tokenizer(load_tokenizer(find_model_folder(path)))
    except TokenizerError:
        description["tokenizer"] = None
    return description


def _told_of_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "lowercase": tokenizer.lowercase,
        "fingerprint": tokenizer.fingerprint[:16],
    }
