"""What can go wrong, as one tree of exceptions.

```
StemformerError          whatever we raise on purpose; its text is one line: given, expected, what to do
├── ConfigError          a setting, option or recipe that does not exist or does not fit
├── DataError            text files, shards, labelled files
├── TokenizerError       a vocabulary that cannot be read, or that does not match
├── CheckpointError      a model folder or a checkpoint
└── TrainingError        a loss that is not finite
```

`exit_code` is what the command line ends with: 2 the user's mistake, 3 damaged data or a full disk, 4 a loss that is not finite.
"""


class StemformerError(Exception):
    """Root of the tree.

    Args:
        message: One line: what was given, what was expected, what to do.
        damaged: True where a file was whole once and no longer is (exit code 3 instead of 2).
    """

    exit_code = 2

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        if damaged:
            self.exit_code = 3


class ConfigError(StemformerError):
    """A setting, option or recipe that does not exist or does not fit."""


class DataError(StemformerError):
    """A text file, a shard or a labelled file that cannot be used as given."""


class TokenizerError(StemformerError):
    """A vocabulary that cannot be read, or that does not match the model or the data."""


class CheckpointError(StemformerError):
    """A model folder or a checkpoint that cannot be read or does not match."""


class TrainingError(StemformerError):
    """A run that cannot go on: a loss or a gradient that is not finite."""

    exit_code = 4
