"""Initial weights, frozen parameters and layer-wise learning rates."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stemformer.data.labelled.symbol_map import SymbolMap
from stemformer.data.shards.reader import Shards
from stemformer.data.tokenization.tokenizer import END_OF_TEXT, Tokenizer
from stemformer.device import configure_allocator
from stemformer.errors import ConfigError, DataError
from stemformer.huggingface.load import load_model, load_model_and_tokenizer, read_attention_dropout, read_task_info
from stemformer.huggingface.vocab_transfer import transfer_vocabulary
from stemformer.models.embeddings import KeptGradients
from stemformer.models.heads import can_shift_scores, init_output_bias_from_unigrams, rescale_scores
from stemformer.models.layers import initialize_weights
from stemformer.models.model import Model, make_model
from stemformer.objectives.causal_lm import CausalLmConfig
from stemformer.objectives.masked_lm import SpecialIds
from stemformer.objectives.objective import OBJECTIVES, Objective, lookup_only_weights
from stemformer.progress import Progress
from stemformer.tasks.task import Task, TaskConfig
from stemformer.training.config import FinetuneConfig, RunConfig
from stemformer.training.context import TrainingContext
from stemformer.training.cooccurrence import init_from_nearby_tokens, init_from_next_tokens
from stemformer.training.distributed import distribute
from stemformer.training.optimizer import make_optimizer

# Default length of a question with a window of its passage, as in the BERT paper.
_MAX_QA_LENGTH = 384
# Mean of scores, in standard deviations, that a head without bias still learns soon.
_MAX_OFFSET = 3


def make_initial_model(
    config: RunConfig,
    tokenizer: Tokenizer,
    progress: Progress,
    *,
    checkpoint: Path | None = None,
    shards: Shards | None = None,
) -> Model:
    """Return the initial model of pre-training: a checkpoint, the `init` model, or a new one.

    Counts of the training text in `shards` give a new model its word embeddings, if the config says so, and the
    output bias of its masked-LM head.
    """
    heads = list(OBJECTIVES[config.objective.name].heads)
    if checkpoint is not None:
        model = load_model(checkpoint, heads)
        _freeze(model, config, checkpoint)
        return model
    if config.init is not None:
        return _load_init_model(config, config.init, heads, tokenizer, progress)
    generator = torch.Generator().manual_seed(config.seed)
    model_config = resolve_model_config(config, tokenizer)
    model = make_model(model_config, heads, tied=config.ties_embeddings, generator=generator)
    model.max_length = config.batch.sequence_length
    if shards is not None and model.lm_head.bias is not None:
        init_output_bias_from_unigrams(model.lm_head, shards.unigram_counts)
    if shards is not None and config.embedding_init == "cooccurrence":
        progress.start("counting tokens that occur together")
        begin = time.perf_counter()
        word, objective = model.body.embeddings.word, config.objective
        if isinstance(objective, CausalLmConfig):
            assert model.lm_head.decoder is not None
            ends: dict[str, Any] = {"eos": model_config.eos_token_id, "is_backward": objective.direction == "backward"}
            init_from_next_tokens(word, model.lm_head.decoder, shards, generator=generator, **ends)
        else:
            init_from_nearby_tokens(word, shards, generator=generator)
        progress.say(f"embeddings from counts of tokens that occur together: {time.perf_counter() - begin:.1f} seconds")
    return model


def _load_init_model(
    config: RunConfig, source: str, heads: list[str], tokenizer: Tokenizer, progress: Progress
) -> Model:
    model, old_tokenizer = load_model_and_tokenizer(source, heads)
    if read_attention_dropout(source):
        message = "Attention probabilities are trained without dropout here, although the model was trained with it."
        warnings.warn(message, stacklevel=3)
    if old_tokenizer.tokens != tokenizer.tokens or model.config.vocab_size != tokenizer.vocab_size:
        if "masked_lm" not in heads:
            problem = f"The data has another vocabulary than {source}."
            raise ConfigError(f"{problem} Prepare it with the tokenizer of that model.")
        generator = torch.Generator().manual_seed(config.seed)
        stats = transfer_vocabulary(model, old_tokenizer, tokenizer, generator=generator)
        progress.say(f"Vocabulary of {source} converted to that of the data: {stats}")
    _freeze(model, config, source)
    frozen = ["embeddings"] if config.frozen_embeddings else []
    frozen += [f"lowest {config.frozen_layers} layers"] if config.frozen_layers else []
    if frozen:
        progress.say(f"Frozen: {', '.join(frozen)}")
    return model


def resolve_model_config(config: RunConfig, tokenizer: Tokenizer) -> Any:
    """Return the configuration of a new model for the tokenizer of the data."""
    if hasattr(config.model, "decoder_start_token_id"):
        # As BART's: [CLS] opens a text, [SEP] ends it and starts the decoder.
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        ids = {"bos_token_id": cls, "eos_token_id": sep, "decoder_start_token_id": sep}
        return replace(with_special_ids(config.model, tokenizer), **ids)
    if config.model.eos_token_id is not None:
        return replace(config.model, vocab_size=tokenizer.vocab_size, eos_token_id=end_of_text_id(tokenizer))
    return with_special_ids(config.model, tokenizer)


def with_special_ids(config: Any, tokenizer: Tokenizer) -> Any:
    """Return the config of an encoder with the vocabulary size and special tokens of a tokenizer."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "mask_token_id") if hasattr(config, name)}
    return replace(config, vocab_size=tokenizer.vocab_size, **ids)


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """Return the id that ends a document; for WordPiece, that of [SEP]."""
    for token in (END_OF_TEXT, "[SEP]"):
        if (token_id := tokenizer.token_to_id(token)) is not None:
            return token_id
    problem = f"The vocabulary of the data has no token that ends a document ({END_OF_TEXT} or [SEP])."
    raise ConfigError(f"{problem} Train one with train-tokenizer.")


