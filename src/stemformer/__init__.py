"""stemformer: pre-train once, differentiate into anything.

Importing the package has no effect: a public name is imported, and torch with it, when it is first used.

Example:
    >>> import stemformer
    >>> stemformer.load("runs/reviews").predict(["a fine film"])[0].label  # doctest: +SKIP
    'positive'
    >>> stemformer.fill(["Paris is the [MASK] of France."], model="runs/quickstart/final")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from stemformer.errors import CheckpointError as CheckpointError
from stemformer.errors import ConfigError as ConfigError
from stemformer.errors import DataError as DataError
from stemformer.errors import StemformerError as StemformerError
from stemformer.errors import TokenizerError as TokenizerError
from stemformer.errors import TrainingError as TrainingError

if TYPE_CHECKING:
    from stemformer.commands.embed import embed as embed
    from stemformer.commands.env import env as env
    from stemformer.commands.evaluate import evaluate as evaluate
    from stemformer.commands.fill import fill as fill
    from stemformer.commands.fill import score as score
    from stemformer.commands.finetune import finetune as finetune
    from stemformer.commands.generate import generate as generate
    from stemformer.commands.inspect import inspect as inspect
    from stemformer.commands.load import load as load
    from stemformer.commands.make_synthetic import make_synthetic as make_synthetic
    from stemformer.commands.plan import plan as plan
    from stemformer.commands.predict import predict as predict
    from stemformer.commands.prepare import prepare as prepare
    from stemformer.commands.pretrain import pretrain as pretrain
    from stemformer.commands.quickstart import quickstart as quickstart
    from stemformer.commands.recipes import list_recipes as list_recipes
    from stemformer.commands.report import report as report
    from stemformer.commands.runs import list_runs as list_runs
    from stemformer.commands.train_tokenizer import train_tokenizer as train_tokenizer
    from stemformer.experiments.benchmarks import benchmark_glue as benchmark_glue
    from stemformer.experiments.benchmarks import benchmark_squad as benchmark_squad
    from stemformer.experiments.comparison import compare as compare
    from stemformer.experiments.few_shot import fewshot as fewshot
    from stemformer.experiments.few_shot import list_tasks as list_tasks
    from stemformer.experiments.few_shot import show_prompts as show_prompts
    from stemformer.experiments.scaling import scaling_laws as scaling_laws

    __version__: str

_SAME_NAME = (
    *("embed", "env", "evaluate", "fill", "finetune", "generate", "inspect", "load", "make_synthetic", "plan"),
    *("predict", "prepare", "pretrain", "quickstart", "report", "train_tokenizer"),
)
# Module of each public function, imported at its first use.
_MODULES = {
    **{name: f"commands.{name}" for name in _SAME_NAME},
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
_ERRORS = ("CheckpointError", "ConfigError", "DataError", "StemformerError", "TokenizerError", "TrainingError")

__all__ = [*_ERRORS, "__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("stemformer")
    if name in _OLD_NAMES:
        import warnings

        warnings.warn(f"stemformer.{name} is now stemformer.{_OLD_NAMES[name]}.", FutureWarning, stacklevel=2)
        name = _OLD_NAMES[name]
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"stemformer.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'stemformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
