"""Takes a guard out of the product for the lab's negative controls, in the started programs only. The product has no switch for this.

LAB_DAWDLE=0.2    so many seconds pass between a permit's check and the commit, so that a pause often falls between them
LAB_REMOVE=fence  the queue no longer refuses a lower epoch
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType


def _dawdle(permits: ModuleType) -> None:
    check, seconds = permits.Duty.check, float(os.environ["LAB_DAWDLE"])

    def slow(duty: object) -> None:
        check(duty)
        if sys._getframe(1).f_code.co_name != "check_take":
            time.sleep(seconds)

    permits.Duty.check = slow  # type: ignore[attr-defined]


def _no_fence(queue: ModuleType) -> None:
    def without(text: object) -> object:
        return text.replace("if epoch < mark then", "if false then") if isinstance(text, str) else text

    before = dict(vars(queue))
    for name, value in before.items():
        setattr(queue, name, tuple(map(without, value)) if isinstance(value, tuple) else without(value))
    if before["_FENCE"] == queue._FENCE:
        raise RuntimeError("the lab no longer finds the fence that it is to remove")


class _After(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets a module load as ever, then changes it."""

    def __init__(self) -> None:
        self.acts = {"runtimes.process.permits": _dawdle} if os.environ.get("LAB_DAWDLE") else {}
        if os.environ.get("LAB_REMOVE") == "fence":
            self.acts["runtimes.process.connectors.queue"] = _no_fence

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        act = self.acts.pop(name, None)
        spec = importlib.util.find_spec(name) if act else None
        if spec is None or spec.loader is None or act is None:
            return None
        loader = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            act(module)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _After())
