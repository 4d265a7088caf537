"""stemformer: pre-train once, differentiate into anything.

Importing the package has no effect: a public name is imported, and torch with it, when it is first used.

Example:
    >>> import stemformer
    >>> stemformer.load("runs/reviews").predict(["a fine film"])[0].label  # doctest: +SKIP
    'positive'
    >>> stemformer.fill(["Paris is the [MASK] of France."], model="runs/quickstart/final")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from stemformer.errors import CheckpointError, ConfigError, DataError, StemformerError, TokenizerError, TrainingError

if TYPE_CHECKING:
    from stemformer.commands.embed import embed
    from stemformer.commands.env import env
    from stemformer.commands.evaluate import evaluate
    from stemformer.commands.fill import fill, score
    from stemformer.commands.finetune import finetune
    from stemformer.commands.generate import generate
    from stemformer.commands.inspect import inspect
    from stemformer.commands.load import load
    from stemformer.commands.make_synthetic import make_synthetic
    from stemformer.commands.plan import plan
    from stemformer.commands.predict import predict
    from stemformer.commands.prepare import prepare
    from stemformer.commands.pretrain import pretrain
    from stemformer.commands.quickstart import quickstart
    from stemformer.commands.recipes import list_recipes
    from stemformer.commands.report import report
    from stemformer.commands.rewrite import rewrite
    from stemformer.commands.runs import list_runs
    from stemformer.commands.samples import samples
    from stemformer.commands.train_tokenizer import train_tokenizer
    from stemformer.experiments.ablation import ablate
    from stemformer.experiments.benchmarks import benchmark_glue, benchmark_squad
    from stemformer.experiments.blimp import benchmark_blimp
    from stemformer.experiments.comparison import compare
    from stemformer.experiments.few_shot import fewshot, list_tasks, show_prompts
    from stemformer.experiments.scaling import scaling_laws

    __version__: str

__all__ = ["CheckpointError", "ConfigError", "DataError", "StemformerError", "TokenizerError", "TrainingError"]
__all__ += ["__version__", "ablate", "benchmark_blimp", "benchmark_glue", "benchmark_squad", "compare", "embed"]
__all__ += ["env", "evaluate", "fewshot", "fill", "finetune", "generate", "inspect", "list_recipes", "list_runs"]
__all__ += ["list_tasks", "load", "make_synthetic", "plan", "predict", "prepare", "pretrain", "quickstart", "report"]
__all__ += ["rewrite", "samples", "scaling_laws", "score", "show_prompts", "train_tokenizer"]

# Modules of the functions that are not in `commands`, in a module of their name.
_MODULES = {
    "ablate": "experiments.ablation",
    "benchmark_blimp": "experiments.blimp",
    "benchmark_glue": "experiments.benchmarks",
    "benchmark_squad": "experiments.benchmarks",
    "compare": "experiments.comparison",
    "fewshot": "experiments.few_shot",
    "list_recipes": "commands.recipes",
    "list_runs": "commands.runs",
    "list_tasks": "experiments.few_shot",
    "scaling_laws": "experiments.scaling",
    "score": "commands.fill",
    "show_prompts": "experiments.few_shot",
}
_OLD_NAMES = {
    "glue": "benchmark_glue",
    "prompt": "fewshot",
    "scale": "scaling_laws",
    "squad": "benchmark_squad",
    "synthetic": "make_synthetic",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("stemformer")
    if name in _OLD_NAMES:
        import warnings

        warnings.warn(f"stemformer.{name} is now stemformer.{_OLD_NAMES[name]}.", FutureWarning, stacklevel=2)
        name = _OLD_NAMES[name]
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"stemformer.{_MODULES.get(name, f'commands.{name}')}"), name)
    raise AttributeError(f"module 'stemformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
