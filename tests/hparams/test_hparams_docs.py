"""The generated page and schema are up to date, and the schema says what the loader says."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from hparams import docs
from hparams.load import PRESETS_DIR, dump, preset_names
from hparams.schema import HParams

SCHEMA = json.loads((PRESETS_DIR / "schema.json").read_text("utf-8"))


def test_the_generated_files_are_not_stale(capsys):
    assert docs.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_file_is_named_and_written_again(tmp_path, monkeypatch, capsys):
    (tmp_path / "hparams").mkdir()
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.main(["--check"]) == 1
    assert "docs/hparams.md is stale" in capsys.readouterr().err
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0


def test_the_schema_is_a_valid_json_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", preset_names())
def test_presets_name_the_schema_and_fit_it(name):
    text = (PRESETS_DIR / f"{name}.yaml").read_text("utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    values = yaml.safe_load(text)
    # PyYAML reads 1e-3 as text, which an editor's YAML 1.2 does not.
    values = {key: float(value) if key.endswith("_lr") else value for key, value in values.items()}
    jsonschema.validate(values, SCHEMA)


@pytest.mark.parametrize("hp", [HParams(), HParams(fg_dir="s3://bucket/fg", pair_dir="https://host/pairs")])
def test_resolved_values_fit_the_schema(hp):
    jsonschema.validate(yaml.safe_load(dump(hp)), SCHEMA)


@pytest.mark.parametrize(
    "values",
    [{"max_lrr": 1}, {"nj": -1}, {"task": {"width": 0}}, {"task": {"x": 1}}, {"mix_alpha_range": [0.1]}],
)
def test_the_schema_refuses_what_the_loader_refuses(values):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


def test_the_page_has_every_field_with_a_meaning():
    page = Path(docs.ROOT / "docs" / "hparams.md").read_text("utf-8")
    table = [line for line in page.splitlines() if line.startswith("| `")]
    keys = [line.split("`")[1] for line in table]
    fields = [key for key in yaml.safe_load(dump(HParams())) if key != "task"]
    assert [key for key in keys if "." not in key] == fields
    assert [line for line in table if line.split("|")[4].strip() == "" and "task.name" not in line] == []
