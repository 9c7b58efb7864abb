"""Strict loading: presets, files, `--set`, and texts that name what is wrong."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hparams.errors import UserError
from hparams.fields import rows
from hparams.load import difference, dump, load, loads, preset_name, preset_names
from hparams.schema import HParams
from hparams.tasks import DenoiseHParams


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_base_preset_is_the_defaults():
    assert load("base") == HParams()


def test_the_small_preset_changes_only_what_it_says():
    changed = {key for key, _, _ in difference(load("base"), load("base_small"))}
    schedule = {"batch_size_per_gpu", "warmup_steps", "max_lr", "max_steps", "eval_every", "nj", "ema_decay"}
    variety = {
        "distort_prob",
        "lead_seconds",
        "speed_range",
        "second_bg_prob",
        "fg_eq_db",
        "bg_eq_db",
        "room_range_db",
    }
    task = {"width", "l1_weight", "stft_weight", "si_sdr_weight"} | variety
    assert changed == schedule | {f"task.{name}" for name in task}
    assert load("base_small").task.width == 4


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name):
    kind = "context" if name == "pedal_context" else name.partition("_")[0]
    if kind == "enhancer":
        kind = "restore" if "stage2" in name else "enhance"
    assert load(name).task.name == {"base": "denoise"}.get(kind, kind)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("max_lr=1e-3", "max_lr", 1e-3),
        ("max_lr=.5", "max_lr", 0.5),
        ("min_lr=1E-6", "min_lr", 1e-6),
        ("mix_alpha_range=[0.3,0.6]", "mix_alpha_range", (0.3, 0.6)),
        ("gradient_clipping=2", "gradient_clipping", 2.0),
        ("nj=010", "nj", 10),
        ("max_steps=2_000", "max_steps", 2000),
        ("load_fg_only=true", "load_fg_only", True),
        ("pair_dir=data/pairs", "pair_dir", Path("data/pairs")),
        ("pair_dir=null", "pair_dir", None),
        ("fg_dir='12'", "fg_dir", Path("12")),
        ("fg_dir=a=b", "fg_dir", Path("a=b")),
        ("fg_dir=s3://bucket/fg", "fg_dir", "s3://bucket/fg"),
        ("rir_dir=http://host:80/rir/?x=1#y", "rir_dir", "http://host:80/rir/?x=1#y"),
        ("pair_dir=hf://datasets/me/pairs@main", "pair_dir", "hf://datasets/me/pairs@main"),
        ("bg_dir=C://bg", "bg_dir", Path("C:/bg")),
        ("bg_dir=s3:/bucket", "bg_dir", Path("s3:/bucket")),
    ],
)
def test_set_reads_values_as_a_person_means_them(override, key, value):
    found = getattr(load("base", [override]), key)
    assert (found, type(found)) == (value, type(value))


def test_set_reaches_the_task_by_dots_and_by_a_mapping_and_the_last_wins():
    hp = load("base", ["task.width=8", "task={rir_prob: 0.25, width: 2}", "task.width=3"])
    assert (hp.task.width, hp.task.rir_prob) == (3, 0.25)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch_size=3", ["--set", "batch_size", "did you mean batch_size_per_gpu", "integer > 0"]),
        ("width=3", ["task.width", ">= 1 and <= 256"]),
        ("task.widht=3", ["task.width"]),
        ("zzz=3", ["no key zzz", "docs/hparams.md"]),
        ("load_fg_only=yes", ["load_fg_only is yes", "true or false"]),
        ("nj=16.0", ["nj is 16.0", "integer >= 0"]),
        ("nj='16'", ["nj is text '16'"]),
        ("nj=true", ["nj is true"]),
        ("zero_stage=true", ["zero_stage is true", "one of 0, 1, 2, 3"]),
        ("zero_stage=1.0", ["zero_stage is 1.0"]),
        ("task.rir_prob=true", ["task.rir_prob is true"]),
        ("fg_dir=12", ["fg_dir is 12", "path", "data/fg"]),
        ("fg_dir=", ["fg_dir is null", "path"]),
        ("fg_dir.x=1", ["no key fg_dir.x"]),
        ("max_lr=-1", ["max_lr is -1", "number > 0", "0.0001"]),
        ("max_lr=.inf", ["max_lr is .inf"]),
        ("praat_augment_prob=1.5", ["praat_augment_prob is 1.5", ">= 0 and <= 1"]),
        ("mix_alpha_range=[0.5]", ["mix_alpha_range is [0.5]", "list of 2"]),
        ("mix_alpha_range=0.5", ["mix_alpha_range is 0.5", "list of 2"]),
        ("precision=fp8", ["precision is fp8", "fp32, bf16"]),
        ("task=5", ["task is 5", "mapping", "width"]),
        ("task.name=vocode", ["task.name is vocode", "denoise"]),
        ("task.name=[pedal]", ["task.name is ['pedal']", "denoise, pedal, context"]),
        ("task.name=null", ["task.name is null", "denoise, pedal, context"]),
        ("seed=99999999999999999999", ["seed"]),
        ("win_size=4096", ["--set: win_size 4096 is above n_fft"]),
        ("nj", ["needed key=value"]),
        ("=3", ["needed key=value"]),
        ("nj=[1", ["--set nj=[1", "not valid YAML"]),
        ("nj=*x", ["aliases"]),
        ("nj=!!python/name:os.system ''", ["tag"]),
        ("extends=base", ["--hparams"]),
        ('fg_dir="a\\0b"', ["control character"]),
    ],
)
def test_a_wrong_set_is_named_with_what_is_allowed(override, words):
    with pytest.raises(UserError) as caught:
        load("base", [override])
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert "--set" in text and "pydantic" not in text


def test_everything_wrong_is_said_at_once_with_file_and_line(tmp_path):
    path = write(tmp_path, "mine.yaml", "extends: base\nmax_lrr: 1e-3\ntask:\n  width: 0\n\nnj: many\n")
    with pytest.raises(UserError) as caught:
        load(path, ["seed=-1"])
    text = str(caught.value)
    assert f"{path}:2: there is no key max_lrr; did you mean max_lr?" in text
    assert f"{path}:4: task.width is 0" in text
    assert f"{path}:6: nj is many" in text
    assert "--set: seed is -1" in text


def test_a_rule_across_fields_names_the_lines_of_its_keys(tmp_path):
    path = write(tmp_path, "mine.yaml", "n_fft: 512\n\nwin_size: 1024\n")
    with pytest.raises(UserError, match=r"mine.yaml:3, .*mine.yaml:1: win_size 1024 is above n_fft 512"):
        load(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nj: 1\nseed: 2\nnj: 3\n", ["mine.yaml:3: key nj is given twice", "mine.yaml:1"]),
        ("task: {width: 1}\ntask.width: 2\n", ["mine.yaml:2: key task.width is given twice"]),
        ("- 1\n", ["mine.yaml:1", "mapping"]),
        ("nj: [1\n", ["mine.yaml:2", "not valid YAML"]),
        ("? [a]\n: 1\n", ["a key must be a plain word"]),
        ("task:\n", ["mine.yaml:1: task is null", "mapping"]),
        ("a: &x 1\nb: *x\n", ["mine.yaml:1", "aliases"]),
        ("extends: [base]\n", ["mine.yaml:1: extends must be"]),
        ("extends: bsae\n", ["mine.yaml:1: extends: no preset is called 'bsae'", "did you mean base"]),
        ("extends: ./other.yaml\n", ["mine.yaml:1", "other.yaml: no such file"]),
        (
            "nj: 1\nextends: RNN3.json\n",
            ["mine.yaml:2: extends: ", "of Automated-GuitarAmpModelling", "--print-config"],
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, text, words):
    write(tmp_path, "RNN3.json", '{"hidden_size": 20}')
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, "mine.yaml", text))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_extends_is_followed_through_files_relative_to_each(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, "first.yaml", "extends: base_small\nseed: 1\nnj: 1\n")
    write(tmp_path / "deep", "second.yaml", "extends: ../first.yaml\nnj: 7\n")
    hp = load(tmp_path / "deep" / "second.yaml")
    assert (hp.task.width, hp.seed, hp.nj) == (4, 1, 7)


def test_a_circle_of_extends_is_refused(tmp_path):
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: ./a.yaml\n")
    with pytest.raises(UserError, match="leads back to"):
        load(tmp_path / "a.yaml")


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load(write(tmp_path, "empty.yaml", "# nothing\n")) == HParams()


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"fg_dir: data/caf\xe9\n")
    with pytest.raises(UserError, match="byte 16 is not UTF-8"):
        load(path)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("bass", "did you mean base"),
        ("nowhere/base.yaml", "the preset of that name is --hparams base"),
        ("", "no preset"),
    ],
)
def test_an_unknown_preset_lists_the_presets(name, word):
    with pytest.raises(UserError, match=word) as caught:
        load(name)
    assert "base, base_small" in str(caught.value)


@pytest.mark.parametrize("given_name", ["base", "base.yaml", "some/folder/base.yaml", Path("x/base.yml")])
def test_the_preset_name_of_a_path_is_its_stem(given_name):
    assert preset_name(given_name) == "base"


def test_difference_names_the_key_and_both_values():
    new = load("base", ["task.width=4", "fg_dir=other"])
    assert difference(HParams(), new) == [("fg_dir", "data/fg", "other"), ("task.width", 16, 4)]
    assert difference(new, new) == []


usable_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
paths = usable_text.map(Path)
urls = usable_text.map(lambda text: f"s3://{text}")
shares = st.floats(0, 1)
bounds = st.tuples(st.floats(-120, 120), st.floats(-120, 120)).map(lambda pair: tuple(sorted(pair)))


@st.composite
def hparams(draw) -> HParams:
    task = DenoiseHParams(
        width=draw(st.integers(1, 256)), rir_prob=draw(shares), level_range_db=draw(bounds),
        l1_weight=draw(st.floats(0, 1e9)), stft_weight=draw(st.floats(1e-9, 1e9)),
    )  # fmt: skip
    low, high = sorted(draw(st.tuples(*[st.floats(0, 1, exclude_min=True, exclude_max=True)] * 2)))
    min_lr, max_lr = sorted(draw(st.tuples(*[st.floats(1e-300, 1e300)] * 2)))
    return dataclasses.replace(
        HParams(), task=task, fg_dir=draw(paths), pair_dir=draw(st.none() | paths | urls), min_lr=min_lr, max_lr=max_lr,
        mix_alpha_range=(low, high), load_fg_only=draw(st.booleans()), seed=draw(st.integers(0, 2**63 - 1)),
        precision=draw(st.sampled_from(["fp32", "bf16"])), zero_stage=draw(st.sampled_from([0, 1, 2, 3])),
    )  # fmt: skip


@given(hparams())
@settings(deadline=None, max_examples=150)
def test_what_is_dumped_loads_as_the_same(hp):
    assert loads(dump(hp)) == hp


@pytest.mark.parametrize(
    "text", ["yes", "1e-3", "010", "null", "~", "1:30", "-", "a: b", "# x", " x ", ".inf"]
)
def test_paths_that_look_like_other_values_survive(text):
    hp = dataclasses.replace(HParams(), fg_dir=Path(text))
    assert loads(dump(hp)) == hp
    assert yaml.safe_load(dump(hp))["task"]["width"] == 16


fragments = st.sampled_from(
    [*rows("denoise"), *rows("pedal"), *rows("context"),
     ":", ": ", "\n", "  ", "- ", "[", "]", "{", "}", "&a ", "*a", "!!", "!x ", "'", '"', "\\", "#", "%",
     "1e-3", "yes", "null", ".nan", "9" * 5000, "|", ">", "?", "---", "...", "<<: ", "\t", "\x00", "\ufeff", "\u2028",
     "extends", "@", "`", "[" * 3000, '"\\uD800"', '"\\U00110000"', "0x1F", "=", "task:\n  width: ", "1" * 400]
)  # fmt: skip


@given(st.lists(fragments | st.text(max_size=4), max_size=12).map("".join))
@settings(deadline=None, max_examples=400)
def test_any_text_gives_sound_hparams_or_a_user_error(text):
    for attempt in (
        lambda: loads(text),
        lambda: load("base", [text]),
        lambda: load("base", [f"seed={text}"]),
    ):
        try:
            hp = attempt()
        except UserError:
            continue
        floats = [value for value in dataclasses.astuple(hp) if isinstance(value, float)]
        assert all(math.isfinite(value) for value in floats)
        assert loads(dump(hp)) == hp
