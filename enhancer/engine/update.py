"""`update(name, loss)`: what a task calls for one guarded optimiser step of one of its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from enhancer.engine import distributed
from enhancer.engine.average import WeightAverage
from enhancer.engine.backend import Backend
from enhancer.engine.guard import Flags, StepAborted
from enhancer.engine.stop import Stop
from enhancer.engine.task import Modules


class StepModules(Modules):
    """A task's modules by name, and a way to step one of them through another without touching that one."""

    def __init__(
        self,
        callable_modules: Mapping[str, nn.Module],
        raw_modules: Mapping[str, nn.Module],
        before_freezing: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._callable = callable_modules
        self._raw = raw_modules
        self._before_freezing = before_freezing

    def __getitem__(self, name: str) -> nn.Module:
        return self._callable[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._callable)

    def __len__(self) -> int:
        return len(self._callable)

    def raw(self, name: str) -> nn.Module:
        """See `enhancer.engine.task.Modules`."""
        return self._raw[name]

    @contextmanager
    def frozen(self, name: str) -> Iterator[nn.Module]:
        """The raw module `name`, whose parameters take no gradients from what is computed inside.

        Raw and frozen is the one way through a second module that works at every ZeRO stage: a frozen
        parameter's gradient hooks never fire, and a raw module leaves the engine's own hooks alone.
        """
        self._before_freezing(name)
        module = self._raw[name]
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield module
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)


class Update:
    """The `update` of a run. `begin` opens a batch, `part` each of its parts; the attributes tell what happened to it.

    Gradients of all parts but the last wait. The last one's call then steps with their mean, or drops them.
    """

    def __init__(
        self,
        backend: Backend,
        main_module: str,
        stop: Stop,
        average: WeightAverage | None = None,
        num_parts: int = 1,
    ) -> None:
        self._backend = backend
        self._average = average
        self._main_module = main_module
        self._stop = stop
        self._num_parts = num_parts
        self.begin()

    def begin(self, *, is_missing: bool = False) -> None:
        """Start a batch. `is_missing`: this rank has none and only keeps the others company until they know."""
        self._is_missing = is_missing
        self._is_first = self._is_last = self._num_parts == 1
        self._losses: dict[str, Tensor] = {}
        """Of each module whose gradients wait, the sum of its losses."""
        self._means: dict[str, Tensor] = {}
        """Sums of what waits for the mean over the parts, by name."""
        self._updated: set[str] = set()
        """Modules that were updated in this part."""
        self.main_steps = 0
        """Steps of the main module taken with this batch."""
        self.skipped: list[str] = []
        """Why updates of this batch were skipped, one text each."""
        self.gradient_norms: dict[str, float] = {}
        """Norm before clipping of each module's last step with this batch."""
        self.is_stopping = False
        """Whether any rank was asked to stop by the time of the last update."""

    @contextmanager
    def part(self, number: int) -> Iterator[None]:
        """Passes of part `number` of the batch, from 0."""
        self._is_first, self._is_last = number == 0, number == self._num_parts - 1
        self._updated.clear()
        with nullcontext() if self._is_last else self._backend.accumulating():
            yield

    def modules(self) -> StepModules:
        """The backend's modules for a step of the task."""
        return StepModules(self._backend.modules, self._backend.raw_modules, self._refuse_late_freezing)

    def __call__(self, name: str, loss: Tensor) -> None:
        """Backward, guard, clip and one optimiser step of module `name` from the scalar `loss`.

        A loss or gradient that is not finite on any rank, in any part, skips the step on all of them.
        """
        if name not in self._backend.raw_modules:
            raise ValueError(f"update({name!r}): the task's modules are {sorted(self._backend.raw_modules)}")
        if loss.ndim:
            raise ValueError(f"update({name!r}): the loss has shape {tuple(loss.shape)}; needed a scalar")
        total = loss
        if self._num_parts > 1:
            self._refuse_second_update(name)
            loss = loss / self._num_parts
            total = loss.detach() + self._losses.get(name, 0.0)
            self._losses[name] = total
        if self._is_bad_anywhere(total):
            self._backend.drop(name)
            self.skipped.append(f"loss of {name} not finite on a rank")
            return
        before = self._gradients_of_others(name)
        self._backend.backward(name, loss)
        self._refuse_stray_gradients(name, before)
        if self._is_last:
            self._step(name, total)

    def _step(self, name: str, loss: Tensor) -> None:
        norm = self._backend.step(name, loss)
        if not torch.isfinite(torch.tensor(norm)):
            self.skipped.append(f"loss or gradient of {name} not finite")
            return
        self.gradient_norms[name] = norm
        if name == self._main_module:
            self.main_steps += 1
            if self._average is not None:
                self._average.update()

    def mean(self, values: Tensor) -> Tensor:
        """See `enhancer.engine.task.Update`."""
        means = distributed.all_mean(values.flatten().tolist())
        return torch.tensor(means, dtype=values.dtype).reshape(values.shape)

    def mean_of_batch(self, name: str, values: Tensor) -> Tensor | None:
        """See `enhancer.engine.task.Update`."""
        total = self._means.pop(name, 0) + values
        if self._is_last:
            return self.mean(total / self._num_parts)  # The ranks are asked once.
        self._means[name] = total
        return None

    def _is_bad_anywhere(self, loss: Tensor) -> bool:
        # One process has nobody to agree with, and the backend looks at the loss together with the norm: a device
        # is waited for once a step.
        if distributed.world_size() == 1:
            self.is_stopping = self._stop.is_requested
            return False
        # Whether there is a batch is asked before anything else, whether all of its losses are finite at its end.
        if not (self._is_first or self._is_last):
            return False
        is_bad = self._is_last and not bool(torch.isfinite(loss.detach()))
        agreed = Flags(is_bad, self._stop.is_requested, self._is_missing).agreed()
        self.is_stopping = agreed.is_stopping
        if agreed.is_missing:
            raise StepAborted
        return agreed.is_bad_loss

    def _gradients_of_others(self, name: str) -> dict[str, list[tuple[int, int] | None]]:
        """Of each module but `name`, what changes where a gradient comes or is added to one that waits."""
        return {
            other: [
                None if parameter.grad is None else (id(parameter.grad), parameter.grad._version)
                for parameter in module.parameters()
            ]
            for other, module in self._backend.raw_modules.items()
            if other != name
        }

    def _refuse_stray_gradients(self, name: str, before: dict[str, list[tuple[int, int] | None]]) -> None:
        for other, gradients in self._gradients_of_others(name).items():
            if gradients != before[other]:
                raise RuntimeError(
                    f"update({name!r}) put gradients into module {other!r}. Call that module inside "
                    f"`with modules.frozen({other!r}) as {other}:` in the step of {name!r}."
                )

    def _refuse_second_update(self, name: str) -> None:
        if name in self._updated:
            raise RuntimeError(
                f"update({name!r}) was called twice with a part of a batch, but gradients wait for the other parts. "
                "Update a module once a step, or let the task say that it takes no parts."
            )
        self._updated.add(name)

    def _refuse_late_freezing(self, name: str) -> None:
        if self._num_parts > 1 and name in self._updated:
            raise RuntimeError(
                f"modules.frozen({name!r}) comes after update({name!r}), but a batch that is taken in parts moves "
                f"{name!r} only with the last of them, so a loss through it would see it now old, now new. Step the "
                "other module first, or let the task say that it takes no parts."
            )
