"""Seeded fuzzing of everything that is read from files: typed errors only, never a crash, a hang or unbounded memory.

    python -m tests.fuzz                                    # 20,000 inputs over all targets; `make fuzz`
    python -m tests.fuzz --seed 7 --target sidecar --first 1234 --count 1     # one input again

`mutations` spoils valid content, `targets_*` say what is read and which errors are right, `worker` reads inputs in a
process of its own with limits on memory and time, `__main__` starts workers and counts.
"""
