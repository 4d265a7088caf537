"""What the command line and Python users call: joins the parts, holds no mathematics."""

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import torch

from stemformer.config import differences, from_toml, merge_toml, to_toml, with_settings
from stemformer.data.corpus import find_files, read_documents, total_bytes
from stemformer.data.manifest import check_tokenizer
from stemformer.data.shards import open_shards, read_manifest, write_shards
from stemformer.data.tokenizer import Tokenizer, load_tokenizer, train_wordpiece
from stemformer.data.windows import make_rows
from stemformer.errors import CheckpointError, ConfigError, DataError, TokenizerError
from stemformer.evaluation.evaluate import make_evaluation
from stemformer.evaluation.fill import fill_masks, pseudo_log_likelihood
from stemformer.models.model import Model, make_model
from stemformer.objectives.masked import MaskedLm, SpecialIds
from stemformer.pretrained import attention_dropout, find_folder, load_model, load_with_tokenizer, save_model
from stemformer.progress import Progress, Silent
from stemformer.recipes import find_recipe
from stemformer.training.checkpoint import environment, load_checkpoint, newest_checkpoint, write_folder
from stemformer.training.compute import (
    autocast,
    choose_device,
    choose_precision,
    compile_blocks,
    matmul_rate,
)
from stemformer.training.log import StepSums, read_log
from stemformer.training.loop import Position, Setup, train
from stemformer.training.optim import make_optimizer
from stemformer.training.run import MAY_CHANGE, RunConfig, num_steps_of

__all__ = ["fill", "inspect", "load", "prepare", "pretrain", "quickstart", "train_tokenizer"]


def load(path: str) -> tuple[Model, Tokenizer]:
    """Returns a model, in evaluation mode, and its tokenizer.

    Args:
        path: A Hugging Face folder, a run folder, or a hub id.

    Raises:
        CheckpointError: See `pretrained.load_model`.
    """
    return load_with_tokenizer(path)


