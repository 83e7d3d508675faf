"""Inbounds and outbounds by kind. To add one: a module here with a class under `@inbound(kind)` or `@outbound(kind)`, named below."""

from runtimes.process.connectors import amqp, command, file, http, log, queue, sftp, sql, timer
from runtimes.process.connectors.base import INBOUNDS, OUTBOUNDS

__all__ = ["INBOUNDS", "OUTBOUNDS", "amqp", "command", "file", "http", "log", "queue", "sftp", "sql", "timer"]
