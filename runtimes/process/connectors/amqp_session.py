"""A connection to an AMQP broker, for the inbound and the outbound `amqp`: its errors, its heartbeats, its end."""

import contextlib
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import amqp

from runtimes.process.connectors.amqp_message import NotHeld, Place, frames
from runtimes.process.connectors.base import ItemError, Refusing, Setting, Unavailable

HEARTBEAT_SECONDS, TIMEOUT_SECONDS = 5.0, 10.0
CONNECT_SECONDS = 4.0  # less than the drain limit: nothing can cut an attempt to connect
CLOSE_SECONDS = 1.0  # a farewell; the broker gives back what was not acknowledged also without it

# What the library raises for a connection that broke, or that `abort` cut under it.
ERRORS = (amqp.AMQPError, OSError, AttributeError, KeyError, TypeError, ValueError, struct.error)
T = TypeVar("T")


class Session:
    """One connection with one channel, made when it is needed. Calls are the worker's, `keep` the heartbeat's, `abort` anyone's."""

    def __init__(self, setting: Setting, on_open: Callable[[Any], None], place: Place = lambda size: None) -> None:
        self._setting = setting
        self._on_open = on_open  # what makes the channel ready
        host, tls = setting.text("host"), setting.choice("tls", ("no", "yes")) == "yes"
        port = int(setting.number("port", 5671 if tls else 5672, 1, 65535))
        self.where = f"{host}:{port}"
        self.timeout = setting.number("timeout_seconds", TIMEOUT_SECONDS, 0.1, 60.0)
        self._heartbeat = int(setting.number("heartbeat_seconds", HEARTBEAT_SECONDS, 2, 300))
        self._options: dict[str, Any] = {
            "host": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            "userid": setting.text("user"),
            "password": setting.text("password"),
            "login_method": "PLAIN",
            "virtual_host": setting.text("virtual_host", "/"),
            "ssl": _tls(setting, host) if tls else False,
            "connect_timeout": min(self.timeout, CONNECT_SECONDS),
            "heartbeat": self._heartbeat,
            "client_properties": {"connection_name": f"baton {setting.key} {setting.flow} {setting.side}"},
            "socket_settings": {socket.TCP_USER_TIMEOUT: int(self.timeout * 1000)},
            "on_blocked": self._on_blocked,
            "on_unblocked": self._on_unblocked,
            "frame_handler": frames(place),
        }
        self._lock = threading.RLock()  # around every use of the connection
        self._connection: Any = None
        self._channel: Any = None
        self._socket: socket.socket | None = None
        self._cutter: socket.socket | None = None  # a second handle of its socket: shutting it ends whatever waits on the first
        self._ended = threading.Event()
        self._blocked = False
        self.number = 0  # of this connection: delivery tags of another one mean nothing
        self.heard = 0.0  # wall clock: when the broker last said anything
        self._received = 0

    @property
    def heartbeat(self) -> float:
        return float(self._heartbeat)

    def on(self, number: int, act: Callable[[Any], None]) -> bool:
        """Use the channel of that very connection; False: it has ended, and what is numbered on it means nothing any more. The question
        and the act are one under the lock, and no other connection is made. Raises Unavailable, Refusing."""
        with self._lock:
            if self._connection is None or self.number != number:
                return False
            self.call(act)
            return True

    def call(self, act: Callable[[Any], T]) -> T:
        """Use the channel, on a new connection where there is none. Raises Unavailable, Refusing."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connect()
                made = act(self._channel)
                self._hear()
                return made
            except ERRORS as error:
                self.drop()
                self._told(error)

    def drain(self, seconds: float) -> bool:
        """Read one method, waiting for it for at most so long; False: nothing came. Inside `call` only."""
        try:
            self._connection.drain_events(timeout=seconds)
        except TimeoutError:
            return False
        return True

    def tick(self) -> None:
        """Answer heartbeats, and find out that none come. Inside `call` only."""
        self._connection.heartbeat_tick()

    def refuse_blocked(self) -> None:
        """Raises Unavailable while the broker takes nothing from publishers."""
        if self._blocked:
            raise Unavailable(f"the broker at {self.where} takes nothing now: it is short of memory or disk space (connection.blocked)")

    def aside(self, act: Callable[[Any], T]) -> T | None:
        """Ask something on a channel of its own; None: not connected, or busy. Raises Unavailable, Refusing."""
        if not self._lock.acquire(timeout=CLOSE_SECONDS):
            return None
        try:
            if self._connection is None:
                return None
            try:
                channel = self._connection.channel()
                made = act(channel)
                channel.close()
                return made
            except ERRORS as error:
                self.drop()
                self._told(error)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Say farewell and end the connection: the broker gives back what was not acknowledged. Takes CLOSE_SECONDS at most."""
        with self._lock:
            if self._connection is None:
                return
            with contextlib.suppress(*ERRORS):
                self._connection.sock.settimeout(CLOSE_SECONDS / 2)  # for the broker's answer, and for that of TLS
                self._connection.close()
            self.drop()

    def abort(self) -> None:
        """Cut the connection at once, whoever uses it; never blocks."""
        cutter = self._cutter
        if cutter is not None:
            with contextlib.suppress(OSError):
                cutter.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Never use this connection again."""
        with self._lock:
            self._ended.set()
            self.abort()
            connection, self._connection, self._channel = self._connection, None, None
            cutter, self._cutter = self._cutter, None
            for each in (cutter, self._socket):
                if each is not None:
                    each.close()
            if connection is not None:
                with contextlib.suppress(*ERRORS):
                    connection.collect()

    def _connect(self) -> None:
        connection: Any = amqp.Connection(**self._options)
        self._blocked = False
        try:
            connection.connect()
        except ERRORS:
            with contextlib.suppress(*ERRORS):
                connection.collect()
            raise
        self._connection, self._socket = connection, connection.sock
        self._cutter = socket.socket(fileno=os.dup(connection.sock.fileno()))
        connection.sock.settimeout(self.timeout)  # of every single read and write that says nothing else
        self._received = 0
        self.number += 1
        self._channel = connection.channel()
        self._channel.auto_decode = False  # bytes stay bytes, whatever their encoding is said to be
        self._ended = threading.Event()
        self._on_open(self._channel)
        threading.Thread(target=self._keep, args=(connection, self._ended), name=f"heartbeat {self.where}", daemon=True).start()

    def _keep(self, connection: Any, ended: threading.Event) -> None:
        """Answer heartbeats, and read what the broker says, while the worker is busy with an item or has none."""
        while not ended.wait(min(connection.heartbeat or self._heartbeat, self._heartbeat) / 4):
            with self._lock:
                if self._connection is not connection:
                    return
                try:
                    while self.drain(0.001):
                        pass
                    self._hear()
                    self.tick()
                except ERRORS as error:
                    self.drop()
                    self._setting.log.warning(f"the connection to {self.where} broke: {words_of(error)}")

    def _hear(self) -> None:
        if self._connection is not None and self._connection.bytes_recv != self._received:
            self._received = self._connection.bytes_recv
            self.heard = time.time()

    def _on_blocked(self, reason: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False

    def _told(self, error: Exception) -> NoReturn:
        """Raises Unavailable or Refusing in this project's words."""
        words, vhost = words_of(error), self._options["virtual_host"]
        where = f"the broker at {self.where}"
        if isinstance(error, NotHeld):
            raise Unavailable(words) from error
        if isinstance(error, ssl.SSLCertVerificationError):
            raise Unavailable(
                f"{where} shows a certificate that is not trusted: {error.verify_message}; correct ca_file or host"
            ) from error
        if isinstance(error, ssl.SSLError):
            raise Unavailable(f"{where} does not speak TLS as expected: {words}; check port and tls") from error
        if isinstance(error, TimeoutError):
            raise Unavailable(f"{where} did not answer within {self.timeout:g} s") from error
        if isinstance(error, amqp.AMQPError):
            if error.reply_code == 403 and "Login was refused" in words:
                raise Unavailable(f"{where} does not let this user in: {words}; correct user and password") from error
            if error.reply_code in (403, 405) and "exclusive" in words:
                raise Refusing(f"{where} refuses: {words}; another consumer has it, or the broker has not noticed its end yet") from error
            if error.reply_code == 403:
                raise Refusing(f"{where} refuses: {words}; give this user the permission on virtual host {vhost}") from error
            if error.reply_code == 404:
                raise Refusing(f"{where} refuses: {words}; create it there, or let this flow declare it") from error
            if error.reply_code == 530:
                raise Unavailable(f"{where} refuses: {words}; correct virtual_host, or give this user access to it") from error
            if error.reply_code == 406 and "message size" in words:
                raise ItemError(f"{where} refuses it: {words}") from error
            if error.reply_code == 406 and "inequivalent" in words:
                raise Refusing(f"{where} refuses: {words}; it exists otherwise: set that this flow does not declare it") from error
            raise Unavailable(f"the connection to {self.where} broke: {words}") from error
        raise Unavailable(f"{where} cannot be reached: {words}") from error


