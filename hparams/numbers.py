"""Ranges of hyper-parameters, as annotated types that pydantic checks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

# A run's values may come from somebody else: none of them may ask for more memory or time than there ever is.
MOST = 1_000_000_000
MOST_SAMPLES = 1 << 20
Positive = Annotated[int, Field(gt=0, le=MOST)]
NonNegative = Annotated[int, Field(ge=0, le=MOST)]
RateHz = Annotated[int, Field(gt=0, le=1_000_000)]
WindowSamples = Annotated[int, Field(gt=0, le=MOST_SAMPLES)]
HiddenSize = Annotated[int, Field(gt=0, le=16_384)]
Seconds = Annotated[float, Field(ge=1e-4, le=3600)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy both take
Probability = Annotated[float, Field(ge=0, le=1)]
EqGain = Annotated[float, Field(ge=0, le=40)]
Decibels = Annotated[float, Field(ge=-120, le=120)]


# Half of the longest window of the mel distance is mirrored at both ends.
FEWEST_MEL_SAMPLES = 1025


def require_mel_samples(key: str, seconds: float, rate_hz: int) -> None:
    """Raises ValueError where a crop of so many seconds is too short for the multi-scale mel distance."""
    samples = round(seconds * rate_hz)
    if samples < FEWEST_MEL_SAMPLES:
        raise ValueError(
            f"{key} {seconds:g} is {samples} samples; the mel distance needs {FEWEST_MEL_SAMPLES} or more"
        )


def require_order(key: str, bounds: tuple[float, float]) -> None:
    """Raises ValueError where the first of `bounds` is above the second."""
    if bounds[0] > bounds[1]:
        raise ValueError(f"{key} is {bounds}; the first value must not be above the second")
