"""The gated sum on a GPU, in Triton: tiles of (token, point), a loop over hidden units, nothing in between stored.

Terms are summed over the loop elementwise and reduced once at its end. No atomics: results are reproducible.
Checked through Triton's interpreter and compiled, without spills, for sm_90; not measured on a GPU.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens, points and hidden units of a tile: each row that is read serves 8 cells, and no register spills.
TILE = {"BT": 8, "BP": 8, "BM": 16, "enable_fp_fusion": True}
BARE = {"BLOCK": 1024, "ROUNDS": 64}  # gated units of a program of the floor


def forward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    """Return Σ_m weight[c, m] · u · GELU(g), of shape (tokens, points, channels)."""
    a, b, r, bias, weight = (x.contiguous() for x in (a, b, r, bias, weight))
    (tokens, points), (channels, hidden) = r.shape, weight.shape
    out = a.new_empty(tokens, points, channels)
    padded = triton.next_power_of_2(channels)
    if out.numel():
        grid = (triton.cdiv(points, TILE["BP"]), triton.cdiv(tokens, TILE["BT"]))
        _forward[grid](a, b, r, bias, weight, out, tokens, points, hidden, channels, padded, **TILE)
    return out


def backward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a, b, r, bias and weight, the hidden units computed again, not stored.

    Three sweeps, each owning what it writes: cells for r, points for a (and, summed after, bias and weight),
    tokens for b. The last two are one kernel with points and tokens exchanged, as A_n + B_k allows.
    """
    a, b, r, bias, weight, grad = (x.contiguous() for x in (a, b, r, bias, weight, grad))
    (tokens, points), (channels, hidden) = r.shape, weight.shape
    grad_a, grad_b, grad_r = (torch.zeros_like(x) for x in (a, b, r))
    blocks, chunks = triton.cdiv(points, TILE["BP"]), triton.cdiv(hidden, TILE["BM"])
    part_bias = a.new_zeros(blocks, 2 * hidden)
    part_weight = a.new_zeros(blocks, channels, hidden)
    if grad.numel():
        shared = (r, bias, weight, grad)
        cells = (blocks, triton.cdiv(tokens, TILE["BT"]))
        _backward_cells[cells](a, b, *shared, grad_r, tokens, points, hidden, channels, **TILE)
        sizes = (hidden, channels, triton.next_power_of_2(channels))
        parts = (part_bias, part_weight)
        by_point = (points, tokens, 1, points, *sizes, True)
        _backward_rows[(blocks, chunks)](a, b, *shared, grad_a, *parts, *by_point, **TILE)
        by_token = (tokens, points, points, 1, *sizes, False)
        rows = (triton.cdiv(tokens, TILE["BP"]), chunks)
        _backward_rows[rows](b, a, *shared, grad_b, *parts, *by_token, **TILE)
    return grad_a, grad_b, grad_r, part_bias.sum(0), part_weight.sum(0)