def words_of(error: Exception) -> str:
    text = error.reply_text if isinstance(error, amqp.AMQPError) else str(error)
    return " ".join(str(text or type(error).__name__).split())[:300]


def _tls(setting: Setting, host: str) -> dict[str, Any]:
    """Options of the library for TLS: the broker's certificate is always verified. Raises ConfigError."""
    files = {name: setting.text(name, "\n").strip() for name in ("ca_file", "certificate_file", "key_file")}
    try:
        context = ssl.create_default_context(cafile=files["ca_file"] or None)
    except (OSError, ssl.SSLError) as error:
        raise setting.error("ca_file", f"cannot be read: {error}", "name a file of certificates in PEM") from error
    if bool(files["certificate_file"]) != bool(files["key_file"]):
        lacking = "key_file" if files["certificate_file"] else "certificate_file"
        raise setting.error(lacking, "is missing", "give the certificate and its key, or neither")
    if files["certificate_file"]:
        try:
            context.load_cert_chain(files["certificate_file"], files["key_file"])
        except (OSError, ssl.SSLError) as error:
            raise setting.error("certificate_file", f"cannot be used with key_file: {error}", "name both files in PEM") from error
    return {
        "cert_reqs": ssl.CERT_REQUIRED,
        "ca_certs": files["ca_file"] or None,
        "certfile": files["certificate_file"] or None,
        "keyfile": files["key_file"] or None,
        "server_hostname": host,
        "tls_minimum_version": ssl.TLSVersion.TLSv1_2,
    }
