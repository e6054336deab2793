"""The constants of GELU fitted again: the least largest error, by linear programming."""

import math

import numpy as np
import pytest
from numpy.polynomial import Polynomial
from scipy.optimize import linprog
from scipy.special import ndtr

from tdsm.decomposition.kernels import build

NODES = build.LIMIT * (1 - np.cos(np.pi * (np.arange(2000) + 0.5) / 2000)) / 2  # Chebyshev's, on [0, LIMIT]


def fit(argument, target, weight, degree, power, first=None):
    """Fit c in Σ_i c_i y^i to minimise the largest weight · |(Σ_i c_i y^i)^power − target|, and return both.

    `first` fixes c_0.

    Linear in the change of c around the last c, so each round is a linear programme; the first c is that of the
    power's root by least squares.
    """
    basis = np.vander(argument / argument.max(), degree + 1, increasing=True)
    c = np.linalg.lstsq(basis * (weight * target)[:, None], weight * target ** (1 + 1 / power), rcond=None)[0]
    c[0] = c[0] if first is None else first
    for _ in range(8):
        value = basis @ c
        error = weight * (value**power - target)
        slope = (weight * power * value ** (power - 1))[:, None] * basis
        scale, bound = 1e7, -np.ones((len(basis), 1))  # the solver's tolerances are absolute
        both = np.block([[scale * slope, bound], [-scale * slope, bound]])
        limits = scale * np.concatenate([-error, error])
        steps = [(None, None) if first is None else (0, 0), *[(None, None)] * degree, (0, None)]
        c = c + linprog([0] * (degree + 1) + [1], A_ub=both, b_ub=limits, bounds=steps).x[:-1]
    return c / argument.max() ** np.arange(degree + 1), abs(weight * ((basis @ c) ** power - target)).max()


def density(x):
    return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def multiplied_out(*factors):
    """Return the coefficients of the factored polynomial, ascending."""
    k, a0, a1, a2, a3, a4, a5 = map(Polynomial, factors)
    x = Polynomial([0, 1])
    y = (k * x + a0) * x + a1
    z = (x + a2) * y + a3
    return (((y + z + a4) * z + a5) * x + 1).coef


FLAT_NEAR_ZERO = np.maximum(NODES, 0.5) / 2
TAIL = (NODES, 2 * ndtr(-NODES), FLAT_NEAR_ZERO, build.TAIL, build.TAIL_SQUARINGS, 1, 2.8e-7)
WIDE_TAIL = (
    NODES,
    2 * ndtr(-NODES),
    FLAT_NEAR_ZERO,
    multiplied_out(*build.WIDE_TAIL),
    build.WIDE_TAIL_SQUARINGS,
    1,
    1.8e-7,
)
DENSITY = (NODES**2, 2 * density(NODES), NODES / 2, build.DENSITY, build.DENSITY_SQUARINGS, None, 1.6e-7)


@pytest.mark.parametrize("case", [TAIL, WIDE_TAIL, DENSITY], ids=["tail", "wide tail", "density"])
def test_the_constants_are_those_of_least_error(case):
    argument, target, weight, constants, squarings, first, stated = case
    fitted, error = fit(argument, target, weight, len(constants) - 1, 2**squarings, first)
    assert error < stated
    np.testing.assert_allclose(constants, fitted, rtol=1e-6)
    given = weight * (np.polynomial.polynomial.polyval(argument, constants) ** 2**squarings - target)
    assert abs(given).max() < 1.1 * error
