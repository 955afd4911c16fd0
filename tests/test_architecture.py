"""Imports point one way, and no file names a machine.

The two tables below are the design: which package may import which, and in which order the stages of the core follow
each other. A new module of the core must be given its place here.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "probecore": ROOT / "shared" / "probecore",
    "codecprobe": ROOT / "codecprobe",
    "lmprobe": ROOT / "lmprobe",
    "probecli": ROOT / "cli" / "probecli",
}
MAY_IMPORT = {
    "probecore": set(),
    "codecprobe": {"probecore"},
    "lmprobe": {"probecore"},
    "probecli": {"probecore", "codecprobe", "lmprobe"},
}
# The core, in the order data flow; a module imports only from its own stage and from those before it.
STAGES = (
    ("errors", "seeds", "validation", "devices"),
    ("provenance", "results", "progress"),
    ("verdicts", "claims"),
    ("activations", "splits", "array_files", "store", "runs"),
    ("stats",),
    ("information", "geometry", "codebooks", "timescales", "collision_pairs", "collisions", "lens", "removal"),
    ("probes", "directions", "erasure", "contrastive"),
    ("ablation",),
    ("report",),
)
# A result shows and saves itself: these two load the report when they are called.
BACKWARDS = {("probecore.results", "probecore.report.text"), ("probecore.results", "probecore.report.html")}
# Where each backend comes to activations, and the analyses that start from them.
HINGES = {"codecprobe": ("tokenization", "representation"), "lmprobe": ("models", "capture", "generate")}
ANALYSES = {
    "codecprobe": {
        "speaker",
        "content",
        "prosody",
        "abx",
        "targets",
        "usage",
        "dynamics",
        "layer_ablation",
        "talker",
        "claims",
    },
    "lmprobe": {
        "terrain",
        "potential",
        "refusal",
        "k_sweep",
        "abliteration",
        "layer_ablation",
        "lens",
        "claims",
        "grokking",
        "separability",
        "probe",
    },
}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    folder = SOURCES[package]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def known_modules() -> set[str]:
    return {name for package in SOURCES for name, _ in modules(package)}


def imports(source: str, module: str, known: set[str], *, everywhere: bool = True) -> set[str]:
    """Return what a module imports when it runs, also inside functions unless told otherwise."""
    found = set()
    for node in _running(ast.parse(source), everywhere):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])])
                if node.level
                else node.module
            )
            assert base is not None
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names}
    return found


def _running(tree: ast.AST, everywhere: bool) -> Iterator[ast.AST]:
    """Yield the nodes that run; what stands under `if TYPE_CHECKING` does not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _running(node, everywhere)


def package_violations(module: str, imported: set[str]) -> list[str]:
    package = module.split(".")[0]
    ours = {name.split(".")[0] for name in imported} & set(SOURCES)
    return [f"{module} imports {other}" for other in sorted(ours - MAY_IMPORT[package] - {package})]


def stage_of(module: str) -> int:
    stage = module.split(".")[1]
    return next(i for i, stages in enumerate(STAGES) if stage in stages)


def stage_violations(module: str, imported: set[str]) -> list[str]:
    ours = sorted(name for name in imported if name.startswith("probecore."))
    late = [name for name in ours if stage_of(name) > stage_of(module) and (module, name) not in BACKWARDS]
    return [f"{module} imports {name}" for name in late]


@pytest.mark.parametrize("package", SOURCES)
def test_packages_import_one_way(package: str) -> None:
    known = known_modules()
    found = [
        v for name, path in modules(package) for v in package_violations(name, imports(path.read_text(), name, known))
    ]
    assert found == []


def test_the_stages_of_the_core_follow_each_other() -> None:
    known = known_modules()
    core = [(name, path) for name, path in modules("probecore") if "." in name]
    placed = {stage for stages in STAGES for stage in stages}
    assert {name.split(".")[1] for name, _ in core} - placed == set(), "give the new module its place in STAGES"
    assert [v for name, path in core for v in stage_violations(name, imports(path.read_text(), name, known))] == []


