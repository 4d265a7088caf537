"""Checkpoints for bit-for-bit resumption.

`checkpoints/step-00000500/` is a Hugging Face folder (`transformers` opens it) with
`optimizer.safetensors`, `config.toml` and `checkpoint.json`: step, tokens, seconds, data
fingerprint, environment, and the SHA-256 of each file. It is written
atomically. `checkpoints/best` links to the one with the lowest held-out loss.
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import CheckpointError
from stemformer.huggingface.save import save_model, save_tensors
from stemformer.io import hash_file, write_folder
from stemformer.models.model import Model
from stemformer.training.distributed import SINGLE_PROCESS, DistributedContext, distribute_like, gather_full_state
from stemformer.training.optimizer import state_names


@dataclass(frozen=True)
class Checkpoint:
    """Metadata of a checkpoint.

    Attributes:
        step: Completed optimizer steps.
        tokens: Training tokens seen.
        seconds: Training time, interruptions excluded.
        config_toml: Resolved configuration.
        data_fingerprint: Fingerprint of the tokenized data.
        environment: Conditions of bit-for-bit resumption.
        sums: State of the `MetricAccumulator`.
        held_out_loss: Value for model selection, if evaluated at this step.
    """

    step: int
    tokens: int
    seconds: float
    config_toml: str
    data_fingerprint: str
    environment: dict[str, Any]
    sums: dict[str, Any] = field(default_factory=dict)
    held_out_loss: float | None = None


def environment(
    device: torch.device, precision: str, compiled: bool, ranks: DistributedContext = SINGLE_PROCESS
) -> dict[str, Any]:
    """Return the conditions, besides the configuration, under which resumption is bit-for-bit."""
    return {
        "torch": torch.__version__.split("+")[0],
        "processor": torch.backends.cpu.get_cpu_capability()
        if device.type == "cpu"
        else torch.cuda.get_device_name(device),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "precision": precision,
        "compile": compiled,
        "world_size": ranks.world_size,
    }


def save_checkpoint(
    folder: Path,
    model: Model,
    optimizer: torch.optim.Optimizer,
    checkpoint: Checkpoint,
    *,
    tokenizer: Tokenizer,
    keep: int,
    ranks: DistributedContext = SINGLE_PROCESS,
    task: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint below `folder`, remove old ones, and return its path; collective.

    Args:
        keep: Number of newest checkpoints to keep, in addition to the best one.
        task: Description of the task, see `huggingface.save.save_model`.

    Raises:
        OSError: For example, the disk is full; existing checkpoints are not touched.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    state = gather_full_state(model.state_dict())
    moments = gather_full_state(_optimizer_tensors(model, optimizer))

    def write(temporary: Path) -> None:
        save_model(model, temporary, tokenizer, state=state, task=task)
        save_tensors(moments, temporary / "optimizer.safetensors")
        (temporary / "config.toml").write_text(checkpoint.config_toml, encoding="utf-8")
        files = {file.name: hash_file(file) for file in sorted(temporary.iterdir())}
        metadata = {**asdict(checkpoint), "files": files}
        metadata["sha256"] = _digest(metadata)
        (temporary / "checkpoint.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")

    if ranks.is_main:
        write_folder(target, write)
        _remove_old(folder, keep=keep)
    # A rank that ended while the main one writes would make torchrun kill it.
    ranks.barrier()
    return target


def _remove_old(folder: Path, *, keep: int) -> None:
    """Link `best` to the checkpoint with the lowest loss; keep it and the newest `keep`."""
    steps = sorted(folder.glob("step-????????"))
    losses = {path: checkpoint.held_out_loss for path in steps if (checkpoint := _try_read(path)) is not None}
    scored = {path: loss for path, loss in losses.items() if loss is not None}
    best = min(scored, key=lambda path: scored[path]) if scored else None
    if best is not None:
        link = folder / "best.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(best.name)
        if not (folder / "best").is_symlink():  # A copied run may have a directory instead.
            shutil.rmtree(folder / "best", ignore_errors=True)
        link.replace(folder / "best")
    for old in steps[: -max(1, keep)]:
        if old != best:
            shutil.rmtree(old)


def _try_read(path: Path) -> Checkpoint | None:
    try:
        return read_checkpoint(path)
    except (OSError, ValueError, KeyError):
        return None


def newest_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """Return the newest valid checkpoint below a folder, and the faults of newer ones.

    Raises:
        CheckpointError: There is no valid checkpoint.
    """
    faults: list[str] = []
    for path in sorted(folder.glob("step-????????"), reverse=True):
        fault = _fault(path)
        if fault is None:
            return path, faults
        faults.append(f"{path.name}: {fault}")
    if faults:
        raise CheckpointError(
            f"{folder} holds no valid checkpoint ({'; '.join(faults)}). Start again with --overwrite, or, if "
            f"{folder.parent}/final exists, continue from it with --init and another --out.",
            damaged=True,
        )
    raise CheckpointError(f"{folder} holds no checkpoint yet. Pass --overwrite instead of --resume.")


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the metadata of a valid checkpoint (see `newest_checkpoint`)."""
    metadata = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
    return Checkpoint(**{f.name: metadata[f.name] for f in fields(Checkpoint) if f.name in metadata})


def load_optimizer(path: Path, model: Model, optimizer: torch.optim.Optimizer) -> None:
    """Restore the state of an optimizer from a checkpoint.

    Args:
        path: A valid checkpoint (see `newest_checkpoint`).
        model: The model loaded from it, sharded or not.
        optimizer: New optimizer of the model's parameters.

    Raises:
        CheckpointError: Its tensors are not those of this optimizer.
    """
    from safetensors.torch import load_file

    state = load_file(path / "optimizer.safetensors")
    names = {id(p): name for name, p in model.named_parameters()}
    expected = {
        f"{kind}.{names[id(p)]}": p
        for group in optimizer.param_groups
        for p in group["params"]
        for kind in state_names(group)
    }
    if differing := sorted(expected.keys() ^ state.keys()):
        raise CheckpointError(
            f"{path}/optimizer.safetensors does not belong to this run: {differing[0]} differs", damaged=True
        )
    for key, parameter in expected.items():
        # Step counts are scalars, not sharded.
        has_same_shape = state[key].shape == parameter.shape
        value = distribute_like(parameter, state[key]) if has_same_shape else state[key].to(parameter.device)
        optimizer.state[parameter][key.partition(".")[0]] = value


def _optimizer_tensors(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": tensor
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for kind, tensor in optimizer.state[parameter].items()
    }


def _fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if it is valid."""
    try:
        metadata = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        if metadata.pop("sha256") != _digest(metadata):
            return "checkpoint.json is damaged"
        for name, expected_hash in metadata["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if hash_file(path / name) != expected_hash:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"checkpoint.json cannot be read ({error})"
    return None


def _digest(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
