"""Data parallelism over several ranks: DDP or FSDP2, and agreement between ranks.

`torchrun` starts the processes and assigns each its rank. Each rank computes its slice of every
step's examples; gradients, counts and metrics are summed over all (gloo between CPUs, NCCL between
GPUs). With one process every function here does nothing.

Source: Li et al. 2020 (DDP); Zhao et al. 2023 and PyTorch's `fully_shard` (FSDP2).
"""

import atexit
import contextlib
import itertools
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
    """This process among all that train together.

    Attributes:
        rank: From 0.
        world_size: Number of ranks.
        local_rank: Rank on this machine; also the number of its GPU.
        device: Device of the tensors that ranks exchange.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's slice of the items."""
        return slices(items, self.world_size)[self.rank]

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks, in float64."""
        return self._all_reduce(values, dist.ReduceOp.SUM)

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """Return the maxima over all ranks: true if any is true, or the only rank's nonzero value."""
        return self._all_reduce(values, dist.ReduceOp.MAX)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_reduce_sum([0.0])

    def _all_reduce(self, values: Sequence[float], op: Any) -> list[float]:
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=op)
        reduced: list[float] = tensor.tolist()
        return reduced


def slices(items: Sequence[T], number: int) -> list[Sequence[T]]:
    """Return the items in `number` slices, whose lengths differ by one at most.

    Example:
        >>> slices("abcde", 2)
        ['ab', 'cde']
    """
    bounds = [len(items) * i // number for i in range(number + 1)]
    return [items[a:b] for a, b in itertools.pairwise(bounds)]


SINGLE_PROCESS = DistributedContext()
"""Training in a single process."""


def is_restarted(folder: Path) -> bool:
    """Return whether `torchrun` restarted this process after the run in `folder` failed.

    A process that failed before its run started, for example on a wrong option, left no mark.
    """
    mark = folder / _JOB_FILE
    return _num_restarts() > 0 and mark.is_file() and mark.read_text(encoding="utf-8") == _job()


def mark_started(folder: Path) -> None:
    """Store the id of the `torchrun` job, if any, in a run directory."""
    if _job():
        (folder / _JOB_FILE).write_text(_job(), encoding="utf-8")


_JOB_FILE = "torchrun.txt"


def _job() -> str:
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def _num_restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def init_distributed(device: torch.device) -> Iterator[DistributedContext]:
    """Connect to the other ranks if `torchrun` started this process.

    Args:
        device: Device of this process; `cuda` becomes the rank's own GPU.

    Raises:
        ConfigError: Some of `torchrun`'s variables are missing; more ranks than GPUs.
        TrainingError: Another rank ended while this one waited for it.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield DistributedContext(device=device)
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set. Start ranks with torchrun."
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"Rank {local_rank} of this machine has no GPU of its own; there are {torch.cuda.device_count()}. "
                "Start fewer ranks with --nproc-per-node, or pass --device cpu."
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    rank = int(os.environ["RANK"])
    if not dist.is_initialized():
        _connect("nccl" if device.type == "cuda" else "gloo", rank, world_size)
    try:
        yield DistributedContext(rank, world_size, local_rank, device)
    except RuntimeError as error:
        # gloo's errors have no type of their own.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise TrainingError(
                f"Other ranks cannot be reached ({' '.join(str(error).split())[:200]}). See their output; "
                "continue with --resume, or let torchrun --max-restarts do it."
            ) from error
        raise


def _connect(backend: str, rank: int, world_size: int) -> None:
    # Until the process ends: gloo may hang if a group is destroyed right after a reduction.
    store, _, _ = next(rendezvous("env://", rank, world_size))
    dist.init_process_group(
        backend,
        # The store outlives restarts and keeps old addresses; the prefix separates them.
        store=PrefixStore(f"start {_num_restarts()}", store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(minutes=10),
    )
    atexit.register(dist.destroy_process_group)
    # For a moment after a reduction, gloo's threads still release tensors, which needs the
    # interpreter; a process that ends just then is aborted. Sleeping hands the interpreter to them.
    # (The function registered last is called first.)
    atexit.register(time.sleep, 0.2)


def distribute(model: Model, objective: Objective, ranks: DistributedContext, *, sharded: bool) -> nn.Module:
    """Return the loss module, wrapped so that its gradients are averaged over ranks.

    Args:
        model: `sharded` replaces its parameters in place: make the optimizer afterwards.
        ranks: With a single rank, nothing is distributed.
        sharded: FSDP2 (shards parameters, gradients and optimizer states) instead of DDP.
    """
    module = LossModule(model, objective)
    if ranks.world_size == 1:
        return module
    if not sharded:
        return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for part in (*model.body.layers, module):
        sharded_part = fully_shard(part, mesh=mesh)
        # Allocate its buffers now: allocated by an evaluation, they could not be used for training.
        sharded_part.unshard()
        sharded_part.reshard()
    return module


def warm_up_ddp_buckets(module: nn.Module, batch: Batch) -> None:
    """Run a dummy step so that DDP rebuilds its buckets before training.

    DDP assigns gradients to other buckets after its first backward pass, which changes the order of
    its sums. If that were the first step of a run, a resumed run would sum in another order than an
    uninterrupted one.

    Args:
        module: Result of `distribute`; ignored unless it is DDP.
        batch: Any batch on the module's device.
    """
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
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def distribute_like(like: Tensor, tensor: Tensor) -> Tensor:
    """Return a full tensor on the device of `like`, sharded as `like` is."""
    tensor = tensor.to(like.device)
    if not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    sharded: Tensor = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
    return sharded
