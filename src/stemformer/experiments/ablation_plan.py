"""What an ablation trains: variants of pre-training and labelled tasks, read and checked before the first run."""

import re
import typing
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from stemformer.commands.finetune import make_config
from stemformer.commands.plan import num_stored_values
from stemformer.commands.pretrain import make_pretraining_context
from stemformer.commands.training_run import sets_schedule_kind, warn_of_schedule_without_effect
from stemformer.config import nearest, with_settings
from stemformer.data.labelled.detect_format import detect_task
from stemformer.data.labelled.sequence_pairs import split_parallel
from stemformer.data.shards.reader import Shards
from stemformer.data.text.files import split_suffixes
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError, StemformerError
from stemformer.experiments.run_grid import with_run_config
from stemformer.models.model import Model, make_model
from stemformer.objectives.denoising import NOISES, DenoisingConfig
from stemformer.objectives.objective import OBJECTIVES
from stemformer.options import AblateOptions, FinetuneOptions
from stemformer.options.groups import TaskName
from stemformer.progress import format_count, format_list
from stemformer.tasks.dataset import LabelledData
from stemformer.training.config import RENAMED_SETTINGS, BudgetConfig, FinetuneConfig, RunConfig
from stemformer.training.distributed import SINGLE_PROCESS
from stemformer.training.initialization import resolve_model_config
from stemformer.training.loop import batches_of_step
from stemformer.training.throughput import step_flops

RANDOM = "random"
"""Row of the fine-tunings from random weights."""
MEAN = "understanding_mean"
"""Column of the mean over the tasks that write no text."""
PRETRAINED_MODEL = "(pre-trained by the ablation)"
"""Model in the config of a task, until its variant is pre-trained."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_EXPECTED = "expected NAME:KEY=VALUE, such as low:objective.noise_rate=0.1"
# Keys and tables of settings that are the same for all variants: budget, seeds, and how runs are measured and stored.
_SHARED = (
    *("budget", "seed", "init", "compute", "recipe", "model_type"),
    *("checkpoints", "evaluation", "log_every", "tensorboard"),
)
_PRESET = "objective.preset"
_CLOSING = {"[": "]", "{": "}", '"': '"', "'": "'"}
_TASKS = typing.get_args(TaskName)
# Names in the results and the output directory that are those of no task.
_RESERVED = ("pretraining", "variant", MEAN)
# Steps whose operations are counted, of a provisional number of steps, to turn a budget in operations into steps.
_NUM_COUNTED, _PROVISIONAL_STEPS = 16, 10_000
# Difference between the budget and full steps, as a share of the budget, from which on a note says so.
_MAX_ROUNDING = 0.05


@dataclass(frozen=True)
class VariantPlan:
    """Pre-training of a variant: config, steps if the budget is in operations, and bytes that it needs on disk."""

    run: RunConfig
    steps: int | None
    model_bytes: int
    checkpoint_bytes: int
    # FLOPs of `steps` as a multiple of the budget, from which full steps differ.
    flops_ratio: float = 1.0


def row_title(variant: str) -> str:
    """Return the name of a row of the table as messages write it."""
    return "random weights" if variant == RANDOM else variant


class AblationRun(NamedTuple):
    """One run: a fine-tuning on a task, or without a task a pre-training."""

    variant: str
    task: str
    seed: int

    @property
    def folder(self) -> Path:
        """Directory of the run in that of the ablation."""
        return Path("variants", self.variant, f"{self.task or 'pretraining'}-seed{self.seed}")

    @property
    def log(self) -> str:
        """Path of the log in the directory of the ablation."""
        return str(self.folder / "log.jsonl")

    @property
    def label(self) -> str:
        return f"{row_title(self.variant)}, {self.task or 'pre-training'}, seed {self.seed}"


@dataclass(frozen=True)
class AblationConfig:
    """Config of an ablation."""

    # Settings of each variant, besides those of `run`.
    variants: dict[str, tuple[str, ...]]
    tasks: dict[str, FinetuneConfig]
    num_seeds: int
    num_pretraining_seeds: int
    # Fingerprint of the tokenized data, and SHA-256 of the examples of each task.
    data: str = ""
    task_data: dict[str, str] = field(default_factory=dict)
    # Budget in floating-point operations; None for that of `run`.
    flops: float | None = None
    # Seed of the pre-training of each fine-tuning by their consecutive seeds, as far as earlier runs have fixed it.
    pretraining_seeds: tuple[int, ...] = ()
    run: RunConfig = field(default_factory=RunConfig)

    def seeds(self) -> range:
        return range(self.run.seed, self.run.seed + self.num_seeds)

    def pretraining_seed(self, seed: int) -> int:
        """Return the seed of the pre-training that a fine-tuning starts from."""
        return self.all_pretraining_seeds()[seed - self.run.seed]

    def all_pretraining_seeds(self) -> tuple[int, ...]:
        """Return the seed of the pre-training of each fine-tuning.

        Each further fine-tuning takes the pre-training that has the fewest, so they take turns, and more seeds of either
        kind leave those before as they were.
        """
        chosen = list(self.pretraining_seeds)
        available = range(self.run.seed, self.run.seed + self.num_pretraining_seeds)
        while len(chosen) < self.num_seeds:
            chosen.append(min(available, key=chosen.count))
        return tuple(chosen)

    def with_seeds_of(self, stored: "AblationConfig") -> "AblationConfig":
        """Return this config with the pre-training of each fine-tuning of an interrupted or finished ablation.

        Raises:
            ConfigError: A pre-training would have no fine-tuning, since those of all seeds are fixed.
        """
        before = stored.all_pretraining_seeds()
        config = replace(self, pretraining_seeds=before)
        used = set(config.all_pretraining_seeds()[: self.num_seeds])
        if len(used) < self.num_pretraining_seeds and stored.num_pretraining_seeds < self.num_pretraining_seeds:
            change = f"was {stored.num_pretraining_seeds}, is now {self.num_pretraining_seeds}"
            fixed = f"the fine-tunings of {format_count(len(before), 'seed')} keep their pre-training"
            needed = len(before) + self.num_pretraining_seeds - stored.num_pretraining_seeds
            raise ConfigError(
                f"--num-pretraining-seeds {change}: {fixed}, and added ones would have none. Pass --num-seeds {needed} "
                "or more, or another --out."
            )
        return replace(config, pretraining_seeds=config.all_pretraining_seeds())

    def cells(self) -> list[AblationRun]:
        """Return all runs: those from random weights first, so that a mistake in fine-tuning shows before hours of pre-training."""
        names = [RANDOM, *self.variants]
        cells = []
        for first in range(self.run.seed, self.run.seed + self.num_pretraining_seeds):
            seeds = [seed for seed in self.seeds() if self.pretraining_seed(seed) == first]
            for name in names:
                cells += [AblationRun(name, "", first)] if name != RANDOM else []
                cells += [AblationRun(name, task, seed) for seed in seeds for task in self.tasks]
        return cells


CONFIGS = with_run_config(AblationConfig)
"""Config of a recipe's pre-training -> config of an ablation of it."""


