"""Rotary position embedding: queries and keys are rotated by angles that grow with the position.

Source: Su et al. 2021, section 3.2; coordinates `i` and `i + K / 2` are rotated together, as in
Hugging Face's models, whereas the paper pairs neighbors.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


class Rotation(NamedTuple):
    """Cosine and sine of the angle of each token and pair of coordinates, in float32."""

    cos: Float[Tensor, "*b half"]
    sin: Float[Tensor, "*b half"]


def rotation_at(position_ids: Int[Tensor, "*b"], head_size: int, theta: float) -> Rotation:
    """Return the rotation of tokens at positions; pair `i` of K / 2 turns by theta^(-2i / K) a position."""
    steps = torch.arange(0, head_size, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids[..., None].float() * (1.0 / theta ** (steps / head_size))  # (..., K / 2)
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Float[Tensor, "*b P K"], rotation: Rotation) -> Float[Tensor, "*b P K"]:
    """Rotate all heads of tokens, in float32 inside."""
    first, second = x.float().chunk(2, -1)  # (..., P, K / 2)
    cos, sin = (part[..., None, :] for part in rotation)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def rotate_queries_and_keys(
    qkv: Float[Tensor, "N P K"], num_rotated: int, rotation: Rotation
) -> tuple[Float[Tensor, "N R K"], Float[Tensor, "N V K"]]:
    """Return the first `num_rotated` heads rotated, and the others (the values) as they are.

    On the CPU in eager mode the coordinates of the rotated heads come in another order, the same for
    queries and keys, which leaves their products unchanged.
    """
    if qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        return _RotateOnCpu.apply(qkv, num_rotated, *rotation)  # type: ignore[no-untyped-call]
    return rotate(qkv[:, :num_rotated], rotation), qkv[:, num_rotated:]


class _RotateOnCpu(torch.autograd.Function):
    """Rotation as a product of complex numbers: a third of the passes over memory, and no zeros for slices."""

    @staticmethod
    def forward(ctx, qkv, num_rotated, cos, sin):  # type: ignore[no-untyped-def]
        n, _, size = qkv.shape
        factor = torch.complex(cos, sin)[:, None]  # (N, 1, K / 2)
        ctx.save_for_backward(factor)
        pairs = qkv[:, :num_rotated].view(n, num_rotated, 2, size // 2)
        z = torch.complex(*(half.float() for half in pairs.unbind(2))).mul_(factor)  # (N, R, K / 2)
        return torch.view_as_real(z).to(qkv.dtype).view(n, num_rotated, size), qkv[:, num_rotated:]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_values):  # type: ignore[no-untyped-def]
        (factor,) = ctx.saved_tensors
        n, num_rotated, size = grad.shape
        z = torch.view_as_complex(grad.float().view(n, num_rotated, size // 2, 2)) * factor.conj()
        out = grad.new_empty(n, num_rotated + grad_values.shape[1], size)
        pairs = out[:, :num_rotated].view(n, num_rotated, 2, size // 2)
        for half, part in zip(pairs.unbind(2), (z.real, z.imag), strict=True):
            half.copy_(part)
        out[:, num_rotated:] = grad_values
        return out, None, None, None
