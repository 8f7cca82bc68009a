"""Numbers of other libraries."""

from __future__ import annotations

import numbers


class Float32:
    """As NumPy's scalars: no float, but registered as a real number."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __float__(self) -> float:
        return self._value


numbers.Real.register(Float32)
