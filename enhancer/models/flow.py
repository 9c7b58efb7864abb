"""Flow matching: the path from a prior to data, the time along it, and solvers of its differential equation.

Y. Lipman et al., "Flow matching for generative modeling" (2023): a network learns the velocity of the straight path
from a sample of the prior at time 0 to one of the data at time 1, and is then followed from a new sample on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

# A quarter of the way is to be at time 1/2: (b - 1) / (b^4 - 1) = 1/2 with b the fourth root of the base, so
# b^3 + b^2 + b = 1, whose real root is one over the tribonacci constant.
_TRIBONACCI = (1 + (19 + 3 * math.sqrt(33)) ** (1 / 3) + (19 - 3 * math.sqrt(33)) ** (1 / 3)) / 3
BASE = _TRIBONACCI**-4
Velocity = Callable[[Tensor, float], Tensor]
"""State and time -> velocity, of the shape of the state."""
SOLVERS = {"euler": 1, "midpoint": 2, "rk4": 4}
"""Evaluations of one step of each solver."""


def time_at(share: Tensor | float) -> Tensor | float:
    """Time in [0, 1] that is reached when `share` of the way is done: (a^s - 1) / (a - 1), 1/2 at s = 1/4.

    Three quarters of what is drawn evenly lie in the second half, where a path has left the prior and details are made.
    """
    return (BASE**share - 1) / (BASE - 1)


def plan(nfe: int, solver: str) -> list[tuple[str, float, float]]:
    """Steps (solver, from, to) that take `nfe` evaluations from time 0 to 1.

    Where `nfe` is not a multiple of what a step of `solver` takes, the last steps are of the next simpler solvers: 7 of
    rk4 are a step of rk4, one of midpoint and one of euler. A step takes a share of the way that is its share of the
    evaluations. Raises ValueError for a solver that is not known and for fewer than one evaluation.
    """
    if solver not in SOLVERS:
        raise ValueError(f"there is no solver {solver!r:.40}; needed one of {', '.join(SOLVERS)}")
    if nfe < 1:
        raise ValueError(f"{nfe} evaluations solve nothing; needed 1 or more")
    steps: list[tuple[str, float, float]] = []
    done = 0
    for name, cost in sorted(SOLVERS.items(), key=lambda item: -item[1]):
        while cost <= SOLVERS[solver] and done + cost <= nfe:
            start, end = (float(time_at(count / nfe)) for count in (done, done + cost))
            steps.append((name, start, end))
            done += cost
    return steps


def solve(velocity: Velocity, start: Tensor, nfe: int, solver: str) -> Tensor:
    """The state at time 1 of what is `start` at time 0 and moves by `velocity`, which is evaluated `nfe` times."""
    state = start
    for name, begin, end in plan(nfe, solver):
        state = state + (end - begin) * _mean_velocity(velocity, state, begin, end, name)
    return state


def _mean_velocity(velocity: Velocity, state: Tensor, begin: float, end: float, solver: str) -> Tensor:
    """What a step of `solver` takes for the mean velocity between two times."""
    length, middle = end - begin, (begin + end) / 2
    first = velocity(state, begin)
    if solver == "euler":
        return first
    second = velocity(state + length / 2 * first, middle)
    if solver == "midpoint":
        return second
    third = velocity(state + length / 2 * second, middle)
    fourth = velocity(state + length * third, end)
    return (first + 2 * second + 2 * third + fourth) / 6
