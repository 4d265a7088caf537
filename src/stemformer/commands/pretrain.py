"""The pre-training command: joins recipe, data, model, ranks and loop into a run folder."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stemformer.config import merge_toml, with_settings
from stemformer.data.shards.manifest import check_tokenizer, read_manifest
from stemformer.data.shards.reader import Shards, open_shards
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.device import choose_compile, choose_device, choose_precision, configure_allocator, set_threads
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.cloze import choose_cloze_examples, evaluate_cloze
from stemformer.evaluation.held_out import held_out_masks, make_held_out_evaluation
from stemformer.evaluation.in_context_learning import make_in_context
from stemformer.generation.text import choose_beginnings, write_samples
from stemformer.huggingface.load import find_folder
from stemformer.huggingface.save import save_model
from stemformer.io import read_jsonl, write_folder
from stemformer.models.model import Model
from stemformer.objectives.causal_lm import CausalLm
from stemformer.objectives.masked_lm import SpecialIds
from stemformer.objectives.objective import Examples, make_objective, objective_name
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
from stemformer.training.initialization import check_same_sizes, end_of_text_id, starting_model
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
    time: str | float | None = None,
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

    Started by `torchrun`, it is one of several ranks that train together.

    Args:
        recipe: A name of `recipes.RECIPES`; a resumed run has its own already.
        data: What `prepare` wrote.
        out: The run folder.
        init: A model to start from; its sizes replace the recipe's, and its vocabulary is brought to that of the data.
        config: TOML file laid over the recipe.
        settings: `key=value` laid over both.
        steps: Budget in optimizer steps.
        tokens: Budget in tokens.
        epochs: Budget in passes over the data.
        time: Budget on the clock: seconds, or text such as 90s, 30m, 1h30m, 2d.
        seed: Of everything that is random.
        device: As in `training.run.ComputeConfig`, like the next three.
        precision: Number format.
        threads: Processor threads.
        compile: Compile the blocks.
        resume: Go on from the newest whole checkpoint in `out`, or begin where there is none yet.
        overwrite: Replace what `out` holds.
        progress: Told how far it is.

    Raises:
        StemformerError: Settings, data, tokenizer or checkpoint that do not fit; a loss that is not finite.
    """
    progress = progress or Silent()
    restarts = is_restarted(Path(out))
    folder = prepare_output_dir(out, resume=resume or restarts, overwrite=overwrite and not restarts)
    resume = resume or restarts
    found = find_checkpoint(folder, RunConfig, recipe, progress) if resume else None
    if found is None and resume and recipe is None:
        raise CheckpointError(
            f"{folder} holds no run to resume: leave out --resume, or say with --recipe what to start"
        )
    budget = {"steps": steps, "tokens": tokens, "epochs": epochs, "seconds": read_seconds(time)}
    compute = {"device": device, "precision": precision, "threads": threads, "compile": compile}
    start = found.config if found else find_recipe(recipe or "")
    start = start if init is None else replace(start, init=init)  # before settings that make sense with it alone
    given = resolve(start, config, settings, budget=budget, compute=compute)
    given = given if seed is None else replace(given, seed=seed)
    if found is None and given.init is not None:
        load_tokenizer(find_folder(given.init))  # its errors come before anything is written
    check_not_inside_inputs(folder, [path for path in (data, config, init) if path and Path(path).exists()])
    if found is not None:
        check_config_unchanged(found.config, given)

    with init_distributed(choose_device(given.compute.device)) as ranks:
        progress = progress if ranks.is_first else Silent()
        progress.start("opening the data")
        manifest = read_manifest(data)
        tokenizer = load_tokenizer(Path(data) / "tokenizer")
        check_tokenizer(manifest, tokenizer)
        counts = None if found or given.init else open_shards(data).unigram_counts
        checkpoint = found.newest if found else None
        model = starting_model(given, tokenizer, progress, checkpoint=checkpoint, counts=counts)
        check_same_sizes(given, model, settings)
        given = replace(given, model=model.config)  # type: ignore[arg-type]  # of the same architecture
        setup = make_pretraining_context(given, data, tokenizer, ranks, folder)
        if found is not None:
            validate_resume(found, setup)
        ranks.wait()  # all have looked at the folder before the first one changes it
        if ranks.is_first:
            prepare_run_dir(folder, found, setup.config, progress)
        ranks.wait()
        configure_allocator(setup.device)
        model.to(setup.device)
        module = distribute(model, setup.objective, ranks, sharded=setup.config.compute.shard)
        optimizer = make_optimizer(model, setup.config.optimizer, precision=setup.precision)
        at = (
            restore(found, model, optimizer, setup, progress)
            if found
            else TrainState(sums=MetricAccumulator(None, ranks))
        )
        if not setup.timetable.is_last(at.step) and ranks.is_first:
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
        if ranks.is_first:
            write_folder(folder / "final", lambda temporary: save_model(model, temporary, tokenizer, state=weights))
            progress.finish()
            write_report(folder)
        progress.finish()
        ranks.wait()
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


