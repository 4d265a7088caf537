"""What commands check about the folders that they are given, before they write."""

import contextlib
import functools
import inspect
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from stemformer.data.text.files import find_files
from stemformer.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: two commands in one folder are not told apart there
    fcntl = None  # type: ignore[assignment]


P = ParamSpec("P")
R = TypeVar("R")

_OURS = (
    "config.toml",
    "schedule.json",
    "checkpoints",
    "manifest.json",
    "progress.jsonl",
    "figures.jsonl",
    "tokenizer.json",
    "tokenizer",
    "trials.json",
)
"""What lies in folders that were made here."""


def prepare_output_dir(path: str, *, overwrite: bool, resume: bool = False) -> Path:
    """Returns a folder that may be written to; what it holds is left there until there is something to put in its place.

    Args:
        path: Of the folder; it need not be there.
        overwrite: What it holds may be replaced.
        resume: The caller goes on with what it holds, and looks at it itself.

    Raises:
        ConfigError: It is not empty, and neither flag is given or nothing in it was made here; both are given.
    """
    folder = Path(path)
    if resume and overwrite:
        raise ConfigError(f"--resume goes on with what {path} holds, --overwrite replaces it: give one of them")
    if folder.is_file():
        raise ConfigError(f"{path} is a file: give a folder")
    if resume:
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ConfigError(f"{path} is not empty: give another --out, or --overwrite to replace what it holds")
    is_ours = any((folder / name).exists() for name in _OURS) or any(folder.glob("seed-*/config.toml"))
    if folder.is_dir() and any(folder.iterdir()) and not is_ours:
        raise ConfigError(f"{path} holds nothing that stemformer made, and is not overwritten: give another --out")
    return folder


def check_not_existing(out: str, *, overwrite: bool) -> None:
    """Refuses to write over a file that was not said to be replaced.

    Raises:
        ConfigError: It exists, and `overwrite` is False.
    """
    if Path(out).exists() and not overwrite:
        raise ConfigError(f"{out} exists: give another --out, or --overwrite to replace it")


def exclusive_output_dir(command: Callable[P, R]) -> Callable[P, R]:
    """Lets a command refuse a folder, its `out`, that another process is writing to; of several ranks, the first one asks.

    The folder itself is locked, so nothing is left behind by a process that was killed.
    """
    usual = inspect.signature(command).parameters["out"].default

    @functools.wraps(command)
    def asked(*args: P.args, **given: P.kwargs) -> R:
        out: Any = given.get("out", getattr(given.get("options"), "out", usual))
        if not isinstance(out, str) or fcntl is None or os.environ.get("RANK", "0") != "0":
            return command(*args, **given)
        with _locked(Path(out)):
            return command(*args, **given)

    return asked


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # what cannot be written to is for the command to say
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{folder} is being written to by another process: wait for its end, or give another --out"
                ) from None
        try:
            yield
        finally:
            for path in missing:  # of a command that was refused, nothing stays
                with contextlib.suppress(OSError):
                    path.rmdir()


def clear_dir(folder: Path) -> None:
    """Removes all that a folder holds, if it is there; of a link, the link."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def check_not_inside_inputs(folder: Path, inputs: Sequence[str]) -> None:
    """Refuses an output folder that holds what is read, since --overwrite would delete it.

    Raises:
        ConfigError: One of the inputs lies in the folder.
    """
    local = [Path(given).expanduser() for given in inputs if not given.startswith("hub:")]
    patterns = [path for path in local if not path.exists()]
    for path in [*local, *(find_files(patterns) if patterns else [])]:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(f"{path} lies in the output folder {folder}: give another --out")
