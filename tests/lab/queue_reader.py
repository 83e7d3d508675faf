"""What is put into the queue's stream, as it comes: a small program of its own, for an entry is deleted as soon as it was delivered, which
is sooner than the judge gets a processor when three hosts share a few of them.

`python queue_reader.py SOCKET DB STREAM` prints a line per entry, [seconds on CLOCK_BOOTTIME, epoch, id, machine] in JSON, in the stream's
order, after "reading" and until its input is closed. A broker that is away is asked again.
"""

import contextlib
import json
import os
import select
import sys
import time
from typing import Any

import redis

BLOCK = 300  # milliseconds


def main(socket: str, db: int, stream: str) -> None:
    client = redis.Redis(unix_socket_path=socket, db=db, socket_timeout=5, retry=None)
    with contextlib.suppress(OSError):  # it takes little, and shall not wait for who takes much
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("reading", flush=True)
    last = b"0-0"
    while not select.select([0], [], [], 0)[0]:
        try:
            answer: Any = client.xread({stream: last}, count=500, block=BLOCK)
        except (redis.RedisError, OSError):
            time.sleep(0.1)
            continue
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        for _, entries in answer or []:
            for last, fields in entries:  # noqa: B007 - the last one read is where the next read begins
                text = {key.decode(): value.decode(errors="replace") for key, value in fields.items()}
                print(json.dumps([now, int(text["epoch"]), text["id"], text["machine"]]))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
