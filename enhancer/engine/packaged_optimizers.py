"""PSGD-Kron and SOAP of the package pytorch_optimizer, made fit for ranks that must agree and for exact resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hparams.errors import UserError


def packaged_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class behind `psgd` or `soap`. Raises UserError where its package is not installed."""
    try:
        import pytorch_optimizer
    except ImportError:
        raise UserError(
            f"optimizer {name} needs the package pytorch_optimizer, which is not installed; "
            "run: pip install 'wavewright[optimizers]', or set optimizer to adamw or muon"
        ) from None
    if name == "psgd" and not torch.backends.opt_einsum.is_available():
        # From left to right, the product of two preconditioners and a matrix has as many entries as all three together.
        raise UserError(
            "optimizer psgd needs the package opt_einsum, without which a step takes gigabytes and minutes; "
            "run: pip install 'wavewright[optimizers]', or set optimizer to adamw or muon"
        )
    return _steady_kron(pytorch_optimizer.Kron) if name == "psgd" else _steady_soap(pytorch_optimizer.SOAP)


def _steady_kron(kron: Any) -> Any:
    """Class `kron` with draws that depend on the step alone, and a state that survives being loaded."""

    class SteadyKron(kron):
        def step(self, closure: Callable[[], float] | None = None) -> Any:
            # Kron draws noise from the default generators, which differ between ranks.
            with _drawing_from(self.param_groups[0].get("step", 0)):
                loss = super().step(closure)
            # Row by row, as when read from a file: products round by the layout.
            for state in self.state.values():
                state["Q"] = [factor.contiguous() for factor in state["Q"]]
            return loss

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            super().load_state_dict(state_dict)
            # Torch takes the texts in a state for lists and spoils them.
            weights = [weight for group in self.param_groups for weight in group["params"]]
            for index, state in state_dict["state"].items():
                self.state[weights[index]]["expressions"] = state["expressions"]

    return SteadyKron


def _steady_soap(soap: Any) -> Any:
    """Class `soap` with bases that lie row by row, as they do when read from a file: products round by the layout."""

    class SteadySoap(soap):
        def step(self, closure: Callable[[], float] | None = None) -> Any:
            loss = super().step(closure)
            for state in self.state.values():
                state["Q"] = [basis.contiguous() if len(basis) else basis for basis in state["Q"]]
            return loss

    return SteadySoap


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """The default generators of torch and numpy started from `seed` inside, and as they were after."""
    state = np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))
        try:
            yield
        finally:
            np.random.set_state(state)
