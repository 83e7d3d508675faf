"""What agents call, under /agent/v1/: join, certificate, report, orders, bundles (runtimes/protocol.py). Errors are problem+json.

`orders` is the portal's only asynchronous view: while it waits it blocks no thread.
"""

import asyncio
import logging
import re
import signal
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import msgspec
from django.contrib.auth.decorators import login_not_required
from django.db import DataError, IntegrityError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from portal import problems, threads
from portal.database import away
from portal.errors import Invalid, NotAllowed
from runtimes import fleet, joining, ordering, protocol, wakeup
from runtimes.models import Machine

logger = logging.getLogger(__name__)

BODY_LIMIT = 8 * 1024 * 1024  # bytes
REPEATED = ("events", "ends", "alone", "outcomes")  # until acknowledged; each is stored with queries of its own
LONGEST_WAIT = 25.0  # seconds; below the idle time-outs of usual proxies
LOOK_EVERY = 1.0  # seconds between looks into the database, wake-ups or not
NOTICE_SHUTDOWN_WITHIN = 0.25  # seconds
ESCAPE = re.compile(rb"\\(?:u0000|.)", re.DOTALL)  # of JSON: a NUL, or another one
NO_LONGER = "This credential is not (or no longer) a machine's: join again with a new token."

T = TypeVar("T")
AgentView = Callable[..., HttpResponse]


class _TooLarge(NotAllowed):
    code = "too-large"
    status = 413


class _NoCredential(NotAllowed):
    code = "not-authenticated"
    status = 401


class _Unknown(NotAllowed):
    code = "not-found"
    status = 404


# ------------------------------------------------------------------------------------------------------ bodies and answers


def _answer(message: object) -> HttpResponse:
    return HttpResponse(protocol.encode(message), content_type="application/json", headers={"Cache-Control": "no-store"})


def problem(refusal: NotAllowed) -> HttpResponse:
    """problem+json, as the public API answers."""
    errors = {refusal.field: [refusal.sentence]} if refusal.field else None
    document = problems.body(refusal.status, refusal.code, refusal.sentence, reasons=refusal.reasons, errors=errors)
    headers = {"WWW-Authenticate": 'Bearer realm="baton"'} if refusal.status == 401 else {}
    return HttpResponse(msgspec.json.encode(document), content_type=problems.CONTENT_TYPE, status=refusal.status, headers=headers)


def _body(request: HttpRequest, kind: type[T]) -> T:
    """The decoded body. Raises Invalid naming the field, or _TooLarge."""
    length = request.META.get("CONTENT_LENGTH") or "0"
    data = request.read(BODY_LIMIT + 1) if length.isdigit() and int(length) <= BODY_LIMIT else b""
    if not length.isdigit() or int(length) > BODY_LIMIT or len(data) > BODY_LIMIT:
        raise _TooLarge(f"The body is larger than {BODY_LIMIT // 1024 // 1024} MiB: send fewer log lines at once.")
    try:
        return protocol.decode(kind, _without_nul(data))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        place = re.search(r"`\$\.?([^`]*)`", str(error))
        missing = re.search(r"missing required field `([^`]*)`", str(error))
        parts = [match.group(1) for match in (place, missing) if match and match.group(1)]
        raise Invalid(f"This is not a {kind.__name__}: {error}.", field=".".join(parts)) from None


def _without_nul(data: bytes) -> bytes:
    """A NUL, which PostgreSQL keeps in no text, as the replacement character: what a target answered, say, is told as a reason."""
    if rb"\u0000" not in data:
        return data
    return ESCAPE.sub(lambda found: rb"\ufffd" if found[0] == rb"\u0000" else found[0], data)


def _credential(request: HttpRequest) -> str:
    scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else ""


def _machine(request: HttpRequest) -> Machine:
    """Whose agent calls. Raises _NoCredential."""
    credential = _credential(request)
    if not credential:
        raise _NoCredential("Send the machine's credential: Authorization: Bearer …")
    machine = joining.machine_of(credential)
    if machine is None:
        raise _NoCredential(NO_LONGER)
    return machine


def agent_view(view: AgentView) -> AgentView:
    """No person, so no login; no cookies, so no CSRF; refusals become problem+json."""

    @login_not_required
    @csrf_exempt
    @wraps(view)
    def guarded(request: HttpRequest, **kwargs: Any) -> HttpResponse:
        try:
            return view(request, **kwargs)
        except NotAllowed as refusal:
            return problem(refusal)
        except (DataError, IntegrityError, OverflowError):
            logger.exception("A value of an agent does not fit the database.")
            return problem(Invalid("A value of this message does not fit: a number is out of range, or a text is too long."))
        except (OperationalError, InterfaceError) as error:
            logger.exception("An agent was sent away, to come again: the database does not do its part.")
            return problem(away(error) or NotAllowed("Come again."))

    return guarded