def bare(count: int, device: torch.device) -> Tensor:
    """Do about `count` gated multiply-adds from registers: what no way of decoding as many can undercut."""
    programs = max(1, count // (BARE["BLOCK"] * BARE["ROUNDS"]))
    out = torch.empty(programs, device=device)
    _bare[(programs,)](out, 1e-3, **BARE)
    return out


@triton.jit
@no_type_check
def _bare(out, step, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):
    u = tl.arange(0, BLOCK) * step
    g, sums = 0.5 - u, tl.zeros((BLOCK,), tl.float32)
    for _ in range(ROUNDS):
        sums += u * (g * _cdf(g))
        g += step  # else the loop's body would be done once
    tl.store(out + tl.program_id(0), tl.sum(sums, axis=0))


@triton.jit
@no_type_check
def _cdf(g):
    return 0.5 + 0.5 * tl.erf(g * 0.7071067811865476)


@triton.jit
@no_type_check
def _slope(g):
    return _cdf(g) + g * tl.exp(-0.5 * g * g) * 0.3989422804014327


@triton.jit
@no_type_check
def _halves(x, rows, m, hidden, mask):
    """Read the u and the g half of some rows (or of the bias, row 0) of a matrix with 2 hidden columns."""
    at = x + rows * 2 * hidden + m
    return tl.load(at, mask=mask, other=0.0), tl.load(at + hidden, mask=mask, other=0.0)


@triton.jit
@no_type_check
def _grad_gated(grad, weight, cell, here, m, is_unit, hidden, CHANNELS: tl.constexpr, shape: tl.constexpr):
    """Sum grad[cell, c] · weight[c, m] over channels."""
    total = tl.zeros(shape, tl.float32)
    for c in tl.static_range(CHANNELS):
        of_cell = tl.load(grad + cell * CHANNELS + c, mask=here, other=0.0)
        of_unit = tl.load(weight + c * hidden + m, mask=is_unit, other=0.0)
        total += of_cell[:, :, None] * of_unit[None, None, :]
    return total


@triton.jit
@no_type_check
def _forward(
    a, b, r, bias, weight, out, tokens, points, hidden, CHANNELS: tl.constexpr, PADDED: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    k = tl.program_id(1).to(tl.int64) * BT + tl.arange(0, BT)
    c = tl.arange(0, PADDED)
    here = (k < tokens)[:, None] & (n < points)[None, :]
    cell = k[:, None] * points + n[None, :]
    scale = tl.load(r + cell, mask=here, other=0.0)[:, :, None]
    sums = tl.zeros((PADDED, BT, BP, BM), tl.float32)
    for start in range(0, hidden, BM):
        m = start + tl.arange(0, BM)
        is_unit = m < hidden
        au, ag = _halves(a, n[:, None], m[None, :], hidden, (n < points)[:, None] & is_unit[None, :])
        bu, bg = _halves(b, k[:, None], m[None, :], hidden, (k < tokens)[:, None] & is_unit[None, :])
        cu, cg = _halves(bias, 0, m, hidden, is_unit)
        u = (au[None, :, :] + bu[:, None, :]) * scale + cu[None, None, :]
        g = (ag[None, :, :] + bg[:, None, :]) * scale + cg[None, None, :]
        gated = u * (g * _cdf(g))
        w = tl.load(
            weight + c[:, None] * hidden + m[None, :], mask=(c < CHANNELS)[:, None] & is_unit[None, :], other=0.0
        )
        sums += w[:, None, None, :] * gated[None, :, :, :]
    is_output = (c < CHANNELS)[:, None, None] & here[None, :, :]
    tl.store(out + cell[None, :, :] * CHANNELS + c[:, None, None], tl.sum(sums, axis=3), mask=is_output)


@triton.jit
@no_type_check
def _backward_cells(
    a, b, r, bias, weight, grad, grad_r, tokens, points, hidden, CHANNELS: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of r: Σ_m over both halves of ∂/∂hidden · (A_n + B_k)."""
    n = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    k = tl.program_id(1).to(tl.int64) * BT + tl.arange(0, BT)
    here = (k < tokens)[:, None] & (n < points)[None, :]
    cell = k[:, None] * points + n[None, :]
    scale = tl.load(r + cell, mask=here, other=0.0)[:, :, None]
    sums = tl.zeros((BT, BP, BM), tl.float32)
    for start in range(0, hidden, BM):
        m = start + tl.arange(0, BM)
        is_unit = m < hidden
        au, ag = _halves(a, n[:, None], m[None, :], hidden, (n < points)[:, None] & is_unit[None, :])
        bu, bg = _halves(b, k[:, None], m[None, :], hidden, (k < tokens)[:, None] & is_unit[None, :])
        cu, cg = _halves(bias, 0, m, hidden, is_unit)
        hu, hg = au[None, :, :] + bu[:, None, :], ag[None, :, :] + bg[:, None, :]
        u, g = hu * scale + cu[None, None, :], hg * scale + cg[None, None, :]
        outer = _grad_gated(grad, weight, cell, here, m, is_unit, hidden, CHANNELS, (BT, BP, BM))
        sums += outer * (g * _cdf(g) * hu + u * _slope(g) * hg)
    tl.store(grad_r + cell, tl.sum(sums, axis=2), mask=here)


@triton.jit
@no_type_check
def _backward_rows(
    own, other, r, bias, weight, grad, grad_own, part_bias, part_weight, num_own, num_other, own_stride, other_stride,
    hidden, CHANNELS: tl.constexpr, PADDED: tl.constexpr, HAS_PARTS: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of some rows of A (or B) for some hidden units: a sum over all of the other. Strides are those of r.

    With HAS_PARTS also what these rows add to the gradients of bias and weight.
    """
    block = tl.program_id(0).to(tl.int64)
    i = block * BP + tl.arange(0, BP)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    c = tl.arange(0, PADDED)
    is_unit = m < hidden
    own_u, own_g = _halves(own, i[:, None], m[None, :], hidden, (i < num_own)[:, None] & is_unit[None, :])
    cu, cg = _halves(bias, 0, m, hidden, is_unit)
    sum_u, sum_g = tl.zeros((BP, BT, BM), tl.float32), tl.zeros((BP, BT, BM), tl.float32)
    bias_u, bias_g = tl.zeros((BP, BT, BM), tl.float32), tl.zeros((BP, BT, BM), tl.float32)
    sum_w = tl.zeros((PADDED, BP, BT, BM), tl.float32)
    for start in range(0, num_other, BT):
        j = start + tl.arange(0, BT).to(tl.int64)
        here = (i < num_own)[:, None] & (j < num_other)[None, :]
        cell = i[:, None] * own_stride + j[None, :] * other_stride
        scale = tl.load(r + cell, mask=here, other=0.0)[:, :, None]
        other_u, other_g = _halves(other, j[:, None], m[None, :], hidden, (j < num_other)[:, None] & is_unit[None, :])
        u = (own_u[:, None, :] + other_u[None, :, :]) * scale + cu[None, None, :]
        g = (own_g[:, None, :] + other_g[None, :, :]) * scale + cg[None, None, :]
        outer = _grad_gated(grad, weight, cell, here, m, is_unit, hidden, CHANNELS, (BP, BT, BM))
        gelu = g * _cdf(g)
        grad_u, grad_g = outer * gelu, outer * u * _slope(g)
        sum_u += grad_u * scale
        sum_g += grad_g * scale
        if HAS_PARTS:
            bias_u += grad_u
            bias_g += grad_g
            at = grad + cell[None, :, :] * CHANNELS + c[:, None, None]
            of_cell = tl.load(at, mask=(c < CHANNELS)[:, None, None] & here[None, :, :], other=0.0)
            sum_w += of_cell[:, :, :, None] * (u * gelu)[None, :, :, :]
    to_rows = grad_own + i[:, None] * 2 * hidden + m[None, :]
    is_row = (i < num_own)[:, None] & is_unit[None, :]
    tl.store(to_rows, tl.sum(sum_u, axis=1), mask=is_row)
    tl.store(to_rows + hidden, tl.sum(sum_g, axis=1), mask=is_row)
    if HAS_PARTS:
        to_bias = part_bias + block * 2 * hidden + m
        tl.store(to_bias, tl.sum(tl.sum(bias_u, axis=1), axis=0), mask=is_unit)
        tl.store(to_bias + hidden, tl.sum(tl.sum(bias_g, axis=1), axis=0), mask=is_unit)
        to_weight = part_weight + (block * CHANNELS + c[:, None]) * hidden + m[None, :]
        is_weight = (c < CHANNELS)[:, None] & is_unit[None, :]
        tl.store(to_weight, tl.sum(tl.sum(sum_w, axis=2), axis=1), mask=is_weight)