def special_ids(config: RunConfig, tokenizer: Tokenizer) -> SpecialIds:
    """Return the special ids of the objective, by the tokenizer of the data."""
    if config.objective.name == "causal":
        # That of the initial model, whose vocabulary may have another name for it.
        eos = config.model.eos_token_id if config.init else None
        return SpecialIds(eos=end_of_text_id(tokenizer) if eos is None else eos)
    others = tuple(sorted(tokenizer.special_ids))
    ids = {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id, "mask": tokenizer.mask_token_id}
    return SpecialIds(**ids, others=others, sentinels=tokenizer.sentinel_ids)


def check_model_settings(config: RunConfig, model: Model, settings: Sequence[str]) -> None:
    """Check that `model.x=...` settings agree with the model that training starts from."""
    for key in (setting.partition("=")[0].strip() for setting in settings):
        name = key.removeprefix("model.")
        if key.startswith("model.") and (ours := getattr(config.model, name)) != (its := getattr(model.config, name)):
            problem = f"{key} is {ours}, but the model that training starts from has {its}."
            raise ConfigError(f"{problem} Remove the setting or --init.")


def load_initial_model(
    config: FinetuneConfig, task: Task, source: Path, *, is_resumed: bool = False
) -> tuple[Model, Tokenizer, int]:
    """Return a model for fine-tuning, its tokenizer, and the maximum length of an example.

    Sets the symbol map of a task that reads symbols. A checkpoint (`is_resumed`) keeps all weights.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model, tokenizer = load_model_and_tokenizer(source, task.heads, num_labels=task.num_labels, generator=generator)
    if task.config.symbols is not None:
        task.symbols = make_symbol_map(task.config, tokenizer, config.seed)
    if not is_resumed:
        # A head for other labels keeps its hidden layers, but gets a new output layer.
        is_other_head = read_task_info(source).get("head") == task.head and not has_matching_head(source, task)
        modules: list[Any] = [model.heads[task.head].classifier] if is_other_head else []
        modules += {"nothing": [], "embeddings": [model.body.embeddings.word], "all": [model]}[config.reinitialize]
        for module in modules:
            initialize_weights(module, std=model.config.initializer_range, generator=generator)
    if task.is_standardized and not can_shift_scores(model.state_dict()):
        task.target_offset = 0.0
        _warn_far_from_zero(model, task)
    if task.is_standardized and config.reinitialize != "all" and (is_resumed or has_matching_head(source, task)):
        assert task.targets is not None
        mean, std = task.targets
        offset = mean if task.target_offset is None else task.target_offset
        model.load_state_dict(rescale_scores(model.state_dict(), scale=1 / std, shift=-offset / std), strict=False)
    _freeze(model, config, source)
    if config.dropout is not None:
        model.set_dropout(config.dropout)
    model.max_length = model.check_max_length(task.config.max_length)
    if task.config.max_length is None and task.config.name == "qa":
        model.max_length = min(model.max_length, _MAX_QA_LENGTH)
    return model, tokenizer, model.max_length


def _warn_far_from_zero(model: Model, task: Task) -> None:
    """Warn that a head without bias learns scores slowly whose mean is far from zero."""
    assert task.targets is not None
    mean, std = task.targets
    if abs(mean) > _MAX_OFFSET * std:
        problem = f"The scores have mean {mean:.4g} and standard deviation {std:.4g}, but the head of a"
        advice = "Subtract their mean from the scores, or use another model."
        warnings.warn(f"{problem} {model.config.model_type} has no bias and starts at 0. {advice}", stacklevel=4)


def has_matching_head(source: Path, task: Task) -> bool:
    """Return whether a model has a head for exactly the task's labels."""
    info = read_task_info(source)
    return info.get("head") == task.head and info["labels"] == list(task.labels)


