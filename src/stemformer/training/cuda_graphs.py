"""Forward and backward of a micro-batch, recorded once as a CUDA graph and then replayed.

A small model's step is some hundreds of kernels that each run for a few microseconds, less than Python takes to start one; a graph starts
them all at once. It has fixed shapes and places in memory, so batches are padded to few shapes (`data.batches.padded`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch, pad_to_bucket_sizes
from stemformer.device import autocast
from stemformer.objectives.losses import LossSum
from stemformer.objectives.objective import LossModule

_MOST_GRAPHS = 32
"""Batches of further shapes are computed without a graph: each holds memory for what it returns, and takes a moment to record."""

_WARM_UPS = 2
"""Passes before one is recorded, in which libraries make what they need."""


@dataclass(frozen=True)
class _Graph:
    """What was recorded, for one shape.

    Attributes:
        graph: That is replayed.
        batch: Where the next micro-batch is put.
        totals: Where the summed losses are found, one for each name.
        correct: Likewise, how many places are right.
    """

    graph: torch.cuda.CUDAGraph
    batch: Batch
    totals: Float[Tensor, "L"]
    correct: Int[Tensor, "L"]


class CudaGraphStep:
    """Adds gradients of micro-batches to the parameters of a module on a GPU, as a forward and a backward do.

    Gradients stay where they are from step to step: where an optimizer has let go of them, they are set to zero and put back.

    Args:
        module: Not distributed.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, module: LossModule, precision: str) -> None:
        self._module, self._precision = module, precision
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._device = self._parameters[0].device
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._names: tuple[str, ...] = ()
        self._shares = torch.zeros(len(module.objective.heads), device=self._device)  # a loss for each head

    def add(self, batch: Batch, shares: Mapping[str, float]) -> dict[str, LossSum]:
        """Returns the losses of a micro-batch, after their gradients were added.

        Args:
            batch: On the CPU.
            shares: What each loss is multiplied by.
        """
        counts, self._names = self._module.objective.counts(batch), tuple(shares)
        batch = pad_to_bucket_sizes(batch).to(self._device)
        self._put_gradients_back()
        self._shares.copy_(torch.tensor(list(shares.values())), non_blocking=True)
        shape = (batch.max_seqlen, *(len(tensor) for tensor in batch.tensors().values()))
        if shape not in self._graphs and len(self._graphs) < _MOST_GRAPHS:
            self._graphs[shape] = self._record(batch)
        if (found := self._graphs.get(shape)) is None:
            totals, correct = self._run(batch)
        else:
            for name, tensor in found.batch.tensors().items():
                tensor.copy_(batch.tensors()[name], non_blocking=True)
            found.graph.replay()
            totals, correct = found.totals.clone(), found.correct.clone()
        return {
            name: LossSum(total=total, count=counts[name], correct=right)
            for name, total, right in zip(shares, totals.unbind(), correct.unbind(), strict=True)
        }

    def _put_gradients_back(self) -> None:
        if self._parameters[0].grad is None:
            torch._foreach_zero_(self._gradients)
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient

    def _run(self, batch: Batch) -> tuple[Float[Tensor, "L"], Int[Tensor, "L"]]:
        with autocast(self._device, self._precision):
            found = self._module(batch)
        losses = [found[name] for name in self._names]
        totals = torch.stack([loss.total for loss in losses])
        (totals * self._shares).sum().backward()  # type: ignore[no-untyped-call]
        return totals.detach(), torch.stack([loss.correct for loss in losses])

    def _record(self, batch: Batch) -> _Graph:
        batch = replace(batch, **{name: tensor.clone() for name, tensor in batch.tensors().items()})  # type: ignore[arg-type]
        kept, state = [gradient.clone() for gradient in self._gradients], torch.cuda.get_rng_state(self._device)
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._run(batch)
        here.wait_stream(aside)
        torch.cuda.empty_cache()  # what the warm-ups took is not what the graph will use
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            totals, correct = self._run(batch)
        torch._foreach_copy_(self._gradients, kept)
        torch.cuda.set_rng_state(state, self._device)
        return _Graph(graph, batch, totals, correct)