# --------------------------------------------------------------------------------------------------------------- the views


@agent_view
@require_POST
def join(request: HttpRequest) -> HttpResponse:
    return _answer(joining.join(_body(request, protocol.JoinRequest), now=timezone.now()))


@agent_view
@require_POST
def report(request: HttpRequest) -> HttpResponse:
    machine = _machine(request)
    now = timezone.now()
    told = _body(request, protocol.Report)
    for name in REPEATED:  # an older agent sends all that it keeps at once
        if (number := len(getattr(told, name))) > protocol.MOST_KEPT:
            raise _TooLarge(f"{name}: {number} are too many for one report. Send {protocol.MOST_KEPT} at most.", field=name)
    accepted = fleet.record_report(machine, told, now=now)
    return _answer(protocol.ReportAnswer(accepted=accepted, orders=ordering.orders_for(machine, now=now)))


@agent_view
@require_POST
def certificate(request: HttpRequest) -> HttpResponse:
    machine = _machine(request)
    return _answer(joining.certify(machine, _body(request, protocol.CertificateRequest), now=timezone.now()))


@agent_view
@require_GET
def bundle(request: HttpRequest, digest: str) -> HttpResponse:
    machine = _machine(request)
    found = fleet.ordered_bundle(machine, digest)
    if found is None:
        raise _Unknown(f"No runtime on {machine} is ordered to run the bundle {digest[:12]}….")
    if found.is_lost:
        raise _Unknown(f"The bundle {digest[:12]}… cannot be read, its property key is missing: deploy to {machine} again.")
    return HttpResponse(bytes(found.content), content_type="application/octet-stream", headers={"Cache-Control": "no-store"})


@login_not_required
@csrf_exempt
async def orders(request: HttpRequest) -> HttpResponse:
    """The machine's orders, as soon as their version is above `after`; 204 when `wait` seconds brought none."""
    if request.method != "GET":
        return HttpResponse(status=405, headers={"Allow": "GET"})
    try:
        after, wait = _number(request, "after", int), min(_number(request, "wait", float), LONGEST_WAIT)
        machine = await threads.run(_machine, request)
        if not await _newer_orders(machine, after, until=time.monotonic() + wait):
            return HttpResponse(status=204)
        return _answer(await threads.run(ordering.orders_for, machine, now=timezone.now()))
    except NotAllowed as refusal:
        return problem(refusal)
    except Machine.DoesNotExist:
        return problem(_NoCredential("This machine was removed from its environment."))
    except (OperationalError, InterfaceError) as error:
        return problem(away(error) or NotAllowed("Come again."))


def _number(request: HttpRequest, name: str, kind: Callable[[str], Any]) -> Any:
    text = request.GET.get(name, "0")
    try:
        value = kind(text)
    except ValueError:
        raise Invalid(f"{name} is {text!r}: say a number.", field=name) from None
    if not 0 <= value <= 2**62:  # also refuses "nan"
        raise Invalid(f"{name} is {text!r}: say a number from 0 on.", field=name)
    return value


async def _newer_orders(machine: Machine, after: int, *, until: float) -> bool:
    """Wait for a version above `after`. A cancelled wait (the client left) cleans up and ends. Raises _NoCredential when the machine was
    registered anew, or removed, meanwhile."""
    _watch_for_shutdown()
    ear = wakeup.Ear(machine.pk)
    try:
        while not _shutting_down.is_set():
            version = await threads.run(ordering.newest_orders, machine)
            if version is None:
                raise _NoCredential(NO_LONGER)
            if version > after:
                return True
            if time.monotonic() >= until:
                return False
            look_at = min(until, time.monotonic() + LOOK_EVERY)
            while not _shutting_down.is_set() and (left := look_at - time.monotonic()) > 0:
                if await ear.wait(min(left, NOTICE_SHUTDOWN_WITHIN)):
                    break
        return False
    finally:
        await asyncio.shield(ear.close())


# A graceful server waits for its open requests, and only then tells the application: so the signal is listened to here as well, before
# the server's own handler, which is called next.
_shutting_down = threading.Event()
_watching: list[int] = []


def _watch_for_shutdown() -> None:
    if _watching or threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        former = signal.getsignal(number)
        if callable(former):
            signal.signal(number, _chained(former))
        _watching.append(number)


def _chained(former: Callable[[int, Any], Any]) -> Callable[[int, Any], None]:
    def note(number: int, frame: Any) -> None:
        _shutting_down.set()
        former(number, frame)

    return note


urlpatterns = [
    path("join/", join, name="agent-join"),
    path("certificate/", certificate, name="agent-certificate"),
    path("report/", report, name="agent-report"),
    path("orders/", orders, name="agent-orders"),
    path("bundles/<str:digest>/", bundle, name="agent-bundle"),
]
