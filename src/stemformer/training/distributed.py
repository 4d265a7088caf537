"""Many ranks: who computes what, and what they must agree on.

`torchrun` starts the processes and tells each its rank; each computes its slice of every step's examples, and gradients, counts and
figures are summed over all (gloo between CPUs, NCCL between GPUs). With one process every function here does nothing.

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
        rank: Its number, from 0.
        world_size: How many there are.
        local_rank: Its number on this machine, which is also that of its GPU.
        device: Where numbers that are exchanged lie.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Returns this rank's slice of what all of them share."""
        return slices(items, self.world_size)[self.rank]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns the sums over all ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def largest(self, values: Sequence[float]) -> list[float]:
        """Returns the largest values of all ranks: how one rank's "yes" becomes everyone's, and the first rank's clock too."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def wait(self) -> None:
        """Returns once all ranks are here."""
        self.sum([0.0])

    def _reduce(self, values: Sequence[float], how: Any) -> list[float]:
        if self.world_size == 1:
            return list(values)
        exchanged = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(exchanged, op=how)
        reduced: list[float] = exchanged.tolist()
        return reduced


def slices(items: Sequence[T], number: int) -> list[Sequence[T]]:
    """Returns items in so many slices, which differ by one item at most.

    Example:
        >>> slices("abcde", 2)
        ['ab', 'cde']
    """
    bounds = [len(items) * i // number for i in range(number + 1)]
    return [items[a:b] for a, b in itertools.pairwise(bounds)]


SINGLE_PROCESS = DistributedContext()
"""Training in a single process."""


def is_restarted(folder: Path) -> bool:
    """Says whether `torchrun` started this process again after a failure of the run in the folder, which then goes on by itself.

    A process that failed before its run began, by a mistake of the user's, left no mark in the folder: nothing is to go on.
    """
    mark = folder / _MARK
    return _num_restarts() > 0 and mark.is_file() and mark.read_text(encoding="utf-8") == _job()


def mark_started(folder: Path) -> None:
    """Notes in a run folder which job of `torchrun` works on it; does nothing where there is none."""
    if _job():
        (folder / _MARK).write_text(_job(), encoding="utf-8")


_MARK = "torchrun.txt"


def _job() -> str:
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def _num_restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def init_distributed(device: torch.device) -> Iterator[DistributedContext]:
    """Gives this process's place among the ranks that `torchrun` started; a single one where it was not started so.

    Args:
        device: Where this process computes; of several GPUs, each rank of a machine takes its own.

    Raises:
        ConfigError: `torchrun`'s variables are there, but not all of them; more ranks than GPUs.
        TrainingError: Another rank has ended while this one waits for it.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield DistributedContext(device=device)
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set: start ranks with torchrun")
    local_rank = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {local_rank} of this machine has no GPU of its own, there are {torch.cuda.device_count()}: "
                "start fewer with --nproc-per-node, or give --device cpu"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    rank = int(os.environ["RANK"])
    if not dist.is_initialized():
        _connect("nccl" if device.type == "cuda" else "gloo", rank, world_size)
    try:
        yield DistributedContext(rank, world_size, local_rank, device)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # whose errors have no type of their own
            raise TrainingError(
                f"the other ranks cannot be reached ({' '.join(str(error).split())[:200]}): see what they said; "
                "go on with --resume, or let torchrun --max-restarts do it"
            ) from error
        raise


def _connect(backend: str, rank: int, world_size: int) -> None:
    """Connects this process to the other ranks, until it ends: gloo may hang where a group is destroyed right after its last sum."""
    store, _, _ = next(rendezvous("env://", rank, world_size))
    dist.init_process_group(
        backend,
        store=PrefixStore(f"start {_num_restarts()}", store),  # the store outlives ranks, and keeps their addresses
        rank=rank,
        world_size=world_size,
        timeout=timedelta(minutes=10),
    )
    atexit.register(dist.destroy_process_group)
    # A moment after a sum is there, gloo's threads still let go of what they summed, for which they need the interpreter; one that ends
    # right then aborts the process. Waiting hands the interpreter over to them. (What is registered last is called first.)
    atexit.register(time.sleep, 0.2)


def distribute(model: Model, objective: Objective, ranks: DistributedContext, *, sharded: bool) -> nn.Module:
    """Returns the module whose forward gives the losses of a rank's batch, and whose gradients become the mean over ranks.

    Args:
        model: Filled; with `sharded`, its parameters are replaced in place, so the optimizer must be made afterwards.
        objective: What is scored.
        ranks: With one, nothing is distributed.
        sharded: FSDP2: each rank holds a part of parameters, gradients and optimizer states. Otherwise DDP: each holds all.
    """
    with_loss = LossModule(model, objective)
    if ranks.world_size == 1:
        return with_loss
    if not sharded:
        return nn.parallel.DistributedDataParallel(with_loss, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for part in (*model.body.layers, with_loss):
        sharded_part = fully_shard(part, mesh=mesh)
        sharded_part.unshard()  # its buffers are made here: made by an evaluation, they would be useless for training
        sharded_part.reshard()
    return with_loss


def warm_up_ddp_buckets(module: nn.Module, batch: Batch) -> None:
    """Does a forward and backward whose gradients are thrown away, after which DDP no longer changes the order of its sums.

    DDP puts gradients into other buckets after its first backward. Were that the first of the run, a resumed run would sum in another
    order than one that was not interrupted.

    Args:
        module: What `distribute` returned; anything but DDP is left alone.
        batch: Any, on the module's device.
    """
    if isinstance(module, nn.parallel.DistributedDataParallel):
        torch.stack([loss.total for loss in module(batch).values()]).sum().backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)


def gradient_sync(module: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Returns the context of a micro-batch: gradients are exchanged after the last one of a step only."""
    if not dist.is_initialized():
        return contextlib.nullcontext()
    if isinstance(module, nn.parallel.DistributedDataParallel) and not is_last:
        return module.no_sync()
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)
    return contextlib.nullcontext()


def gather_full_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors on the CPU, put together from all ranks where they are shards; each rank must call it."""
    return {name: gather_full_tensor(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}


def gather_full_tensor(tensor: Tensor) -> Tensor:
    """Returns a tensor put together from all ranks where it is a shard; each rank must call it."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def distribute_like(like: Tensor, tensor: Tensor) -> Tensor:
    """Returns a tensor, which each rank holds whole, on the device of another one and sharded as that is."""
    tensor = tensor.to(like.device)
    if not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed: Tensor = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
    return placed