def resolve(
    config: Config,
    file: str | None,
    settings: Sequence[str],
    *,
    budget: dict[str, Any] | None = None,
    compute: dict[str, Any] | None = None,
) -> Config:
    """Returns a configuration with a file, settings and options laid over it, in this order.

    Args:
        config: A recipe's, or that of a stored run.
        file: TOML.
        settings: `key=value`.
        budget: Fields of `BudgetConfig`; None is not given. At most one may be, and it replaces the budget there was.
        compute: Fields of `ComputeConfig`; None is not given.

    Raises:
        ConfigError: No such file or setting, or two budgets.
    """
    if file is not None:
        if not Path(file).is_file():
            raise ConfigError(f"--config {file}: there is no such file")
        config = merge_toml(config, Path(file).read_text(encoding="utf-8"), source=file)
    config = with_settings(config, settings)
    chosen = {name: value for name, value in (budget or {}).items() if value is not None}
    if len(chosen) > 1:
        options = ["--" + name.replace("seconds", "time") for name in chosen]
        raise ConfigError(f"two budgets were given ({', '.join(options)}): give one")
    if chosen:
        config = replace(config, budget=type(config.budget)(**chosen))
    given = {name: value for name, value in (compute or {}).items() if value is not None}
    return replace(config, compute=replace(config.compute, **given))


