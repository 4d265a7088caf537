import os
import subprocess
import sys

import pytest
import torch

from stemformer.models.rotary import rotate, rotate_queries_and_keys, rotation_at

HEADS, SIZE = 3, 8


def rotation(positions, theta=100.0):
    return rotation_at(torch.as_tensor(positions), SIZE, theta)


def heads(*shape, seed=0):
    return torch.randn(*shape, SIZE, generator=torch.Generator().manual_seed(seed))


def test_a_pair_of_coordinates_turns_by_its_angle():
    x = torch.zeros(1, 1, SIZE)
    x[..., 1] = 1.0  # the pair of coordinates 1 and 5, whose angle is theta^(-2 / 8) a position
    angle = torch.tensor(3 * 100.0**-0.25)
    expected = torch.zeros(1, 1, SIZE)
    expected[..., 1], expected[..., 5] = angle.cos(), angle.sin()
    torch.testing.assert_close(rotate(x, rotation([3])), expected)


def test_position_zero_changes_nothing():
    x = heads(4, HEADS)
    assert torch.equal(rotate(x, rotation([0] * 4)), x)


@pytest.mark.parametrize("shift", [1, 57])
def test_products_depend_on_the_distance_of_positions_only(shift):
    q, k = heads(5, HEADS), heads(5, HEADS, seed=1)
    positions = torch.arange(5)

    def products(offset):
        turned = (rotate(x, rotation(positions + offset)) for x in (q, k))
        return torch.einsum("qhd,khd->hqk", *turned)

    torch.testing.assert_close(products(shift), products(0), atol=1e-5, rtol=1e-5)


def products_and_values(qkv, function):
    """Return the products of all queries and keys, and the values; the order of coordinates does not matter."""
    qk, v = function(qkv, 2 * HEADS, rotation(range(len(qkv))))
    q, k = qk.chunk(2, 1)
    return torch.einsum("qhd,khd->hqk", q, k), v


def plain(qkv, num_rotated, turn):
    return rotate(qkv[:, :num_rotated], turn), qkv[:, num_rotated:]


def test_products_values_and_gradients_equal_those_of_the_plain_rotation():
    results = []
    for function in (rotate_queries_and_keys, plain):
        qkv = heads(7, 3 * HEADS).requires_grad_()
        outputs = products_and_values(qkv, function)
        sum((out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() for out in outputs).backward()
        results.append((*(out.detach() for out in outputs), qkv.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_bf16_is_rotated_in_float32():
    qkv = heads(7, 3 * HEADS).bfloat16()
    found, _ = rotate_queries_and_keys(qkv, 2 * HEADS, rotation(range(7)))
    exact, _ = rotate_queries_and_keys(qkv.float(), 2 * HEADS, rotation(range(7)))
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())


COMPILED = """
import torch
from stemformer.models.rotary import rotate_queries_and_keys, rotation_at
qkv = torch.randn(7, 9, 8, generator=torch.Generator().manual_seed(0))
results = []
for function in (rotate_queries_and_keys, torch.compile(rotate_queries_and_keys, fullgraph=True, backend="eager")):
    qk, v = function(qkv, 6, rotation_at(torch.arange(7), 8, 100.0))
    results.append((torch.einsum("qhd,khd->hqk", *qk.chunk(2, 1)), v))
for found, expected in zip(*results):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
"""


@pytest.mark.slow
def test_a_compiled_rotation_has_no_graph_break_and_equals_the_plain_one():
    environment = {**os.environ, "STEMFORMER_NO_TYPECHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
