"""stemformer: pre-train once, differentiate into anything.

Importing the package has no effect: a public name is imported, and torch with it, when it is first used.

Example:
    >>> import stemformer
    >>> stemformer.load("runs/reviews").predict(["a fine film"])[0].label  # doctest: +SKIP
    'positive'
    >>> stemformer.fill(["Paris is the [MASK] of France."], model="runs/quickstart/final")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from stemformer.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    StemformerError,
    TokenizerError,
    TrainingError,
)

if TYPE_CHECKING:
    from stemformer.commands.fill import fill
    from stemformer.commands.finetune import finetune
    from stemformer.commands.generate import generate, generate_each
    from stemformer.commands.inspect import inspect
    from stemformer.commands.make_synthetic import synthetic
    from stemformer.commands.plan import plan
    from stemformer.commands.predict import evaluate, load, predict
    from stemformer.commands.prepare import prepare
    from stemformer.commands.pretrain import pretrain
    from stemformer.commands.quickstart import quickstart
    from stemformer.commands.report import report
    from stemformer.commands.train_tokenizer import train_tokenizer
    from stemformer.experiments.benchmarks import glue, squad
    from stemformer.experiments.comparison import compare
    from stemformer.experiments.few_shot import list_tasks, prompt, show_prompts
    from stemformer.experiments.scaling import scale

    __version__: str

_MODULES = {
    "compare": "experiments.comparison",
    "evaluate": "commands.predict",
    "fill": "commands.fill",
    "finetune": "commands.finetune",
    "generate": "commands.generate",
    "generate_each": "commands.generate",
    "glue": "experiments.benchmarks",
    "inspect": "commands.inspect",
    "list_tasks": "experiments.few_shot",
    "load": "commands.predict",
    "plan": "commands.plan",
    "predict": "commands.predict",
    "prepare": "commands.prepare",
    "pretrain": "commands.pretrain",
    "prompt": "experiments.few_shot",
    "quickstart": "commands.quickstart",
    "report": "commands.report",
    "scale": "experiments.scaling",
    "show_prompts": "experiments.few_shot",
    "squad": "experiments.benchmarks",
    "synthetic": "commands.make_synthetic",
    "train_tokenizer": "commands.train_tokenizer",
}
"""Module of each function, imported at its first use."""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "StemformerError",
    "TokenizerError",
    "TrainingError",
    "__version__",
    "compare",
    "evaluate",
    "fill",
    "finetune",
    "generate",
    "generate_each",
    "glue",
    "inspect",
    "list_tasks",
    "load",
    "plan",
    "predict",
    "prepare",
    "pretrain",
    "prompt",
    "quickstart",
    "report",
    "scale",
    "show_prompts",
    "squad",
    "synthetic",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("stemformer")
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"stemformer.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'stemformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
