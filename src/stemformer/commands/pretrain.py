"""The pre-training command: joins recipe, data, model, ranks and loop into a run folder."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stemformer.config import merge_toml, to_toml, with_settings
from stemformer.data.shards.manifest import check_tokenizer, read_manifest
from stemformer.data.shards.reader import Shards, open_shards
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.device import choose_compile, choose_device, choose_precision, configure_allocator, set_threads
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.cloze import choose_cloze_examples, evaluate_cloze
from stemformer.evaluation.held_out import held_out_masks, make_held_out_evaluation
from stemformer.evaluation.in_context_learning import make_in_context_evaluation
from stemformer.generation.text import generate_samples, sample_prompts
from stemformer.huggingface.load import find_model_folder
from stemformer.huggingface.save import save_model
from stemformer.io import read_jsonl, write_folder
from stemformer.models.model import Model
from stemformer.objectives.causal_lm import CausalLm
from stemformer.objectives.masked_lm import SpecialIds
from stemformer.objectives.objective import Examples, make_objective
from stemformer.options import PretrainOptions, TrainSettings, accepts, read_duration
from stemformer.output_dir import check_not_inside_inputs, exclusive_output_dir, prepare_output_dir
from stemformer.progress import Progress, Silent
from stemformer.recipes import find_recipe
from stemformer.reports.pretraining import write_report
from stemformer.training.budget import TrainingBudget
from stemformer.training.checkpoint import environment
from stemformer.training.config import GptRunConfig, RunConfig, num_steps_for
from stemformer.training.distributed import (
    DistributedContext,
    distribute,
    gather_full_state,
    init_distributed,
    is_restarted,
)
from stemformer.training.initialization import check_model_settings, end_of_text_id, make_initial_model
from stemformer.training.log import MetricAccumulator
from stemformer.training.loop import Phase, TrainingContext, TrainState, train
from stemformer.training.optimizer import make_optimizer
from stemformer.training.resume import (
    Config,
    check_config_unchanged,
    find_checkpoint,
    prepare_run_dir,
    restore,
    validate_resume,
)
from stemformer.training.throughput import compile_blocks, matmul_rate


@exclusive_output_dir
@accepts(PretrainOptions)
def pretrain(options: PretrainOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Pre-train a model on tokenized data.

    Started by `torchrun`, the process is one of several ranks that train together.

    Returns:
        Directories of the run and its model, the report, steps, tokens, seconds and validation metrics,
        and `before`: the metrics at the start.

    Raises:
        StemformerError: Config, data, tokenizer or checkpoint do not fit together; loss is not finite.
    """
    progress = progress or Silent()
    out, data = options.out, options.data
    is_restart = is_restarted(Path(out))
    resume = options.resume or is_restart
    folder = prepare_output_dir(out, resume=resume, overwrite=options.overwrite and not is_restart)
    found = find_checkpoint(folder, RunConfig, options.recipe, progress) if resume else None
    if found is None and resume and options.recipe is None:
        raise CheckpointError(f"{folder} holds no run to resume. Remove --resume, or pass --recipe to start one.")
    config = found.config if found else find_recipe(options.recipe or "")
    if options.init is not None:
        # Before the settings: some are valid only with a model to start from.
        config = replace(config, init=options.init)
    config = resolve(config, options)
    if options.show_config:
        return {"config": to_toml(config)}
    if found is None and config.init is not None:
        # Its errors come before anything is written.
        load_tokenizer(find_model_folder(config.init))
    inputs = (data, options.config, options.init)
    check_not_inside_inputs(folder, [path for path in inputs if path and Path(path).exists()])
    if found is not None:
        check_config_unchanged(found.config, config)

    with init_distributed(choose_device(config.compute.device)) as ranks:
        progress = progress if ranks.is_main else Silent()
        progress.start("opening the data")
        manifest = read_manifest(data)
        tokenizer = load_tokenizer(Path(data) / "tokenizer")
        check_tokenizer(manifest, tokenizer)
        counts = None if found or config.init else open_shards(data).unigram_counts
        checkpoint = found.path if found else None
        model = make_initial_model(config, tokenizer, progress, checkpoint=checkpoint, counts=counts)
        check_model_settings(config, model, options.settings)
        config = replace(config, model=model.config)  # type: ignore[arg-type]  # of the same architecture
        setup = make_pretraining_context(config, data, tokenizer, ranks, folder)
        if found is not None:
            validate_resume(found, setup)
        ranks.barrier()  # all have looked at the folder before the first one changes it
        if ranks.is_main:
            prepare_run_dir(folder, found, setup.config, progress)
        ranks.barrier()
        configure_allocator(setup.device)
        model.to(setup.device)
        module = distribute(model, setup.objective, ranks, sharded=setup.config.compute.shard)
        optimizer = make_optimizer(model, setup.config.optimizer, precision=setup.precision)
        at = (
            restore(found, model, optimizer, setup, progress)
            if found
            else TrainState(metrics=MetricAccumulator(None, ranks))
        )
        if not setup.budget.is_last(at.step) and ranks.is_main:
            shutil.rmtree(
                folder / "final", ignore_errors=True
            )  # of a smaller budget; a checkpoint holds the same weights
        _tell_start(setup, model, progress)
        if setup.environment["compile"]:
            compile_blocks(model)
        figures = train(model, module, optimizer, setup, at, progress=progress)
        for remark in _remarks(figures):
            progress.say(remark)
        weights = gather_full_state(model.state_dict())
        if ranks.is_main:
            write_folder(folder / "final", lambda temporary: save_model(model, temporary, tokenizer, state=weights))
            progress.finish()
            write_report(folder)
        progress.finish()
        ranks.barrier()
    return {
        "run": str(folder),
        "model": str(folder / "final"),
        "report": str(folder / "report.html"),
        "steps": at.step,
        "tokens": at.tokens,
        "seconds": round(at.seconds, 1),
        **{name: round(value, 4) for name, value in figures.items()},
        **_before(folder, figures),
    }


