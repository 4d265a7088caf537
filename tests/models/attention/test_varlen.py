"""`attend()` against explicit softmax attention, sequence by sequence, in float64."""

import os
import subprocess
import sys
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch

from stemformer.models.attention import cpu, varlen
from stemformer.models.attention.cpu import FLASH_FROM
from stemformer.models.attention.varlen import attend

HEADS, SIZE = 3, 8

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# float32 keeps 24 bits: sums over some hundreds of terms agree with float64 to about 2e-6 of the largest value.
FP32 = 5e-6
# bfloat16 keeps 8 bits (a step of 2^-8 = 4e-3), and probabilities, their products and the result are each rounded once or twice.
BF16 = 2e-2


def offsets(lengths):
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def make(q_lengths, k_lengths=None, *, dtype=torch.float32, seed=0):
    """Return q, k, v and the upstream gradient, and the keyword arguments of `attend`."""
    k_lengths = k_lengths or q_lengths
    rng = torch.Generator().manual_seed(seed)
    shapes = [(sum(n), HEADS, SIZE) for n in (q_lengths, k_lengths, k_lengths, q_lengths)]
    tensors = [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]
    layout = {
        "cu_q": offsets(q_lengths),
        "cu_k": offsets(k_lengths),
        "max_q": max(q_lengths),
        "max_k": max(k_lengths),
    }
    return tensors, layout


def reference(q, k, v, *, cu_q, cu_k, max_q, max_k, causal=False, window=None):
    out = []
    for (a, b), (c, d) in zip(*(pairwise(cu) for cu in (cu_q.tolist(), cu_k.tolist())), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) / SIZE**0.5
        last = torch.arange(b - a)[:, None] + (d - c) - (b - a)
        if causal:
            scores = scores.masked_fill(torch.arange(d - c) > last, -torch.inf)
        if window is not None:
            scores = scores.masked_fill((torch.arange(d - c) - last).abs() > window, -torch.inf)
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[c:d]))
    return torch.cat(out)


def with_gradients(function, tensors, **arguments):
    """Return the output and the gradients of q, k and v."""
    *inputs, upstream = tensors
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves, **arguments)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def assert_close(found, expected, *, tolerance):
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        a, b = a.double().cpu(), b.double().cpu()
        # A single key gives a gradient of exactly zero for q and k: the scale is then that of the values, 1.
        scale = max(b.abs().max().item(), 1.0)
        assert a.shape == b.shape and (a - b).abs().max().item() <= tolerance * scale, name


def expect_reference(tensors, layout, *, tolerance=FP32, **arguments):
    expected = with_gradients(reference, [x.double() for x in tensors], **layout, **arguments)
    assert_close(with_gradients(attend, tensors, **layout, **arguments), expected, tolerance=tolerance)


LONG = FLASH_FROM + 13
SELF = {
    "equal": [16, 16, 16],
    "ragged": [3, 17, 8, 1, 30, 9],
    "one token": [1],
    "flash": [FLASH_FROM, LONG, LONG],
    "flash and short": [5, LONG, 12, FLASH_FROM, 1, LONG],
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", SELF.values(), ids=SELF)
def test_self_attention_equals_reference(lengths, causal):
    expect_reference(*make(lengths), causal=causal)


CROSS = {"ragged": ([3, 17, 1], [20, 2, 9]), "flash and short": ([LONG, 4, FLASH_FROM], [FLASH_FROM, 400, 7])}


@pytest.mark.parametrize(("q_lengths", "k_lengths"), CROSS.values(), ids=CROSS)
def test_cross_attention_equals_reference(q_lengths, k_lengths):
    expect_reference(*make(q_lengths, k_lengths))


MORE_KEYS = {
    "ragged": ([3, 1, 9, 5], [7, 6, 9, 30]),
    "flash lengths": ([FLASH_FROM, FLASH_FROM], [FLASH_FROM + 5, FLASH_FROM]),
}


@pytest.mark.parametrize(("q_lengths", "k_lengths"), MORE_KEYS.values(), ids=MORE_KEYS)
def test_causal_with_more_keys_than_queries_is_aligned_at_the_bottom_right(q_lengths, k_lengths):
    expect_reference(*make(q_lengths, k_lengths), causal=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 3, 20, 1000])
