"""The other `lmprobe`: a package of that name on PyPI that cannot share an environment with this one."""

from importlib.metadata import PackageNotFoundError, distribution

from probecore.errors import InputError


def refuse_namesake() -> None:
    """Raise `InputError` where a distribution called lmprobe is installed.

    Ours is the distribution codecprobe; both hold an import package lmprobe, pip lets one overwrite the other without
    a word, and what is then imported is a matter of chance.
    """
    try:
        found = distribution("lmprobe")
    except PackageNotFoundError:
        return
    raise InputError(
        f"the package lmprobe {found.version} of PyPI is installed and replaces the lmprobe of codecprobe: "
        "run 'pip uninstall lmprobe' and install codecprobe again, or give each an environment of its own"
    )
