"""Each linear kernel against the plain product, and the choice of the kernel."""

import pytest
import torch

from stemformer.models.inference import linear_kernels
from stemformer.models.inference.linear_kernels import make_linear_kernel
from stemformer.models.layers import ACTIVATIONS


def random_tensor(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def chosen(monkeypatch, dtype, *, bf16=True, amx=False, intel=False, avx2=False, **options):
    """Returns the name of the function that lays a matrix out, and the type it is laid out in."""
    called = []
    for name in ("_plain", "_mkl", "_transposed", "_fbgemm", "_onednn"):
        monkeypatch.setattr(linear_kernels, name, lambda w, *_, name=name: called.append((name, w.dtype)) or abs)
    monkeypatch.setattr(linear_kernels, "_is_packable", lambda weight: True)
    monkeypatch.setattr(linear_kernels, "_has_bf16_kernels", lambda: bf16)
    monkeypatch.setattr(linear_kernels, "_has_amx", lambda: amx)
    monkeypatch.setattr(linear_kernels, "_is_intel", lambda: intel)
    monkeypatch.setattr(linear_kernels, "_is_avx2", lambda: avx2)
    monkeypatch.setattr(linear_kernels, "_SMALL_WEIGHT", 48)
    make_linear_kernel(random_tensor(8, options.pop("inputs", 6), dtype=dtype), None, **options)
    return called[0]


@pytest.mark.parametrize("kernel", ["_plain", "_mkl", "_transposed", "_mkl_per_thread", "_fbgemm", "_onednn"])
@pytest.mark.parametrize("shape", [(61, 32), (32, 61)], ids=["wide", "tall"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_kernels_equal_the_plain_product(kernel, shape, with_bias):
    dtype = torch.bfloat16 if kernel == "_fbgemm" else torch.float32
    weight = random_tensor(*shape, dtype=dtype)
    if not linear_kernels._is_packable(weight) or (kernel == "_fbgemm" and not linear_kernels._fits_float16(weight)):
        pytest.skip("this processor has no such kernel")
    bias = random_tensor(shape[0], dtype=dtype, seed=1) if with_bias else None
    parts = {"parts": 3} if kernel == "_mkl_per_thread" else {}  # neither number of columns is a multiple
    product = getattr(linear_kernels, kernel)(weight, bias, **parts)
    for rows in (1, 2, 3) if kernel == "_fbgemm" else (1, 2, 3, 4, 5, 19):
        x = random_tensor(rows, shape[1], seed=rows)
        expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        found = product(x)
        assert found.dtype == torch.float32
        # float32 sums of 61 products of about 1
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "options", "expected"),
    [
        (torch.float32, {"rows": 1}, "_mkl"),
        (torch.float32, {"rows": 1, "intel": True}, "_mkl"),
        (torch.float32, {"rows": 2}, "_onednn"),
        (torch.float32, {"rows": 2, "avx2": True}, "_onednn"),
        (torch.float32, {"rows": 2, "avx2": True, "inputs": 5}, "_transposed"),
        (torch.float32, {"rows": 1, "steps": 7}, "_plain"),
        (torch.bfloat16, {"rows": 3}, "_fbgemm"),
        (torch.bfloat16, {"rows": 3, "amx": True}, "_onednn"),
        (torch.bfloat16, {"rows": 3, "amx": True, "inputs": 5}, "_fbgemm"),
        (torch.bfloat16, {"rows": 1, "intel": True, "inputs": 5}, "_mkl"),
        (torch.bfloat16, {"rows": 1, "intel": True}, "_fbgemm"),
        (torch.bfloat16, {"rows": 4}, "_onednn"),
        (torch.bfloat16, {"rows": 1, "steps": 127}, "_onednn"),
        (torch.bfloat16, {"rows": 1, "steps": 7}, "_plain"),
    ],
)
def test_kernel_depends_on_rows_and_steps(monkeypatch, dtype, options, expected):
    if expected == "_fbgemm" and not linear_kernels._fits_float16(random_tensor(2, 2)):
        pytest.skip("this processor has no such kernel")
    assert chosen(monkeypatch, dtype, **options) == (expected, dtype)


@pytest.mark.parametrize(
    ("options", "kernel", "dtype"),
    [
        ({"rows": 3}, "_fbgemm", torch.bfloat16),
        ({"rows": 16}, "_fbgemm", torch.bfloat16),
        ({"rows": 1, "steps": 127}, "_mkl", torch.float32),
        ({"rows": 4, "steps": 127}, "_onednn", torch.float32),
        ({"rows": 1, "steps": 7}, "_plain", torch.float32),
    ],
)
def test_without_bf16_kernels_nothing_is_multiplied_in_bf16(monkeypatch, options, kernel, dtype):
    if kernel == "_fbgemm" and not linear_kernels._fits_float16(random_tensor(2, 2)):
        pytest.skip("this processor has no such kernel")
    assert chosen(monkeypatch, torch.bfloat16, bf16=False, **options) == (kernel, dtype)


@pytest.mark.parametrize("steps", [7, 127, 128])
def test_without_bf16_kernels_bf16_weights_give_float32_products(monkeypatch, steps):
    monkeypatch.setattr(linear_kernels, "_has_bf16_kernels", lambda: False)
    weight, bias = random_tensor(61, 32, dtype=torch.bfloat16), random_tensor(61, dtype=torch.bfloat16, seed=1)
    product = make_linear_kernel(weight, bias, rows=2, steps=steps)
    for rows in (1, 2, 3, 4, 5, 19):
        x = random_tensor(rows, 32, seed=rows)
        expected = x.double() @ weight.double().T + bias.double()
        # float32 sums of 32 products of about 1
        torch.testing.assert_close(product(x).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("intel", "threads", "expected"), [(False, 1, []), (False, 2, [2]), (True, 2, [])])
def test_mkl_gets_one_part_per_thread_where_it_uses_one_thread(monkeypatch, intel, threads, expected):
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(linear_kernels, "_is_intel", lambda: intel)
    monkeypatch.setattr(linear_kernels, "_mkl_per_thread", lambda weight, bias, parts: taken.append(parts) or abs)
    linear_kernels._mkl(random_tensor(8, 6), None)
    assert taken == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("rows", [1, 4])
def test_activation_is_applied_to_the_product(dtype, name, rows):
    weight, bias, x = (
        random_tensor(61, 32, dtype=dtype),
        random_tensor(61, dtype=dtype, seed=1),
        random_tensor(rows, 32, seed=2),
    )
    activation = ACTIVATIONS[name]()
    product = make_linear_kernel(weight, bias, rows=rows, activation=activation)
    expected = activation(x.to(dtype).double() @ weight.double().T + bias.double())
    error = 1e-5 if dtype == torch.float32 else expected.abs().max() * 2**-7  # values are rounded once or twice
    torch.testing.assert_close(product(x).double(), expected, rtol=0, atol=float(error))


def test_weight_beyond_float16_does_not_fit():
    weight = random_tensor(4, 4, dtype=torch.bfloat16)
    weight[1, 2] = 1e5
    assert not linear_kernels._fits_float16(weight)


def test_float64_uses_the_plain_kernel():
    weight, x = random_tensor(4, 4, dtype=torch.float64), random_tensor(1, 4, dtype=torch.float64)
    assert torch.equal(make_linear_kernel(weight, None, rows=1)(x), x @ weight.T)