@pytest.mark.parametrize("lengths", SELF.values(), ids=SELF)
def test_window_equals_reference(lengths, window, causal):
    expect_reference(*make(lengths), causal=causal, window=window)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_lengths", "k_lengths"), MORE_KEYS.values(), ids=MORE_KEYS)
def test_window_with_more_keys_than_queries_is_aligned_at_the_bottom_right(q_lengths, k_lengths, causal):
    expect_reference(*make(q_lengths, k_lengths), causal=causal, window=4)


def test_flash_kernel_is_used_from_its_minimum_length():
    layout = make([FLASH_FROM - 1, FLASH_FROM])[1]
    plan = cpu._plan_for(torch.empty(1, HEADS, SIZE), layout["cu_q"], layout["cu_k"], False)
    assert sorted((bucket.flash, len(bucket.q.rows)) for bucket in plan.buckets) == [(False, 1), (True, 1)]


@pytest.mark.parametrize("lengths", [[3, 17, 8, 1], [LONG, 6]])
def test_slices_of_one_qkv_tensor_equal_separate_tensors(lengths):
    tensors, layout = make(lengths)
    *inputs, upstream = tensors

    def fused(*parts, **arguments):
        return attend(*torch.stack(parts, 1).unbind(1), **arguments)

    views = torch.stack(inputs, 1).unbind(1)
    assert not any(x.is_contiguous() for x in views)
    expected = with_gradients(attend, tensors, **layout)
    found = with_gradients(fused, [*inputs, upstream], **layout)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("budget", [0, 12 * 1024])
def test_gradients_do_not_depend_on_how_many_probabilities_are_kept(budget, monkeypatch):
    tensors, layout = make([30, 31, 170, 5, 164])
    expected = with_gradients(attend, tensors, **layout)
    monkeypatch.setattr(cpu, "_KEPT_SCORES", budget)  # none, and those of the three short sequences
    found = with_gradients(attend, tensors, **layout)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_first_backward_frees_kept_probabilities_and_a_second_recomputes_them():
    tensors, layout = make([30, 31])
    *inputs, upstream = tensors
    leaves = [x.requires_grad_() for x in inputs]
    out = attend(*leaves, **layout)
    assert any(x is not None for x in out.grad_fn.kept)
    first = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    assert out.grad_fn.kept is None
    second = torch.autograd.grad(out, leaves, upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradient_of_a_gradient_is_refused():
    tensors, layout = make([3, 4])
    leaves = [x.requires_grad_() for x in tensors[:3]]
    (gradient,) = torch.autograd.grad(attend(*leaves, **layout).square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_autocast_does_not_change_the_dtype():
    tensors, layout = make([3, 40])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(*tensors[:3], **layout)
    assert torch.equal(found, attend(*tensors[:3], **layout))


def test_empty_batch_is_refused():
    empty = torch.zeros(0, HEADS, SIZE)
    cu = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="no tokens"):
        attend(empty, empty, empty, cu_q=cu, cu_k=cu, max_q=0, max_k=0)


def test_transposed_inputs_and_gradient_equal_contiguous_ones():
    tensors, layout = make([3, 17, 8])

    def transposed(*parts, **arguments):
        return attend(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in parts), **arguments)

    permuted = [*tensors[:3], tensors[3].permute(2, 1, 0).contiguous().permute(2, 1, 0)]
    expected = with_gradients(attend, tensors, **layout)
    found = with_gradients(transposed, permuted, **layout)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradient_of_a_plain_sum_equals_reference():
    tensors, layout = make([3, 17, 8])
    expect_reference([*tensors[:3], torch.ones(()).expand_as(tensors[3])], layout)  # all its strides are zero


