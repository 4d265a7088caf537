"""What fine-tuning starts from: a pre-trained body, a fresh head, and what of them learns, and how fast."""

from pathlib import Path
from typing import Any

import torch

from stemformer.data.symbols import SymbolMap
from stemformer.data.tokenizer import Tokenizer
from stemformer.errors import ConfigError, DataError
from stemformer.models.heads import initialise
from stemformer.models.model import Model
from stemformer.pretrained import load_with_tokenizer, read_task
from stemformer.pretraining import freeze
from stemformer.tasks.classify import Classify
from stemformer.tasks.task import Task, TaskConfig
from stemformer.training.compute import keep_freed_memory
from stemformer.training.distributed import distribute
from stemformer.training.loop import Setup
from stemformer.training.optim import make_optimizer
from stemformer.training.run import FinetuneConfig

__all__ = ["head_is_kept", "open_model", "put_on_device"]


def open_model(
    config: FinetuneConfig, task: Task, source: Path, *, is_begun: bool = False
) -> tuple[Model, Tokenizer, int]:
    """Returns a model that is ready for a task, its tokenizer, and how long an example may be.

    Args:
        config: Its seed draws the head, and what it names as fresh; what it names as frozen is.
        task: What the head is for; given its map of symbols to words, where it reads symbols.
        source: Folder of the model.
        is_begun: It is that of a run that goes on, in which nothing is drawn anew.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model, tokenizer = load_with_tokenizer(source, task.heads, num_labels=task.num_labels, generator=generator)
    if isinstance(task, Classify) and task.config.symbols is not None:
        task.symbols = _symbol_map(task.config, tokenizer, config.seed)
    if not is_begun:
        if read_task(source).get("head") == task.head and not head_is_kept(source, task):  # of other labels
            last = model.heads[task.head].classifier
            assert isinstance(last, torch.nn.Module)
            initialise(last, std=model.config.initializer_range, generator=generator)
        _make_fresh(model, config, generator)
    _freeze(model, config)
    return model, tokenizer, _max_length(task.config, model)


def head_is_kept(source: Path, task: Task) -> bool:
    """Returns whether a model has a head for the very same labels already, with which training goes on; else one is drawn."""
    there = read_task(source)
    return there.get("head") == task.head and there["labels"] == list(task.labels)


def put_on_device(model: Model, setup: Setup) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Moves a model to where it trains, and returns it with its loss, and its optimizer."""
    config, ranks = setup.config, setup.ranks
    assert isinstance(config, FinetuneConfig)
    keep_freed_memory(setup.device)
    model.to(setup.device)
    module = distribute(model, setup.objective, ranks, sharded=config.compute.shard)
    scale = _layer_scale(model, config.layer_decay)
    optimizer = make_optimizer(model, config.optimizer, precision=setup.precision, scale=scale)
    if setup.device.type == "cpu" and ranks.world_size == 1 and model.body.embeddings.word.weight.requires_grad:
        model.body.embeddings.word.keep_gradient()
    return module, optimizer


def _max_length(config: TaskConfig, model: Model) -> int:
    longest = model.config.max_position_embeddings
    if config.max_length is not None and config.max_length > longest:
        raise ConfigError(f"--max-length {config.max_length}: the model has {longest} positions: give at most that")
    if config.max_length is None and config.name == "qa":
        return min(longest, _QA_LENGTH)
    return config.max_length or longest


_QA_LENGTH = 384
"""Of a question with a window of its passage, as in the BERT paper: longer windows overlap more than they gain."""


def _symbol_map(config: TaskConfig, tokenizer: Tokenizer, seed: int) -> SymbolMap:
    """Returns the words that symbols are read as, each of them one id of the tokenizer.

    Raises:
        DataError: The vocabulary has too few words, or lacks a word of the file.
    """
    assert config.symbols is not None
    if config.symbols != "draw":
        given = SymbolMap.load(config.symbols)
        words = list(given.words.values())
        unknown = [w for w, ids in zip(words, tokenizer.encode_ids(words), strict=True) if tokenizer.unk_id in ids]
        if unknown:
            raise DataError(f"{config.symbols}: the model's vocabulary cannot spell {unknown[0]!r}: give another word")
        return given
    ids = tokenizer.encode_ids(tokenizer.tokens)
    whole = [token for i, token in enumerate(tokenizer.tokens) if len(ids[i]) == 1 and ids[i][0] == i]
    return SymbolMap.draw(
        config.alphabet or "",
        whole,
        size=config.symbol_size,
        stride=config.symbol_stride,
        others=True,
        seed=seed,
    )


def _make_fresh(model: Model, config: FinetuneConfig, generator: torch.Generator) -> None:
    """Draws what `config.fresh` names at random, as pre-training does."""
    std = model.config.initializer_range
    if config.fresh == "all":
        initialise(model, std=std, generator=generator)
    elif config.fresh == "embeddings":
        initialise(model.body.embeddings.word, std=std, generator=generator)


def _freeze(model: Model, config: FinetuneConfig) -> None:
    layers = model.body.layers
    if config.frozen_layers > len(layers):
        raise ConfigError(f"frozen_layers is {config.frozen_layers}: expected 0 to {len(layers)}, the model's layers")
    freeze(model, config)


def _layer_scale(model: Model, decay: float) -> Any:
    """Returns the factor on the learning rate of a parameter, by its name; None where all learn at the same."""
    if decay == 1:
        return None
    top = len(model.body.layers)

    def scale(name: str) -> float:
        parts = name.split(".")
        if "embeddings" in parts:
            return decay ** (top + 1)
        return decay ** (top - int(parts[parts.index("layers") + 1])) if "layers" in parts else 1.0

    return scale
