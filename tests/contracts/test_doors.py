"""Each package has one door: ``__all__`` in its ``__init__.py``."""

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY

ROOT = REPOSITORY / "tl_pipeline"
FILES = [*ROOT.rglob("*.py"), *(REPOSITORY / "flows").rglob("*.py")]
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in FILES
}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def door(package: str) -> set[str]:
    """The names in ``__all__`` of ``package``, read without importing it."""
    for node in ast.parse(MODULES[package].read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name("__all__")], value=ast.List(elts)):
                return {ast.literal_eval(element) for element in elts}
    return set()


def steps(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Each (package, name inside it) that ``module`` reaches for from outside."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module not in MODULES:
            continue
        for alias in node.names:
            parts = [*node.module.split("."), alias.name]
            for end in range(2, len(parts)):
                package = ".".join(parts[:end])
                inside = module == package or module.startswith(f"{package}.")
                if package in PACKAGES and not inside:
                    yield package, parts[end]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_others_use_is_named_in_the_door(module: str):
    tree = ast.parse(MODULES[module].read_text())
    found = {step for step in steps(module, tree) if step[0] != "flows"}
    assert {step for step in found if step[1] not in door(step[0])} == set()


@pytest.mark.parametrize("package", sorted(PACKAGES - {"tl_pipeline", "flows"}))
def test_a_door_names_what_exists_and_says_what_it_is_for(package: str):
    tree = ast.parse(MODULES[package].read_text())
    defined = {
        name
        for node in tree.body
        for name in (
            [alias.asname or alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else [node.name]
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else [target.id for target in node.targets if isinstance(target, ast.Name)]
            if isinstance(node, ast.Assign)
            else [node.target.id]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            else []
        )
    }
    submodules = {
        name.removeprefix(f"{package}.")
        for name in MODULES
        if name.startswith(f"{package}.")
    }
    assert door(package) - defined - submodules == set()
    assert len((ast.get_docstring(tree) or "").splitlines()) >= 3


def test_a_step_past_a_door_is_seen():
    tree = ast.parse("from tl_pipeline.evaluation.calibration import x")
    assert list(steps("tl_pipeline.heads.fitted", tree)) == [
        ("tl_pipeline.evaluation", "calibration"),
        # no package of that name: nothing further to look at
    ]
    assert list(steps("tl_pipeline.evaluation.metrics", tree)) == []


def test_the_root_holds_packages_and_at_most_five_files():
    assert len(list(ROOT.glob("*.py"))) <= 5
    assert len([p for p in ROOT.iterdir() if (p / "__init__.py").exists()]) <= 20