def _special_ids(config: RunConfig, tokenizer: Tokenizer) -> SpecialIds:
    if isinstance(config, GptRunConfig):
        return SpecialIds(end=end_of_text_id(tokenizer))
    return SpecialIds(cls=tokenizer.cls_id, sep=tokenizer.sep_id, mask=tokenizer.mask_id)


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
    parts = config.parts()
    examples = [objective.make_examples(shards, batch.row_length) for _, batch in parts]
    for (_, batch), of_phase in zip(parts, examples, strict=True):
        if len(of_phase) < batch.rows:
            raise DataError(
                f"{data} holds {shards.num_tokens:,} tokens, which is {len(of_phase)} rows of {batch.row_length}; a batch has "
                f"{batch.rows}: add text or lower batch.rows with --set batch.rows={max(1, len(of_phase) // 4)}"
            )
        if batch.rows < ranks.world_size:
            raise ConfigError(
                f"batch.rows is {batch.rows} for {ranks.world_size} ranks: expected a row for each of them at least"
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
            asked.make_examples(held_out, parts[-1][1].row_length),
            asked,
            num_examples=config.evaluation.rows,
            device=device,
            rank=ranks.rank,
            world_size=ranks.world_size,
            add=ranks.sum,
        )
        if isinstance(asked, CausalLm):
            longest = parts[-1][1].row_length
            fill = None if config.compute.shard else _texts_of_gpt(config, held_out, asked, longest, tokenizer, ranks)
        else:
            fill = _blanks_of_bert(config, held_out, tokenizer, device)
    compiled = choose_compile(config.compute.compile, device)
    return TrainingContext(
        config=config,
        timetable=TrainingBudget(config, num_steps, folder),
        objective=objective,
        phases=phases,
        evaluate=evaluate,
        fill=fill,
        tokenizer=tokenizer,
        device=device,
        precision=precision,
        environment=environment(device, precision, compiled, ranks),
        peak=ranks.sum([matmul_rate(device, precision)])[0],
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
    row_length: int,
    tokenizer: Tokenizer,
    ranks: DistributedContext,
) -> Callable[[nn.Module], dict[str, Any]]:
    """Returns a function from a module to how it goes on with held-out texts, and what it makes of what it has read.

    The first rank alone finds out.
    """
    is_backward = objective.config.direction == "backward"
    number = _NUM_SAMPLES if config.evaluation.blanks else 0
    beginnings = choose_beginnings(held_out, tokenizer, number=number, is_backward=is_backward)
    measure = make_in_context(objective.make_examples(held_out, row_length), objective)

    def fill(module: nn.Module) -> dict[str, Any]:
        if not ranks.is_first:
            return {}
        model = getattr(module, "module", module).model  # within DDP
        assert isinstance(model, Model)
        samples = write_samples(model, tokenizer, beginnings, longest=row_length, is_backward=is_backward)
        return {**measure(model), **({"samples": samples} if number else {})}

    return fill


def _blanks_of_bert(
    config: RunConfig, held_out: Shards, tokenizer: Tokenizer, device: torch.device
) -> Callable[[nn.Module], dict[str, Any]] | None:
    """Returns a function from a module to what it puts into held-out blanks; None where there are none."""
    longest = config.model.max_position_embeddings
    blanks = choose_cloze_examples(held_out, tokenizer, number=config.evaluation.blanks, longest=longest)
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


def read_seconds(time: str | float | None) -> float | None:
    """Returns the seconds of a text such as 90s, 30m, 1h30m, 2d, or of a plain number; None of None.

    Raises:
        ConfigError: The text is no time.

    Example:
        >>> read_seconds("1h30m")
        5400.0
    """
    if time is None or isinstance(time, int | float):
        return time
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    total, digits = 0.0, ""
    for character in time.strip().lower():
        if character in units and digits.strip("."):
            total, digits = total + float(digits) * units[character], ""
        elif character.isdecimal() or (character == "." and "." not in digits):
            digits += character
        else:
            raise ConfigError(f"--time {time}: expected a time such as 90s, 30m, 1h30m or 2d")
    if digits:
        if total or not digits.strip("."):
            raise ConfigError(f"--time {time}: expected a time such as 90s, 30m, 1h30m or 2d")
        total = float(digits)
    return total


def _tell_start(setup: TrainingContext, model: Model, progress: Progress) -> None:
    config, timetable = setup.config, setup.timetable
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
        kind = "rows" if objective_name(config.objective) in ("none", "causal") else "pairs"
        left_out = getattr(examples, "num_left_out", 0)
        last = setup.phases[number + 1].first_step if number + 1 < len(setup.phases) else timetable.num_steps
        if last is None:
            length = f"{timetable.seconds:,.0f} seconds on the clock, rate falling over the last {config.schedule.decay_share:.0%}"
        else:
            steps = last - phase.first_step
            length = f"{steps:,} steps of {batch.rows}, {steps * batch.rows / len(examples):.2f} passes"
        progress.say(
            f"{examples.num_tokens:,} tokens, special ones included, in {len(examples):,} {kind} of at most {batch.row_length} "
            f"({examples.packing_efficiency:.1%} filled)"
            + (f", {left_out:,} of one word left out" if left_out else "")
            + f"; {length}"
        )
