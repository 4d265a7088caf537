"""CUDA graphs of forward and backward, recorded once for each batch shape and replayed.

A small model's step is hundreds of kernels that each take less time than their launch by Python; a
graph launches them all at once. Shapes and addresses are fixed, so batches are padded to few shapes.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch, pad_to_bucket_sizes
from stemformer.device import autocast
from stemformer.objectives.losses import LossSum
from stemformer.objectives.objective import LossModule

# Further shapes are computed without a graph: each graph takes memory and time.
_MAX_GRAPHS = 32
# Passes before recording, in which libraries allocate their workspaces.
_NUM_WARM_UPS = 2


# Graph of one batch shape, its static input, and its static outputs: total and number correct of each loss.
_Graph = tuple[torch.cuda.CUDAGraph, Batch, Float[Tensor, "L"], Int[Tensor, "L"]]


class CudaGraphStep:
    """Forward and backward of micro-batches by CUDA graphs, on one GPU."""

    def __init__(self, module: LossModule, precision: str) -> None:
        self._module, self._precision = module, precision
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._device = self._parameters[0].device
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._names: tuple[str, ...] = ()
        # One loss per head.
        self._weights = torch.zeros(len(module.objective.heads), device=self._device)

    def add(self, batch: Batch, weights: Mapping[str, float]) -> dict[str, LossSum]:
        """Add the gradients of a micro-batch on the CPU, by the factor of each loss; return its losses."""
        counts, self._names = self._module.objective.counts(batch), tuple(weights)
        batch = pad_to_bucket_sizes(batch).to(self._device)
        # Gradient buffers keep their addresses: released ones are zeroed and attached again.
        if self._parameters[0].grad is None:
            torch._foreach_zero_(self._gradients)
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient
        self._weights.copy_(torch.tensor(list(weights.values())), non_blocking=True)
        shape = (batch.is_causal, batch.max_seqlen, *(len(tensor) for tensor in batch.tensors().values()))
        if shape not in self._graphs and len(self._graphs) < _MAX_GRAPHS:
            self._graphs[shape] = self._record(batch)
        if shape not in self._graphs:
            totals, correct = self._run(batch)
        else:
            graph, static, *outputs = self._graphs[shape]
            for name, tensor in static.tensors().items():
                tensor.copy_(batch.tensors()[name], non_blocking=True)
            graph.replay()
            totals, correct = (output.clone() for output in outputs)
        return {
            name: LossSum(total=total, count=counts[name], correct=num_correct)
            for name, total, num_correct in zip(weights, totals.unbind(), correct.unbind(), strict=True)
        }

    def _run(self, batch: Batch) -> tuple[Float[Tensor, "L"], Int[Tensor, "L"]]:
        with autocast(self._device, self._precision):
            by_name = self._module(batch)
        losses = [by_name[name] for name in self._names]
        totals = torch.stack([loss.total for loss in losses])
        (totals * self._weights).sum().backward()  # type: ignore[no-untyped-call]
        return totals.detach(), torch.stack([loss.correct for loss in losses])

    def _record(self, batch: Batch) -> _Graph:
        tensors = {name: tensor.clone() for name, tensor in batch.tensors().items()}
        batch = replace(batch, **tensors)  # type: ignore[arg-type]
        # Warm-up and recording must leave gradients and random state unchanged.
        gradients = [gradient.clone() for gradient in self._gradients]
        random_state = torch.cuda.get_rng_state(self._device)
        main_stream, side_stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side_stream.wait_stream(main_stream)
        with torch.cuda.stream(side_stream):
            for _ in range(_NUM_WARM_UPS):
                self._run(batch)
        main_stream.wait_stream(side_stream)
        # The graph allocates from its own pool; return the warm-up's memory.
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            totals, correct = self._run(batch)
        torch._foreach_copy_(self._gradients, gradients)
        torch.cuda.set_rng_state(random_state, self._device)
        return graph, batch, totals, correct
