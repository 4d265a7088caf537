"""Data parallelism over several ranks: DDP or FSDP2, and agreement between ranks.

Each rank computes its slice of every step's examples; with one process, functions here do nothing.
Source: Li et al. 2020 (DDP); Zhao et al. 2023 and PyTorch's `fully_shard` (FSDP2).
"""

import atexit
import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from stemformer.data.examples.batch import Batch
from stemformer.errors import ConfigError, TrainingError
from stemformer.models.model import Model
from stemformer.objectives.objective import LossModule, Objective

T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """This process among all that train together."""

    rank: int = 0
    world_size: int = 1
    # Device of the tensors that ranks exchange.
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        return slices(items, self.world_size)[self.rank]

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        return self._all_reduce(values, dist.ReduceOp.SUM)

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        return self._all_reduce(values, dist.ReduceOp.MAX)

    def barrier(self) -> None:
        self.all_reduce_sum([0.0])

    def _all_reduce(self, values: Sequence[float], op: Any) -> list[float]:
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=op)
        return tensor.tolist()


def slices(items: Sequence[T], number: int) -> list[Sequence[T]]:
    """Return the items in `number` slices, whose lengths differ by one at most."""
    bounds = [len(items) * i // number for i in range(number + 1)]
    return [items[a:b] for a, b in itertools.pairwise(bounds)]


SINGLE_PROCESS = DistributedContext()
_JOB_FILE = "torchrun.txt"
# Key in the store of the ranks: rank, exit code and message of an error.
_FAILURE = "failure"


def is_restarted(folder: Path) -> bool:
    """Return whether `torchrun` restarted this process after the run in `folder` failed."""
    # A process that failed before its run started, for example on a wrong option, left no mark.
    mark = folder / _JOB_FILE
    is_same_job = mark.is_file() and mark.read_text(encoding="utf-8") == os.environ.get("TORCHELASTIC_RUN_ID")
    return is_same_job and _num_restarts() > 0


def mark_started(folder: Path) -> None:
    """Store the id of the `torchrun` job, if any, in a run directory."""
    if job := os.environ.get("TORCHELASTIC_RUN_ID"):
        (folder / _JOB_FILE).write_text(job, encoding="utf-8")


def _num_restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def init_distributed(device: torch.device) -> Iterator[DistributedContext]:
    """Connect to the other ranks if `torchrun` started this process; `cuda` becomes its own GPU."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield DistributedContext(device=device)
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        problem = f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set."
        raise ConfigError(f"{problem} Start ranks with torchrun.")
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local_rank >= (number := torch.cuda.device_count()):
            problem = f"Rank {local_rank} of this machine has no GPU of its own; there are {number}."
            raise ConfigError(f"{problem} Start fewer ranks with --nproc-per-node, or pass --device cpu.")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _connect("nccl" if device.type == "cuda" else "gloo", rank, world_size)
    try:
        yield DistributedContext(rank, world_size, device)
    except Exception as error:
        store = dist.distributed_c10d._get_default_store()
        message = " ".join(str(error).split())
        # gloo's errors have no type of their own.
        if not isinstance(error, dist.DistError) and not (isinstance(error, RuntimeError) and "gloo" in message):
            with contextlib.suppress(RuntimeError):
                store.set(_FAILURE, json.dumps([rank, getattr(error, "exit_code", 1), message]))
            raise
        advice = "Continue with --resume, or let torchrun --max-restarts do it."
        cause, exit_code = f"Other ranks cannot be reached ({message[:200]}). See their output.", 1
        with contextlib.suppress(RuntimeError):
            if store.check([_FAILURE]):
                failed, exit_code, reason = json.loads(store.get(_FAILURE))
                cause = f"Rank {failed} failed: {reason.rstrip('.')}."
        raise TrainingError(f"{cause} {advice}", exit_code=exit_code) from error


def _connect(backend: str, rank: int, world_size: int) -> None:
    # Until the process ends: gloo may hang if a group is destroyed right after a reduction.
    # The store outlives restarts and keeps old addresses; the prefix separates them.
    store = PrefixStore(f"start {_num_restarts()}", next(rendezvous("env://", rank, world_size))[0])
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(minutes=10))
    atexit.register(dist.destroy_process_group)
    # Called first. After a reduction, gloo's threads still release tensors, for which they need the
    # interpreter: sleeping hands it to them. A process that ends just then is aborted.
    atexit.register(time.sleep, 0.2)


def distribute(model: Model, objective: Objective, ranks: DistributedContext, *, sharded: bool) -> nn.Module:
    """Return the loss module, wrapped by DDP or, if sharded, by FSDP2 (averages gradients over ranks)."""
    module = LossModule(model, objective)
    if ranks.world_size == 1:
        return module
    if not sharded:
        return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # This replaces the model's parameters: make the optimizer afterwards.
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for part in (*model.body.blocks, module):
        sharded_part = fully_shard(part, mesh=mesh)
        # Allocate its buffers now: allocated by an evaluation, they could not be used for training.
        sharded_part.unshard()
        sharded_part.reshard()
    return module


def warm_up_ddp(module: nn.Module, batch: Batch) -> None:
    """Run a dummy step, after which DDP rebuilds its buckets: a resumed run then sums in the same order."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        torch.stack([loss.total for loss in module(batch).values()]).sum().backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)


def gradient_sync(module: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which only the last micro-batch of a step exchanges gradients."""
    if not dist.is_initialized():
        return contextlib.nullcontext()
    if isinstance(module, nn.parallel.DistributedDataParallel) and not is_last:
        return module.no_sync()
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)
    return contextlib.nullcontext()


def gather_full_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return full tensors on the CPU, gathered from all ranks if sharded; collective."""
    return {name: gather_full_tensor(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}


def gather_full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor, gathered from all ranks if sharded; collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def distribute_like(like: Tensor, tensor: Tensor) -> Tensor:
    """Return a full tensor on the device of `like`, sharded as `like` is."""
    tensor = tensor.to(like.device)
    if not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