@dataclass(frozen=True)
class AblationData:
    """What all runs share."""

    labelled: dict[str, LabelledData]
    plans: dict[str, VariantPlan]
    # Peak learning rate from random weights on each task.
    random_rates: dict[str, float]
    # Sentences on truncated examples and the like, by task.
    notes: dict[str, list[str]]


def parse_variants(texts: Sequence[str], run: RunConfig) -> dict[str, tuple[str, ...]]:
    """Return the settings of each variant by its name; without any, the presets of denoising.

    A variant with the name of a preset starts from that preset, unless it sets `objective.preset` itself. `NAME:`
    without settings is the recipe as it is.
    """
    presets = list(NOISES) if isinstance(run.objective, DenoisingConfig) else []
    if not texts and not presets:
        problem = f"No variants, and the objective of {run.recipe} has no presets"
        raise ConfigError(f"{problem}. Pass some, such as --variant low:objective.mask_rate=0.15.")
    variants: dict[str, tuple[str, ...]] = {}
    for text in texts or presets:
        name, colon, rest = (part.strip() for part in text.partition(":"))
        if not colon and name not in presets:
            known = f" or one of {', '.join(presets)}" if presets else ""
            raise ConfigError(f"--variant {text}: {_EXPECTED}{known}{nearest(name, presets)}")
        if not name:
            raise ConfigError(f"--variant {text}: The name before the colon is missing, {_EXPECTED}")
        _check_name(name, option="--variant", known=variants)
        settings = _parse_settings(text, rest)
        if name in presets and _PRESET not in settings:
            settings = {_PRESET: f"{_PRESET}={name}", **settings}
        variants[name] = tuple(settings.values())
    return variants


