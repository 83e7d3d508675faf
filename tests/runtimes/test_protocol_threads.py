"""Three agents report to a portal that has just started: the first messages of a process are decoded in several threads at once."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, threading
sys.setswitchinterval(1e-6)  # threads take turns as often as possible
from runtimes import protocol as wire
report = wire.Report(
    agent_version="1", boot_id="b", started_at="", orders_version=1, sequence=1, router=wire.RouterReport(state="running"),
    runtimes=[wire.RuntimeReport(key="k", state="ready", groups=[wire.GroupReport(group="g", status="leader", state="on", reason="")])],
)
data = wire.encode(report)
together = threading.Barrier(6)
said = []
def decode():
    together.wait()
    said.append(wire.decode(wire.Report, data).runtimes[0].groups[0].status)
threads = [threading.Thread(target=decode) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert said == ["leader"] * 6, said
"""


def test_first_messages_may_be_decoded_in_several_threads() -> None:
    root = Path(__file__).resolve().parent.parent.parent
    for _ in range(5):  # without the preparation about seven of ten end by SIGSEGV
        ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, timeout=30)
        assert ended.returncode == 0, ended.stderr
