"""Arrows between packages point one way, found by reading every import statement of the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("hparams", "enhancer", "data_shards", "launch")

# What each part may import of ours, beside itself.
ALLOWED = {
    "hparams": set(),
    "enhancer": set(),
    "enhancer.signal": set(),
    "enhancer.losses": {"enhancer.signal"},
    "enhancer.models": {"enhancer.signal"},
    "enhancer.metrics": {"enhancer.signal"},
    "enhancer.string_metrics": {"enhancer.signal"},
    "enhancer.repair_metrics": {"enhancer.signal"},
    "enhancer.restoration_metrics": {"enhancer.signal"},
    "enhancer.listening_scores": {"enhancer.signal"},
    "enhancer.charts": {"enhancer.signal"},
    "enhancer.engine": {"hparams"},
    "enhancer.tasks": {
        "enhancer.models",
        "enhancer.losses",
        "enhancer.charts",
        "enhancer.metrics",
        "enhancer.repair_metrics",
        "enhancer.listening_scores",
        "enhancer.restoration_metrics",
        "enhancer.signal",
        "enhancer.string_metrics",
        "hparams",
    },
    "enhancer.report": {
        "enhancer.charts",
        "enhancer.engine",
        "enhancer.metrics",
        "enhancer.string_metrics",
        "enhancer.tasks",
        "hparams",
    },
    # Of the engine the files of a checkpoint alone.
    "enhancer.bundle": {"enhancer.engine", "enhancer.frozen", "hparams"},
    "enhancer.frozen": {"enhancer.engine", "enhancer.tasks", "hparams"},
    "enhancer.inference": {
        "enhancer.engine",
        "enhancer.bundle",
        "enhancer.frozen",
        "enhancer.tasks",
        "enhancer.models",
        "enhancer.signal",
        "hparams",
    },
    "enhancer.realtime": set(),
    "enhancer.export": {"enhancer.models", "hparams"},
    "data_shards": {"enhancer.signal", "hparams"},
    "launch": {"enhancer.*", "data_shards", "hparams"},
}
HEAVY = ("deepspeed", "accelerate", "tensorboard", "matplotlib", "rich", "pyroomacoustics", "scipy", "soxr")


def part_of(module: str) -> str:
    """`enhancer.signal.stft` belongs to `enhancer.signal`, `data_shards.build` to `data_shards`."""
    names = module.split(".")
    return ".".join(names[:2]) if names[0] == "enhancer" and len(names) > 1 else names[0]


def source_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def module_of(path: Path) -> str:
    names = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports_of(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and module of every import, the lazy ones inside functions too. `from a import b` counts as `a.b`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def is_allowed(source: str, imported: str) -> bool:
    return (
        imported == source
        or imported in ALLOWED[source]
        or ("enhancer.*" in ALLOWED[source] and imported.startswith("enhancer."))
    )


@pytest.mark.parametrize("path", source_files(), ids=module_of)
def test_a_file_imports_only_what_its_part_may(path):
    source = part_of(module_of(path))
    assert source in ALLOWED, f"{path.relative_to(REPOSITORY)}: state in ALLOWED what {source} may import"
    for line, module in imports_of(ast.parse(path.read_text())):
        if module.split(".")[0] in PACKAGES:
            assert is_allowed(source, part_of(module)), (
                f"{path.relative_to(REPOSITORY)}:{line} imports {module}; {source} may import "
                f"{sorted(ALLOWED[source]) or 'nothing of ours'}"
            )


@pytest.mark.parametrize("path", source_files(), ids=module_of)
def test_torchaudio_is_imported_by_its_shim_only(path):
    if module_of(path) == "enhancer.signal.torchaudio":
        return
    direct = [
        line
        for line, module in imports_of(ast.parse(path.read_text()))
        if module.split(".")[0] == "torchaudio"
    ]
    assert not direct, f"{path.relative_to(REPOSITORY)}:{direct}: import it from enhancer.signal.torchaudio"


UNPICKLERS = {
    *(
        "torch.load",
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "np.load",
        "numpy.load",
        "joblib.load",
    ),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "torch.jit.load", "torch.package.PackageImporter"),
}


@pytest.mark.parametrize("path", source_files(), ids=module_of)
def test_nothing_is_unpickled_but_the_job_of_a_loader_worker(path):
    """The job comes from the parent process, through a file without a name."""
    names = [
        f"{ast.unparse(node)}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in UNPICKLERS)
        or (isinstance(node, ast.Attribute) and node.attr == "load_checkpoint")
    ]
    allowed = 1 if module_of(path) == "data_shards.loader_worker" else 0
    assert len(names) == allowed, names


def modules_under(package: str) -> list[str]:
    return [module_of(path) for path in source_files() if module_of(path).startswith(package)]


@pytest.mark.parametrize("package", ["enhancer.signal", "data_shards"])
def test_what_loader_workers_import_is_light_and_starts_no_accelerator(package):
    code = (
        f"import importlib, sys\nfor name in {modules_under(package)!r}: importlib.import_module(name)\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "torch = sys.modules.get('torch')\n"
        "print(heavy, bool(torch) and torch.cuda.is_initialized())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[] False"


def test_the_rules_are_not_a_circle():
    order: list[str] = []

    def visit(part: str, above: tuple[str, ...]) -> None:
        assert part not in above, " -> ".join((*above, part))
        for below in ALLOWED[part] - {"enhancer.*"}:
            visit(below, (*above, part))
        order.append(part)

    for part in ALLOWED:
        visit(part, ())
    assert order[0] == "hparams"
