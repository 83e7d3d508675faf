"""A folder that a connector works in: there, usable, and still on the mount where it was found, also across the runtime's own end."""

import json
import os
from contextlib import suppress
from pathlib import Path

from runtimes.process.connectors.base import NotReady, Setting, make_folder
from runtimes.process.files import write_whole


class Place:
    """`what`: for people ("the folder to poll")."""

    def __init__(self, path: Path, what: str, setting: Setting) -> None:
        self.path, self.what, self._log = path, what, setting.log
        self._mount: Path | None = None  # None: not prepared yet
        self._note = setting.data / "mounts" / f"{setting.flow_id}.{setting.side}.json"  # where it was found last

    def prepare(self) -> None:
        """Make the folder where it is missing, and remember its mount. Raises NotReady."""
        if unmounted := self._not_yet_mounted():
            raise NotReady(unmounted)
        if make_folder(self.path, self.what):  # nobody but this log tells a mistyped folder from a new one
            self._log.warning(f"{self.what} {self.path} was not there and was made: is its name right?")
        self._mount = mount_of(self.path)
        self.check()
        self._write_down(self._mount)

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

    def _not_yet_mounted(self) -> str:
        """A machine that starts may start this runtime before it mounts its shares: what is below then is another folder."""
        try:
            known = json.loads(self._note.read_bytes())
            folder, mount = str(known["folder"]), str(known["mount"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        if folder != str(self.path) or os.path.ismount(mount):
            return ""
        with suppress(OSError), os.scandir(self.path):  # what is mounted on demand is so now
            pass
        if os.path.ismount(mount):
            return ""
        return (
            f"{self.what} {self.path} was on {mount}, which is not mounted: mount it; if the folder that is there now is the right one, "
            f"delete {self._note}"
        )

    def _write_down(self, mount: Path) -> None:
        words = json.dumps({"folder": str(self.path), "mount": str(mount)})
        try:
            if self._note.exists() and self._note.read_text() == words:
                return
            self._note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._note, words.encode())
        except OSError as error:  # a full disk: it works all the same
            self._log.warning(f"on which mount {self.path} is cannot be written down: {error.strerror}")


def mount_of(path: Path) -> Path:
    """The mount point that holds this folder."""
    real = path.resolve()
    return next((each for each in (real, *real.parents) if os.path.ismount(each)), Path("/"))
