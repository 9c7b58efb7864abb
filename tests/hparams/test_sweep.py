"""Sweep files: what members they give, and everything that is refused with the line it stands in."""

from __future__ import annotations

from pathlib import Path

import pytest

from hparams.errors import UserError
from hparams.load import load
from hparams.sweep import read_sweep, sweep_names

GOOD = """\
preset: pedal_lstm
grid:
  task.hidden_size: [8, 16]
  max_lr: [1e-3, 2e-3, 5e-4]
seeds: [3, 1]
set:
  max_steps: 500
  task.warmup_samples: 100
metric: mae
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_every_setting_comes_with_every_seed(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path, GOOD))
    assert (sweep.name, sweep.preset, sweep.metric, sweep.seeds) == ("mine", "pedal_lstm", "mae", (3, 1))
    found = [(dict(member.setting.values), member.seed) for member in sweep.members]
    wanted = [
        ({"task.hidden_size": size, "max_lr": rate}, seed)
        for seed in (3, 1)
        for size in (8, 16)
        for rate in (1e-3, 2e-3, 5e-4)
    ]
    assert found == wanted
    assert sweep.members[0].folder_name == "hidden_size=8,max_lr=0.001,seed=3"
    assert len({member.folder_name for member in sweep.members}) == 12
    assert sweep.numeric_keys == ["task.hidden_size", "max_lr"]


def test_values_reach_the_hyper_parameters_the_same_way_in_a_file_and_on_the_command_line(
    tmp_path: Path,
) -> None:
    sweep = read_sweep(write(tmp_path, GOOD), ["max_steps=700", "precision=bf16"])
    for member in sweep.members:
        hp = load(sweep.preset, member.overrides)
        values = dict(member.setting.values)
        assert (hp.task.hidden_size, hp.max_lr) == (values["task.hidden_size"], values["max_lr"])  # type: ignore[union-attr]
        assert (hp.seed, hp.max_steps, hp.precision) == (member.seed, 700, "bf16")
        assert load(sweep.preset, member.set_texts) == hp


def test_a_folder_keeps_its_name_when_the_grid_grows_and_names_stay_apart(tmp_path: Path) -> None:
    grown = GOOD.replace("[8, 16]", "[4, 8, 16]").replace("[3, 1]", "[3, 1, 2]")
    before = {member.folder_name for member in read_sweep(write(tmp_path, GOOD)).members}
    assert before < {member.folder_name for member in read_sweep(write(tmp_path, grown)).members}
    text = "preset: pedal_lstm\ngrid:\n  pair_dir: [data/a b, data/a_b, 'data/a:b']\nseeds: [0]\n"
    names = [member.folder_name for member in read_sweep(write(tmp_path, text)).members]
    assert len(set(names)) == 3
    assert not any(set(name) & set(" /:") for name in names), names


def test_only_numbers_make_an_axis(tmp_path: Path) -> None:
    text = GOOD.replace("  max_lr: [1e-3, 2e-3, 5e-4]\n", "  task.model: [lstm, gru]\n  zero_stage: [0]\n")
    assert read_sweep(write(tmp_path, text)).numeric_keys == ["task.hidden_size"]


def test_a_preset_of_ones_own_lies_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("extends: pedal_lstm\nmax_steps: 777\n")
    text = "preset: ./own.yaml\ngrid:\n  max_lr: [1e-3]\nseeds: [0]\n"
    sweep = read_sweep(write(tmp_path, text))
    assert load(sweep.preset, sweep.members[0].overrides).max_steps == 777
    (tmp_path / "RNN3.json").write_text('{"hidden_size": 20}')
    sweep = read_sweep(write(tmp_path, text.replace("./own.yaml", "RNN3.json")))
    assert load(sweep.preset, sweep.members[0].overrides).task.hidden_size == 20


VARIANTS = """\
preset: pedal_lstm
variants:
  base: {}
  small and fast:
    task.hidden_size: 8
    max_lr: 1e-2
  wide: {task: {hidden_size: 40}}
seeds: [3, 1]
set:
  max_lr: 2e-3
