"""Saving a run so that it goes on bit for bit, and finding the newest save that is whole.

`checkpoints/step-00000500/` holds a Hugging Face folder (which `transformers` opens as it is), `optimizer.safetensors`, `config.toml`
and `checkpoint.json`: step, tokens and seconds so far, fingerprint of the data, environment, and SHA-256 of each file. It is written to
a temporary name, flushed to the disk and renamed, so that a folder of that name is whole. `checkpoints/best` points to the one with the
lowest held-out loss, which is kept.
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
    """What a checkpoint says beside its tensors.

    Attributes:
        step: Steps done.
        tokens: Tokens seen.
        seconds: Time spent training, interruptions not counted.
        config_toml: The resolved configuration.
        data_fingerprint: Of the prepared data.
        environment: What a bit-for-bit continuation depends on.
        sums: What was summed since the last line of the log.
        held_out_loss: Measured at this step; None where it was not.
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
    """Returns what a bit-for-bit continuation depends on, beside the configuration."""
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
    """Writes a checkpoint below `folder` and removes the oldest beyond `keep`, but for the best. Every rank must call it.

    Returns:
        Where it is.

    Raises:
        OSError: The disk is full; what was there before is untouched.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    state = gather_full_state(model.state_dict())
    moments = gather_full_state(_optimizer_tensors(model, optimizer))

    def write(temporary: Path) -> None:
        save_model(model, temporary, tokenizer, state=state, task=task)
        save_tensors(moments, temporary / "optimizer.safetensors")
        (temporary / "config.toml").write_text(checkpoint.config_toml, encoding="utf-8")
        files = {file.name: hash_file(file) for file in sorted(temporary.iterdir())}
        told = {**asdict(checkpoint), "files": files}
        told["sha256"] = _digest(told)
        (temporary / "checkpoint.json").write_text(json.dumps(told, indent=2), encoding="utf-8")

    if ranks.is_first:
        write_folder(target, write)
        _remove_old(folder, keep=keep)
    ranks.wait()  # a rank that ended while the first one writes would have it killed by torchrun
    return target


def _remove_old(folder: Path, *, keep: int) -> None:
    """Points `best` at the checkpoint with the lowest held-out loss, and removes all but it and the newest `keep`."""
    steps = sorted(folder.glob("step-????????"))
    losses = {path: told.held_out_loss for path in steps if (told := _try_read(path)) is not None}
    scored = {path: loss for path, loss in losses.items() if loss is not None}
    best = min(scored, key=lambda path: scored[path]) if scored else None
    if best is not None:
        link = folder / "best.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(best.name)
        if not (folder / "best").is_symlink():  # a run that was copied may have a folder there
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
    """Returns the newest whole checkpoint below a folder, and what was wrong with newer ones.

    Raises:
        CheckpointError: There is none.
    """
    faults: list[str] = []
    for path in sorted(folder.glob("step-????????"), reverse=True):
        fault = _fault(path)
        if fault is None:
            return path, faults
        faults.append(f"{path.name}: {fault}")
    if faults:
        raise CheckpointError(
            f"{folder} holds no whole checkpoint ({'; '.join(faults)}): train {folder.parent}/final further, if it is there, "
            "with --init and another --out, or start again with --overwrite",
            damaged=True,
        )
    raise CheckpointError(f"{folder} holds no checkpoint yet: start again with --overwrite instead of --resume")


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns what a checkpoint, found whole by `newest_checkpoint`, says beside its tensors."""
    told = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
    return Checkpoint(**{f.name: told[f.name] for f in fields(Checkpoint) if f.name in told})


def load_optimizer(path: Path, model: Model, optimizer: torch.optim.Optimizer) -> None:
    """Fills an optimizer from a checkpoint, exactly.

    Args:
        path: Its folder, found whole by `newest_checkpoint`.
        model: The model that was loaded from it (`pretrained.load_model`), sharded or not.
        optimizer: Fresh, over the model's parameters.

    Raises:
        CheckpointError: It holds more or less than this optimizer has.
    """
    from safetensors.torch import load_file

    state = load_file(path / "optimizer.safetensors")
    names = {id(p): name for name, p in model.named_parameters()}
    wanted = {
        f"{kind}.{names[id(p)]}": p
        for group in optimizer.param_groups
        for p in group["params"]
        for kind in state_names(group)
    }
    if differing := sorted(wanted.keys() ^ state.keys()):
        raise CheckpointError(f"{path}/optimizer.safetensors is not of this run: {differing[0]} differs", damaged=True)
    for key, parameter in wanted.items():
        is_like_it = state[key].shape == parameter.shape
        value = distribute_like(parameter, state[key]) if is_like_it else state[key].to(parameter.device)
        optimizer.state[parameter][key.partition(".")[0]] = value


def _optimizer_tensors(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": tensor
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for kind, tensor in optimizer.state[parameter].items()
    }


def _fault(path: Path) -> str | None:
    """Says what is wrong with a checkpoint; None if it is whole."""
    try:
        told = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        if told.pop("sha256") != _digest(told):
            return "checkpoint.json is damaged"
        for name, expected in told["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if hash_file(path / name) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"checkpoint.json cannot be read ({error})"
    return None


def _digest(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
