"""How `gated_sum.cpp` becomes a library: the constants of its GELU, flags, and the machines it is built for ahead.

With x = min(|g|, LIMIT), the normal distribution's tail and its density are powers of polynomials:

    2 Φ(−x) = p(x)^32,   2 φ(x) = s(x²)^16
    2 GELU(g) = g + |g| (1 − p(x)^32),   2 GELU'(g) = 1 + sign(g) (1 − p(x)^32 + x s(x²)^16)

p has the least largest error of max(x, ½) · Φ(−x), so that GELU and its derivative are near alike, with p(0) = 1, so
that they are right at 0; s that of x φ(x). tests/decomposition/test_gelu.py fits them again. The error of GELU is
2.7e-7 by fit and 6e-7 in float32, that of its derivative 7e-7 and 1.4e-6.

With AVX-512, whose 32 registers hold more constants, 2 Φ(−x) = t(x)^8 of degree 7 instead, two multiplies less for
three additions, which have units of their own on some processors. It is factored as Knuth has it (The Art of Computer
Programming, volume 2, section 4.6.4), t(0) = 1:

    y = (κ x + α_0) x + α_1,   z = (x + α_2) y + α_3,   t(x) = ((y + z + α_4) z + α_5) x + 1

The error of GELU is then 1.7e-7 by fit and 7e-7 in float32, that of its derivative 4e-7 and 9e-7.

Standard library alone, as this also runs where the package is built.
"""

LIMIT = 6.0
TAIL = (1.0, -0.0249348814, -0.0096279933, -0.000912927148, 0.000253515441, -1.30966421e-05)  # p, ascending
TAIL_SQUARINGS = 5
WIDE_TAIL = (0.00196116802, -0.0113205311, -0.0340898459, -0.299773291, 1.78530364, -3.08566419, 2.27794925)  # κ, α
WIDE_TAIL_SQUARINGS = 3
DENSITY = (0.985987041, -0.0308117712, 0.000481197887, -4.95117077e-06, 3.25036363e-08)  # s, ascending
DENSITY_SQUARINGS = 4

# Clamps become single instructions; nothing in the source tests for NaN or the sign of zero.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"]
FLAGS += ["-ffinite-math-only", "-Wno-psabi", "-shared", "-fPIC", "-pthread"]

# What a wheel holds, best first: the name of a library, the instructions it needs, as torch calls them, their flags.
PREBUILT: dict[str, dict[str, tuple[str, list[str]]]] = {
    "x86_64": {
        "x86_64-v4": ("AVX512", ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]),
        "x86_64-v3": ("AVX2", ["-mavx2", "-mfma"]),
    },
    "aarch64": {"aarch64": ("DEFAULT", [])},
}


def command(compiler: list[str], machine: list[str], source: str, output: str) -> list[str]:
    """Return the command that compiles the library with the flags of a machine."""
    return [*compiler, *machine, *FLAGS, *macros(), source, "-o", output]


def macros() -> list[str]:
    """Return the constants as the source reads them."""
    lists = {"TAIL": TAIL, "WIDE_TAIL": WIDE_TAIL, "DENSITY": DENSITY, "LIMIT": (LIMIT,)}
    floats = [f"-D{name}={','.join(f'{value!r}f' for value in values)}" for name, values in lists.items()]
    powers = {"TAIL": TAIL_SQUARINGS, "WIDE_TAIL": WIDE_TAIL_SQUARINGS, "DENSITY": DENSITY_SQUARINGS}
    return [*floats, *(f"-D{name}_SQUARINGS={value}" for name, value in powers.items())]
