"""Time and solvers of the flow, against equations whose solutions are known."""

from __future__ import annotations

import math

import pytest
import torch

from enhancer.models.flow import BASE, SOLVERS, plan, solve, time_at


def test_a_quarter_of_the_way_is_half_of_the_time() -> None:
    """The base is that of the published system, 0.08738, which solves for it numerically."""
    assert [time_at(share) for share in (0.0, 0.25, 1.0)] == [0.0, pytest.approx(0.5, abs=1e-15), 1.0]
    assert pytest.approx(0.08738, abs=5e-6) == BASE
    assert float(time_at(torch.tensor(0.75))) == pytest.approx(0.920, abs=5e-4)


def growing(state: torch.Tensor, time: float) -> torch.Tensor:
    """dx/dt = x cos(3 t), of which x(1) = x(0) exp(sin(3) / 3)."""
    return state * math.cos(3 * time)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_error_falls_by_the_order_of_the_solver(solver: str, order: int) -> None:
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    exact = start * math.exp(math.sin(3) / 3)
    errors = [
        float((solve(growing, start, SOLVERS[solver] * steps, solver) - exact).abs().max())
        for steps in (128, 256)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15), errors


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 6, 7, 16, 61])
def test_the_network_is_asked_exactly_so_often_over_the_whole_of_time(solver: str, nfe: int) -> None:
    times: list[float] = []

    def constant(state: torch.Tensor, time: float) -> torch.Tensor:
        times.append(time)
        return torch.full_like(state, 2.0)

    end = solve(constant, torch.zeros(3), nfe, solver)
    assert len(times) == nfe and min(times) == 0.0 and max(times) <= 1.0
    torch.testing.assert_close(end, torch.full((3,), 2.0))


def test_what_is_left_over_goes_to_simpler_solvers() -> None:
    steps = plan(7, "rk4")
    assert [name for name, _, _ in steps] == ["rk4", "midpoint", "euler"]
    bounds = [begin for _, begin, _ in steps] + [steps[-1][2]]
    assert bounds == [pytest.approx(float(time_at(done / 7))) for done in (0, 4, 6, 7)]


@pytest.mark.parametrize(
    ("nfe", "solver", "words"), [(0, "euler", "0 evaluations"), (4, "heun", "euler, midpoint, rk4")]
)
def test_what_cannot_be_is_named(nfe: int, solver: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(nfe, solver)