def train_tokenizer(
    files: Sequence[str],
    *,
    out: str,
    kind: str = "wordpiece",
    vocab_size: int = 30522,
    lowercase: bool = False,
    documents: str = "auto",
    column: str = "text",
    errors: str = "strict",
    max_characters: int = 100_000_000,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a tokenizer on text files, saves it, and returns what came of it.

    Args:
        files: Text files, folders, globs or `hub:` data sets.
        out: Folder of the tokenizer.
        kind: `wordpiece`.
        vocab_size: Ids, special ones included.
        lowercase: Fold case and strip accents.
        documents: Where a document of plain text ends; see `data.corpus.read_documents`.
        column: The text column of tables.
        errors: `strict` or `replace`, for bytes that are not UTF-8.
        max_characters: Text to learn from; more is sampled down, so memory stays bounded.
        seed: Of the sample.
        overwrite: Replace what the folder holds.
        progress: Told how far it is.

    Raises:
        ConfigError: A kind that does not exist, or a folder that is not empty.
        DataError: Files that cannot be read.
        TokenizerError: Too little text, or too small a vocabulary.
    """
    progress = progress or Silent()
    if vocab_size < 10:
        raise ConfigError(
            f"--vocab-size {vocab_size}: expected at least 10, for five special tokens and some characters"
        )
    if kind != "wordpiece":
        raise ConfigError(f"--kind {kind}: only wordpiece can be trained; a byte-level BPE can be loaded")
    folder = _free_folder(out, overwrite=overwrite)
    _refuse_inside(folder, files)
    progress.start("reading text", total=total_bytes(files), unit="bytes")
    skipped: Counter[str] = Counter()
    texts = (
        document.text
        for document in read_documents(
            files, documents=documents, column=column, errors=errors, on_bytes=progress.advance, skipped=skipped
        )
    )
    tokenizer = train_wordpiece(
        texts, vocab_size=vocab_size, lowercase=lowercase, seed=seed, max_characters=max_characters
    )
    write_folder(folder, tokenizer.save)
    progress.finish()
    if tokenizer.vocab_size < vocab_size:
        progress.say(f"the text gives {tokenizer.vocab_size:,} ids, fewer than the {vocab_size:,} asked for")
    return {
        "tokenizer": str(folder),
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        "lowercase": lowercase,
        "fingerprint": tokenizer.fingerprint[:16],
        "skipped": dict(skipped),
    }


def prepare(
    files: Sequence[str],
    *,
    tokenizer: str,
    out: str,
    held_out: float = 0.01,
    documents: str = "auto",
    column: str = "text",
    errors: str = "strict",
    words: str = "tokenizer",
    num_workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Turns text files into shards, and returns counts of what is in them and of what was skipped.

    Args:
        files: Text files, folders, globs or `hub:` data sets.
        tokenizer: Its folder.
        out: Folder of the shards.
        held_out: Share of documents set aside, chosen by a hash of their bytes.
        documents: As for `train_tokenizer`.
        column: As for `train_tokenizer`.
        errors: As for `train_tokenizer`.
        words: `jieba` finds the words of Chinese, for whole-word and span masking; `tokenizer` takes its characters.
        num_workers: Processes; None takes one a core. The bytes written do not depend on it.
        overwrite: Replace what the folder holds.
        resume: Go on where an interrupted run stopped.
        progress: Told how far it is.

    Raises:
        DataError: Files that cannot be read, or too little text for a held-out split.
        TokenizerError: The tokenizer cannot be read.
    """
    progress = progress or Silent()
    opened = load_tokenizer(tokenizer)
    total = total_bytes(files)
    folder = Path(out) if resume else _free_folder(out, overwrite=overwrite)
    _refuse_inside(folder, [tokenizer, *files])
    if overwrite and not resume:
        shutil.rmtree(folder, ignore_errors=True)
    progress.start("preparing", total=total, unit="bytes")
    manifest = write_shards(
        files,
        opened,
        folder,
        held_out=held_out,
        documents=documents,
        column=column,
        errors=errors,
        words=words,
        num_workers=num_workers,
        resume=resume,
        on_bytes=progress.advance,
    )
    progress.finish()
    told = _told_of_data(out, manifest)
    if told["unknown"] > 0.05:
        progress.say(
            f"{told['unknown']:.0%} of the tokens are [UNK]: this tokenizer was not made for such text (or its words are not parted by "
            "spaces); train one on these files"
        )
    return told


def pretrain(
    recipe: str | None = None,
    *,
    data: str,
    out: str,
    init: str | None = None,
    config: str | None = None,
    settings: Sequence[str] = (),
    steps: int | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
    time: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    compile: bool | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pre-trains a model on prepared data into a run folder, and returns how it ended.

    Args:
        recipe: A name of `recipes.RECIPES`; a resumed run has its own already.
        data: What `prepare` wrote.
        out: The run folder.
        init: A model to start from; its sizes replace the recipe's.
        config: TOML file laid over the recipe.
        settings: `key=value` laid over both.
        steps: Budget in optimizer steps.
        tokens: Budget in tokens.
        epochs: Budget in passes over the data.
        time: Budget on the clock; not there yet.
        seed: Of everything that is random.
        device: As in `training.run.ComputeConfig`, like the next three.
        precision: Number format.
        threads: Processor threads.
        compile: Compile the blocks.
        resume: Go on from the newest whole checkpoint in `out`.
        overwrite: Replace what `out` holds.
        progress: Told how far it is.

    Raises:
        StemformerError: Settings, data, tokenizer or checkpoint that do not fit; a loss that is not finite.
    """
    progress = progress or Silent()
    if time is not None:
        raise ConfigError("--time is not there yet: give --steps, --tokens or --epochs")
    folder = Path(out) if resume else _free_folder(out, overwrite=overwrite)
    newest, faults, stored = _find_run(folder, recipe) if resume else (None, [], None)
    given = _with_options(
        stored or find_recipe(recipe or ""), config, settings, steps=steps, tokens=tokens, epochs=epochs, seed=seed
    )
    compute: dict[str, Any] = {"device": device, "precision": precision, "threads": threads, "compile": compile}
    given = replace(given, compute=replace(given.compute, **{k: v for k, v in compute.items() if v is not None}))
    given = given if init is None else replace(given, init=init)
    _refuse_inside(folder, [path for path in (data, config, init) if path and Path(path).exists()])
    if stored is not None:
        _refuse_changes(stored, given)
        for fault in faults:
            progress.say(f"passed over {fault}")
            damaged = folder / "checkpoints" / fault.partition(":")[0]
            damaged.rename(damaged.with_name(damaged.name + ".damaged"))  # out of the way of the steps that come again

    progress.start("opening the data")
    manifest = read_manifest(data)
    tokenizer = load_tokenizer(Path(data) / "tokenizer")
    check_tokenizer(manifest, tokenizer)
    model = _initial_model(given, tokenizer, newest or given.init)
    _refuse_other_sizes(given, model, settings)
    resolved = replace(given, model=model.config)

    torch_device = choose_device(resolved.compute.device)
    chosen_precision = choose_precision(resolved.compute.precision, torch_device)
    if resolved.compute.threads:
        torch.set_num_threads(resolved.compute.threads)
    setup = _setup(resolved, data, tokenizer, torch_device, chosen_precision, folder)

    if stored is None:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch_device)
    optimizer = make_optimizer(model, resolved.optimizer)
    at = _go_on(newest, model, optimizer, setup, progress) if newest is not None else Position()
    if at.step < setup.num_steps:
        shutil.rmtree(folder / "final", ignore_errors=True)  # of a smaller budget; a checkpoint holds the same weights
    temporary = folder / "config.toml.tmp"
    temporary.write_text(to_toml(resolved), encoding="utf-8")
    temporary.replace(folder / "config.toml")
    _tell_start(setup, model, progress)
    if setup.environment["compile"]:
        compile_blocks(model)
    figures = train(model, optimizer, setup, at, progress=progress)
    write_folder(folder / "final", lambda temporary: save_model(model, temporary, tokenizer))
    progress.finish()
    return {
        "run": str(folder),
        "model": str(folder / "final"),
        "steps": at.step,
        "tokens": at.tokens,
        "seconds": round(at.seconds, 1),
        **{name: round(value, 4) for name, value in figures.items()},
    }


def fill(
    text: Sequence[str],
    *,
    model: str,
    top_k: int = 5,
    among: Sequence[str] | None = None,
    score: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Returns the likeliest words for each `[MASK]`, or with `score` how likely each text is as a whole.

    Args:
        text: Texts.
        model: A Hugging Face folder, a run folder, or a hub id.
        top_k: Words a blank.
        among: Words to choose from.
        score: Pseudo-log-likelihoods instead.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32` or `bf16`.
        threads: Processor threads.
    """
    if not text:
        raise DataError("no text was given: give sentences with [MASK] in them")
    if score and (among is not None or any("[MASK]" in t for t in text)):
        raise ConfigError(
            "--score rates whole sentences: leave out --among, and put a word in the place of each [MASK]"
        )
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}: expected at least 1")
    if threads:
        torch.set_num_threads(threads)
    torch_device = choose_device(device)
    opened, tokenizer = load_with_tokenizer(model)
    if "masked_lm" not in opened.heads:
        raise CheckpointError(
            f"{model} has no masked-LM head, so it cannot fill blanks: give a model pre-trained with masked words"
        )
    opened.to(torch_device)
    with autocast(torch_device, choose_precision(precision, torch_device)):
        if score:
            return [asdict(result) for result in pseudo_log_likelihood(text, opened, tokenizer)]
        found = fill_masks(text, opened, tokenizer, top_k=top_k, among=among)
    return [
        {"text": f.text, "masks": [{"candidates": [asdict(c) for c in mask]} for mask in f.masks], "filled": f.filled}
        for f in found
    ]


def inspect(path: str) -> dict[str, Any]:
    """Returns what a folder holds: prepared data, a run, a model or a tokenizer.

    Args:
        path: The folder.

    Raises:
        DataError: It holds none of these.
    """
    folder = Path(path)
    if (folder / "manifest.json").is_file() or (folder / "progress.jsonl").is_file():
        return _told_of_data(path, read_manifest(folder))
    if (folder / "log.jsonl").is_file():
        return _told_of_run(folder)
    if (folder / "config.json").is_file() or (not folder.exists() and path.count("/") == 1):
        return _told_of_model(path)
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.txt").is_file():
        return {"tokenizer": path, **_told_of_tokenizer(load_tokenizer(folder))}
    if not folder.exists():
        raise DataError(f"{path} does not exist: give a folder of prepared data, a run, a model or a tokenizer")
    raise DataError(f"{path} holds neither prepared data nor a run, a model or a tokenizer")


def quickstart(
    *,
    out: str = "runs/quickstart",
    overwrite: bool = False,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Takes the embedded English texts all the way: tokenizer, shards, a very small BERT, and blanks filled with it.

    Args:
        out: Folder of everything that is made.
        overwrite: Replace what it holds.
        seed: Of everything that is random.
        device: As for `pretrain`, like the next two.
        precision: Number format.
        threads: Processor threads.
        progress: Told how far it is.
    """
    progress = progress or Silent()
    folder = _free_folder(out, overwrite=overwrite)
    shutil.rmtree(folder, ignore_errors=True)
    texts = [str(package_files("stemformer") / "samples" / "english")]
    tokenizer, data, run = (str(folder / name) for name in ("tokenizer", "data", "run"))
    train_tokenizer(texts, out=tokenizer, vocab_size=4000, lowercase=True, documents="blank", progress=progress)
    prepare(texts, tokenizer=tokenizer, out=data, held_out=0.05, documents="blank", progress=progress)
    ended = pretrain(
        "bert_tiny",
        data=data,
        out=run,
        steps=800,
        seed=seed,
        device=device,
        precision=precision,
        threads=threads,
        progress=progress,
    )
    blanks = ["He looked at the [MASK] and said nothing.", "I have [MASK] seen him before."]
    filled = fill(blanks, model=run, top_k=3)
    return {**ended, "fills": [f"{f['text']} -> {f['filled']}" for f in filled]}


# -------------------------------------------------------------------------------------------------------------------- parts of pretrain


def _find_run(folder: Path, recipe: str | None) -> tuple[Path, list[str], RunConfig]:
    """Returns the newest whole checkpoint of the run that is to be resumed, what was wrong with newer ones, and its configuration."""
    if not (folder / "config.toml").is_file():
        raise CheckpointError(f"{folder} holds no run to resume: leave out --resume to start one")
    newest, faults = newest_checkpoint(folder / "checkpoints")
    file = newest / "config.toml"  # its bytes are vouched for by the checkpoint
    stored = from_toml(RunConfig, file.read_text(encoding="utf-8"), source=str(file))
    if recipe not in (None, stored.recipe):
        raise CheckpointError(f"the run in {folder} is a {stored.recipe}, not a {recipe}: resume it without --recipe")
    return newest, faults, stored


def _with_options(
    config: RunConfig, file: str | None, settings: Sequence[str], *, seed: int | None, **budget: float | None
) -> RunConfig:
    """Returns the configuration with the file, the settings and the options of the command line laid over it, in this order."""
    if file is not None:
        if not Path(file).is_file():
            raise ConfigError(f"--config {file}: there is no such file")
        config = merge_toml(config, Path(file).read_text(encoding="utf-8"), source=file)
    config = with_settings(config, settings)
    chosen = {name: value for name, value in budget.items() if value is not None}
    if len(chosen) > 1:
        raise ConfigError(f"two budgets were given ({', '.join('--' + name for name in chosen)}): give one")
    if chosen:
        config = replace(config, budget=type(config.budget)(**chosen))  # type: ignore[arg-type]
    return config if seed is None else replace(config, seed=seed)


def _initial_model(config: RunConfig, tokenizer: Tokenizer, init: str | Path | None) -> Model:
    """Returns the model that training starts from: the folder's, or a fresh one of the tokenizer's vocabulary."""
    heads = [MaskedLm.head]
    if init is None:
        generator = torch.Generator().manual_seed(config.seed)
        sizes = replace(config.model, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
        return make_model(sizes, heads, generator=generator)
    model = load_model(init, heads)
    if attention_dropout(init):
        warnings.warn(
            "attention probabilities are trained without dropout here, whatever the model was trained with",
            stacklevel=3,
        )
    if model.config.vocab_size != tokenizer.vocab_size:
        raise TokenizerError(
            f"the data's tokenizer has {tokenizer.vocab_size:,} ids, {init} has {model.config.vocab_size:,}: "
            "prepare the text with the tokenizer of that model"
        )
    return model


def _refuse_other_sizes(config: RunConfig, model: Model, settings: Sequence[str]) -> None:
    """Refuses `--set model.x=...` where the model that training starts from has another value, and keeps it."""
    for key in (setting.partition("=")[0].strip() for setting in settings):
        name = key.removeprefix("model.")
        if key.startswith("model.") and getattr(config.model, name) != getattr(model.config, name):
            raise ConfigError(
                f"{key} is {getattr(config.model, name)}, the model that training starts from has "
                f"{getattr(model.config, name)}: leave the setting or --init out"
            )


def _setup(
    config: RunConfig, data: str, tokenizer: Tokenizer, device: torch.device, precision: str, folder: Path
) -> Setup:
    special = SpecialIds(cls=tokenizer.cls_id, sep=tokenizer.sep_id, mask=tokenizer.mask_id)
    objective = MaskedLm(config.objective, special=special, vocab_size=tokenizer.vocab_size)
    rows = make_rows(open_shards(data), row_length=config.batch.row_length)
    if len(rows) < config.batch.rows:
        raise DataError(
            f"{data} holds {rows.shards.num_tokens:,} tokens, which is {len(rows)} rows of {config.batch.row_length}; a batch has "
            f"{config.batch.rows}: add text or lower batch.rows with --set batch.rows={max(1, len(rows) // 4)}"
        )
    evaluate: Callable[[Model], dict[str, float]] = lambda model: {}  # noqa: E731
    if "held_out" in rows.shards.manifest.splits:
        held_out = make_rows(open_shards(data, "held_out"), row_length=config.batch.row_length)
        evaluate = make_evaluation(held_out, objective, num_rows=config.evaluation.rows)
    num_steps = num_steps_of(config, num_examples=len(rows), num_tokens=rows.num_tokens)
    compiled = config.compute.compile if config.compute.compile is not None else device.type == "cuda"
    return Setup(
        config=config,
        num_steps=num_steps,
        objective=objective,
        rows=rows,
        evaluate=evaluate,
        tokenizer=tokenizer,
        device=device,
        precision=precision,
        environment=environment(device, precision, compiled),
        peak=matmul_rate(device, precision),
        folder=folder,
    )


def _refuse_changes(stored: RunConfig, now: RunConfig) -> None:
    changed = [(k, a, b) for k, a, b in differences(stored, now) if not k.startswith(MAY_CHANGE)]
    if changed:
        told = "; ".join(f"{key} was {before}, is now {after}" for key, before, after in changed)
        raise CheckpointError(
            f"this run cannot go on with other settings ({told}): leave them as they were, or start a new run"
        )


def _go_on(path: Path, model: Model, optimizer: torch.optim.Optimizer, setup: Setup, progress: Progress) -> Position:
    """Fills model and optimizer from a checkpoint, and returns where it stands."""
    told = load_checkpoint(path, model, optimizer)
    if told.data_fingerprint != setup.rows.shards.fingerprint:
        raise CheckpointError(
            f"{path} was trained on other data (fingerprint {told.data_fingerprint[:12]}, now "
            f"{setup.rows.shards.fingerprint[:12]}): give the same --data, or start a new run"
        )
    for key, value in setup.environment.items():
        if told.environment.get(key) != value:
            progress.say(f"{key} was {told.environment.get(key)}, is now {value}: the run goes on, but not bit for bit")
    progress.say(f"goes on from {path}, step {told.step} of {setup.num_steps}")
    if told.step > setup.num_steps:
        raise ConfigError(
            f"{path} stands at step {told.step}, the budget ends at {setup.num_steps}: give a larger budget"
        )
    return Position(told.step, told.tokens, told.seconds, StepSums(told.sums))


def _tell_start(setup: Setup, model: Model, progress: Progress) -> None:
    config, rows = setup.config, setup.rows
    passes = setup.num_steps * config.batch.rows / len(rows)
    progress.say(
        f"{config.recipe}: {model.num_parameters():,} parameters, {model.num_parameters(embeddings=False):,} of them in "
        f"{config.model.num_hidden_layers} layers; {setup.device}, {setup.precision}"
        + (", blocks compiled" if setup.environment["compile"] else "")
    )
    progress.say(
        f"{rows.num_tokens:,} tokens, special ones included, in {len(rows):,} rows of {config.batch.row_length} ({rows.fill:.1%} filled); "
        f"{setup.num_steps:,} steps of {config.batch.rows} rows, {passes:.2f} passes"
    )


# ---------------------------------------------------------------------------------------------------------------------- what is told


def _free_folder(path: str, *, overwrite: bool) -> Path:
    """Returns a folder that may be written to; what it holds is left there until there is something to put in its place.

    Raises:
        ConfigError: It is not empty, and `overwrite` is False.
    """
    folder = Path(path)
    if folder.is_file():
        raise ConfigError(f"{path} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ConfigError(f"{path} is not empty: give another --out, or --overwrite to replace what it holds")
    return folder


def _refuse_inside(folder: Path, inputs: Sequence[str]) -> None:
    """Refuses an output folder that holds what is read, since --overwrite would delete it."""
    local = [Path(given).expanduser() for given in inputs if not given.startswith("hub:")]
    patterns = [path for path in local if not path.exists()]
    for path in [*local, *(find_files(patterns) if patterns else [])]:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(f"{path} lies in the output folder {folder}: give another --out")


def _told_of_data(path: str, manifest: Any) -> dict[str, Any]:
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
    unknown = load_tokenizer(folder / "tokenizer").id_of("[UNK]")
    return 0.0 if unknown is None else round(float(counts[unknown] / max(1, counts.sum())), 4)


def _told_of_run(folder: Path) -> dict[str, Any]:
    config = from_toml(RunConfig, (folder / "config.toml").read_text(encoding="utf-8"), source=str(folder))
    lines = read_log(folder / "log.jsonl")
    last: dict[str, dict[str, Any]] = {
        kind: next((x for x in reversed(lines) if x["kind"] == kind), {}) for kind in ("train", "evaluation")
    }
    return {
        "run": str(folder),
        "recipe": config.recipe,
        "is_finished": (folder / "final" / "config.json").is_file(),
        "checkpoints": sorted(path.name for path in folder.glob("checkpoints/step-????????")),
        **last["train"],
        **{name: value for name, value in last["evaluation"].items() if name.startswith("held_out")},
    }


def _told_of_model(path: str) -> dict[str, Any]:
    model = load_model(path)
    told: dict[str, Any] = {
        "model": str(find_folder(path)),
        **asdict(model.config),
        "heads": list(model.heads),
        "parameters": model.num_parameters(),
        "parameters_in_layers": model.num_parameters(embeddings=False),
    }
    try:
        told["tokenizer"] = _told_of_tokenizer(load_tokenizer(find_folder(path)))
    except TokenizerError:
        told["tokenizer"] = None
    return told


def _told_of_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "lowercase": tokenizer.lowercase,
        "fingerprint": tokenizer.fingerprint[:16],
    }
