"""The gated sum on a GPU, in Triton: tiles of (token, point), a loop over hidden units, nothing in between stored.

Terms are summed over the loop elementwise and reduced once at its end. No atomics: results are reproducible. GELU is
that of `build`, twice it and its derivative as in `gated_sum.cpp`. Measured on an H200, and the tile chosen, by
`benchmarks/gpu.py`.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from tdsm.decomposition.kernels import build

# Tokens, points and hidden units of a tile: each row that is read serves 8 cells, and no register spills.
TILE = {"BT": 8, "BP": 8, "BM": 16, "num_warps": 4, "enable_fp_fusion": True}
BARE = {"BLOCK": 1024, "ROUNDS": 64}  # gated units of a program of the floor

LIMIT = tl.constexpr(build.LIMIT)
P0, P1, P2, P3, P4, P5 = map(tl.constexpr, build.TAIL)
S0, S1, S2, S3, S4 = map(tl.constexpr, build.DENSITY)
TAIL_SQUARINGS, DENSITY_SQUARINGS = map(tl.constexpr, (build.TAIL_SQUARINGS, build.DENSITY_SQUARINGS))


def forward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor | None) -> Tensor:
    """Return Σ_m weight[c, m] · u · GELU(g), of shape (tokens, points, channels)."""
    a, b, r, bias, *weights = (x.contiguous() for x in (a, b, r, bias, weight) if x is not None)
    (tokens, points), (hidden, channels, options) = r.shape, _form(bias, weight)
    out = a.new_empty(tokens, points, channels)
    if out.numel():
        with torch.cuda.device_of(a):
            inputs = (a, b, r, bias, weights[0] if weights else bias)
            _forward[_tiles(tokens, points)](*inputs, out, tokens, points, hidden, **options, **TILE)
    return out


def backward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor | None, grad: Tensor) -> list[Tensor]:
    """Return the gradients of a, b, r, bias and weight, if there is one; hidden units computed again, not stored.

    Three sweeps, each owning what it writes: cells for r, points for a (and, summed after, bias and weight),
    tokens for b. The last two are one kernel with points and tokens exchanged, as A_n + B_k allows.
    """
    a, b, r, bias, *weights = (x.contiguous() for x in (a, b, r, bias, weight) if x is not None)
    (tokens, points), (hidden, channels, options) = r.shape, _form(bias, weight)
    grad_a, grad_b, grad_r = (torch.zeros_like(x) for x in (a, b, r))
    blocks, chunks = triton.cdiv(points, TILE["BP"]), triton.cdiv(hidden, TILE["BM"])
    part_bias = a.new_zeros(blocks, len(bias))
    part_weight = a.new_zeros(blocks, channels, hidden if weights else 0)
    if grad.numel():
        shared = (r, bias, weights[0] if weights else bias, (grad / 2).contiguous())  # as twice GELU is at hand
        parts = (part_bias, part_weight)
        by_point = (points, tokens, 1, points, hidden)
        by_token = (tokens, points, points, 1, hidden)
        rows = (blocks * chunks,), (triton.cdiv(tokens, TILE["BP"]) * chunks,)
        with torch.cuda.device_of(a):
            _backward_cells[_tiles(tokens, points)](a, b, *shared, grad_r, tokens, points, hidden, **options, **TILE)
            _backward_rows[rows[0]](a, b, *shared, grad_a, *parts, *by_point, HAS_PARTS=True, **options, **TILE)
            _backward_rows[rows[1]](b, a, *shared, grad_b, *parts, *by_token, HAS_PARTS=False, **options, **TILE)
    return [grad_a, grad_b, grad_r, part_bias.sum(0), *([part_weight.sum(0)] if weights else [])]


def bare(count: int, device: torch.device) -> Tensor:
    """Sum about `count` gated units from registers: what no way of decoding as many can undercut."""
    programs = max(1, count // (BARE["BLOCK"] * BARE["ROUNDS"]))
    out = torch.empty(programs, device=device)
    with torch.cuda.device_of(out):
        _bare[(programs,)](out, 1e-3, **BARE)
    return out


def _form(bias: Tensor, weight: Tensor | None) -> tuple[int, int, dict[str, int | bool]]:
    """Return hidden units and channels, and what is known of the form when the kernel is compiled."""
    channels, hidden = (1, len(bias) // 2) if weight is None else weight.shape
    form = {"CHANNELS": channels, "HAS_WEIGHT": weight is not None, "IS_GATED": len(bias) > hidden}
    return hidden, channels, form


def _tiles(tokens: int, points: int) -> tuple[int]:
    """Count tiles on one axis, as the others hold no more than 65 535."""
    return (triton.cdiv(points, TILE["BP"]) * triton.cdiv(tokens, TILE["BT"]),)


@triton.jit
@no_type_check
def _bare(out, step, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):
    u = tl.arange(0, BLOCK) * step
    g, sums = 0.5 - u, tl.zeros((BLOCK,), tl.float32)
    for _ in range(ROUNDS):
        sums += u * _twice_gelu(g)
        g += step  # else the loop's body would be done once
    tl.store(out + tl.program_id(0), tl.sum(sums, axis=0))


@triton.jit
@no_type_check
def _body(x):
    """Return 1 − 2 Φ(−x) for x in [0, LIMIT]."""
    y = ((((P5 * x + P4) * x + P3) * x + P2) * x + P1) * x + P0
    for _ in tl.static_range(TAIL_SQUARINGS):
        y = y * y
    return 1.0 - y


@triton.jit
@no_type_check
def _twice_gelu(g):
    size = tl.abs(g)
    return g + size * _body(tl.minimum(size, LIMIT))


@triton.jit
@no_type_check
def _twice_slope(g):
    x = tl.minimum(tl.abs(g), LIMIT)
    square = x * x
    y = (((S4 * square + S3) * square + S2) * square + S1) * square + S0
    for _ in tl.static_range(DENSITY_SQUARINGS):
        y = y * y
    odd = _body(x) + x * y
    return 1.0 + tl.where(g < 0, -odd, odd)


@triton.jit
@no_type_check
def _units(x, rows, m, hidden, mask, IS_GATED: tl.constexpr):
    """Read some units of some rows (or of the bias, row 0): those of u, 0 where there are none, and those of g."""
    if IS_GATED:
        at = x + rows * 2 * hidden + m
        u, g = tl.load(at, mask=mask, other=0.0), tl.load(at + hidden, mask=mask, other=0.0)
    else:
        u, g = 0.0, tl.load(x + rows * hidden + m, mask=mask, other=0.0)
    return u, g


@triton.jit
@no_type_check
def _inner(grad, weight, cell, here, m, is_unit, hidden, CHANNELS: tl.constexpr, HAS_WEIGHT: tl.constexpr):
    """Return Σ_c grad[cell, c] · weight[c, m], the gradient of a gated unit."""
    total = 0.0
    for c in tl.static_range(CHANNELS):
        of_cell = tl.load(grad + cell * CHANNELS + c, mask=here, other=0.0)[:, :, None]
        if HAS_WEIGHT:
            of_cell = of_cell * tl.load(weight + c * hidden + m, mask=is_unit, other=0.0)[None, None, :]
        total = total + of_cell
    return total


@triton.jit
@no_type_check
def _store_channel(out, cell, here, sums, c, CHANNELS: tl.constexpr):
    tl.store(out + cell * CHANNELS + c, 0.5 * tl.sum(sums, axis=2), mask=here)


@triton.jit
@no_type_check
def _forward(
    a, b, r, bias, weight, out, tokens, points, hidden, CHANNELS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    IS_GATED: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    tile, across = tl.program_id(0).to(tl.int64), tl.cdiv(points, BP)
    n, k = tile % across * BP + tl.arange(0, BP), tile // across * BT + tl.arange(0, BT)
    here = (k < tokens)[:, None] & (n < points)[None, :]
    cell = k[:, None] * points + n[None, :]
    scale = tl.load(r + cell, mask=here, other=0.0)[:, :, None]
    sums0 = tl.zeros((BT, BP, BM), tl.float32)
    sums1, sums2, sums3 = sums0, sums0, sums0
    for start in range(0, hidden, BM):
        m = start + tl.arange(0, BM)
        is_unit = m < hidden
        au, ag = _units(a, n[:, None], m[None, :], hidden, (n < points)[:, None] & is_unit[None, :], IS_GATED)
        bu, bg = _units(b, k[:, None], m[None, :], hidden, (k < tokens)[:, None] & is_unit[None, :], IS_GATED)
        cu, cg = _units(bias, 0, m, hidden, is_unit, IS_GATED)
        gated = _twice_gelu((ag[None, :, :] + bg[:, None, :]) * scale + cg[None, None, :])
        if IS_GATED:
            gated = gated * ((au[None, :, :] + bu[:, None, :]) * scale + cu[None, None, :])
        if HAS_WEIGHT:
            w = weight + m
            sums0 += gated * tl.load(w, mask=is_unit, other=0.0)[None, None, :]
            if CHANNELS > 1:
                sums1 += gated * tl.load(w + hidden, mask=is_unit, other=0.0)[None, None, :]
            if CHANNELS > 2:
                sums2 += gated * tl.load(w + 2 * hidden, mask=is_unit, other=0.0)[None, None, :]
            if CHANNELS > 3:
                sums3 += gated * tl.load(w + 3 * hidden, mask=is_unit, other=0.0)[None, None, :]
        else:
            sums0 += gated
    _store_channel(out, cell, here, sums0, 0, CHANNELS)
    if CHANNELS > 1:
        _store_channel(out, cell, here, sums1, 1, CHANNELS)
    if CHANNELS > 2:
        _store_channel(out, cell, here, sums2, 2, CHANNELS)
    if CHANNELS > 3:
        _store_channel(out, cell, here, sums3, 3, CHANNELS)


@triton.jit
@no_type_check
def _backward_cells(
    a, b, r, bias, weight, grad, grad_r, tokens, points, hidden, CHANNELS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    IS_GATED: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of r: Σ_m over the units of u and g of ∂/∂unit · (A_n + B_k)."""
    tile, across = tl.program_id(0).to(tl.int64), tl.cdiv(points, BP)
    n, k = tile % across * BP + tl.arange(0, BP), tile // across * BT + tl.arange(0, BT)
    here = (k < tokens)[:, None] & (n < points)[None, :]
    cell = k[:, None] * points + n[None, :]
    scale = tl.load(r + cell, mask=here, other=0.0)[:, :, None]
    sums = tl.zeros((BT, BP, BM), tl.float32)
    for start in range(0, hidden, BM):
        m = start + tl.arange(0, BM)
        is_unit = m < hidden
        au, ag = _units(a, n[:, None], m[None, :], hidden, (n < points)[:, None] & is_unit[None, :], IS_GATED)
        bu, bg = _units(b, k[:, None], m[None, :], hidden, (k < tokens)[:, None] & is_unit[None, :], IS_GATED)
        cu, cg = _units(bias, 0, m, hidden, is_unit, IS_GATED)
        hg = ag[None, :, :] + bg[:, None, :]
        g = hg * scale + cg[None, None, :]
        by_g = _twice_slope(g) * hg
        if IS_GATED:
            hu = au[None, :, :] + bu[:, None, :]
            by_g = by_g * (hu * scale + cu[None, None, :]) + _twice_gelu(g) * hu
        inner = _inner(grad, weight, cell, here, m, is_unit, hidden, CHANNELS, HAS_WEIGHT)
        sums += tl.where(is_unit[None, None, :], inner * by_g, 0.0)
    tl.store(grad_r + cell, tl.sum(sums, axis=2), mask=here)


