"""Exceptions; each message is one line: what is wrong, what was expected, what to do.

```
StemformerError          root
├── ConfigError          settings, options, recipes
├── DataError            text files, shards, labelled files
├── TokenizerError       vocabularies
├── CheckpointError      model folders and checkpoints
└── TrainingError        training that cannot continue
```

`exit_code` of the command line: 2 user error, 3 damaged data or full disk, 4 loss not finite.
"""


class StemformerError(Exception):
    """Root of the exceptions; `damaged`: a file was valid once and no longer is."""

    exit_code = 2

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        if damaged:
            self.exit_code = 3


class ConfigError(StemformerError):
    """A setting, option or recipe does not exist or is invalid."""


class DataError(StemformerError):
    """A text file, shard or labelled file cannot be used."""


class TokenizerError(StemformerError):
    """A vocabulary cannot be read or does not match the model or the data."""


class CheckpointError(StemformerError):
    """A model folder or checkpoint cannot be read or does not match."""


class TrainingError(StemformerError):
    """Training cannot continue: a loss or gradient is not finite, or ranks or runs failed (with the exit code of their error).

    Attributes:
        cause: The message without its advice, which is that for a single run.
    """

    exit_code = 4

    def __init__(self, message: str, *, advice: str = "", exit_code: int = 4) -> None:
        super().__init__(f"{message} {advice}" if advice else message)
        self.cause = message
        self.exit_code = exit_code
