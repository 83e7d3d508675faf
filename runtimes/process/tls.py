"""This machine's certificate, for calls to its router. Standard library and the wire only: every keeper imports this."""

import ssl
from pathlib import Path

from runtimes.protocol import TlsFiles


class ClientTls:
    """A context that follows its files: a renewed certificate is shown from the next connection on, connections that stand go on."""

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # asks for a certificate of the authority that names the host
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._read: tuple[int, ...] = ()

    def refresh(self) -> None:
        """Take over what the files say now; costs two stat calls when nothing has changed.

        Raises:
            OSError: they are not there yet, or cannot be read (ssl.SSLError is one).
        """
        stats = [Path(path).stat() for path in (self.files.authority, self.files.machine)]
        state = tuple(number for stat in stats for number in (stat.st_ino, stat.st_mtime_ns))
        if state != self._read:
            self.context.load_verify_locations(cafile=self.files.authority)
            self.context.load_cert_chain(self.files.machine)
            self._read = state
