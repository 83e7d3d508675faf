"""A folder that a connector works in: there, usable, and still on the mount where it was found."""

import os
from pathlib import Path
from typing import Any

from runtimes.process.connectors.base import NotReady, make_folder


class Place:
    """`what`: for people ("the folder to poll")."""

    def __init__(self, path: Path, what: str, log: Any) -> None:
        self.path, self.what, self._log = path, what, log
        self._mount: Path | None = None  # None: not prepared yet

    def prepare(self) -> None:
        """Make the folder where it is missing, and remember its mount. Raises NotReady."""
        if make_folder(self.path, self.what):  # nobody but this log tells a mistyped folder from a new one
            self._log.warning(f"{self.what} {self.path} was not there and was made: is its name right?")
        self._mount = mount_of(self.path)
        self.check()

    def check(self) -> None:
        """Changes nothing: a folder that is made anew where a share was mounted would swallow items. Raises NotReady."""
        if unmounted := self.unmounted():
            raise NotReady(unmounted)
        if not self.path.is_dir():
            raise NotReady(f"{self.what} {self.path} is gone: bring it back, or choose another in the properties")
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise NotReady(f"{self.what} {self.path} cannot be read and written by this user; change its permissions")

    def unmounted(self) -> str:
        """A sentence when its mount is gone: what is there now is another folder of the same name. Costs two stat calls."""
        if self._mount is None or os.path.ismount(self._mount):
            return ""
        return f"{self.what} {self.path} was on {self._mount}, which is not mounted any more: mount it again"


def mount_of(path: Path) -> Path:
    """The mount point that holds this folder."""
    real = path.resolve()
    return next((each for each in (real, *real.parents) if os.path.ismount(each)), Path("/"))
