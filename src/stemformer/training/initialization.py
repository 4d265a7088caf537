"""What fine-tuning starts from: a pre-trained body, a fresh head, and what of them learns, and how fast."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer

from stemformer.data.labelled.symbol_map import SymbolMap
from stemformer.data.tokenization.tokenizer import END_OF_TEXT, Tokenizer
from stemformer.device import configure_allocator
from stemformer.errors import ConfigError, DataError
from stemformer.huggingface.load import attention_dropout, load_model, load_with_tokenizer, read_task
from stemformer.huggingface.vocab_transfer import transfer_vocabulary
from stemformer.models.heads import init_output_bias_from_unigrams, initialize_weights
from stemformer.models.model import Model, make_model
from stemformer.objectives.objective import OBJECTIVES, objective_name
from stemformer.progress import Progress
from stemformer.tasks.sequence_classification import Classify
from stemformer.tasks.task import Task, TaskConfig
from stemformer.training.config import FinetuneConfig, GptRunConfig, RunConfig
from stemformer.training.distributed import distribute
from stemformer.training.loop import TrainingContext
from stemformer.training.optimizer import make_optimizer


def load_initial_model(
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
            initialize_weights(last, std=model.config.initializer_range, generator=generator)
        _make_fresh(model, config, generator)
    _freeze(model, config)
    return model, tokenizer, _max_length(task.config, model)


def head_is_kept(source: Path, task: Task) -> bool:
    """Returns whether a model has a head for the very same labels already, with which training goes on; else one is drawn."""
    there = read_task(source)
    return there.get("head") == task.head and there["labels"] == list(task.labels)


def put_on_device(model: Model, setup: TrainingContext) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Moves a model to where it trains, and returns it with its loss, and its optimizer."""
    config, ranks = setup.config, setup.ranks
    assert isinstance(config, FinetuneConfig)
    configure_allocator(setup.device)
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
        initialize_weights(model, std=std, generator=generator)
    elif config.fresh == "embeddings":
        initialize_weights(model.body.embeddings.word, std=std, generator=generator)


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


def starting_model(
    config: RunConfig,
    tokenizer: Tokenizer,
    progress: Progress,
    *,
    checkpoint: Path | None = None,
    counts: Integer[np.ndarray, "V"] | None = None,
) -> Model:
    """Returns the model that training starts from: a checkpoint's, a given one brought to the data's vocabulary, or a fresh one.

    Args:
        config: Its `init` names the given one; its frozen layers need no gradient.
        tokenizer: Of the data.
        progress: Told what became of the vocabulary.
        checkpoint: Of the run that goes on; stronger than `init`.
        counts: How often each id stands in the training text; a fresh model's first guess.
    """
    heads = list(OBJECTIVES[objective_name(config.objective)].heads)
    source = checkpoint or config.init
    if source is None:
        generator = torch.Generator().manual_seed(config.seed)
        model = make_model(sized_for(config, tokenizer), heads, generator=generator)
        if counts is not None and "masked_lm" in heads:
            init_output_bias_from_unigrams(model.heads["masked_lm"], counts)
        return model
    if checkpoint is not None:
        model = load_model(checkpoint, heads)
    else:
        model, old = load_with_tokenizer(source, heads)
        if attention_dropout(source):
            warnings.warn(
                "attention probabilities are trained without dropout here, whatever the model was trained with",
                stacklevel=2,
            )
        is_other = old.tokens != tokenizer.tokens or model.config.vocab_size != tokenizer.vocab_size
        if is_other and isinstance(config, GptRunConfig):
            raise ConfigError(
                f"the data has another vocabulary than {source}: prepare it with the tokenizer of that model"
            )
        if is_other:
            generator = torch.Generator().manual_seed(config.seed)
            told = transfer_vocabulary(model, old, tokenizer, generator=generator)
            progress.say(f"vocabulary of {source} brought to that of the data: {told}")
        if config.frozen_layers > model.config.num_hidden_layers:
            raise ConfigError(
                f"frozen_layers is {config.frozen_layers}: expected 0 to {model.config.num_hidden_layers}, the layers of {source}"
            )
        if config.frozen_layers or config.frozen_embeddings:
            progress.say(_told_of_frozen(config))
    freeze(model, config)
    return model


def sized_for(config: RunConfig, tokenizer: Tokenizer) -> Any:
    """Returns the sizes of a fresh model for the tokenizer of the data."""
    if isinstance(config, GptRunConfig):
        return replace(config.model, vocab_size=tokenizer.vocab_size, eos_token_id=end_of_text_id(tokenizer))
    return replace(config.model, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """Returns the id that ends a document: of a WordPiece that of [SEP]."""
    found = next((i for name in (END_OF_TEXT, "[SEP]") if (i := tokenizer.id_of(name)) is not None), None)
    if found is None:
        raise ConfigError(
            f"the vocabulary of the data has no token that ends a document ({END_OF_TEXT} or [SEP]): train one here"
        )
    return found


def check_same_sizes(config: RunConfig, model: Model, settings: Sequence[str]) -> None:
    """Refuses `--set model.x=...` where the model that training starts from has another value, and keeps it."""
    for key in (setting.partition("=")[0].strip() for setting in settings):
        name = key.removeprefix("model.")
        if key.startswith("model.") and getattr(config.model, name) != getattr(model.config, name):
            raise ConfigError(
                f"{key} is {getattr(config.model, name)}, the model that training starts from has "
                f"{getattr(model.config, name)}: leave the setting or --init out"
            )


def freeze(model: Model, config: RunConfig | FinetuneConfig) -> None:
    """Lets the parts of a model that a configuration names as frozen need no gradient."""
    embeddings = [model.body.embeddings] if config.frozen_embeddings else []
    for part in (*embeddings, *model.body.layers[: config.frozen_layers]):
        part.requires_grad_(False)


def _told_of_frozen(config: RunConfig) -> str:
    parts = ["embeddings"] if config.frozen_embeddings else []
    parts += [f"the lowest {config.frozen_layers} layers"] if config.frozen_layers else []
    return f"{' and '.join(parts)} stay as they are"
