"""Products in each layout against the plain one, and which layout is taken when."""

import pytest
import torch

from stemformer.models.inference import linear_kernels as products
from stemformer.models.inference.linear_kernels import make_linear_kernel
from stemformer.models.layers import make_activation


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def chosen(monkeypatch, dtype, *, bf16=True, amx=False, intel=False, **options):
    """Returns the name of the function that lays a matrix out, and the type it is laid out in."""
    called = []
    for name in ("_as_it_is", "_in_long_runs", "_in_halves", "_in_blocks"):
        monkeypatch.setattr(products, name, lambda w, *_, name=name: called.append((name, w.dtype)) or abs)
    monkeypatch.setattr(products, "_is_packable", lambda weight: True)
    monkeypatch.setattr(products, "_has_bf16_kernels", lambda: bf16)
    monkeypatch.setattr(products, "_has_amx", lambda: amx)
    monkeypatch.setattr(products, "_is_intel", lambda: intel)
    monkeypatch.setattr(products, "_FEW_WEIGHTS", 48)
    make_linear_kernel(drawn(8, options.pop("inputs", 6), dtype=dtype), None, **options)
    return called[0]


@pytest.mark.parametrize("layout", ["_as_it_is", "_in_long_runs", "_in_parts", "_in_halves", "_in_blocks"])
@pytest.mark.parametrize("shape", [(61, 32), (32, 61)], ids=["wide", "tall"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_layout_changes_no_product(layout, shape, with_bias):
    dtype = torch.bfloat16 if layout == "_in_halves" else torch.float32
    weight = drawn(*shape, dtype=dtype)
    if not products._is_packable(weight) or (layout == "_in_halves" and not products._fits_halves(weight)):
        pytest.skip("this processor has no such kernel")
    bias = drawn(shape[0], dtype=dtype, seed=1) if with_bias else None
    parts = {"parts": 3} if layout == "_in_parts" else {}  # of which neither number of columns is a multiple
    product = getattr(products, layout)(weight, bias, **parts)
    for rows in (1, 2, 3) if layout == "_in_halves" else (1, 2, 3, 4, 5, 19):
        x = drawn(rows, shape[1], seed=rows)
        expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        found = product(x)
        assert found.dtype == torch.float32
        # float32 sums of 61 products of about 1
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "options", "expected"),
    [
        (torch.float32, {"rows": 1}, "_in_long_runs"),
        (torch.float32, {"rows": 1, "intel": True}, "_in_long_runs"),
        (torch.float32, {"rows": 2}, "_in_blocks"),
        (torch.float32, {"rows": 1, "steps": 7}, "_as_it_is"),
        (torch.bfloat16, {"rows": 3}, "_in_halves"),
        (torch.bfloat16, {"rows": 3, "amx": True}, "_in_blocks"),
        (torch.bfloat16, {"rows": 3, "amx": True, "inputs": 5}, "_in_halves"),
        (torch.bfloat16, {"rows": 1, "intel": True, "inputs": 5}, "_in_long_runs"),
        (torch.bfloat16, {"rows": 1, "intel": True}, "_in_halves"),
        (torch.bfloat16, {"rows": 4}, "_in_blocks"),
        (torch.bfloat16, {"rows": 1, "steps": 127}, "_in_blocks"),
        (torch.bfloat16, {"rows": 1, "steps": 7}, "_as_it_is"),
    ],
)
def test_layout_follows_rows_and_steps(monkeypatch, dtype, options, expected):
    if expected == "_in_halves" and not products._fits_halves(drawn(2, 2)):
        pytest.skip("this processor has no such kernel")
    assert chosen(monkeypatch, dtype, **options) == (expected, dtype)


@pytest.mark.parametrize(
    ("options", "layout", "dtype"),
    [
        ({"rows": 3}, "_in_halves", torch.bfloat16),
        ({"rows": 16}, "_in_halves", torch.bfloat16),
        ({"rows": 1, "steps": 127}, "_in_long_runs", torch.float32),
        ({"rows": 4, "steps": 127}, "_in_blocks", torch.float32),
        ({"rows": 1, "steps": 7}, "_as_it_is", torch.float32),
    ],
)
def test_without_bf16_kernels_nothing_is_multiplied_in_bf16(monkeypatch, options, layout, dtype):
    if layout == "_in_halves" and not products._fits_halves(drawn(2, 2)):
        pytest.skip("this processor has no such kernel")
    assert chosen(monkeypatch, torch.bfloat16, bf16=False, **options) == (layout, dtype)


@pytest.mark.parametrize("steps", [7, 127, 128])
def test_without_bf16_kernels_bf16_weights_give_float32_products(monkeypatch, steps):
    monkeypatch.setattr(products, "_has_bf16_kernels", lambda: False)
    weight, bias = drawn(61, 32, dtype=torch.bfloat16), drawn(61, dtype=torch.bfloat16, seed=1)
    product = make_linear_kernel(weight, bias, rows=2, steps=steps)
    for rows in (1, 2, 3, 4, 5, 19):
        x = drawn(rows, 32, seed=rows)
        expected = x.double() @ weight.double().T + bias.double()
        # float32 sums of 32 products of about 1
        torch.testing.assert_close(product(x).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("intel", "threads", "expected"), [(False, 1, []), (False, 2, [2]), (True, 2, [])])
def test_long_runs_are_in_parts_where_mkl_takes_one_thread(monkeypatch, intel, threads, expected):
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(products, "_is_intel", lambda: intel)
    monkeypatch.setattr(products, "_in_parts", lambda weight, bias, parts: taken.append(parts) or abs)
    products._in_long_runs(drawn(8, 6), None)
    assert taken == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("rows", [1, 4])
def test_activation_follows_the_product(dtype, name, rows):
    weight, bias, x = drawn(61, 32, dtype=dtype), drawn(61, dtype=dtype, seed=1), drawn(rows, 32, seed=2)
    activation = make_activation(name)
    product = make_linear_kernel(weight, bias, rows=rows, activation=activation)
    expected = activation(x.to(dtype).double() @ weight.double().T + bias.double())
    error = 1e-5 if dtype == torch.float32 else expected.abs().max() * 2**-7  # of what is rounded once or twice
    torch.testing.assert_close(product(x).double(), expected, rtol=0, atol=float(error))


def test_weight_beyond_float16_is_not_halved():
    weight = drawn(4, 4, dtype=torch.bfloat16)
    weight[1, 2] = 1e5
    assert not products._fits_halves(weight)


def test_float64_stays_as_it_is():
    weight, x = drawn(4, 4, dtype=torch.float64), drawn(1, 4, dtype=torch.float64)
    assert torch.equal(make_linear_kernel(weight, None, rows=1)(x), x @ weight.T)
