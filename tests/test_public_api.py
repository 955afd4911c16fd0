"""The front doors: every name they offer loads and is documented, and opening them costs nothing."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"probecore": ROOT / "shared", "codecprobe": ROOT, "lmprobe": ROOT}
HEAVY = ("numpy", "torch", "transformers", "sklearn", "scipy", "altair", "rich", "datasets", "librosa")


def stub(package: str) -> ast.Module:
    return ast.parse((PACKAGES[package] / package / "__init__.pyi").read_text())


def names_of(package: str) -> list[str]:
    for node in stub(package).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{package}/__init__.pyi has no __all__")


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_load_and_say_what_they_are(package: str) -> None:
    module = importlib.import_module(package)
    assert list(module.__all__) == names_of(package)
    silent = [name for name in names_of(package) if callable(o := getattr(module, name)) and not inspect.getdoc(o)]
    assert silent == []


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_is_what_the_stub_imports(package: str) -> None:
    names = names_of(package)
    assert names == sorted(set(names))
    imported = [a.asname or a.name for n in ast.walk(stub(package)) if isinstance(n, ast.ImportFrom) for a in n.names]
    assert sorted(imported) == names


@pytest.mark.parametrize("package", [*PACKAGES, "probecli"])
def test_opening_a_package_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print([name for name in {HEAVY!r} if name in sys.modules])"
    path = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'shared'), str(ROOT / 'cli')]!r}; "
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    module = importlib.import_module("probecore")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
