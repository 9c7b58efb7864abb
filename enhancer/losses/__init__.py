"""Losses f(estimate, target) -> scalar, normalised per example: the mean over ranks is the mean over rows."""
