"""The web server process: uvicorn on a listening socket that its parent holds (`python -m portal.serve <fd>`).

The stack runner keeps the socket while the portal restarts, so that a caller in that moment waits instead of being refused, and two
stacks never race for one port. (uvicorn's own --fd takes every socket for a unix one and so leaves Nagle's delay on.)
"""

import socket
import sys

import uvicorn


def main(descriptor: int) -> None:
    config = uvicorn.Config(
        "portal.asgi:application",
        lifespan="off",
        access_log=False,
        timeout_graceful_shutdown=3,
        backlog=1024,
        log_level="info",
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
