"""Checkpoints for bit-for-bit resumption: Hugging Face folders with optimizer and metadata."""

import json
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from stemformer.config import parse_toml
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import CheckpointError, ConfigError
from stemformer.huggingface.save import save_model, save_tensors, unstandardized_weights
from stemformer.io import CHECKSUMS, OPTIMIZER_FILE, find_damage, write_checksums, write_folder
from stemformer.models.model import Model
from stemformer.training.distributed import SINGLE_PROCESS, DistributedContext, distribute_like, gather_full_state
from stemformer.training.optimizer import state_names


@dataclass(frozen=True)
class Checkpoint:
    """Metadata of a checkpoint; `sums` are the state of the `MetricAccumulator`."""

    step: int
    tokens: int
    seconds: float
    config_toml: str
    data_fingerprint: str
    environment: dict[str, Any]
    sums: dict[str, Any] = field(default_factory=dict)
    # Value for model selection, if evaluated at this step.
    held_out_loss: float | None = None
    # Whether the causal start of a masked LM had not ended.
    is_causal: bool = False


def environment(
    device: torch.device, precision: str, compiled: bool, ranks: DistributedContext = SINGLE_PROCESS
) -> dict[str, Any]:
    """Return the conditions, besides the configuration, under which resumption is bit-for-bit."""
    is_cpu = device.type == "cpu"
    return {
        "torch": torch.__version__.split("+")[0],
        "processor": torch.backends.cpu.get_cpu_capability() if is_cpu else torch.cuda.get_device_name(device),
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
    """Write a checkpoint below `folder`, then remove old ones, and return its path; collective."""
    target = folder / f"step-{checkpoint.step:08d}"
    state = gather_full_state(model.state_dict())
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    moments = gather_full_state({f"{k}.{name}": x for name, p in trained for k, x in optimizer.state[p].items()})
    # Exact values of weights that the model's folder has in another unit.
    moments |= {f"exact.{name}": state[name] for name in unstandardized_weights(state, task)}

    def write(temporary: Path) -> None:
        save_model(model, temporary, tokenizer, state=state, task=task)
        save_tensors(moments, temporary / OPTIMIZER_FILE)
        (temporary / "config.toml").write_text(checkpoint.config_toml, encoding="utf-8")
        write_checksums(temporary, asdict(checkpoint))

    if ranks.is_main:
        write_folder(target, write)
        _remove_old(folder, keep=keep)
    # A rank that ended while the main one writes would make torchrun kill it.
    ranks.barrier()
    return target


def _remove_old(folder: Path, *, keep: int) -> None:
    """Link `best` to the checkpoint with the lowest loss on the present held-out examples; keep it and the newest `keep`."""
    steps = sorted(folder.glob("step-????????"))
    losses: dict[Path, float] = {}
    present = None
    for path in steps:
        with suppress(OSError, ValueError, KeyError, ConfigError):
            checkpoint = read_checkpoint(path)
            number = parse_toml(checkpoint.config_toml, str(path)).get("evaluation", {}).get("num_examples")
            if checkpoint.held_out_loss is not None:
                # A resumed run may be evaluated on more or fewer examples, whose loss is another.
                losses = {**(losses if number == present else {}), path: checkpoint.held_out_loss}
                present = number
    best = min(losses, key=lambda path: losses[path], default=None)
    if best is not None:
        link = folder / "best.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(best.name)
        # A copied run may have a directory instead.
        if not (folder / "best").is_symlink():
            shutil.rmtree(folder / "best", ignore_errors=True)
        link.replace(folder / "best")
    for old in steps[: -max(1, keep)]:
        if old != best:
            shutil.rmtree(old)


def newest_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """Return the newest valid checkpoint below a folder, and the faults of newer ones."""
    faults: list[str] = []
    for path in sorted(folder.glob("step-????????"), reverse=True):
        if (fault := find_damage(path)) is None:
            return path, faults
        faults.append(f"{path.name}: {fault}")
    if faults:
        problem = f"{folder} holds no valid checkpoint ({'; '.join(faults)}). Start again with --overwrite,"
        advice = f"or, if {folder.parent}/final exists, start another run from it with another --out."
        raise CheckpointError(f"{problem} {advice}", damaged=True)
    raise CheckpointError(f"{folder} holds no checkpoint yet. Pass --overwrite instead of --resume.")


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the metadata of a valid checkpoint (see `newest_checkpoint`)."""
    metadata = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
    return Checkpoint(**{f.name: metadata[f.name] for f in fields(Checkpoint) if f.name in metadata})


def load_optimizer(path: Path, model: Model, optimizer: torch.optim.Optimizer) -> None:
    """Restore the state of a new optimizer from the valid checkpoint of its model, and exact weights."""
    from safetensors.torch import load_file

    state = load_file(path / OPTIMIZER_FILE)
    parameters = dict(model.named_parameters())
    for key in [key for key in state if key.startswith("exact.")]:
        parameter = parameters[key.removeprefix("exact.")]
        parameter.data.copy_(distribute_like(parameter, state.pop(key)))
    names = {p: name for name, p in parameters.items()}
    groups = optimizer.param_groups
    expected = {f"{kind}.{names[p]}": p for group in groups for p in group["params"] for kind in state_names(group)}
    if differing := sorted(expected.keys() ^ state.keys()):
        problem = f"{path}/{OPTIMIZER_FILE} does not belong to this run: {differing[0]} differs"
        raise CheckpointError(problem, damaged=True)
    for key, parameter in expected.items():
        # Step counts are scalars, not sharded.
        has_same_shape = state[key].shape == parameter.shape
        value = distribute_like(parameter, state[key]) if has_same_shape else state[key].to(parameter.device)
        optimizer.state[parameter][key.partition(".")[0]] = value