def resolve(config: Config, options: TrainSettings) -> Config:
    """Return a config with the options of a command applied: file, then settings, then single options.

    Args:
        config: Config of a recipe or of a stored run.
        options: Options of a command that trains; those that it lacks are not applied.

    Raises:
        ConfigError: The file does not exist, a setting is wrong, or there are several budgets.
    """
    chosen: dict[str, Any] = vars(options)
    if (file := chosen.get("config")) is not None:
        if not Path(file).is_file():
            raise ConfigError(f"Config file {file!r} does not exist.")
        config = merge_toml(config, Path(file).read_text(encoding="utf-8"), source=file)
    overrides = {"batch.size": chosen.get("batch_size"), "optimizer.learning_rate": chosen.get("learning_rate")}
    shortcuts: list[str] = [f"{key}={value!r}" for key, value in overrides.items() if value is not None]
    config = with_settings(config, [*options.settings, *shortcuts])
    budget = {name: chosen[name] for name in ("steps", "tokens", "epochs", "time") if chosen.get(name) is not None}
    if len(budget) > 1:
        raise ConfigError(f"Several training budgets: {', '.join(f'--{name}' for name in budget)}. Pass only one.")
    if "time" in budget:
        budget = {"seconds": read_duration(budget["time"])}
    if budget:
        config = replace(config, budget=type(config.budget)(**budget))
    if chosen.get("seed") is not None:
        config = replace(config, seed=chosen["seed"])
    compute = {name: value for name, value in options.compute().items() if value is not None}
    return replace(config, compute=replace(config.compute, **compute))


def _special_ids(config: RunConfig, tokenizer: Tokenizer) -> SpecialIds:
    if isinstance(config, GptRunConfig):
        return SpecialIds(eos=end_of_text_id(tokenizer))
    return SpecialIds(cls=tokenizer.cls_token_id, sep=tokenizer.sep_token_id, mask=tokenizer.mask_token_id)


