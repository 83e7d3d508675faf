"""Settings from the environment: typed, and loud when wrong."""

import os
import secrets
import tempfile
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


def text(name: str, default: str | None = None) -> str:
    """The variable, or `default`; raises ImproperlyConfigured naming the variable when neither is there."""
    value = os.environ.get(name, default)
    if value is None:
        raise ImproperlyConfigured(f"Set the environment variable {name}.")
    return value


def flag(name: str, default: bool = False) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value in ("", None):
        return default
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    raise ImproperlyConfigured(f"{name} is {value!r}: say 1 or 0.")


def number(name: str, default: int) -> int:
    value = os.environ.get(name)
    if value is None or value == "":
        return default
    try:
        return int(value)
    except ValueError:
        raise ImproperlyConfigured(f"{name} is {value!r}: say a whole number.") from None


def words(name: str, default: list[str]) -> list[str]:
    """A comma-separated list."""
    value = os.environ.get(name)
    return default if value is None else [word.strip() for word in value.split(",") if word.strip()]


def folder(name: str, default: Path) -> Path:
    """The variable (or `default` when it is missing or empty) as an absolute path of a folder that is there and can be written to.

    It is made for its owner only when it is new. Raises ImproperlyConfigured naming the variable and what is wrong.
    """
    value = os.environ.get(name) or str(default)
    try:
        path = Path(os.path.abspath(Path(value).expanduser()))  # noqa: PTH100 - links stay as the person wrote them
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImproperlyConfigured(f"{name} is {value!r}, a folder that cannot be written to ({reason}). Name another one.") from None


def secret(name: str, kept_in: Path) -> str:
    """The variable, or a random value made once and kept in a file that only its owner reads."""
    if value := os.environ.get(name):
        return value
    if not kept_in.exists():
        kept_in.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(kept_in, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(50))
        except FileExistsError:
            pass
    return kept_in.read_text()
