"""Checks, locking and clearing of output directories."""

import contextlib
import functools
import inspect
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from stemformer.data.labelled.sequence_pairs import expand_parallel
from stemformer.data.text.files import find_files
from stemformer.errors import ConfigError

try:
    import fcntl
# Windows has no flock; two commands in one directory are not detected there.
except ImportError:
    fcntl = None  # type: ignore[assignment]


P = ParamSpec("P")
R = TypeVar("R")

# Names by which a directory is recognized as written by stemformer.
_KNOWN_FILES = (
    *("config.toml", "schedule.json", "checkpoints", "manifest.json", "progress.jsonl"),
    *("finished.jsonl", "tokenizer.json", "tokenizer", "trials.json"),
)


def prepare_output_dir(path: str, *, overwrite: bool, resume: bool = False) -> Path:
    """Check that a directory may be written to and return its path; change nothing yet."""
    folder = Path(path)
    if resume and overwrite:
        raise ConfigError(f"--resume continues with the content of {path}, --overwrite replaces it. Pass one of them.")
    if folder.is_file():
        raise ConfigError(f"{path} is a file. Pass a directory.")
    # To resume, the caller checks the content.
    if resume or not folder.is_dir() or not any(folder.iterdir()):
        return folder
    if not overwrite:
        raise ConfigError(f"{path} is not empty. Pass another --out, or --overwrite to replace its content.")
    is_known = any((folder / name).exists() for name in _KNOWN_FILES) or any(folder.glob("seed-*/config.toml"))
    if not is_known:
        raise ConfigError(f"{path} holds nothing that stemformer made, so it is not overwritten. Pass another --out.")
    return folder


def check_output_file(
    out: str | None, *, overwrite: bool, suffixes: Sequence[str] = (), inputs: Sequence[str] = ()
) -> None:
    """Check that an output file, if any, may be written: its name, that it is new, and that it is no input."""
    if out is None:
        return
    if suffixes and Path(out).suffix not in suffixes:
        raise ConfigError(f"--out is {out}. Expected a name that ends with {' or '.join(suffixes)}.")
    if Path(out).exists() and not overwrite:
        raise ConfigError(f"{out} exists. Pass another --out, or --overwrite to replace it.")
    if any(Path(out).resolve() == Path(file).resolve() for file in expand_parallel(inputs)):
        raise ConfigError(f"{out} is an input file. Pass another --out.")


def exclusive_output_dir(command: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command to lock its output directory `out`; of several ranks, rank 0 holds the lock."""
    # The directory itself is locked, so that a killed process leaves no lock file.
    default = inspect.signature(command).parameters["out"].default

    @functools.wraps(command)
    def locked_command(*args: P.args, **kwargs: P.kwargs) -> R:
        out: Any = kwargs.get("out", getattr(kwargs.get("options"), "out", default))
        if not isinstance(out, str) or fcntl is None or os.environ.get("RANK", "0") != "0":
            return command(*args, **kwargs)
        with _locked(Path(out)):
            return command(*args, **kwargs)

    return locked_command


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        # A directory that cannot be written to is reported by the command.
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                problem = f"{folder} is being written to by another process."
                raise ConfigError(f"{problem} Wait until it ends, or pass another --out.") from None
        try:
            yield
        finally:
            # Remove the directories again if the command wrote nothing.
            for path in missing:
                with contextlib.suppress(OSError):
                    path.rmdir()


def clear_dir(folder: Path, *, keep: str | None = None) -> None:
    """Remove all but one file from a directory, if it exists; of symbolic links, only the links."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != keep:
            path.unlink()


def check_not_inside_inputs(folder: Path, inputs: Sequence[str]) -> None:
    """Check that no input (file, directory or pattern) is in the directory: --overwrite would delete it."""
    local = [Path(name).expanduser() for name in inputs if not name.startswith("hub:")]
    patterns = [path for path in local if not path.exists()]
    for path in [*local, *(find_files(patterns) if patterns else [])]:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(f"{path} lies in the output folder {folder}. Pass another --out.")