def make_pretraining_context(
    config: RunConfig, data: str, tokenizer: Tokenizer, ranks: DistributedContext, folder: Path
) -> TrainingContext:
    """Returns what a run needs beside its model: examples, held-out figures, schedule, and what it computes on.

    Raises:
        DataError: Too little text for a batch, or none that can be held out.
    """
    device = ranks.device
    set_threads(config.compute.threads)
    precision = choose_precision(config.compute.precision, device)
    special = _special_ids(config, tokenizer)
    objective = make_objective(config.objective, special=special, vocab_size=tokenizer.vocab_size)
    shards = open_shards(data)
    parts = config.all_phases()
    examples = [objective.make_examples(shards, batch.sequence_length) for _, batch in parts]
    for (_, batch), of_phase in zip(parts, examples, strict=True):
        if len(of_phase) < batch.size:
            raise DataError(
                f"{data} holds {shards.num_tokens:,} tokens, which is {len(of_phase)} rows of {batch.sequence_length}; a batch has "
                f"{batch.size}: add text or lower batch.size with --set batch.size={max(1, len(of_phase) // 4)}"
            )
        if batch.size < ranks.world_size:
            raise ConfigError(
                f"batch.size is {batch.size} for {ranks.world_size} ranks: expected a row for each of them at least"
            )
    num_steps = num_steps_for(
        config, num_examples=[len(e) for e in examples], num_tokens=[e.num_tokens for e in examples]
    )
    firsts = [round(share * (num_steps or 0)) for share, _ in parts]
    phases = [Phase(first, b, e) for first, (_, b), e in zip(firsts, parts, examples, strict=True)]
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    fill: Callable[[nn.Module], dict[str, Any]] | None = None
    if "held_out" in shards.manifest.splits:
        held_out = open_shards(data, "held_out")
        asked = make_objective(held_out_masks(config.objective), special=special, vocab_size=tokenizer.vocab_size)
        evaluate = make_held_out_evaluation(
            asked.make_examples(held_out, parts[-1][1].sequence_length),
            asked,
            num_examples=config.evaluation.num_examples,
            device=device,
            rank=ranks.rank,
            world_size=ranks.world_size,
            add=ranks.all_reduce_sum,
        )
        if isinstance(asked, CausalLm):
            longest = parts[-1][1].sequence_length
            fill = None if config.compute.shard else _texts_of_gpt(config, held_out, asked, longest, tokenizer, ranks)
        else:
            fill = _blanks_of_bert(config, held_out, tokenizer, device)
    compiled = choose_compile(config.compute.compile, device)
    return TrainingContext(
        config=config,
        budget=TrainingBudget(config, num_steps, folder),
        objective=objective,
        phases=phases,
        evaluate=evaluate,
        sample_fn=fill,
        tokenizer=tokenizer,
        device=device,
        precision=precision,
        environment=environment(device, precision, compiled, ranks),
        peak_flops=ranks.all_reduce_sum([matmul_rate(device, precision)])[0],
        folder=folder,
        ranks=ranks,
    )


_NUM_SAMPLES = 3


_NUM_FILLS = 24
"""Filled blanks that a line of the log shows."""


def _texts_of_gpt(
    config: RunConfig,
    held_out: Shards,
    objective: CausalLm,
    sequence_length: int,
    tokenizer: Tokenizer,
    ranks: DistributedContext,
) -> Callable[[nn.Module], dict[str, Any]]:
    """Returns a function from a module to how it goes on with held-out texts, and what it makes of what it has read.

    The first rank alone finds out.
    """
    is_backward = objective.config.direction == "backward"
    number = _NUM_SAMPLES if config.evaluation.num_cloze_examples else 0
    beginnings = sample_prompts(held_out, tokenizer, number=number, is_backward=is_backward)
    measure = make_in_context_evaluation(objective.make_examples(held_out, sequence_length), objective)

    def fill(module: nn.Module) -> dict[str, Any]:
        if not ranks.is_main:
            return {}
        model = getattr(module, "module", module).model  # within DDP
        assert isinstance(model, Model)
        samples = generate_samples(model, tokenizer, beginnings, max_length=sequence_length, is_backward=is_backward)
        return {**measure(model), **({"samples": samples} if number else {})}

    return fill


