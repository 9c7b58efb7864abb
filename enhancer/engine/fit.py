"""The training loop: from a state to the last step, an early stop, a stop request, or divergence."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from torch import Tensor

from enhancer.engine import distributed, rng
from enhancer.engine.batches import WAITING, Batches, DataFailure, raise_failures
from enhancer.engine.clock import Clock, crossed
from enhancer.engine.guard import Flags, StepAborted
from enhancer.engine.job import Job, Outcome
from enhancer.engine.milestones import (
    diverged,
    end,
    evaluate_if_due,
    finished,
    is_over,
    log_step,
    max_lr,
    preempted,
    raise_file_failure,
    save,
    save_before_failing,
    tell_running,
    tell_saved,
)
from enhancer.engine.parts import cut, mean_over_parts
from enhancer.engine.state import State
from enhancer.engine.task import Batch
from enhancer.engine.update import Update


def fit(job: Job, state: State) -> Outcome:
    """Train `job` on from `state` to `max_steps` or an early stop. Called by every rank, with the same outcome.

    Raises DataFailure when the data of any rank fail and FileFailure when rank 0 cannot write another file, after
    saving the steps before, and SaveError when a checkpoint cannot be written, on all ranks alike. Weights are finite
    whenever it returns or raises one of these.
    """
    hp = job.hp
    saved_step = state.step
    clock = Clock(job.global_batch, job.seconds_per_example)
    update = Update(job.backend, job.task.main_module, job.stop, job.average, job.num_parts)
    tell_running(job, state)
    if state.lr_decays:
        job.backend.set_max_lr(max_lr(hp, state))
    state, is_stopping = evaluate_if_due(job, state)  # A stop request may have cut the last one short.
    batches = Batches(job.stream.from_draw(state.draws), hp.data_timeout_seconds, job.stop, job.pulse)
    try:
        with closing(batches):
            while not is_over(hp, state) and not is_stopping:
                before, rate = state.step, job.backend.learning_rate(job.task.main_module)
                clock.start()
                job.pulse.mark(WAITING, state.step)
                batch = batches.next()
                metrics = _step(job, update, batches, batch)
                if metrics is None:
                    is_stopping = True
                    break
                state = _advance(state, update, job.global_batch)
                job.run.step = state.step
                clock.stop(batches.wait_seconds)
                for text in update.skipped:
                    job.monitor.event(state.step, "skipped", f"step after {state.step} skipped: {text}")
                if state.bad_in_a_row >= hp.max_bad_steps:
                    return diverged(job, state, batch)
                if state.step > before and (before == 0 or crossed(before, state.step, hp.log_every)):
                    log_step(job, state, update, metrics, {"learning_rate": rate, **clock.read()})
                job.monitor.progress(state.step)
                is_stopping = update.is_stopping
                if not is_stopping:
                    state, is_stopping = evaluate_if_due(job, state)
                if crossed(saved_step, state.step, hp.save_every):
                    saved_step = save(job, state)
                tell_saved(job)
    except DataFailure as failure:
        save_before_failing(job, state, saved_step, failure)
        raise
    if is_stopping:
        raise_file_failure(job, state, saved_step)
    if state.step > saved_step:
        save(job, state, is_waiting=True)
    return end(job, preempted(job, state) if is_stopping else finished(job, state))


def _all_have_one(batches: Batches, batch: Batch | None) -> bool:
    """False when a rank was told to stop while waiting for its batch. Raises DataFailure when data failed.

    Later than the first batch a rank without one joins the others in a step with its last, and they find out in
    the agreement that every step has anyway.
    """
    if distributed.world_size() > 1 and batches.num_waits > 1:
        return True
    if not Flags(is_missing=batch is None).agreed().is_missing:
        return True
    raise_failures(batches.failure)
    return False


def _step(job: Job, update: Update, batches: Batches, batch: Batch | None) -> dict[str, Tensor] | None:
    """Metrics of one guarded step, None when a rank was told to stop while waiting for its batch."""
    if not _all_have_one(batches, batch):
        return None
    job.pulse.mark("a step")
    generators = rng.capture()
    update.begin(is_missing=batch is None)
    present = batch or batches.last
    assert present is not None, "the first batch is agreed on before it is used"
    on_device = {key: value.to(job.backend.device, non_blocking=True) for key, value in present.items()}
    modules = update.modules()
    metrics = []
    try:
        for number, part in enumerate(cut(on_device, job.num_parts)):
            with update.part(number):
                metrics.append(job.task.step(modules, part, update))
            job.pulse.mark("a step")
    except StepAborted:
        rng.restore(generators)
        raise_failures(batches.failure)
        return None
    return mean_over_parts(metrics)


def _advance(state: State, update: Update, global_batch: int) -> State:
    is_bad = bool(update.skipped)
    return replace(
        state,
        step=state.step + update.main_steps,
        draws=state.draws + global_batch,
        skipped=state.skipped + is_bad,
        bad_in_a_row=state.bad_in_a_row + 1 if is_bad else 0,
    )