@triton.jit
@no_type_check
def _grad_weight(grad, cell, here, gated, c, CHANNELS: tl.constexpr):
    return tl.load(grad + cell * CHANNELS + c, mask=here, other=0.0)[:, :, None] * gated


@triton.jit
@no_type_check
def _store_part(to, sums, is_unit):
    tl.store(to, tl.sum(tl.sum(sums, axis=1), axis=0), mask=is_unit)


@triton.jit
@no_type_check
def _backward_rows(
    own, other, r, bias, weight, grad, grad_own, part_bias, part_weight, num_own, num_other, own_stride, other_stride,
    hidden, HAS_PARTS: tl.constexpr, CHANNELS: tl.constexpr, HAS_WEIGHT: tl.constexpr, IS_GATED: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of some rows of A (or B) for some hidden units: a sum over all of the other. Strides are those of r.

    With HAS_PARTS also what these rows add to the gradients of bias and weight.
    """
    program, chunks = tl.program_id(0).to(tl.int64), tl.cdiv(hidden, BM)
    block = program // chunks
    i, m = block * BP + tl.arange(0, BP), program % chunks * BM + tl.arange(0, BM)
    is_unit = m < hidden
    own_u, own_g = _units(own, i[:, None], m[None, :], hidden, (i < num_own)[:, None] & is_unit[None, :], IS_GATED)
    cu, cg = _units(bias, 0, m, hidden, is_unit, IS_GATED)
    sum_u, sum_g = tl.zeros((BP, BT, BM), tl.float32), tl.zeros((BP, BT, BM), tl.float32)
    bias_u, bias_g = sum_u, sum_u
    sum_w0, sum_w1, sum_w2, sum_w3 = sum_u, sum_u, sum_u, sum_u
    for start in range(0, num_other, BT):
        j = start + tl.arange(0, BT).to(tl.int64)
        here = (i < num_own)[:, None] & (j < num_other)[None, :]
        cell = i[:, None] * own_stride + j[None, :] * other_stride
        scale = tl.load(r + cell, mask=here, other=0.0)[:, :, None]
        is_other = (j < num_other)[:, None] & is_unit[None, :]
        other_u, other_g = _units(other, j[:, None], m[None, :], hidden, is_other, IS_GATED)
        g = (own_g[:, None, :] + other_g[None, :, :]) * scale + cg[None, None, :]
        inner = _inner(grad, weight, cell, here, m, is_unit, hidden, CHANNELS, HAS_WEIGHT)
        grad_g, gated = inner * _twice_slope(g), _twice_gelu(g)
        if IS_GATED:
            u = (own_u[:, None, :] + other_u[None, :, :]) * scale + cu[None, None, :]
            grad_u = inner * gated
            grad_g, gated = grad_g * u, gated * u
            sum_u += grad_u * scale
            if HAS_PARTS:
                bias_u += grad_u
        sum_g += grad_g * scale
        if HAS_PARTS:
            bias_g += grad_g
            if HAS_WEIGHT:
                sum_w0 += _grad_weight(grad, cell, here, gated, 0, CHANNELS)
                if CHANNELS > 1:
                    sum_w1 += _grad_weight(grad, cell, here, gated, 1, CHANNELS)
                if CHANNELS > 2:
                    sum_w2 += _grad_weight(grad, cell, here, gated, 2, CHANNELS)
                if CHANNELS > 3:
                    sum_w3 += _grad_weight(grad, cell, here, gated, 3, CHANNELS)
    gates = hidden if IS_GATED else 0
    to_rows = grad_own + i[:, None] * (hidden + gates) + m[None, :]
    is_row = (i < num_own)[:, None] & is_unit[None, :]
    tl.store(to_rows + gates, tl.sum(sum_g, axis=1), mask=is_row)
    if IS_GATED:
        tl.store(to_rows, tl.sum(sum_u, axis=1), mask=is_row)
    if HAS_PARTS:
        to_bias = part_bias + block * (hidden + gates) + m
        _store_part(to_bias + gates, bias_g, is_unit)
        if IS_GATED:
            _store_part(to_bias, bias_u, is_unit)
        if HAS_WEIGHT:
            to_weight = part_weight + block * CHANNELS * hidden + m
            _store_part(to_weight, sum_w0, is_unit)
            if CHANNELS > 1:
                _store_part(to_weight + hidden, sum_w1, is_unit)
            if CHANNELS > 2:
                _store_part(to_weight + 2 * hidden, sum_w2, is_unit)
            if CHANNELS > 3:
                _store_part(to_weight + 3 * hidden, sum_w3, is_unit)
