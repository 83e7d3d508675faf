"""JSON lines on non-blocking stream sockets, for the keeper's loop."""

import socket

INPUT_BYTES = 8_000_000  # one message of a process or agent is never longer


class Lines:
    """A non-blocking stream socket that carries JSON lines."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.received = b""
        self.unsent = b""

    def read(self) -> list[bytes] | None:
        """Complete lines that have arrived; None when the other side has closed (or talks nonsense)."""
        try:
            data = self.sock.recv(262_144)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data or len(self.received) > INPUT_BYTES:
            return None
        *lines, self.received = (self.received + data).split(b"\n")
        return [line for line in lines if line]

    def write(self, message: bytes | None = None) -> bool:
        """Queue a message and send what the other side takes. Returns: False when it is gone."""
        if message is not None:
            self.unsent += message + b"\n"
        try:
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True