@pytest.mark.parametrize("package", HINGES)
def test_what_makes_activations_knows_no_analysis(package: str) -> None:
    """Nothing that is loaded with a hinge is an analysis, however many imports lie between them."""
    known = known_modules()
    graph = {name: imports(path.read_text(), name, known, everywhere=False) for name, path in modules(package)}
    hinges = {f"{package}.{hinge}" for hinge in HINGES[package]}
    assert hinges <= set(graph)
    assert [name for name in reached(graph, hinges) if name.split(".")[1] in ANALYSES[package]] == []


def reached(graph: dict[str, set[str]], start: set[str]) -> list[str]:
    """Return what is imported from `start`, directly and through others."""
    found, new = set(start), set(start)
    while new:
        new = {other for name in new for other in graph[name] if other in graph and "." in other} - found
        found |= new
    return sorted(found)


def test_no_module_imports_itself_in_a_circle() -> None:
    known = known_modules()
    graph = {
        name: imports(path.read_text(), name, known, everywhere=False) & known - {name}
        for package in SOURCES
        for name, path in modules(package)
    }
    assert circle(graph) == []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return what is left when modules that import nothing left are taken away again and again."""
    left = dict(graph)
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)


def test_the_checks_see_what_they_must() -> None:
    """The self-test: a wrong import is seen at the top, inside a function, in a method and when relative."""
    known = {"probecore.stats", "probecore.stats.effects", "probecore.report.text", "probecore.seeds"}
    inside = "def f():\n    class A:\n        def g(self):\n            import codecprobe.audio\n"
    assert package_violations("probecore.seeds", imports(inside, "probecore.seeds", known)) == [
        "probecore.seeds imports codecprobe"
    ]
    assert package_violations("lmprobe.lens", {"codecprobe.audio", "torch"}) == ["lmprobe.lens imports codecprobe"]
    assert package_violations("probecli.codec", {"codecprobe.audio", "probecore.errors"}) == []
    relative = imports("from ..report import text", "probecore.stats.effects", known)
    assert relative == {"probecore.report.text"}
    assert stage_violations("probecore.stats.effects", relative) == [
        "probecore.stats.effects imports probecore.report.text"
    ]
    assert stage_violations("probecore.report.text", {"probecore.stats.effects"}) == []
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lmprobe\n"
    assert imports(guarded, "probecore.seeds", known) == {"typing"}
    assert imports("def f():\n    import lmprobe\n", "probecore.seeds", known, everywhere=False) == set()
    chain = {"p.capture": {"p.taps"}, "p.taps": {"p.terrain", "torch"}, "p.terrain": set(), "p.other": set()}
    assert reached(chain, {"p.capture"}) == ["p.capture", "p.taps", "p.terrain"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


# A file of ours must read the same anywhere: no path of one machine, no host that packages were fetched from.
PATHS = re.compile(r"(?<![\w.~-])/(?:home|root|Users|work|workspace|mnt|opt)/\w|\b[A-Z]:\\Users")
HOSTS = re.compile(
    r"(?:pypi|pythonhosted|anaconda)\.(?:org|com)|download\.pytorch\.org|(?:index|extra-index|find-links)[-_]url\s*[=:]|"
    r"artifactory|jfrog|://[^\s/]*nexus|://(?!127\.)\d+\.\d+\.\d+\.\d+",
    re.IGNORECASE,
)


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("what", [PATHS, HOSTS], ids=["machine path", "registry host"])
def test_no_tracked_file_names_a_machine(what: re.Pattern[str]) -> None:
    found = []
    for path in tracked_files():
        if path == Path(__file__):  # holds the examples of what is looked for
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}:{i}" for i, line in enumerate(lines, 1) if what.search(line)]
    assert found == []


@pytest.mark.parametrize("line", ["see /home/me/data", "open('/" + "root/x')", "at C:\\Users\\me", "PATH=/opt/thing"])
def test_a_machine_path_is_seen(line: str) -> None:
    assert PATHS.search(line)


@pytest.mark.parametrize("line", ["../shared/data/home/a", "a ratio of work/effort", "https://example.org/home/page"])
def test_other_slashes_are_no_machine_path(line: str) -> None:
    assert not PATHS.search(line)


@pytest.mark.parametrize(
    "line", ["--index-url=x", "https://" + "pypi" + ".org/simple", "http://10.0.0.1/x", "http://nexus.corp/x"]
)
def test_a_registry_host_is_seen(line: str) -> None:
    assert HOSTS.search(line)
