"""Not the product: leadership by a lease on one Redis server, as many programs do it (redis-py's Lock), for the lab's negative control.

Written with care, as far as a lease can be: renewed every 0.2 s, believed only until a guard before its end, on the boot-time clock, from
before the request left. What it cannot help is that the server alone decides by its wall clock when the lease has ended.

    python -m tests.lab.lease <host> <port> <permit page>
"""

import mmap
import sys
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.exceptions import LockError
from redis.retry import Retry

from tests.lab.clock import boot
from tests.lab.judge import PAGE

TTL, RENEWAL, GUARD = 1.0, 0.2, 0.2  # seconds, as the product's LAN profile has them


def main(host: str, port: str, path: str) -> None:
    client = redis.Redis(host=host, port=int(port), socket_timeout=0.3, socket_connect_timeout=0.3, retry=Retry(NoBackoff(), 0))
    lock = client.lock("leader", timeout=TTL, thread_local=False)
    Path(path).write_bytes(PAGE.pack(0.0, 0))
    with Path(path).open("r+b") as file:
        page = mmap.mmap(file.fileno(), PAGE.size)
    leads, until = False, 0.0
    while True:
        sent = boot()
        try:
            leads = lock.reacquire() if leads else lock.acquire(blocking=False)
            until = sent + TTL - GUARD if leads else 0.0
        except LockError:  # another's by now
            leads = False
        except (redis.RedisError, OSError):  # not known: the former permit runs to its end
            pass
        leads = leads and boot() < until
        PAGE.pack_into(page, 0, until, int(leads))
        time.sleep(RENEWAL if leads else 0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