def make_symbol_map(config: TaskConfig, tokenizer: Tokenizer, seed: int) -> SymbolMap:
    """Return the words for the symbols of a task: those of its file, or random ones."""
    assert config.symbols is not None
    if config.symbols != "draw":
        symbol_map = SymbolMap.load(config.symbols)
        words = list(symbol_map.words.values())
        encoded = tokenizer.encode_ids(words)
        if unknown := [w for w, ids in zip(words, encoded, strict=True) if tokenizer.unk_token_id in ids]:
            raise DataError(f"{config.symbols}: the model's vocabulary cannot spell {unknown[0]!r}. Use another word.")
        return symbol_map
    # Words that are a single token.
    encoded = tokenizer.encode_ids(tokenizer.tokens)
    words = [token for i, token in enumerate(tokenizer.tokens) if list(encoded[i]) == [i]]
    shape = {"size": config.symbol_size, "stride": config.symbol_stride}
    return SymbolMap.draw(config.alphabet or "", words, **shape, others=True, seed=seed)


def _freeze(model: Model, config: RunConfig | FinetuneConfig, source: str | Path) -> None:
    if config.frozen_layers > (num_layers := model.config.num_hidden_layers):
        expected = f"expected 0 to {num_layers}, the number of layers of {source}"
        raise ConfigError(f"frozen_layers is {config.frozen_layers}: {expected}")
    embeddings = [model.body.embeddings] if config.frozen_embeddings else []
    for part in (*embeddings, *model.body.layers[: config.frozen_layers]):
        part.requires_grad_(False)


def prepare_training(model: Model, context: TrainingContext) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Move a model to its device; return its loss module and optimizer."""
    config, ranks = context.config, context.ranks
    configure_allocator(context.device)
    model.to(context.device)
    module = distribute(model, context.objective, ranks, sharded=config.compute.shard)
    scale = _layer_scale(model, getattr(config, "layer_decay", 1.0))
    optimizer = make_optimizer(model, config.optimizer, precision=context.precision, scale=scale)
    if ranks.world_size == 1:
        keep_lookup_gradients(model, context.objective)
    return module, optimizer


def keep_lookup_gradients(model: Model, objective: Objective) -> None:
    """Keep the gradients of trained matrices that a step only looks up, on one CPU."""
    model.kept_gradients.release()
    weights = [weight for weight in lookup_only_weights(model, objective) if weight.requires_grad]
    model.kept_gradients = KeptGradients(weight for weight in weights if weight.device.type == "cpu")


def _layer_scale(model: Model, decay: float) -> Callable[[str], float] | None:
    """Map a parameter's name to the factor on its learning rate; None if all are 1."""
    if decay == 1:
        return None
    num_layers = len(model.body.layers)

    def scale(name: str) -> float:
        parts = name.split(".")
        if "embeddings" in parts:
            return decay ** (num_layers + 1)
        return decay ** (num_layers - int(parts[parts.index("layers") + 1])) if "layers" in parts else 1.0

    return scale
