"""Exponentials and logarithms from tables, by additions and multiplications only.

``math.exp`` and ``math.log`` differ in the last digit between C libraries. What is computed here is the same on every
machine, so that equal inputs give equal decisions. Accurate to about one part in ten thousand, which a forecast is not.
"""

from math import frexp

STEPS = 64
"""Table entries per unit of the exponent."""
REACH = 24
"""exp(-24) is 4e-11: nothing."""
_STEP = 0.984496437005408
"""exp(-1/64)."""
LN2 = 0.6931471805599453
MANTISSAS = 256


def _powers() -> list[float]:
    table = [1.0]
    for _ in range(REACH * STEPS + 1):
        table.append(table[-1] * _STEP)
    return table


def _logarithms() -> list[float]:
    """ln of 0.5 to 1 in equal steps, by the series of the inverse hyperbolic tangent."""
    table = []
    for step in range(MANTISSAS + 2):
        mantissa = 0.5 + step / (2 * MANTISSAS)
        quotient = (mantissa - 1) / (mantissa + 1)
        power, total = quotient, 0.0
        for n in range(1, 60, 2):
            total += power / n
            power *= quotient * quotient
        table.append(2 * total)
    return table


_POWERS = _powers()
_LOGARITHMS = _logarithms()
_LAST = float(REACH)


def decay(x: float) -> float:
    """exp(-x) for ``x`` >= 0; 0.0 beyond ``REACH``."""
    if x >= _LAST:
        return 0.0
    scaled = x * STEPS
    index = int(scaled)
    low = _POWERS[index]
    return low + (scaled - index) * (_POWERS[index + 1] - low)


def ln(x: float) -> float:
    """Natural logarithm of ``x`` > 0."""
    mantissa, exponent = frexp(x)
    scaled = (mantissa - 0.5) * (2 * MANTISSAS)
    index = int(scaled)
    low = _LOGARITHMS[index]
    return low + (scaled - index) * (_LOGARITHMS[index + 1] - low) + exponent * LN2


def logistic(x: float) -> float:
    """1 / (1 + exp(-x)), between 0 and 1."""
    if x >= 0:
        return 1.0 / (1.0 + decay(x))
    small = decay(-x)
    return small / (1.0 + small)