@pytest.mark.parametrize("lengths", [[3, 17, 8, 1], [LONG, 5]])
@pytest.mark.parametrize("causal", [False, True])
def test_bf16_equals_reference(lengths, causal):
    expect_reference(*make(lengths, dtype=torch.bfloat16), tolerance=BF16, causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("more_keys", [0, 3])
def test_bf16_of_many_sequences_equals_reference(causal, more_keys):
    lengths = [1 + 7 * i % 30 for i in range(21)]
    plan = cpu._plan_for(torch.empty(sum(lengths), HEADS, SIZE, dtype=torch.bfloat16), *[offsets(lengths)] * 2, causal)
    assert [len(bucket.q.rows) for bucket in plan.buckets] == [22]
    tensors, layout = make(lengths, [n + more_keys for n in lengths], dtype=torch.bfloat16)
    expect_reference(tensors, layout, tolerance=BF16, causal=causal)


def test_bf16_result_is_bf16():
    tensors, layout = make([3, 5], dtype=torch.bfloat16)
    assert {x.dtype for x in with_gradients(attend, tensors, **layout)} == {torch.bfloat16}


@pytest.fixture
def constants(monkeypatch):
    """Set constants of the CPU kernels, with an empty cache of plans."""
    cpu._plan.cache_clear()
    yield lambda **values: [monkeypatch.setattr(cpu, name, value) for name, value in values.items()]
    cpu._plan.cache_clear()


def bucket_shapes(lengths, heads=HEADS):
    cu = offsets(lengths)
    plan = cpu._plan_for(torch.empty(sum(lengths), heads, SIZE), cu, cu, False)
    return sorted(tuple(bucket.q.rows.shape) for bucket in plan.buckets)


@pytest.mark.parametrize("causal", [False, True])
def test_buckets_split_by_number_of_scores_equal_reference(constants, causal):
    constants(_BUCKET_SCORES=2 * HEADS * 32 * 32, _BUCKET_COST=1)
    lengths = [5, 8, 7, 3, 40, 50]
    expect_reference(*make(lengths), causal=causal)
    assert bucket_shapes(lengths) == [
        (1, 64),
        (1, 64),
        (2, 32),
        (2, 32),
    ]  # two of 32 fill a bucket, each longer one is a bucket


@pytest.mark.parametrize("causal", [False, True])
def test_lengths_in_separate_buckets_equal_lengths_in_one(constants, causal):
    lengths = [5, 120, 40, 77, 3, 125]
    for cost, count in ((1, 4), (2**40, 1)):
        constants(_BUCKET_COST=cost)
        cpu._plan.cache_clear()
        assert len(bucket_shapes(lengths)) == count
        expect_reference(*make(lengths), causal=causal)


def shape_of(chunk):
    masked = 0 if chunk.bias is None else chunk.bias.shape[3]
    return *chunk[:4], chunk.stop_key - chunk.first_key - masked


def test_queries_with_a_window_are_computed_in_chunks_without_distant_keys(constants):
    lengths, cu = [600, 580], offsets([600, 580])
    constants(_BUCKET_COST=2**40, _BUCKET_SCORES=2**30)
    for causal in (False, True):
        cpu._plan.cache_clear()
        plan = cpu._plan_for(torch.empty(sum(lengths), HEADS, SIZE), cu, cu, causal, 100)
        chunks = [shape_of(chunk)[:4] for chunk in plan.buckets[0].chunks]
        ends = [(256, 384, 512, 608, 608), (128, 256, 384, 512, 608)][causal]
        starts = [(0, 128), (128, 256), (256, 384), (384, 512), (512, 608)]
        assert chunks == [(*q, max(0, q[0] - 128), end) for q, end in zip(starts, ends, strict=True)]
        for kept in (2**22, 0):
            constants(_KEPT_SCORES=kept)
            expect_reference(*make(lengths), causal=causal, window=100)
        expect_reference(*make(lengths, dtype=torch.bfloat16), tolerance=BF16, causal=causal, window=100)


def test_causal_queries_are_computed_in_chunks_without_later_keys(constants):
    constants(FLASH_FROM=2**31)  # float32 then uses the same kernel, and shows more digits
    for lengths, chunks in (
        # Queries, keys, and keys without mask.
        ([64, 20], [(0, 64, 0, 64, 0)]),
        ([100, 65, 9], [(0, 64, 0, 64, 0), (64, 128, 0, 128, 64)]),
        ([600, 510], [(0, 160, 0, 160, 0), (160, 320, 0, 320, 160), (320, 480, 0, 480, 320), (480, 608, 0, 608, 480)]),
    ):
        constants(_BUCKET_COST=2**40, _BUCKET_SCORES=2**30)
        cpu._plan.cache_clear()
        cu = offsets(lengths)
        (bucket,) = cpu._plan_for(torch.empty(sum(lengths), HEADS, SIZE), cu, cu, True).buckets
        assert list(map(shape_of, bucket.chunks)) == chunks
        for kept in (2**22, 0):
            constants(_KEPT_SCORES=kept)
            expect_reference(*make(lengths), causal=True)
        expect_reference(*make(lengths, dtype=torch.bfloat16), tolerance=BF16, causal=True)


def test_buckets_cost_less_than_one_for_all_or_one_for_each():
    lengths = np.random.default_rng(0).integers(8, 128, 100).tolist()

    def cost(shapes):
        return sum(cpu._BUCKET_COST + HEADS * n * t * t for n, t in shapes)

    found = bucket_shapes(lengths)
    assert sum(n for n, _ in found) == len(lengths)
    assert cost(found) < cost([(100, 128)]) and cost(found) < cost([(1, n) for n in lengths])


@pytest.mark.parametrize("lengths", [[3, 17, 8], [FLASH_FROM, 5]])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_rows_give_zeros_and_get_no_gradient(lengths, causal):
    tensors, layout = make(lengths)
    n = sum(lengths)
    longer = [torch.cat([x, torch.full((4, *x.shape[1:]), 7.0)]) for x in tensors]
    expected = with_gradients(attend, tensors, **layout, causal=causal)
    for found, wanted in zip(with_gradients(attend, longer, **layout, causal=causal), expected, strict=True):
        assert torch.equal(found[:n], wanted)
        assert found[n:].shape[0] == 4 and found[n:].count_nonzero() == 0


@pytest.mark.parametrize("side", ["cu_q", "cu_k"])
def test_empty_sequence_is_refused(side):
    tensors, layout = make([3, 2, 4])
    layout[side] = offsets([3, 0, 6])
    with pytest.raises(ValueError, match="a sequence is empty"):
        attend(*tensors[:3], **layout)


def test_causal_with_fewer_keys_than_queries_is_refused():
    tensors, layout = make([3, 5], [3, 4])
    with pytest.raises(ValueError, match="fewer keys than queries"):
        attend(*tensors[:3], **layout, causal=True)


PADDED = {
    "ragged": ([3, 17, 8, 1], [3, 17, 8, 1], False),
    "ragged causal": ([3, 17, 8, 1], [3, 17, 8, 1], True),
    "cross": ([3, 17, 1], [20, 2, 9], False),
    "bottom right": ([3, 1, 9], [7, 6, 9], True),
    "long": ([LONG, 5], [LONG, 5], True),
}


@pytest.mark.parametrize(("q_lengths", "k_lengths", "causal"), PADDED.values(), ids=PADDED)
def test_padded_kernel_equals_the_cpu_kernels(q_lengths, k_lengths, causal):
    def padded(q, k, v, **arguments):
        return varlen._attend_padded(q, k, v, *arguments.values())

    tensors, layout = make(q_lengths, k_lengths)
    has_more_queries = any(q > k for q, k in zip(q_lengths, k_lengths, strict=True))
    for window in [None] if has_more_queries else [None, 2]:
        expected = with_gradients(attend, tensors, **layout, causal=causal, window=window)
        assert_close(with_gradients(padded, tensors, **layout, causal=causal, window=window), expected, tolerance=FP32)


@pytest.mark.parametrize("lengths", [[3, 6, 1], [LONG, 4]])
@pytest.mark.parametrize("causal", [False, True])
def test_operator_passes_the_checks_of_torch(lengths, causal):
    tensors, layout = make(lengths)
    leaves = [x.requires_grad_() for x in tensors[:3]]
    result = torch.library.opcheck(varlen._attend, (*leaves, layout["cu_q"], layout["cu_k"], causal, 2))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("lengths", [[6, 7, 5], [LONG, LONG, LONG]])
@pytest.mark.parametrize("causal", [False, True])
def test_sequences_of_a_batch_do_not_see_each_other(lengths, causal):
    (q, k, v, _), layout = make(lengths)
    begin, end = layout["cu_q"].tolist()[1:3]
    inside = torch.zeros(len(q), dtype=torch.bool)
    inside[begin:end] = True
    changed = [torch.where(inside[:, None, None], x * 3 + 1, x) for x in (q, k, v)]
    before, after = attend(q, k, v, **layout, causal=causal), attend(*changed, **layout, causal=causal)
    assert torch.equal(before[~inside], after[~inside]) and not torch.equal(before[inside], after[inside])


def test_gradient_of_one_sequence_does_not_reach_another():
    tensors, layout = make([6, 7, 5])
    upstream = torch.zeros_like(tensors[3])
    upstream[6:13] = tensors[3][6:13]
    for gradient in with_gradients(attend, [*tensors[:3], upstream], **layout)[1:]:
        assert gradient[6:13].count_nonzero() > 0
        assert gradient[:6].count_nonzero() == 0 and gradient[13:].count_nonzero() == 0


def test_causal_queries_do_not_see_later_keys():
    (q, k, v, _), layout = make([20])
    before = attend(q, k, v, **layout, causal=True)
    k[12:], v[12:] = 7, 7
    after = attend(q, k, v, **layout, causal=True)
    assert torch.equal(before[:12], after[:12]) and not torch.equal(before[12:], after[12:])


COMPILED = """
import torch
from stemformer.models.attention.varlen import attend
def step(x, cu):
    q, k, v = (x * 2).view(-1, 3, 2, 8).unbind(1)
    return attend(q, k, v, cu_q=cu, cu_k=cu, max_q=400, max_k=400).sin().sum()
x = torch.randn(410, 48, generator=torch.Generator().manual_seed(0))
cu = torch.tensor([0, 3, 403, 410], dtype=torch.int32)
results = []
for function in (step, torch.compile(step, fullgraph=True)):
    leaf = x.clone().requires_grad_()
    value = function(leaf, cu)
    value.backward()
    results.append((value.detach(), leaf.grad))
torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)  # inductor fuses the scaling and sums in another order
"""


@pytest.mark.slow
def test_compiled_function_has_no_graph_break():
    environment = {**os.environ, "STEMFORMER_NO_TYPECHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FP32), (torch.bfloat16, BF16)])
@pytest.mark.parametrize(("q_lengths", "k_lengths", "causal"), PADDED.values(), ids=PADDED)
def test_cuda_equals_the_cpu(q_lengths, k_lengths, causal, dtype, tolerance):
    tensors, layout = make(q_lengths, k_lengths, dtype=dtype)
    expected = with_gradients(attend, tensors, **layout, causal=causal)
    on_cuda = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in layout.items()}
    found = with_gradients(attend, [x.cuda() for x in tensors], **on_cuda, causal=causal)
    assert_close(found, expected, tolerance=tolerance)
