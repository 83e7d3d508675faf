"""Secrets at rest. The first property key seals, all of them open: keys rotate while the portal runs (manage.py rotate_property_keys).

The keys come from the variable BATON_PROPERTY_KEYS (several, comma-separated) or, without it, from the file `property-keys` in BATON_HOME,
one per line, mode 0600, made at the first need. Who has the database without the keys can read no secret.
"""

import base64
import json
import os
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import models

from portal.errors import Invalid, NotAllowed

_opened: tuple[object, list[str]] | None = None  # what the keys were read from (variable, or the file's state), and the keys


class Unreadable(NotAllowed):
    """None of the property keys opens it."""

    code = "unreadable-secret"


class SealedText(models.TextField):  # type: ignore[type-arg]
    """Holds a token of `seal`, never a readable text; rotation finds every such field of every model."""


class SealedBytes(models.BinaryField):  # type: ignore[type-arg]
    """Bytes that are readable in Python and sealed in the database; rotation finds every such field of every model. What no key opens is
    read as empty: a row with lost bytes can still be listed, replaced and deleted, which is the remedy."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> bytes | None:
        try:
            return None if value is None else _open(bytes(value))
        except Unreadable:
            return b""

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        sealed = None if value is None else _cipher().encrypt(bytes(value))
        return super().get_db_prep_value(sealed, connection, prepared)


# --------------------------------------------------------------------------------------------------------------- sealing


def seal(text: str) -> str:
    return _cipher().encrypt(text.encode()).decode()


def unseal(token: str, *, named: str = "A secret") -> str:
    """Raises Unreadable, naming it, when it was sealed under a key that is no longer among the property keys."""
    return _open(token.encode(), named=named).decode()


def seal_for(purpose: str, text: str) -> str:
    """Sealed for one purpose, such as "the lines this person previewed": `unseal_for` opens it for that alone, and only for a time."""
    return seal(json.dumps([purpose, text]))


def unseal_for(purpose: str, token: str, *, seconds: int) -> str:
    """Raises Invalid for what was sealed for another purpose (every secret in the database is), or longer ago."""
    try:
        found = json.loads(_cipher().decrypt(token.encode(), ttl=seconds))
    except (InvalidToken, ValueError):
        found = None
    if not isinstance(found, list) or len(found) != 2 or found[0] != purpose:
        raise Invalid("What was shown before is no longer kept: enter it again.")
    return str(found[1])


def seal_bytes(data: bytes) -> bytes:
    return _cipher().encrypt(data)


def unseal_bytes(token: bytes) -> bytes:
    """Raises Unreadable, as `unseal`."""
    return _open(token)


def reseal(token: bytes) -> bytes | None:
    """The token under the first key; None when it is so already. Raises Unreadable."""
    try:
        Fernet(keys()[0]).decrypt(token)
    except InvalidToken:
        return _cipher().encrypt(_open(token))
    return None


def _open(token: bytes, *, named: str = "A secret") -> bytes:
    try:
        return _cipher().decrypt(token)
    except InvalidToken:
        raise Unreadable(
            f"{named} cannot be read: it was sealed under a key that is missing from BATON_PROPERTY_KEYS or the file property-keys. "
            "Put that key back (after the first one), or set the secret anew."
        ) from None


def _cipher() -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys()])


# ------------------------------------------------------------------------------------------------------------------ keys


def key_file() -> Path:
    return Path(settings.BATON_HOME) / "property-keys"


def keys() -> list[str]:
    """The property keys, the sealing one first; read anew when the file changes. Raises ImproperlyConfigured naming what is wrong."""
    global _opened
    given: str = settings.BATON_PROPERTY_KEYS
    state: object = given or _state_of(key_file())
    if _opened is None or _opened[0] != state:
        found = given.replace(",", " ").split() if given else key_file().read_text().split()
        _opened = (state, _checked(found, "BATON_PROPERTY_KEYS" if given else str(key_file())))
    return _opened[1]


def keep_keys(found: list[str]) -> None:
    """Write the file of keys in one stroke, readable for its owner only."""
    path = key_file()
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write("".join(f"{key}\n" for key in found))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def new_key() -> str:
    return Fernet.generate_key().decode()


def _state_of(path: Path) -> tuple[str, int, int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        _make(path)
        found = path.stat()
    if found.st_mode & 0o077:
        path.chmod(0o600)  # somebody copied it with a looser mode
        found = path.stat()
    return str(path), found.st_mtime_ns, found.st_size, found.st_ino


def _make(path: Path) -> None:
    """Of two processes that make it at the same moment, one wins and both use its key."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(new_key() + "\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _checked(found: list[str], source: str) -> list[str]:
    for number, key in enumerate(found, 1):
        try:
            sound = len(base64.urlsafe_b64decode(key)) == 32
        except ValueError:
            sound = False
        if not sound:
            raise ImproperlyConfigured(
                f"Key {number} in {source} is no Fernet key (32 bytes in URL-safe base64). Make one: manage.py rotate_property_keys --make."
            )
    if not found:
        raise ImproperlyConfigured(f"{source} holds no key: put the former one back, or no secret can be read.")
    return found
