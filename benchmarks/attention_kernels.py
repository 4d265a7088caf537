"""Fastest attention kernel at each length: the measured table behind `stemformer.models.attention`.

    python benchmarks/attention_kernels.py --threads 2
    python benchmarks/attention_kernels.py --precision bf16

Each column is a way to compute the same result, each row a batch of sequences; a cell is the median time in
milliseconds, the fastest in bold. All kernels of a row take turns, call by call, in one process. Queries, keys and values
are slices of one matrix product, as in a model.

    bmm 2^n    `bmm` with at most 2^n scores at once (`_BUCKET_SCORES`)
    flash      PyTorch's CPU flash kernel on sequences of exactly one length, stacked
    loop       scaled_dot_product_attention, sequence by sequence
    padded     one padded block with a mask
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from unittest.mock import patch

import frame
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemformer.models.attention import cpu
from stemformer.models.attention.varlen import _attend_padded, attend

LENGTHS = ("32", "64", "128", "256", "384", "512", "1024", "8-64")
NEVER = 2**31


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lengths", default=",".join(LENGTHS), help="numbers, or ranges for sequences of unequal length"
    )
    parser.add_argument("--heads", default="4,12")
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a batch, at least one sequence")
    parser.add_argument("--scores", default="17,19,21", help="exponents n of the bmm columns")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kernels = [*(f"bmm 2^{n}" for n in args.scores.split(",")), "flash", "loop", "padded"]
    print(
        f"Milliseconds, {args.precision}, head size {args.head_size}, {args.tokens:,} tokens, {args.threads} threads, "
        f"medians of {args.rounds} rounds, {'causal, ' if args.causal else ''}"
        f"torch {torch.__version__}. {frame.processor()}\n"
    )
    frame.print_table(("heads", "length", "pass", *kernels), rows(kernels, args))


def rows(kernels: list[str], args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    for heads in map(int, args.heads.split(",")):
        for length in args.lengths.split(","):
            for backward in (False, True):
                times = measure(kernels, sequence_lengths(length, args.tokens), heads, args, backward=backward)
                best = min(times.values())
                cells = [f"**{t:.1f}**" if t == best else f"{t:.1f}" for t in times.values()]
                yield str(heads), length, "forward + backward" if backward else "forward", *cells


def sequence_lengths(text: str, tokens: int) -> np.ndarray:
    """Return lengths that add up to about `tokens`: all the same, or random from a range."""
    low, high = (int(text.split("-")[i]) for i in (0, -1))
    lengths = np.random.default_rng(0).integers(low, high + 1, size=tokens // low + 1)
    return lengths[: max(1, int(np.searchsorted(np.cumsum(lengths), tokens, side="right")))]


def measure(
    kernels: list[str], lengths: np.ndarray, heads: int, args: argparse.Namespace, *, backward: bool
) -> dict[str, float]:
    """Return the median milliseconds of each kernel; exit if two of them disagree."""
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    cu = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(int(cu[-1]), 3, heads, args.head_size, generator=generator).to(dtype).requires_grad_(backward)
    weight = torch.randn(int(cu[-1]), heads, args.head_size, generator=generator).to(dtype)
    seconds: dict[str, list[float]] = {kernel: [] for kernel in kernels}
    expected: Tensor | None = None
    for number in range(-1, args.rounds):  # the first is not counted
        for kernel in kernels:
            with forced_kernel(kernel) as run, contextlib.nullcontext() if backward else torch.no_grad():
                start = time.perf_counter()
                out = run(*qkv.unbind(1), cu, int(lengths.max()), args.causal)
                if backward:
                    (out,) = torch.autograd.grad(out, qkv, weight)
                seconds[kernel].append(time.perf_counter() - start)
            if number < 0:
                expected = out if expected is None else expected
                error = float((out - expected).abs().max() / expected.abs().max())
                if error > (0.03 if args.precision == "bf16" else 1e-5):
                    sys.exit(f"{kernel} at {heads} heads differs from {kernels[0]} by {error:.1e} of the largest value")
    return {kernel: 1e3 * statistics.median(found[1:]) for kernel, found in seconds.items()}


@contextlib.contextmanager
def forced_kernel(kernel: str) -> Iterator[Callable[..., Tensor]]:
    """Yield a function that runs this kernel, whatever `attend` would choose."""
    if kernel == "loop":
        yield loop
    elif kernel == "padded":
        yield lambda q, k, v, cu, longest, causal: _attend_padded(q, k, v, cu, cu, longest, longest, causal)
    else:
        flash_from = 1 if kernel == "flash" else NEVER
        scores = 2 ** int(kernel.split("^")[1]) if kernel != "flash" else cpu._BUCKET_SCORES
        # A step of a model plans once for all layers, so planning is not timed.
        plans = PLANS.setdefault(kernel, {})

        def plan_for(q: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool) -> cpu._BucketPlan:
            key = (cu_q.numpy().tobytes(), q.shape[1], causal)
            if key not in plans:
                make = cpu._plan.__wrapped__
                plans[key] = make(key[0], cu_k.numpy().tobytes(), q.shape[1], causal, q.dtype, flash_from)
            return plans[key]

        with patch.multiple(cpu, _plan_for=plan_for, _BUCKET_SCORES=scores):
            yield lambda q, k, v, cu, longest, causal: attend(
                q, k, v, cu_q=cu, cu_k=cu, max_q=longest, max_k=longest, causal=causal
            )


PLANS: dict[str, dict[tuple[bytes, int, bool], cpu._BucketPlan]] = {}


def loop(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int, causal: bool) -> Tensor:
    parts = [x.transpose(0, 1).split(cu.diff().tolist(), dim=1) for x in (q, k, v)]  # (H, T, K) each
    outs = [
        F.scaled_dot_product_attention(a[None], b[None], c[None], is_causal=causal)[0]
        for a, b, c in zip(*parts, strict=True)
    ]
    return torch.cat(outs, dim=1).transpose(0, 1)


if __name__ == "__main__":
    main()
