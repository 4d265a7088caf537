"""Many ranks: who computes what, and what they must agree on.

`torchrun` starts the processes and tells each its rank; each computes its slice of every step's examples, and gradients, counts and
figures are summed over all (gloo between CPUs, NCCL between GPUs). With one process every function here does nothing.

Source: Li et al. 2020 (DDP); Zhao et al. 2023 and PyTorch's `fully_shard` (FSDP2).
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.models.model import Model
from stemformer.objectives.sentence_pairs import Objective, WithLoss

__all__ = [
    "ONE_RANK",
    "Ranks",
    "distribute",
    "is_restarted",
    "only_synchronised",
    "this_rank",
    "whole_tensors",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
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
        """Returns this rank's slice of what all of them share; slices differ by one item at most."""
        bounds = [len(items) * rank // self.world_size for rank in (self.rank, self.rank + 1)]
        return items[bounds[0] : bounds[1]]

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


ONE_RANK = Ranks()
"""Training in a single process."""


def is_restarted() -> bool:
    """Says whether `torchrun` started this process again after a failure; the run then goes on by itself."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextlib.contextmanager
def this_rank(device: torch.device) -> Iterator[Ranks]:
    """Gives this process's place among the ranks that `torchrun` started; a single one where it was not started so.

    Args:
        device: Where this process computes.

    Raises:
        ConfigError: `torchrun`'s variables are there, but not all of them.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks(device=device)
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set: start ranks with torchrun")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
    try:
        yield Ranks(int(os.environ["RANK"]), world_size, int(os.environ["LOCAL_RANK"]), device)
    finally:
        dist.destroy_process_group()


def distribute(model: Model, objective: Objective, ranks: Ranks, *, sharded: bool) -> nn.Module:
    """Returns the module whose forward gives the losses of a rank's batch, and whose gradients become the mean over ranks.

    Args:
        model: Filled; with `sharded`, its parameters are replaced in place, so the optimizer must be made afterwards.
        objective: What is scored.
        ranks: With one, nothing is distributed.
        sharded: FSDP2: each rank holds a part of parameters, gradients and optimizer states. Otherwise DDP: each holds all.
    """
    with_loss = WithLoss(model, objective)
    if ranks.world_size == 1:
        return with_loss
    if not sharded:
        return nn.parallel.DistributedDataParallel(with_loss, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for layer in model.body.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(with_loss, mesh=mesh)
    return with_loss


def only_synchronised(module: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Returns the context of a micro-batch: gradients are exchanged after the last one of a step only."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not is_last:
        return module.no_sync()
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)
    return contextlib.nullcontext()


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors on the CPU, put together from all ranks where they are shards; each rank must call it."""
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu().contiguous()
        for name, tensor in tensors.items()
    }
