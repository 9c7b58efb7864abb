"""Losses f(estimate, target) -> scalar.

Normalised per example, so that the mean over ranks is the mean over rows; those of `device` over the whole batch.
"""
