"""The agent's folder: what it remembers between starts. Everything is mode 0600 in folders of mode 0700.

agent.lock             held by the running agent: one agent per home
identity.json          credential and names, from joining
joining.json           the secret of a join under way
orders.json            the last orders: what to bring back after a reboot, with or without the portal
requests.json          wishes for groups already handled
spool.json             events and outcomes the portal has not stored yet
commands.toml          what a deployment may run here: the administrator's own list
commands.json          commands already begun
bundles/<digest>.json  verified bundles
runtimes/<key>/        one folder per runtime: keeper, config, permit page, log, data/
tls/                   machine.pem (private key and certificate), authority.pem, revoked.crl: for router and runtimes
router/                keeper, log, member.json and data/ of the etcd member
"""

import re
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import msgspec
import structlog

from runtimes.agent import linux
from runtimes.protocol import TlsFiles, Wire, decode, digest_of, encode

log = structlog.get_logger()
T = TypeVar("T")
DIGEST = re.compile(r"[0-9a-f]{64}")


class Identity(Wire, frozen=True):
    """Who this machine is to the portal."""

    credential: str
    machine: str
    environment: str
    project: str
    portal: str  # URL as given at the last start
    token_digest: str  # of the token it joined with, so that a new one joins anew


class Joining(Wire, frozen=True):
    """How the portal knows again an agent that is joining, when its answer got lost."""

    token_digest: str
    attempt: str


class TamperedBundle(Exception):  # noqa: N818 - said by name
    """A bundle whose bytes are not what its digest says."""


class Home:
    """Paths, and reading and writing them whole."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        for folder in (self.root, self.root / "bundles", self.root / "runtimes", self.root / "router", self.root / "tls"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @classmethod
    def existing(cls, root: Path) -> "Home":
        """An agent's home as it is: nothing is made, so that a look by another user leaves nothing of his behind."""
        home = cls.__new__(cls)
        home.root = root.resolve()
        return home

    @property
    def router(self) -> Path:
        return self.root / "router"

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(authority=str(self.root / "tls" / "authority.pem"), machine=str(self.root / "tls" / "machine.pem"))

    @property
    def revoked(self) -> Path:
        """The list of revoked certificates (DER); etcd reads it at every handshake."""
        return self.root / "tls" / "revoked.crl"

    def runtime(self, key: str) -> Path:
        """The folder of one runtime; made when missing."""
        folder = self.runtime_folder(key)
        (folder / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def runtime_folder(self, key: str) -> Path:
        """Where the folder of one runtime is, or would be."""
        name = quote(key, safe="")
        return self.root / "runtimes" / ("%2E" + name[1:] if name.startswith(".") else name)

    def running_keys(self) -> list[str]:
        """Runtimes whose keeper lives, ordered or not."""
        return [unquote(lock.parent.name) for lock in (self.root / "runtimes").glob("*/keeper.lock") if linux.is_locked(lock)]

    def read(self, name: str, kind: type[T]) -> T | None:
        """A remembered message; None when there is none, or when it was written by a version whose shape is no longer understood."""
        try:
            return decode(kind, (self.root / name).read_bytes())
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def write(self, name: str, message: object) -> None:
        """Raises: OSError, of a full disk."""
        linux.write_atomically(self.root / name, encode(message))

    def remember(self, name: str, message: object) -> bool:
        """Write what an agent that starts anew should know; when it cannot be written: False, and a line in the log."""
        try:
            self.write(name, message)
        except OSError as error:
            log.error("not_written_down", text=f"{name} cannot be written down ({error}); an agent that starts now knows less.")
            return False
        return True

    def bundle_path(self, digest: str) -> Path:
        """Raises: TamperedBundle when the digest is no SHA-256 in hexadecimal (it becomes a file name)."""
        if not DIGEST.fullmatch(digest):
            raise TamperedBundle(f"{digest[:80]!r} is not a SHA-256 digest")
        return self.root / "bundles" / f"{digest}.json"

    def bundle(self, digest: str) -> bytes | None:
        """A verified bundle; None when it is not here or no longer what its digest says (then it is removed)."""
        path = self.bundle_path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if digest_of(data) != digest:
            path.unlink(missing_ok=True)
            return None
        return data

    def keep_bundle(self, digest: str, data: bytes) -> None:
        """Lay down a bundle. Raises: TamperedBundle naming what was expected and what came."""
        path, got = self.bundle_path(digest), digest_of(data)
        if got != digest:
            raise TamperedBundle(f"the bundle does not verify: expected SHA-256 {digest}, got {got}; deploy the release again")
        linux.write_atomically(path, data)

    def forget_bundles_except(self, digests: set[str]) -> None:
        for path in (self.root / "bundles").glob("*.json"):
            if path.stem not in digests:
                path.unlink(missing_ok=True)
