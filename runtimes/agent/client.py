"""The portal as the agent calls it. Outbound only; every call has a time-out; nothing here changes what runs."""

import asyncio
import hashlib
import json
import secrets
import socket
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec
import structlog

from runtimes.agent.decide import retry_delay
from runtimes.agent.home import Home, Identity, Joining
from runtimes.agent.supervisor import BundleUnavailable
from runtimes.protocol import (
    CertificateAnswer,
    CertificateRequest,
    JoinAnswer,
    JoinRequest,
    Orders,
    Report,
    ReportAnswer,
    decode,
    encode,
)

log = structlog.get_logger()
T = TypeVar("T")
WAIT_SECONDS = 20  # the portal holds an orders call so long
CALL_SECONDS = 5.0
BUNDLE_SECONDS = 30.0
LONGEST_WAIT = 2.0  # between two tries


class JoinRefused(Exception):  # noqa: N818 - said by name
    """The portal does not accept the token; the message says what to do."""


class NotKnown(Exception):  # noqa: N818 - said by name
    """401: the portal does not know this machine's credential."""


class PortalAway(Exception):  # noqa: N818 - said by name
    """The portal did not answer as it should; the message says how. Worth another try."""


class NotTaken(PortalAway):
    """The portal refuses what was sent."""


class Portal:
    """One HTTP client for one portal. `credential` empty: only join() works."""

    def __init__(self, url: str, credential: str = "") -> None:
        host = urlsplit(url).hostname or ""
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        self.url = url.rstrip("/")
        self.http = httpx.AsyncClient(
            base_url=self.url,
            headers={**headers, "Content-Type": "application/json", "Accept": "application/json"},
            timeout=CALL_SECONDS,
            trust_env=not is_loopback(host),  # a proxy is for the way out
        )

    async def join(self, token: str, version: str, attempt: str) -> JoinAnswer:
        """Exchange the one-time token. Raises: JoinRefused, PortalAway."""
        response = await self._call(
            "POST", "/agent/v1/join/", content=encode(JoinRequest(token=token, agent_version=version, attempt=attempt))
        )
        if 400 <= response.status_code < 500 and response.status_code not in (408, 425, 429):
            raise JoinRefused(
                f"{self.url} does not accept this join token ({_detail(response)}). "
                "Make a new one on the machine's page (Register machine) and start the agent again with --token"
            )
        return _read(JoinAnswer, response)

    async def certify(self, request: CertificateRequest) -> CertificateAnswer:
        """A certificate for this machine. Raises: NotKnown, PortalAway; NotTaken when the request is refused."""
        response = _known(await self._call("POST", "/agent/v1/certificate/", content=encode(request)))
        if 400 <= response.status_code < 500:
            raise NotTaken(f"{self.url} gives no certificate: {_detail(response)}")
        return _read(CertificateAnswer, response)

    async def report(self, report: Report) -> ReportAnswer:
        """Raises: NotKnown, PortalAway; NotTaken when the report itself is refused."""
        response = _known(await self._call("POST", "/agent/v1/report/", content=encode(report)))
        if response.status_code in (400, 413, 422):
            raise NotTaken(f"{self.url} refuses this report: {_detail(response)}")
        return _read(ReportAnswer, response)

    async def orders(self, after: int, wait: float = WAIT_SECONDS) -> Orders | None:
        """Wait for orders newer than `after`; None when there were none within `wait` seconds. Raises: NotKnown, PortalAway."""
        response = await self._call(
            "GET",
            "/agent/v1/orders/",
            params={"after": after, "wait": wait},
            timeout=httpx.Timeout(CALL_SECONDS, read=wait + 10),
        )
        return None if response.status_code == 204 else _read(Orders, _known(response))

    async def bundle(self, digest: str) -> bytes:
        """A bundle's bytes, not yet verified. Raises: BundleUnavailable."""
        try:
            response = _known(await self._call("GET", f"/agent/v1/bundles/{digest}/", timeout=BUNDLE_SECONDS))
        except (NotKnown, PortalAway) as error:
            raise BundleUnavailable(f"the portal did not give the bundle {digest[:12]}…: {error}") from error
        if response.status_code != 200:
            raise BundleUnavailable(f"the portal did not give the bundle {digest[:12]}…: {_detail(response)}")
        return response.content

    async def _call(self, method: str, path: str, **arguments: object) -> httpx.Response:
        try:
            return await self.http.request(method, path, **arguments)  # type: ignore[arg-type]
        except httpx.HTTPError as error:
            raise PortalAway(f"{self.url} does not answer ({str(error) or type(error).__name__})") from error

    async def close(self) -> None:
        await self.http.aclose()