"""


def test_variants_differ_from_the_preset_and_from_what_all_share_in_a_few_things_each(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path, VARIANTS), ["max_steps=700"])
    names = ["base", "small and fast", "wide"]
    assert [(member.setting.label, member.seed) for member in sweep.members] == [
        (name, seed) for seed in (3, 1) for name in names
    ]
    assert [member.folder_name.partition(",")[0] for member in sweep.members[:1]] == ["variant=base"]
    assert len({member.folder_name for member in sweep.members}) == 6
    found = {}
    for member in sweep.members:
        hp = load(sweep.preset, member.overrides)
        assert load(sweep.preset, member.set_texts) == hp
        assert (hp.max_steps, hp.seed) == (700, member.seed)
        found[member.setting.label] = (hp.task.hidden_size, hp.max_lr)  # type: ignore[union-attr]
    preset = load("pedal_lstm").task.hidden_size  # type: ignore[union-attr]
    assert found == {"base": (preset, 2e-3), "small and fast": (8, 1e-2), "wide": (40, 2e-3)}
    assert sweep.numeric_keys == []
    assert sweep.settings[1].words == "hidden_size=8, max_lr=0.01"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("base: {}", "base: 3"), ":3: variants: base is 3; needed names without dots"),
        (("base: {}", "' ': {max_lr: 1}"), ":3: variants:   is 1; needed names"),
        (("task.hidden_size: 8", "seed: 8"), ":5: seed cannot be swept"),
        (("wide: {task: {hidden_size: 40}}", "wide: {}"), "variants: base and wide have the same values"),
        (("seeds:", "grid: {nj: [1]}\nseeds:"), ":3: variants stand beside a grid"),
        (("  base: {}\n", "  base: {}\n  base: {}\n"), ":4: key variants.base is given twice"),
    ],
)
def test_variants_that_cannot_be_are_refused_with_their_line(
    tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    assert change[0] in VARIANTS
    with pytest.raises(UserError) as refused:
        read_sweep(write(tmp_path, VARIANTS.replace(*change)))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seeds:", "seed:"), ":5: a sweep has no key seed; did you mean seeds?"),
        (("metric: mae", "max_steps: 3"), "below `set:`"),
        (("preset: pedal_lstm\n", ""), "preset is missing"),
        (("preset: pedal_lstm", "preset: 3"), ":1: preset is 3"),
        (("preset: pedal_lstm", "preset: [a]"), ":1: preset is ['a']"),
        (("[8, 16]", "8"), ":3: grid: task.hidden_size is 8; needed a list"),
        (("[8, 16]", "[]"), ":3: grid: task.hidden_size is []"),
        (("[8, 16]", "[8, 8]"), ":3: grid: task.hidden_size has 8 twice"),
        (("[8, 16]", "[{a: 1}]"), ":3: grid: task.hidden_size has a mapping"),
        (("task.hidden_size", "seed"), "seed cannot be swept; give the seeds below `seeds:`"),
        (("task.hidden_size: [8, 16]", "task.name: [pedal]"), "make a sweep for each task"),
        (("[3, 1]", "[]"), ":5: seeds is []"),
        (("[3, 1]", "[1, true]"), ":5: seeds is [1, True]"),
        (("[3, 1]", "[1, 1]"), "one stands twice"),
        (("max_steps: 500", "seed: 3"), ":7: seed is for each member to have"),
        (("max_steps: 500", "max_lr: 1e-3"), ":7: max_lr is swept"),
        (("metric: mae", "metric: 3"), ":9: metric is 3"),
        (("set:\n  max_steps: 500\n  task.warmup_samples: 100\n", "set: 3\n"), ":6: set is 3"),
        (("seeds: [3, 1]\n", "seeds:\n  a: 1\n"), ":6: seeds holds seeds.a"),
    ],
)
def test_what_a_sweep_may_not_say_is_refused_with_its_line(
    tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    assert change[0] in GOOD
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(UserError) as refused:
        read_sweep(path)
    assert words in str(refused.value)


def test_an_unknown_hyper_parameter_is_named_with_its_line_and_the_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("task.hidden_size", "task.hiden_size"))
    sweep = read_sweep(path)
    with pytest.raises(UserError) as refused:
        load(sweep.preset, sweep.members[0].overrides)
    assert f"{path}:3: there is no key task.hiden_size; did you mean task.hidden_size?" in str(refused.value)


def test_a_swept_key_on_the_command_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--set: max_lr is swept"):
        read_sweep(write(tmp_path, GOOD), ["max_lr=1"])


def test_a_file_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UserError, match="pedal_demo"):
        read_sweep("pedal_dmo")


@pytest.mark.parametrize("name", sweep_names())
def test_the_sweeps_that_come_along_are_valid(name: str) -> None:
    sweep = read_sweep(name)
    assert len(sweep.settings) > 1 and len(sweep.seeds) > 1
    for member in sweep.members:
        load(sweep.preset, member.overrides)


def test_a_grid_of_more_members_than_anybody_trains_is_refused(tmp_path: Path) -> None:
    keys = ("nj", "n_fft", "log_every", "max_steps", "save_every", "eval_every")
    grid = "\n".join(f"  {key}: [{', '.join(map(str, range(1, 100)))}]" for key in keys)
    with pytest.raises(UserError, match=r"the sweep has 9\.41e\+11 settings; at most 10000"):
        read_sweep(write(tmp_path, f"preset: base\ngrid:\n{grid}\nseeds: [0]\n"))