def _parse_settings(text: str, settings: str) -> dict[str, str]:
    """Return the settings of a variant by their keys; of two equal keys the last wins."""
    found = {}
    for setting in _split_settings(text, settings):
        key, equals, _ = setting.partition("=")
        if not equals:
            raise ConfigError(f"--variant {text}: {_EXPECTED}, got {setting!r}")
        key = ".".join(part.strip() for part in key.split("."))
        current = RENAMED_SETTINGS.get(key, key)
        if any(current == shared or current.startswith(f"{shared}.") for shared in _SHARED):
            raise ConfigError(f"--variant {text}: {key} is the same for all variants. Set it with --set.")
        found[current] = setting
    return found


def _split_settings(text: str, settings: str) -> list[str]:
    """Split at the commas that are in no brackets and no quotes."""
    parts, open_marks = [""], ""
    escaped = False
    for char in settings:
        quote = open_marks[-1:] if open_marks[-1:] in ("'", '"') else ""
        if char == "," and not open_marks:
            parts.append("")
            continue
        parts[-1] += char
        if escaped:
            escaped = False
        elif quote == '"' and char == "\\":
            escaped = True
        elif open_marks and char == _CLOSING[open_marks[-1]]:
            open_marks = open_marks[:-1]
        elif not quote and char in _CLOSING:
            open_marks += char
    if open_marks:
        raise ConfigError(f"--variant {text}: {open_marks[-1]} is not closed. Add {_CLOSING[open_marks[-1]]}")
    return [part.strip() for part in parts if part.strip()]


def _check_name(name: str, *, option: str, known: Container[str]) -> None:
    if not _NAME.fullmatch(name) or name == RANDOM:
        taken = f"{name!r} is the name of the row of random weights"
        problem = taken if name == RANDOM else f"{name!r} is not a valid name"
        raise ConfigError(f"{option}: {problem}. Use another one, of letters, digits, '_', '-' and '.'.")
    if name in known:
        raise ConfigError(f"{option}: There are two of the name {name!r}. Write NAME= before one of them.")


def variant_configs(run: RunConfig, variants: Mapping[str, Sequence[str]]) -> dict[str, RunConfig]:
    """Return the config of each variant: `run`, which they share, with its own settings."""
    runs: dict[str, RunConfig] = {}
    warned = set()
    for name, settings in variants.items():
        try:
            runs[name] = with_settings(run, settings, renamed=RENAMED_SETTINGS)
        except ConfigError as error:
            raise ConfigError(f"Variant {name!r}: {error}") from error
        # Not for what `run` sets, of which its own resolution has warned.
        if sets_schedule_kind(settings) and (kind := runs[name].schedule.kind) not in warned:
            warned.add(kind)
            warn_of_schedule_without_effect(runs[name])
        if same := next((other for other in runs if other != name and runs[other] == runs[name]), None):
            raise ConfigError(f"Variants {same!r} and {name!r} have the same settings. Remove one of them.")
    return runs


def task_configs(options: AblateOptions, seed: int) -> dict[str, FinetuneConfig]:
    """Return the config of the fine-tuning on each task, by the name of its column."""
    configs: dict[str, FinetuneConfig] = {}
    for text in options.tasks:
        name, task, source = _parse_task(text)
        if name in _RESERVED:
            raise ConfigError(f"--task {text}: {name!r} has a meaning of its own in the table. Write NAME= before it.")
        _check_name(name, option=f"--task {text}", known=configs)
        is_config = task is None
        compute = {**options.compute(), "settings": options.finetune_settings, "seed": seed}
        made = FinetuneOptions.make(
            task=task or "classify",
            model=PRETRAINED_MODEL,
            train=source,
            config=source if is_config else None,
            out=options.out,
            **compute,
        )
        try:
            config = make_config(made)
        except ConfigError as error:
            raise ConfigError(f"Task {name!r}: {error}") from error
        if is_config and config.train == (source,):
            raise ConfigError(f'{source} names no training data. Add train = ["FILE"].')
        if config.reinitialize != "nothing":
            raise ConfigError(
                f"Task {name!r}: reinitialize is set for the row of random weights alone. Remove the setting."
            )
        if config.evaluation.patience is not None:
            problem = "evaluation.patience selects a model by its score on the dev data, which is then no fair score"
            raise ConfigError(f"Task {name!r}: {problem}. Remove the setting.")
        configs[name] = replace(config, model=PRETRAINED_MODEL)
    return configs


