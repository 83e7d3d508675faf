"""Files that are there whole, or as they were before: also after a power cut."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in place of the former one, synced. Raises OSError: the former one is left as it was."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def sync_folder(folder: bytes) -> None:
    """What was renamed there stays there. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
