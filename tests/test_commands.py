"""What holds for every command: help that is quick, errors a user can act on, and no doubt which lmprobe this is."""

import importlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from probecli.group import ProbeGroup
from probecli.namesake import refuse_namesake
from probecore import DesignError, InputError, MissingExtraError

ROOT = Path(__file__).parents[1]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
HEAVY = ("numpy", "torch", "transformers", "sklearn", "scipy", "altair", "datasets", "librosa", "rich")


# The recipe behind the packaged weights runs on the CPU, where it gives the same bytes again.
WITHOUT = {("organism", "train"): {"--device"}}


def main_of(script: str) -> click.Group:
    module, name = SCRIPTS[script].split(":")
    return getattr(importlib.import_module(module), name)


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            yield from commands(sub, (*path, name))


def shell(code: str, *, extra_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    folders = [ROOT, ROOT / "shared", ROOT / "cli", *([extra_path] if extra_path else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_help_exits_0_and_says_what_the_command_does(script: str) -> None:
    for path, command in commands(main_of(script)):
        done = CliRunner().invoke(main_of(script), [*path, "--help"])
        assert done.exit_code == 0, path
        assert command.help, f"{' '.join((script, *path))} has no help text"
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, f"{path}: {option.name} has no help text"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_has_the_common_options(script: str) -> None:
    for path, command in commands(main_of(script)):
        if not isinstance(command, click.Group):
            options = {name for option in command.params for name in option.opts}
            common = {"--seed", "--device", "--out", "--json", "--quiet"}
            assert common - WITHOUT.get(path, set()) <= options, path


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_heavy(script: str) -> None:
    module, name = SCRIPTS[script].split(":")
    everything = [[*path, "--help"] for path, _ in commands(main_of(script))]
    code = (
        f"import sys\nfrom {module} import {name} as main\n"
        f"for args in {everything!r}:\n    main(args, standalone_mode=False)\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = shell(code)
    assert done.stdout.splitlines()[-1:] == ["HEAVY []"], done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_option_is_exit_status_2(script: str) -> None:
    assert CliRunner().invoke(main_of(script), ["--no-such-option"]).exit_code == 2


def group_that_raises(error: BaseException) -> click.Group:
    @click.group(cls=ProbeGroup)
    def main() -> None:
        """Stand in for a group."""

    @main.group(cls=ProbeGroup)
    def sub() -> None:
        """Stand in for a group inside a group."""

    @click.command("fail")
    def fail() -> None:
        """Raise."""
        raise error

    main.add_command(fail)
    sub.add_command(fail)
    return main


@pytest.mark.parametrize(
    "error", [InputError("the rule;\n  got 3: do this"), DesignError("x"), MissingExtraError("f", "qwen")]
)
@pytest.mark.parametrize("path", [["fail"], ["sub", "fail"]])
def test_an_error_of_ours_is_one_line_and_exit_status_1(error: Exception, path: list[str]) -> None:
    done = CliRunner().invoke(group_that_raises(error), path)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr == f"Error: {' '.join(str(error).split())}\n"


def test_any_other_error_keeps_its_traceback() -> None:
    done = CliRunner().invoke(group_that_raises(RuntimeError("ours to mend")), ["fail"])
    assert isinstance(done.exception, RuntimeError)
    with pytest.raises(RuntimeError, match="ours to mend"):
        CliRunner().invoke(group_that_raises(RuntimeError("ours to mend")), ["fail"], catch_exceptions=False)


@pytest.fixture
def namesake(tmp_path: Path) -> Path:
    """Return a folder in which a distribution called lmprobe is installed, as pip records it."""
    record = tmp_path / "lmprobe-9.9.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: lmprobe\nVersion: 9.9\n")
    return tmp_path


def test_the_other_lmprobe_is_refused(namesake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_namesake()
    monkeypatch.syspath_prepend(namesake)
    with pytest.raises(InputError, match=r"lmprobe 9\.9 .* 'pip uninstall lmprobe'"):
        refuse_namesake()


def test_the_lmprobe_command_names_its_namesake(namesake: Path) -> None:
    """Every command of lmprobe refuses in one line, before anything heavy is loaded."""
    module, name = SCRIPTS["lmprobe"].split(":")
    code = f"from {module} import {name} as main; main(['terrain'])"
    done = shell(code, extra_path=namesake)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: the package lmprobe 9.9") and done.stderr.count("\n") == 1
