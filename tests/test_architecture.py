# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Imports run one way through the package, and no two files import each other."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "transformers_nim"
# Each wing may import those of the rows above its own, and itself.
FLOORS = [
    {"utils"},
    {"model"},
    {"attacks", "conversion"},
    {"data"},
    {"training", "robustness"},
    {"metrics"},
    {"hub"},
    {"commands"},
]
FLOOR_OF = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}


def imported_modules(path: Path, root: Path, package: str) -> set[str]:
    """Return modules below `root` that a file imports anywhere: at its top, in functions, under TYPE_CHECKING, by
    `import_module`.

    `package` is the absolute name of `root`; empty for a folder of scripts, which import each other by bare names.
    """
    here = path.relative_to(root).parts[:-1]
    targets: list[list[str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = node.module.split(".") if node.module else []
            if node.level:
                names = [*here[: len(here) - node.level + 1], *names]
            elif package and names[0] != package:
                continue
            elif package:
                names = names[1:]
            # `from .wing import module` and `from .module import name` look alike.
            for alias in node.names:
                targets.append([*names, alias.name] if _file_of([*names, alias.name], root) else names)
        else:
            split = [name.split(".") for name in _absolute_imports(node)]
            targets += [names[1:] if package else names for names in split if not package or names[0] == package]
    found = {file for file in (_file_of(names, root) for names in targets) if file}
    return found - {".".join(path.relative_to(root).with_suffix("").parts)}


def _absolute_imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if function in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def _file_of(names: list[str], root: Path) -> str | None:
    path = root.joinpath(*names)
    if names and path.with_suffix(".py").is_file():
        return ".".join(names)
    return ".".join([*names, "__init__"]) if (path / "__init__.py").is_file() else None


def graph_of(root: Path, package: str) -> dict[str, set[str]]:
    files = sorted(root.rglob("*.py"))
    return {".".join(f.relative_to(root).with_suffix("").parts): imported_modules(f, root, package) for f in files}


IMPORTS = graph_of(PACKAGE, "transformers_nim")


def test_every_wing_has_a_floor():
    wings = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert wings == FLOOR_OF.keys()
    assert {path.name for path in PACKAGE.glob("*.py")} <= {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_run_one_way(module):
    wing = module.split(".")[0]
    if wing not in FLOOR_OF:
        return
    for imported in IMPORTS[module]:
        other = imported.split(".")[0]
        # What the package itself imports must not import it: that is for the test of circles.
        if other == "__init__":
            continue
        assert other == wing or FLOOR_OF[other] < FLOOR_OF[wing], f"{module} imports {imported}, which lies above it"


def test_code_beside_checkpoints_stands_alone():
    """transformers copies the files of `model/` into one folder, so they import nothing but each other."""
    for module, imported in IMPORTS.items():
        if module.startswith("model."):
            assert all(other.startswith("model.") for other in imported), (module, imported)


@pytest.mark.parametrize(("root", "package"), [(PACKAGE, "transformers_nim"), (ROOT / "benchmarks", "")])
def test_no_circles(root, package):
    try:
        tuple(TopologicalSorter(graph_of(root, package)).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_reader_of_imports_sees_all_kinds(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("__init__.py", "a/__init__.py", "a/b.py", "a/c.py", "d.py", "e.py", "f.py", "g.py"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import x\n"
        "def f():\n    from .. import d, z\n    import package.e\n    from package.a import y\n"
        "    importlib.import_module('package.f').x\n    import_module('package.g')\n"
    )
    assert imported_modules(tmp_path / "a" / "c.py", tmp_path, "package") == {
        "a.b",
        "d",
        "e",
        "f",
        "g",
        "a.__init__",
        "__init__",
    }
