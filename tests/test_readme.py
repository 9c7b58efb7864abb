"""The README against the tree: its list of files is whole, and the files and targets it names exist."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("hparams", "enhancer", "data_shards", "launch", "bench")


def text() -> str:
    return (REPOSITORY / "README.md").read_text()


def test_the_tree_names_every_module_and_preset_and_no_other() -> None:
    (tree,) = re.findall(r"## Tree\n\n```\n(.*?)```", text(), flags=re.DOTALL)
    named = re.findall(r"^ +(\w+\.(?:py|yaml)) ", tree, flags=re.MULTILINE)
    there = [
        path.name
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.suffix in (".py", ".yaml") and path.name != "__init__.py" and "out" not in path.parts
    ]
    assert sorted(named) == sorted(there)


def test_every_file_that_a_command_or_link_names_is_there() -> None:
    commands = re.findall(r"\b((?:launch|bench)/\w+\.py)\b", text())
    links = re.findall(r"\]\(([\w./]+)\)", text())
    missing = [name for name in {*commands, *links} if not (REPOSITORY / name).exists()]
    assert commands and links and not missing


def test_every_make_target_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        name
        for pair in re.findall(r"^    make ([a-z-]+)|`make ([a-z-]+)`", text(), flags=re.MULTILINE)
        for name in pair
        if name
    }
    assert named and named <= targets, named - targets
