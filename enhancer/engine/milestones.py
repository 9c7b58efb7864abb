"""What happens between steps: a logged line, an evaluation, a checkpoint, the end of the run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from enhancer.engine import distributed
from enhancer.engine.batches import DataFailure
from enhancer.engine.clock import crossed
from enhancer.engine.evaluate import evaluate
from enhancer.engine.guard import save_replay
from enhancer.engine.job import Job, Outcome
from enhancer.engine.monitor import Monitor
from enhancer.engine.own_files import FileFailure
from enhancer.engine.pulse import COPYING
from enhancer.engine.schedule import plateau_rate
from enhancer.engine.state import State
from enhancer.engine.status import STATUS
from enhancer.engine.task import Batch, Noticing, Task
from enhancer.engine.update import Update
from hparams.errors import UserError
from hparams.schema import HParams


def log_step(
    job: Job, state: State, update: Update, metrics: dict[str, Tensor], values: dict[str, float]
) -> None:
    """One logged line; metrics are means over the ranks."""
    means = distributed.all_mean(torch.stack([value.detach().float() for value in metrics.values()]).tolist())
    norms = {
        "gradient_norm" if name == job.task.main_module else f"gradient_norm_{name}": norm
        for name, norm in update.gradient_norms.items()
    }
    line = dict(zip(metrics, means, strict=True)) | norms | values
    job.monitor.log(state.step, {**line, "draws": state.draws, "skipped": state.skipped})
    tell_notices(job.task, job.monitor, state.step)
    tell_running(job, state)


def tell_running(job: Job, state: State) -> None:
    """`status.json` says that the run is at `state`."""
    with job.monitor.files.kept(job.run.folder / STATUS):
        job.run.status("running", state.step)


def tell_notices(task: Task, monitor: Monitor, step: int) -> None:
    """Events of what the task has noticed."""
    for text in task.notices() if isinstance(task, Noticing) else ():
        monitor.event(step, "notice", text)


def evaluate_if_due(job: Job, state: State) -> tuple[State, bool]:
    """The state after the evaluation that is due, if one is, and whether a stop request cut it short.

    So does a file that cannot be written. What was cut short is done again when the run goes on.
    """
    is_last = state.step >= job.hp.max_steps and state.evaluated < state.step
    if not (is_last or crossed(state.evaluated, state.step, job.hp.eval_every)):
        return state, False
    job.pulse.mark("an evaluation", state.step)
    job.monitor.say(f"evaluating at step {state.step}")
    media = job.monitor.media(state.step, lambda: job.stop.is_requested)
    with job.average.in_place() if job.average else nullcontext():
        evaluation = evaluate(job.task, job.stream, job.backend, job.stop, media, job.pulse, job.most_rows)
    if evaluation is None:
        why = job.monitor.files.failure or "asked to stop"
        job.monitor.event(state.step, "evaluation_abandoned", f"evaluation given up: {why}")
        return state, True
    summary = {name: (each.mean, each.low, each.high) for name, each in evaluation.summary.items()}
    job.monitor.evaluation(state.step, summary, evaluation.rows, evaluation.seconds)
    # What follows decides on saving, stopping and the learning rate, so all ranks go by one rank's number.
    told = (evaluation.summary[job.task.best_metric].mean, not job.monitor.files.failure)
    value, is_written = distributed.broadcast(told)
    if not is_written:
        return state, True
    state = replace(state, evaluated=state.step)
    is_best = _is_better(value, state.best, job.task.best_is_higher)
    if is_best:
        state = replace(state, best=value, best_step=state.step, stale=0)
    else:
        state = _lower_rate_if_due(job, replace(state, stale=state.stale + 1))
    tell_notices(job.task, job.monitor, state.step)
    job.monitor.catch_up()
    if is_best:
        job.checkpoints.save(state, job.backend, job.average, is_best=True)
    else:
        # That of this step was saved when a stop request cut this evaluation short.
        job.checkpoints.amend(state)
    return state, False


def _lower_rate_if_due(job: Job, state: State) -> State:
    """The state after a decay of the learning rate where `state` is on a plateau."""
    patience = job.hp.lr_plateau_patience
    if not patience or state.stale % patience:
        return state
    before = max_lr(job.hp, state)
    state = replace(state, lr_decays=state.lr_decays + 1)
    rate = max_lr(job.hp, state)
    if rate < before:
        job.backend.set_max_lr(rate)
        text = f"learning rate lowered from {before:.4g} to {rate:.4g}: {_plateau_text(job, state)}"
        job.monitor.event(state.step, "rate_lowered", text)
    return state


def max_lr(hp: HParams, state: State) -> float:
    """Learning rate after the warm-up at `state`."""
    return plateau_rate(state.lr_decays, min_lr=hp.min_lr, max_lr=hp.max_lr, factor=hp.lr_plateau_factor)


def is_over(hp: HParams, state: State) -> bool:
    """Whether nothing is left to train: max_steps are done, or the run has stopped early."""
    return state.step >= hp.max_steps or 0 < hp.early_stop_patience <= state.stale


def _plateau_text(job: Job, state: State) -> str:
    best = "none yet" if state.best is None else f"{state.best:.4g} at step {state.best_step}"
    return f"{state.stale} evaluations in a row without a better {job.task.best_metric} (the best is {best})"


def _is_better(value: float, best: float | None, is_higher_better: bool) -> bool:
    if value != value:
        return False
    return best is None or (value > best if is_higher_better else value < best)


def save(job: Job, state: State, *, is_waiting: bool = False) -> int:
    """Begin a checkpoint of `state`, and publish it where `is_waiting`; its step."""
    job.pulse.mark("a save", state.step)
    tell_notices(job.task, job.monitor, state.step)  # Its task may say it once only.
    job.monitor.catch_up()
    job.checkpoints.save(state, job.backend, job.average, is_waiting=is_waiting)
    tell_saved(job)
    return state.step


def tell_saved(job: Job) -> None:
    """Events of the checkpoints that were published since the last call."""
    while job.checkpoints.saved:
        saved = job.checkpoints.saved.popleft()
        job.monitor.event(
            saved.step,
            "saved",
            f"checkpoint {saved.folder.name} saved",
            blocked_seconds=round(saved.blocked_seconds, 4),
            write_seconds=round(saved.write_seconds, 4),
        )


def raise_file_failure(job: Job, state: State, saved_step: int) -> None:
    """End a run that stops where a file beside the checkpoints is the cause, with the steps after `saved_step` saved.

    Called by all ranks; raises FileFailure on all of them.
    """
    failure = job.monitor.files.agreed()
    if failure is not None:
        save_before_failing(job, state, saved_step, failure)
        raise failure


def save_before_failing(job: Job, state: State, saved_step: int, failure: DataFailure | FileFailure) -> None:
    """Save the steps after `saved_step` that were taken before `failure`. Called by all ranks, which have agreed on it.

    Raises an error of its type with both texts where saving fails too: the `failure` is what ended the run.
    """
    try:
        if state.step > saved_step:
            save(job, state, is_waiting=True)
        finish_saving(job)
    except (UserError, OSError) as error:
        raise type(failure)(f"{failure}\nWhile saving the steps before that: {error}") from failure


def finish_saving(job: Job) -> str:
    """Wait until what is under way is published and copied; what is not copied in time, or nothing.

    Raises UserError on all ranks alike where it cannot be.
    """
    hp = job.hp
    try:
        job.checkpoints.finish_together()
        job.pulse.mark(COPYING)
        is_copied = job.checkpoints.finish_copies(hp.copy_timeout_seconds)
    finally:
        tell_saved(job)
    if is_copied:
        return ""
    return (
        f"the copy of the last checkpoint at {hp.checkpoint_copy_url} was not complete after "
        f"copy_timeout_seconds={hp.copy_timeout_seconds:g}; the same command sends it"
    )


def diverged(job: Job, state: State, batch: Batch | None) -> Outcome:
    """End without a checkpoint: one would only go on into the same batches."""
    problem = ""
    try:
        if batch is not None:
            save_replay(job.run.folder, state.step, batch)
    except OSError as error:
        problem = f"rank {distributed.rank()}: {error}"
    problems = [text for text in distributed.all_gather(problem) if text]
    place = f"{job.run.folder}/diverged-{state.step:07d}-rank*.safetensors"
    kept = f"could not be written to {place} ({'; '.join(problems)})" if problems else f"is in {place}"
    reason = (
        f"{state.bad_in_a_row} steps in a row had a loss or gradient that is not finite; the last batch {kept}. "
        "Lower max_lr or look at those examples."
    )
    return end(job, Outcome("diverged", state, reason))


def finished(job: Job, state: State) -> Outcome:
    """The outcome of a run that is over, with the reason where that is before max_steps."""
    if state.step >= job.hp.max_steps:
        return Outcome("finished", state)
    text = (
        f"stopped early after {_plateau_text(job, state)}; raise early_stop_patience or set it to 0 to go on"
    )
    return Outcome("finished", state, text)


def preempted(job: Job, state: State) -> Outcome:
    """The outcome of a stop request, with the reason of the first rank that was asked."""
    reasons = [reason for reason in distributed.all_gather(job.stop.reason) if reason]
    return Outcome("preempted", state, reasons[0] if reasons else "asked to stop")


def end(job: Job, outcome: Outcome) -> Outcome:
    """Write down how the run ended, with what was under way on the disk; `outcome`, with what is not copied.

    Raises FileFailure on all ranks alike where a file cannot be written.
    """
    uncopied = finish_saving(job)
    if uncopied:
        outcome = replace(outcome, reason="; ".join(filter(None, (outcome.reason, uncopied))))
    text = f"{outcome.status} at step {outcome.state.step}" + (
        f": {outcome.reason}" if outcome.reason else ""
    )
    job.pulse.mark("the end", outcome.state.step)
    tell_notices(job.task, job.monitor, outcome.state.step)
    job.monitor.event(outcome.state.step, outcome.status, text)
    job.monitor.write_out()
    distributed.barrier()  # A launcher ends the other ranks as soon as one is gone.
    if not job.monitor.files.failure:
        with job.monitor.files.kept(job.run.folder / STATUS):
            job.run.status(outcome.status, outcome.state.step, outcome.reason)
    failure = job.monitor.files.agreed()
    if failure is not None:
        raise FileFailure(f"{failure}\nThat was seen at the end of the run, which was {text}")
    return outcome
