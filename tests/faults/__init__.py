"""Faults at random moments of real training on two ranks, each compared with a run that nothing has broken.

    python -m tests.faults                                   # 200 rounds; `make faults`
    python -m tests.faults --seed 7 --first 12 --rounds 1    # one round again

A round starts a run, breaks it, lets the same command go on and asks: is `status.json` true, are the exit codes those
of docs/operations.md, is every process gone, did the run go on from the newest whole checkpoint, and are weights,
optimiser states, counters and metrics in the end those of the unbroken run, bit for bit?
"""