def _parse_task(text: str) -> tuple[str, str | None, str]:
    """Return name, task (None: that of a config file) and files of `NAME=TASK:FILES`."""
    named = None if Path(text).exists() else re.fullmatch(r"([^=:/]+)=(.+)", text)
    name, rest = (named[1], named[2]) if named else (None, text)
    task, colon, source = rest.partition(":")
    if not colon or task not in _TASKS:
        is_local = Path(rest).exists() or not colon
        if not is_local and task != "hub":
            raise ConfigError(
                f"--task {text}: expected TASK:FILE, TASK one of {', '.join(_TASKS)}{nearest(task, _TASKS)}"
            )
        source, task = rest, ""
    if not task and source.endswith(".toml"):
        return name or Path(source).stem, None, source
    pair = split_parallel(source)
    if not task:
        found = "seq2seq" if pair else detect_task(source)
        if found is None:
            exists = pair or Path(source).exists() or source.startswith("hub:")
            problem = "expected its task in front" if exists else "The file does not exist, expected FILE or TASK:FILE"
            raise ConfigError(f"--task {text}: {problem}, such as --task classify:{source}")
        task = found
    first = Path(split_suffixes(pair[0] if pair else source.removeprefix("hub:"))[0])
    # A file such as SST-2/train.tsv is named after its folder.
    return name or (first.resolve().parent.name if first.stem == "train" else first.stem), task, source


def meta_model(run: RunConfig, tokenizer: Tokenizer) -> Model:
    """Return the model of a run without allocating its weights."""
    with torch.device("meta"):
        heads = OBJECTIVES[run.objective.name].heads
        return make_model(resolve_model_config(run, tokenizer), heads, tied=run.ties_embeddings)


def plan_variant(name: str, run: RunConfig, shards: Shards, tokenizer: Tokenizer, flops: float | None) -> VariantPlan:
    """Check that a variant can be trained on the data, by making its model and batches, and plan its run.

    Raises:
        ConfigError: It cannot.
    """
    try:
        model = meta_model(run, tokenizer)
        run = replace(run, model=model.config)  # type: ignore[arg-type]
        trial = run if flops is None else replace(run, budget=BudgetConfig(steps=_PROVISIONAL_STEPS))
        context = make_pretraining_context(trial, shards, tokenizer, SINGLE_PROCESS, Path(), peak_flops=1.0)
        # Evenly over the run, whose phases may differ.
        numbers = range(0, _PROVISIONAL_STEPS, _PROVISIONAL_STEPS // _NUM_COUNTED) if flops is not None else [0]
        # One after the other: full batches of several steps may not fit into memory.
        per_step = fmean(
            sum(step_flops(model, batch, context.objective) for batch in batches_of_step(number, context))
            for number in numbers
        )
    except StemformerError as error:
        advice = "Leave it out: pass the others with --variant."
        raise ConfigError(f"Variant {name!r} cannot be trained: {error} {advice}") from error
    sizes = (4 * model.num_parameters(), 4 * num_stored_values(model, run))
    if flops is None:
        return VariantPlan(run, None, *sizes)
    steps = max(1, round(flops / per_step))
    return VariantPlan(run, steps, *sizes, flops_ratio=steps * per_step / flops)


def read_same_text(plans: Sequence[VariantPlan]) -> bool:
    """Return whether each step reads the same text in all variants, apart from noise."""
    if len(plans) > 1 and any(plan.run.phases and plan.run.budget.seconds is not None for plan in plans):
        # The clock decides when a phase starts.
        return False
    found = {
        (plan.run.batch, plan.run.phases, plan.run.objective.example_settings, plan.steps if plan.run.phases else None)
        for plan in plans
    }
    return len(found) <= 1


def rounding_notes(plans: Mapping[str, VariantPlan]) -> list[str]:
    """Return a sentence on the variants whose full steps differ much from the budget in FLOPs, if there are any."""
    shares = [
        f"{name} {format_count(plan.steps or 0, 'step')} ({plan.flops_ratio:.0%})"
        for name, plan in plans.items()
        if abs(plan.flops_ratio - 1) > _MAX_ROUNDING
    ]
    return [f"full steps differ from the budget in FLOPs: {format_list(shares, 10)}"] if shares else []
