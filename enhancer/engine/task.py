"""What the engine asks of a task and of a data stream. The engine knows these protocols and no audio."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


class Update(Protocol):
    """What a step does to its modules, and what it may ask the other ranks."""

    def __call__(self, name: str, loss: Tensor) -> None:
        """Backward, guard, clip and one optimiser step of module `name`.

        Of a part of a batch that is not the last one the gradients wait (`Divisible`).
        """

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a few `values` on the CPU over the ranks; called by all of them alike."""

    def mean_of_batch(self, name: str, values: Tensor) -> Tensor | None:
        """The same over all parts of the batch too, in the last of them; None before, where it is waited for.

        What a task remembers of each batch goes through here under a `name`, and changes where there is a mean.
        """


class Modules(Mapping[str, nn.Module]):
    """A task's modules by name, as they are to be called in a step."""

    @abstractmethod
    def frozen(self, name: str) -> AbstractContextManager[nn.Module]:
        """Module `name` for the step of another one: it passes gradients on and takes none.

        The generator's step of an adversarial task calls the discriminator so, and only so; before the discriminator's
        own step where batches are to be taken in parts (`Divisible`)::

            with modules.frozen("discriminator") as discriminator:
                loss = adversarial_loss(discriminator(estimate))
            update("generator", loss)
        """

    @abstractmethod
    def raw(self, name: str) -> nn.Module:
        """Module `name` itself, for what it remembers in its buffers; a step does not call it."""


class Media(Protocol):
    """Where a task puts pictures and sounds of an evaluation. Ranks other than 0 get one that drops them."""

    is_cut: bool
    """Whether some were dropped for a stop request."""

    def audio(self, name: str, wave: Tensor, rate_hz: int) -> None:
        """Keep `wave` of shape [T] as `name`."""

    def figure(self, name: str, figure: Any) -> None:
        """Keep a matplotlib figure as `name`."""


class Task(Protocol):
    """One kind of training job."""

    name: str
    main_module: str
    """The module whose updates count as steps."""
    best_metric: str
    best_is_higher: bool

    def build(self) -> dict[str, nn.Module]:
        """Fresh modules by name, initialised from torch's current default generator, on the CPU."""

    def param_groups(self, name: str, module: nn.Module) -> list[dict[str, Any]]:
        """Optimiser parameter groups of module `name`: dicts with `params` and options such as `weight_decay`.

        `stacked` lists the ones whose first axis counts matrices, for optimisers that work on these.
        """

    def to(self, device: torch.device) -> None:
        """Move the task's constants (windows, RIR spectra) to `device`."""

    def step(self, modules: Modules, batch: Batch, update: Update) -> dict[str, Tensor]:
        """Forward and losses of one micro-batch, calling `update` once or more; returns detached scalars to log."""

    def evaluate(self, modules: Modules, batch: Batch) -> list[dict[str, float]]:
        """Metrics of each row of a validation batch, in row order. Called in eval mode without gradients."""

    def show(self, modules: Modules, batch: Batch, media: Media) -> None:
        """Put sounds and pictures of the rows of a validation batch into `media`.

        Called in eval mode without gradients, on rank 0 only, or on every rank (whose media drop all but rank
        0's) where the parameters are split over the ranks.
        """


@runtime_checkable
class Remembering(Protocol):
    """A task with tensors that go on from step to step beside its modules; checkpoints hold them."""

    def state(self) -> dict[str, Tensor]:
        """These tensors by name, on the CPU and the same on every rank; they are changed in place."""


@runtime_checkable
class Noticing(Protocol):
    """A task that notices what the user should know of a run, beside its numbers."""

    def notices(self) -> list[str]:
        """What is new since the last call, a text each. Asked for at the start and with every logged step."""


@runtime_checkable
class Divisible(Protocol):
    """A task whose step may be taken on equal parts of a batch one after another, where all of it would not fit."""

    takes_parts: bool
    """Whether it may be, with the values of this run. `step` is then called on each part, and what it hands to `update`
    is averaged over the parts before the module moves.

    That is a step on the whole batch where losses are means over the rows, as they are over those of several ranks,
    each module is updated once, what is remembered goes through `Update.mean_of_batch`, and no loss waits for another
    module's step: the step of a generator comes before that of its discriminator. A task that does not say so gets its
    batches whole.
    """


@runtime_checkable
class Foreseeable(Protocol):
    """A task of which can be told beforehand what memory a step takes (`enhancer.engine.forecast`)."""

    def trial_batch(self, rows: int) -> Batch:
        """A batch of `rows` examples in the shapes and types of the stream's, without any data.

        May bring the task, which is made for nothing else, to where its steps are largest.
        """


class Stream(Protocol):
    """A rank's share of the data. Everything in it is a pure function of the seed and the draw number.

    Its iterators may have `next_batch(timeout_seconds) -> Batch | None`, which gives up waiting so that a stop
    request is heard, `progress()`, any value whose change shows that a late batch is still on its way (data being
    fetched), so that the wait is counted from there, and `close()`.
    """

    fingerprint: str
    """Identifies the corpora; stored in every checkpoint."""

    def from_draw(self, draw: int) -> Iterator[Batch]:
        """Endless batches of this rank, the first starting at global draw number `draw`. CPU tensors.

        Every batch has `draw`, int64 of shape [B], the draw number of each row.
        """

    def validation(self) -> Iterator[Batch]:
        """This rank's share of the fixed validation list, the same number of batches on every rank.

        Every batch has `item`, int64 of shape [B]: the place on the list, or -1 for a row that only fills up.
        """
