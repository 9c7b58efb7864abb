"""Strings that run on their own, against what they should do.

    python -m bench.bench_string --run runs/string_ks [--tones 100]
    python -m bench.bench_string --real data/my_notes --run runs/fold0 runs/fold1 ...

Without --real: synthetic tones of pitches and T60 that no corpus has, for 8 s, by the trained model. A tone is within
the limits when its T60 is within 5 %, f0 within 3 cents, DC at the end below -80 dBFS, and no failure is named. With
--real: the held-out notes of each run, 4 s, by the trained model and, beside it, by the plain linear filter that knows
the same of the note and has learned nothing: how far the T60 of their octave bands are off, with 95 % intervals.

What a tone's decay is comes to the model from the tone itself, measured in octave bands (`t60` among the controls):
over the very stretch that is judged, and, for notes, likewise foretold from their first seconds alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor

from bench.common import describe_machine
from data_shards.string_stream import open_string_stream
from data_shards.synthetic_string import KarplusString, draw_string
from enhancer.engine.evaluate import summarise
from enhancer.inference import TrainedRun, load_run
from enhancer.signal.decay import OCTAVE_CENTRES_HZ, audible_bands, octave_levels, octave_t60
from enhancer.string_metrics import BAND_LIMIT, HELD_AGAINST, JUDGED, is_within_bands, judged_prefixes
from enhancer.tasks.string import StringTask

UNSEEN_SEED = 7_654_321
SECONDS, LEAST_SHARE = 8.0, 0.95
T60_ERROR, CENTS, DC_DBFS = 0.05, 3.0, -80.0
NO_BAND_DB = 80.0
SHOWN = (
    *(f"{prefix}{name}" for prefix in JUDGED for name in HELD_AGAINST),
    *(f"{name}_below_linear" for name in HELD_AGAINST),
)


def main() -> int:
    """Print each tone or note and the shares within the limits; exit code 1 where too few are."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="run folders")
    parser.add_argument("--tones", type=int, default=100, help="synthetic tones")
    parser.add_argument("--real", type=Path, help="a corpus of notes, whose held-out ones are judged")
    options = parser.parse_args()
    describe_machine()
    runs = [load_run(folder) for folder in options.run]
    return judge_notes(runs, options.real) if options.real else judge_tones(runs[0], options.tones)


def judge_tones(run: TrainedRun, count: int) -> int:
    """The first of the figures: synthetic tones."""
    within = []
    for number in range(count):
        string = draw_string(UNSEEN_SEED, number, run.hp.wav_rate)
        with torch.no_grad():
            found = run.task.judged(run.module, row_of_tone(string, run.task.history_samples))[0]
        within.append(is_within(found))
        print(
            f"{number:3d}  {string.f0_hz:7.1f} Hz  T60 {string.t60_seconds:5.2f} s  "
            f"T60 {100 * found['t60_whole_error']:+6.2f} %  bands {100 * found['t60_error']:5.1f} %  "
            f"f0 {found['f0_error_cents']:5.2f} cents  DC {found['end_dc_dbfs']:6.1f} dBFS  "
            f"{found['num_failures']:.0f} failures  {'' if within[-1] else 'OUT'}",
            flush=True,
        )
    share = sum(within) / count
    print(
        f"within all limits: {sum(within)} of {count} ({100 * share:.0f} %; {100 * LEAST_SHARE:.0f} % wanted)"
    )
    return 0 if share >= LEAST_SHARE else 1


def row_of_tone(string: KarplusString, history_samples: int) -> dict[str, Tensor]:
    """A tone from two periods after its pluck on, as a row of validation."""
    skipped = math.ceil(2 * string.period)
    count = history_samples + round(SECONDS * string.rate_hz)
    wave = torch.from_numpy(string.render((skipped + count) / string.rate_hz)).float()[skipped:]
    levels = octave_levels(wave[None], string.rate_hz)
    t60 = octave_t60(levels)[0].t60_seconds.float()
    values = {"f0_hz": string.f0_hz, "velocity": string.velocity, "position": string.position}
    return {
        "note": wave[None, :count],
        "t60": torch.where(audible_bands(levels, NO_BAND_DB) > 0, t60, math.nan),
        "decay_db": torch.zeros(1),
        "time": torch.zeros(1),
        "t60_range_db": torch.full((1, len(OCTAVE_CENTRES_HZ)), math.nan),
        **{name: torch.tensor([value]) for name, value in values.items()},
    }


@torch.no_grad()
def judge(task: StringTask, module: torch.nn.Module, row: dict[str, Tensor]) -> dict[str, float]:
    """Metrics of one row."""
    return task.evaluate({task.main_module: module}, row)[0]


def is_within(found: dict[str, float]) -> bool:
    """Whether a synthetic tone is within all limits; NaN is not."""
    return (
        abs(found["t60_whole_error"]) <= T60_ERROR
        and found["f0_error_cents"] <= CENTS
        and found["end_dc_dbfs"] <= DC_DBFS
        and found["num_failures"] == 0
    )


def judge_notes(runs: list[TrainedRun], corpus: Path) -> int:
    """The second: the notes that each run has held out."""
    rows: list[dict[str, float]] = []
    for run in runs:
        stream = open_string_stream(dataclasses.replace(run.hp, note_dir=corpus))
        for item in range(stream.num_valid_items):
            row = {"item": float(len(rows)), **judge(run.task, run.module, stream.validation_row(item))}
            rows.append(row)
            name = stream.item_sources(item)["note"]
            for prefix in judged_prefixes([row]):
                print(f"{name:28s} {_errors(row, prefix)}  {JUDGED[prefix]}", flush=True)
    bands, unsteady = (_total(rows, name) for name in ("t60_bands", "t60_unsteady_bands"))
    print(
        f"{bands} bands are judged; of {unsteady} of them the recording says no T60 to 20 %, see docs/strings.md"
    )
    for prefix in judged_prefixes(rows):
        print(
            f"{JUDGED[prefix]}: {_total(rows, prefix + 't60_bands_within')} bands within 20 %; notes with their mean "
            f"over bands within 20 %: {_share(rows, prefix + 't60_error')}, every band: "
            f"{_share(rows, prefix + 't60_worst_error')}, no failure: "
            f"{sum(row[prefix + 'num_failures'] == 0 for row in rows)} of {len(rows)}; all of it: "
            f"{sum(is_within_bands(row, prefix) for row in rows)} of {len(rows)}"
        )
    for name, interval in summarise(rows).items():
        if name in SHOWN:
            print(f"{name}: {interval.mean:.4f} ({interval.low:.4f} .. {interval.high:.4f})")
    return 0 if all(is_within_bands(row) for row in rows) else 1


def _errors(found: dict[str, float], prefix: str) -> str:
    return (
        f"T60 {100 * found[prefix + 't60_error']:5.1f} % worst {100 * found[prefix + 't60_worst_error']:5.1f} %  "
        f"levels {found[prefix + 'level_error_db']:5.2f} dB  {found[prefix + 'num_failures']:.0f} failures"
    )


def _total(rows: list[dict[str, float]], name: str) -> int:
    return sum(int(row[name]) for row in rows if row[name] == row[name])


def _share(rows: list[dict[str, float]], name: str) -> str:
    return f"{sum(row[name] <= BAND_LIMIT for row in rows)} of {len(rows)}"


if __name__ == "__main__":
    raise SystemExit(main())
