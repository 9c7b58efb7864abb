"""Ranges of hyper-parameters, as annotated types that pydantic checks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy both take
Probability = Annotated[float, Field(ge=0, le=1)]
EqGain = Annotated[float, Field(ge=0, le=40)]
Decibels = Annotated[float, Field(ge=-120, le=120)]


def require_order(key: str, bounds: tuple[float, float]) -> None:
    """Raises ValueError where the first of `bounds` is above the second."""
    if bounds[0] > bounds[1]:
        raise ValueError(f"{key} is {bounds}; the first value must not be above the second")
