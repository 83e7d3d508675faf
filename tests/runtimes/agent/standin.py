"""A small real program in the place of a runtime process: speaks the control socket, follows what its folder's `behaviour` file says.

(none)   becomes ready and follows its first group
crash    exits with status 3 before it is ready
refuse   says that it cannot run as configured, and exits with status 2
hang     says On in the permit page for 0.3 s, then stops itself as a paused process would
family   starts a child and a grandchild in a session of their own
event    tells of a leadership
deaf     ignores SIGTERM
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from runtimes.protocol import CONTROL_FD_ENV, PERMIT, SIGN_OF_LIFE_SECONDS

config = json.loads(Path(sys.argv[1]).read_text())
bundle = json.loads(Path(config["bundle"]).read_text())
folder = Path(config["data"])
behaviour = (folder / "behaviour").read_text().split() if (folder / "behaviour").exists() else []
control = socket.socket(fileno=int(os.environ[CONTROL_FD_ENV]))
print("the stand-in starts", flush=True)

if "crash" in behaviour:
    sys.exit(3)


def say(**news: object) -> None:
    control.sendall(json.dumps(news).encode() + b"\n")


if "refuse" in behaviour:
    say(ready=False, reason="setting time_zone of its timer inbound names no time zone: Mars/Base")
    sys.exit(2)


def end(*_: object) -> None:
    sys.exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in behaviour else end)
if "family" in behaviour:
    script = """
import os, sys, time
who = "child" if os.fork() else "grandchild"
with open(sys.argv[1] + "." + who + ".tmp", "w") as file:
    file.write(str(os.getpid()))
os.rename(file.name, sys.argv[1] + "." + who)
time.sleep(600)
"""
    subprocess.Popen([sys.executable, "-c", script, str(folder / "pid")], start_new_session=True)
    while not (folder / "pid.grandchild").exists() or not (folder / "pid.child").exists():
        time.sleep(0.01)
groups = [
    {"group": group["id"], "status": "follower", "state": "off", "reason": "follows as the stand-in does", "ready": True}
    for group in bundle["groups"]
]
say(ready=True, reason="", groups=groups, flows=[])
if "event" in behaviour:
    say(event={"group": "g1", "epoch": 7, "runtime": config["key"], "previous": None, "cause": "first", "at": "2026-01-01T00:00:00Z"})
if "hang" in behaviour:
    (folder / "behaviour").unlink()  # only once
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + 0.3
    with Path(config["permit"]).open("r+b") as page:
        page.write(PERMIT.pack(until, 1))
    os.kill(os.getpid(), signal.SIGSTOP)
received = b""
control.settimeout(SIGN_OF_LIFE_SECONDS)
while True:
    try:
        data = control.recv(65536)
    except TimeoutError:
        say()
        continue
    if not data:
        break
    received += data
    *lines, received = received.split(b"\n")
    for line in lines:
        (folder / "commands").open("ab").write(line + b"\n")
