"""Outbound `log`: writes id, name and size of each item to the runtime's log."""

import os

from runtimes.process.connectors.base import Item, Outbound, Setting, outbound
from runtimes.process.permits import Duty
from runtimes.protocol import ComponentKind


@outbound(ComponentKind.LOG)
class LogOutbound(Outbound):
    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def prepare(self) -> None:
        pass

    def begin(self, duty: Duty) -> None:
        pass

    def deliver(self, item: Item, duty: Duty) -> None:
        size = 0
        with item.open() as chunks:
            for chunk in chunks:
                size += len(chunk)
        duty.check()
        # Undecodable bytes as \udcXX, which the JSON writer escapes.
        self._setting.log.info(f"item {item.id}: {os.fsdecode(item.name)}, {size} bytes", item=item.id, size=size)

    def abort(self) -> None:
        pass