def _blanks_of_bert(
    config: RunConfig, held_out: Shards, tokenizer: Tokenizer, device: torch.device
) -> Callable[[nn.Module], dict[str, Any]] | None:
    """Returns a function from a module to what it puts into held-out blanks; None where there are none."""
    longest = config.model.max_position_embeddings
    blanks = choose_cloze_examples(held_out, tokenizer, number=config.evaluation.num_cloze_examples, longest=longest)
    if blanks is None:
        return None

    def fill(module: nn.Module) -> dict[str, Any]:
        told = evaluate_cloze(module, blanks, tokenizer, device=device)
        fills = told.pop("fills")
        return {**{f"held_out_{name}": value for name, value in told.items()}, "fills": fills[:_NUM_FILLS]}

    return fill


def _remarks(figures: Mapping[str, float]) -> Iterator[str]:
    """Yields what a person should know of how a run ended."""
    words = figures.get("held_out_unigram_loss")
    loss = figures.get("held_out_causal_lm_loss", figures.get("held_out_masked_lm_loss"))
    if words is not None and loss is not None and loss >= words:
        yield (
            f"note: the held-out loss ({loss:.3f}) is not below that of word frequency alone ({words:.3f}): nothing was learned yet from "
            "what stands around a word; train longer (--resume with a larger budget), or with a higher optimizer.learning_rate"
        )


def _before(folder: Path, figures: Mapping[str, float]) -> dict[str, Any]:
    """Returns the held-out figures that training started from, but for the baselines, which do not move."""
    first = next((line for line in read_jsonl(folder / "log.jsonl") if line["kind"] == "evaluation"), {})
    fixed = ("unigram_loss", "unigram_accuracy", "majority_accuracy", "blank_constant_accuracy")
    moving = [name for name in figures if name in first and name.removeprefix("held_out_") not in fixed]
    return {"before": {name: round(first[name], 4) for name in moving}} if moving else {}


def _tell_start(setup: TrainingContext, model: Model, progress: Progress) -> None:
    config, budget = setup.config, setup.budget
    assert isinstance(config, RunConfig)
    progress.say(
        f"{config.recipe}: {model.num_parameters():,} parameters, {model.num_parameters(embeddings=False):,} of them in "
        f"{config.model.num_hidden_layers} layers; {setup.device}, {setup.precision}"
        + (", blocks compiled" if setup.environment["compile"] else "")
        + (f", {setup.ranks.world_size} ranks" if setup.ranks.world_size > 1 else "")
    )
    for number, phase in enumerate(setup.phases):
        examples, batch = phase.examples, phase.batch
        assert isinstance(examples, Examples)
        kind = "rows" if config.objective.name in ("none", "causal") else "pairs"
        left_out = getattr(examples, "num_left_out", 0)
        last = setup.phases[number + 1].first_step if number + 1 < len(setup.phases) else budget.num_steps
        if last is None:
            length = f"{budget.seconds:,.0f} seconds on the clock, rate falling over the last {config.schedule.decay_ratio:.0%}"
        else:
            steps = last - phase.first_step
            length = f"{steps:,} steps of {batch.size}, {steps * batch.size / len(examples):.2f} passes"
        progress.say(
            f"{examples.num_tokens:,} tokens, special ones included, in {len(examples):,} {kind} of at most {batch.sequence_length} "
            f"({examples.packing_efficiency:.1%} filled)"
            + (f", {left_out:,} of one word left out" if left_out else "")
            + f"; {length}"
        )