def _known(response: httpx.Response) -> httpx.Response:
    if response.status_code == 401:
        raise NotKnown(_detail(response))
    return response


def _read(kind: type[T], response: httpx.Response) -> T:
    if response.status_code != 200:
        raise PortalAway(f"{response.request.url} answered {_detail(response)}")
    try:
        return decode(kind, response.content)
    except msgspec.MsgspecError as error:
        raise PortalAway(f"{response.request.url} sent something that cannot be read: {error}") from error


def _detail(response: httpx.Response) -> str:
    """Status and, from problem+json, what it says."""
    said = ""
    try:
        fields = json.loads(response.content)
        if isinstance(fields, dict):
            said = str(fields.get("detail") or fields.get("title") or "")
    except ValueError:
        pass
    return f"{response.status_code}: {said}" if said else str(response.status_code)


def is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def digest_of_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _attempt(home: Home, token: str) -> str:
    """The secret by which the portal knows this agent again when its answer got lost; kept until the machine has joined."""
    joining = home.read("joining.json", Joining)
    if joining is None or joining.token_digest != digest_of_token(token):
        joining = Joining(token_digest=digest_of_token(token), attempt=secrets.token_urlsafe(32))
        home.write("joining.json", joining)
    return joining.attempt


async def identify(home: Home, portal: str | None, token: str | None, version: str) -> Identity:
    """Who this machine is: remembered, or joined now. A token other than the one it joined with joins anew.

    Waits for as long as the portal does not answer. Raises: JoinRefused.
    """
    known = home.read("identity.json", Identity)
    if known is not None and (not token or digest_of_token(token) == known.token_digest):
        if portal and portal != known.portal:
            known = msgspec.structs.replace(known, portal=portal)
            home.write("identity.json", known)
        return known
    url = portal or (known.portal if known is not None else "")
    if not token:
        raise JoinRefused("this machine has not joined yet: make a join token on its page (Register machine) and start with --token")
    if not url:
        raise JoinRefused("say where the portal is with --portal (or BATON_PORTAL_URL)")
    client = Portal(url)
    attempt = _attempt(home, token)
    failures = 0
    try:
        while True:
            try:
                answer = await client.join(token, version, attempt)
            except PortalAway as error:
                failures += 1
                if failures in (1, 10) or failures % 100 == 0:
                    log.warning("portal_away", text=f"Joining waits for the portal: {error}.")
                await asyncio.sleep(retry_delay(failures, longest=LONGEST_WAIT))
                continue
            identity = Identity(
                credential=answer.credential,
                machine=answer.machine,
                environment=answer.environment,
                project=answer.project,
                portal=url,
                token_digest=digest_of_token(token),
            )
            home.write("identity.json", identity)
            (home.root / "joining.json").unlink(missing_ok=True)
            log.info("joined", text=f"This machine has joined {url} as {answer.machine} in {answer.project} / {answer.environment}.")
            return identity
    finally:
        await client.close()


def own_address(portal: str) -> str:
    """The address of this machine that its siblings most likely reach; no packet is sent."""
    host = urlsplit(portal).hostname or ""
    for target in (host if not is_loopback(host) else "", "192.0.2.1"):  # the second is reserved for documentation: the default route
        if target:
            try:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.connect((target, 9))
                    return str(probe.getsockname()[0])
            except OSError:
                continue
    return "127.0.0.1"
