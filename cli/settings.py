"""Where the portal is and who asks: the environment before the file that `baton login` wrote.

`BATON_URL`, `BATON_TOKEN`, `BATON_PROJECT`, `BATON_ENVIRONMENT`; the file is `$XDG_CONFIG_HOME/baton/login.json` (default `~/.config`),
readable by its owner only.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    url: str = ""
    token: str = ""
    project: str = ""
    environment: str = ""


def file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "baton" / "login.json"


def stored() -> Settings:
    """What the file says; nothing when there is none or it cannot be read."""
    try:
        said = json.loads(file().read_text())
        return Settings(**{name: str(said.get(name, "")) for name in asdict(Settings())})
    except (OSError, ValueError, AttributeError):
        return Settings()


def read() -> Settings:
    """What holds now. A token goes only where it was given for: with another BATON_URL the stored one stays at home."""
    kept = stored()
    given = {name: os.environ.get(f"BATON_{name.upper()}", "") for name in asdict(kept)}
    if given["url"] and given["url"].rstrip("/") != kept.url and not given["token"]:
        kept = replace(kept, token="")
    return replace(kept, **{name: value for name, value in given.items() if value})


def save(settings: Settings) -> Path:
    """Written whole, by rename. Raises OSError."""
    path = file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as stream:
        json.dump(asdict(settings), stream)
    draft.replace(path)
    return path
