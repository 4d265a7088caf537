"""What commands check about the folders that they are given, before they write."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from stemformer.data.corpus import find_files
from stemformer.errors import ConfigError

__all__ = ["empty", "free_folder", "refuse_existing", "refuse_inside"]

_OURS = (
    "config.toml",
    "schedule.json",
    "checkpoints",
    "manifest.json",
    "progress.jsonl",
    "tokenizer.json",
    "tokenizer",
    "trials.json",
)
"""What lies in folders that were made here."""


def free_folder(path: str, *, overwrite: bool) -> Path:
    """Returns a folder that may be written to; what it holds is left there until there is something to put in its place.

    Raises:
        ConfigError: It is not empty, and `overwrite` is False or nothing in it was made here.
    """
    folder = Path(path)
    if folder.is_file():
        raise ConfigError(f"{path} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ConfigError(f"{path} is not empty: give another --out, or --overwrite to replace what it holds")
    is_ours = any((folder / name).exists() for name in _OURS) or any(folder.glob("seed-*/config.toml"))
    if folder.is_dir() and any(folder.iterdir()) and not is_ours:
        raise ConfigError(f"{path} holds nothing that stemformer made, and is not overwritten: give another --out")
    return folder


def refuse_existing(out: str, *, overwrite: bool) -> None:
    """Refuses to write over a file that was not said to be replaced.

    Raises:
        ConfigError: It exists, and `overwrite` is False.
    """
    if Path(out).exists() and not overwrite:
        raise ConfigError(f"{out} exists: give another --out, or --overwrite to replace it")


def empty(folder: Path) -> None:
    """Removes all that a folder holds; of a link, the link."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def refuse_inside(folder: Path, inputs: Sequence[str]) -> None:
    """Refuses an output folder that holds what is read, since --overwrite would delete it.

    Raises:
        ConfigError: One of the inputs lies in the folder.
    """
    local = [Path(given).expanduser() for given in inputs if not given.startswith("hub:")]
    patterns = [path for path in local if not path.exists()]
    for path in [*local, *(find_files(patterns) if patterns else [])]:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(f"{path} lies in the output folder {folder}: give another --out")
