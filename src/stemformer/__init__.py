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
    from stemformer.api import (
        compare,
        evaluate,
        fill,
        finetune,
        generate,
        glue,
        inspect,
        load,
        plan,
        predict,
        prepare,
        pretrain,
        report,
        scale,
        squad,
        synthetic,
        train_tokenizer,
    )

    __version__: str

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
    "glue",
    "inspect",
    "load",
    "plan",
    "predict",
    "prepare",
    "pretrain",
    "report",
    "scale",
    "squad",
    "synthetic",
    "train_tokenizer",
]

_FROM_API = {
    "compare",
    "evaluate",
    "fill",
    "finetune",
    "generate",
    "glue",
    "inspect",
    "load",
    "plan",
    "predict",
    "prepare",
    "pretrain",
    "report",
    "scale",
    "squad",
    "synthetic",
    "train_tokenizer",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("stemformer")
    if name in _FROM_API:
        from importlib import import_module

        return getattr(import_module("stemformer.api"), name)
    raise AttributeError(f"module 'stemformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
