"""`python -m runtimes.process <config.json>`: one runtime.

Exit status 0: stopped as asked; 1: its keeper went; 2: cannot be run as configured; 70: a defect.
"""

import asyncio
import os
import sys
from pathlib import Path

from runtimes.process import journal
from runtimes.process.config import load
from runtimes.process.connectors.base import ConfigError
from runtimes.process.control import Control
from runtimes.process.loop import Runtime
from runtimes.protocol import CANNOT_RUN, ProcessNews


async def run(path: Path) -> int:
    control = await Control.inherited()
    log = journal.logger()
    try:
        loaded = load(path)
        log = journal.logger(runtime=loaded.config.key)
        runtime = Runtime(loaded, control, log)
    except ConfigError as error:
        log.error(str(error))
        if control is not None:
            control.send(ProcessNews(ready=False, reason=str(error)))
            await control.close()
        return CANNOT_RUN
    log.info(f"started: release {loaded.config.release}, launch {loaded.config.launch}")
    try:
        return await runtime.run()
    except Exception:
        log.exception("this runtime ends by a defect; its permits are void")
        return 70


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m runtimes.process <config.json>", file=sys.stderr)
        return 2
    journal.configure()
    sys.setswitchinterval(0.001)  # seconds: a busy worker gives the interpreter to the election sooner
    status = asyncio.run(run(Path(sys.argv[1])))
    journal.drain()
    return status


if __name__ == "__main__":
    # Workers may stand in a system call that nothing can cut; their permits are void and nothing of theirs is waited for.
    status = main()
    sys.stdout.flush()
    os._exit(status)
