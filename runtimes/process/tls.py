"""This machine's certificate, for calls to its router. Standard library and the wire only: every keeper imports this."""

import ssl
from pathlib import Path
from typing import Any

from runtimes.protocol import TlsFiles


class _Following(ssl.SSLContext):
    """Whoever was given this context goes on using it; each handshake uses the one that was made from the files as they are now."""

    now: ssl.SSLContext | None = None

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.now.wrap_bio(*args, **kwargs) if self.now is not None else super().wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return self.now.wrap_socket(*args, **kwargs) if self.now is not None else super().wrap_socket(*args, **kwargs)


class ClientTls:
    """A context that follows its files: a renewed certificate is shown, and an authority that was retired is trusted no more, from the
    next connection on; connections that stand go on."""

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self.context = _Following(ssl.PROTOCOL_TLS_CLIENT)  # asks for a certificate of the authority that names the host
        self._read: tuple[int, ...] = ()

    def refresh(self) -> None:
        """Take over what the files say now; costs two stat calls when nothing has changed.

        Raises:
            OSError: they are not there yet, or cannot be read (ssl.SSLError is one).
        """
        stats = [Path(path).stat() for path in (self.files.authority, self.files.machine)]
        state = tuple(number for stat in stats for number in (stat.st_ino, stat.st_mtime_ns))
        if state != self._read:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_verify_locations(cafile=self.files.authority)
            context.load_cert_chain(self.files.machine)
            self.context.now, self._read = context, state
