"""`baton-agent doctor`: is everything well on this machine, and if not, what and why. Looks only; changes nothing."""

import asyncio
import shutil
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import httpx

from runtimes.agent import linux
from runtimes.agent.certificate import read_certificate, why_not_valid, why_not_yet
from runtimes.agent.client import NotKnown, Portal, PortalAway
from runtimes.agent.etcd_binary import NoEtcd, find_etcd, why_refused
from runtimes.agent.hand import Machine, router_status
from runtimes.agent.home import TamperedBundle
from runtimes.agent.peers import SILENT, addresses, probe
from runtimes.process.tls import ClientTls
from runtimes.protocol import RENEWAL_LATE, RouterState, RuntimeOrder, Wire, digest_of

CLOCK_SECONDS = 0.5  # over which the clocks' rates are compared
CLOCK_RATES_APART = 0.05  # half of what the guard allows between two machines (docs/failover.md)
WALL_CLOCK_SECONDS = 30.0  # apart from the portal's
LEAST_FREE_BYTES = 512 * 1024 * 1024  # the router's quota, its snapshot, and logs
NEWEST = 2**62  # orders are never that new: the portal says only whether it knows this machine


class Level(StrEnum):
    WELL = "well"
    WARNING = "warning"
    BAD = "bad"


class Check(Wire, frozen=True):
    name: str
    level: Level
    sentence: str


async def examine(machine: Machine, etcd: str | None = None) -> list[Check]:
    """Every check, in the order in which to mend things. `etcd`: the program named by --etcd or ETCD_BIN."""
    return [
        agent_check(machine),
        *await portal_checks(machine),
        disk_check(machine.home.root),
        await clock_check(),
        *([certificate_check(machine)] if machine.orders.router is not None else []),
        *await etcd_checks(machine, etcd),
        *await peer_checks(machine),
        *bundle_checks(machine),
        *await runtime_checks(machine),
    ]


def well(name: str, sentence: str) -> Check:
    return Check(name=name, level=Level.WELL, sentence=sentence)


def bad(name: str, sentence: str) -> Check:
    return Check(name=name, level=Level.BAD, sentence=sentence)


def agent_check(machine: Machine) -> Check:
    if machine.agent_is_running():
        return well("agent", f"The agent of {machine.identity.machine} is running.")
    return bad("agent", "The agent is not running: router and runtimes go on as they are, but nothing restarts them. Start it.")


async def portal_checks(machine: Machine) -> list[Check]:
    url = machine.identity.portal
    portal = Portal(url, machine.identity.credential)
    try:
        before = time.time()
        answer = await portal.http.get("/healthz")
        said = wall_clock(answer.headers.get("Date", ""), (before + time.time()) / 2)
        reachable = well("portal", f"The portal {url} answers.")
        try:
            await portal.orders(NEWEST, wait=0)
        except NotKnown as error:
            remedy = "register the machine again and start the agent with the new --token"
            return [reachable, bad("credential", f"The portal does not accept this machine's credential ({error}): {remedy}."), *said]
        except PortalAway as error:
            return [reachable, bad("credential", f"The portal does not answer as it should: {error}."), *said]
        return [reachable, well("credential", "The portal accepts this machine's credential."), *said]
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        sentence = f"The portal {url} does not answer ({why}). Leadership goes on without it; orders and reports wait."
        return [bad("portal", sentence)]
    finally:
        await portal.close()


def wall_clock(date: str, now: float) -> list[Check]:
    """Compares the portal's Date header with this machine's wall clock (Unix seconds). Nothing to say without a header."""
    from email.utils import parsedate_to_datetime

    try:
        apart = parsedate_to_datetime(date).timestamp() + 0.5 - now
    except (TypeError, ValueError):
        return []
    if abs(apart) <= WALL_CLOCK_SECONDS:
        return [well("wall clock", "This machine's wall clock agrees with the portal's.")]
    words = f"{abs(apart):.0f} s {'behind' if apart > 0 else 'ahead of'} the portal's"
    sentence = f"This machine's wall clock is {words}: leadership does not depend on it, but times on pages and in logs do. Set it."
    return [Check(name="wall clock", level=Level.WARNING, sentence=sentence)]


def disk_check(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    words = f"{free / 1024**2:,.0f} MiB free at {root}"
    if free >= LEAST_FREE_BYTES:
        return well("disk", f"{words}.")
    return bad("disk", f"Only {words}, less than {LEAST_FREE_BYTES / 1024**2:,.0f} MiB: a full disk stops the router. Make room.")


async def clock_check(seconds: float = CLOCK_SECONDS) -> Check:
    """Permits are counted on the boot-time clock: it must go on, about as fast as the machine's raw clock."""
    raw, boot = time.clock_gettime(time.CLOCK_MONOTONIC_RAW), linux.boot_seconds()
    await asyncio.sleep(seconds)
    return judge_clock(linux.boot_seconds() - boot, time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - raw)


def judge_clock(boot: float, raw: float) -> Check:
    """`boot`, `raw`: seconds that passed on the boot-time clock and on the raw one."""
    if boot <= 0:
        return bad("clock", "The boot-time clock stands still or goes back: no permit on this machine can be trusted. Do not lead here.")
    rate = boot / raw if raw > 0 else float("inf")
    if abs(rate - 1) > CLOCK_RATES_APART:
        sentence = f"The boot-time clock runs {rate:.2f} times as fast as the machine's raw clock: mend its time service."
        return bad("clock", sentence)
    return well("clock", "The boot-time clock runs at the rate of the machine's raw clock.")


async def etcd_checks(machine: Machine, chosen: str | None) -> list[Check]:
    """The program, the member and its majority."""
    if machine.orders.router is None:
        return [well("router", "No router is ordered on this machine.")]
    checks = [_version_check(machine, chosen)]
    async with machine.router() as client:
        router = await router_status(machine, client)
    if router.state == RouterState.RUNNING:
        members = len(router.members)
        return [
            *checks,
            well("router", f"The router at {router.url} runs."),
            well("majority", f"It reaches a majority of its {members} member{'s' if members != 1 else ''}."),
        ]
    if router.reason == SILENT:
        silent = f"The router at {router.url} does not answer, though its process is there: nobody can lead here until it does."
        return [*checks, bad("router", f"{silent} Look at its disk; if it lasts, kill that etcd: it is started anew at once.")]
    if router.state == RouterState.NO_MAJORITY:
        why = f"The router at {router.url} runs, but {router.reason}: nobody can take leadership here until it does."
        return [*checks, well("router", f"The router at {router.url} answers."), bad("majority", why)]
    return [*checks, bad("router", f"The router is not healthy: {router.reason}.")]


def _version_check(machine: Machine, chosen: str | None) -> Check:
    launched = machine.launched_router()
    if launched is not None:
        parts = launched.version.split(".")
        refused = why_refused((int(parts[0]), int(parts[1]), int(parts[2]))) if len(parts) == 3 and not launched.warning else ""
        if refused:
            return bad("etcd", f"The router was started with an etcd that is not accepted: {refused}.")
        if launched.warning:
            return Check(name="etcd", level=Level.WARNING, sentence=f"The router runs {launched.warning}.")
        return well("etcd", f"The router was started with etcd {launched.version}.")
    try:
        found = find_etcd(chosen)
    except NoEtcd as error:
        return bad("etcd", f"There is no etcd to run: {error}.")
    return well("etcd", f"etcd {found.version} is here ({found.path}); the router was not started yet.")


def certificate_check(machine: Machine) -> Check:
    """What other routers will say to this machine's certificate, by this machine's clock."""
    files = machine.home.tls
    try:
        held = read_certificate(Path(files.machine).read_bytes(), Path(files.authority).read_text())
    except FileNotFoundError:
        return bad(
            "certificate", "This machine has no certificate yet: its agent asks the portal for one. Let it run and reach the portal."
        )
    except ValueError as error:
        return bad("certificate", f"This machine's certificate is of no use ({error}): register the machine again.")
    order = machine.orders.router
    names = {machine.identity.machine, *([order.peer_host] if order is not None else [])}
    wrong = why_not_yet(held, names) or why_not_valid(held, datetime.now(UTC))
    if wrong:
        return bad("certificate", f"{wrong[0].upper()}{wrong[1:]}.")
    until = f"This machine's certificate is valid until {held.not_after:%Y-%m-%d}"
    if datetime.now(UTC) > held.renewed_from + RENEWAL_LATE:
        said = f"{until}, and should have been renewed since {held.renewed_from:%Y-%m-%d}: the agent's log says why it was not."
        return Check(name="certificate", level=Level.WARNING, sentence=said)
    return well("certificate", f"{until}.")


async def peer_checks(machine: Machine) -> list[Check]:
    """Every sibling's Internal IP : Failover port, tried now."""
    wanted = addresses(machine.orders.router)
    tls = ClientTls(machine.home.tls)
    errors = await asyncio.gather(*(probe(*address, tls) for address in wanted.values()))
    return [
        bad("peer", f"{name} cannot be reached at {host}:{port}: {error}. Look at its router, its address and the firewall between.")
        if error
        else well("peer", f"{name} is reached at {host}:{port}.")
        for (name, (host, port)), error in zip(wanted.items(), errors, strict=True)
    ]


def bundle_checks(machine: Machine) -> list[Check]:
    return [_bundle_check(machine, order) for order in machine.orders.runtimes if order.digest is not None]


def _bundle_check(machine: Machine, order: RuntimeOrder) -> Check:
    assert order.digest is not None
    try:
        data = machine.home.bundle_path(order.digest).read_bytes()
    except TamperedBundle as error:
        return bad("bundle", f"{order.key} is ordered to run a bundle that cannot be: {error}.")
    except FileNotFoundError:
        return bad("bundle", f"The bundle of release {order.release} for {order.key} is not here: the agent fetches it from the portal.")
    if digest_of(data) != order.digest:
        sentence = (
            f"The bundle of release {order.release} for {order.key} was changed on disk: its SHA-256 differs. The agent fetches it anew."
        )
        return bad("bundle", sentence)
    made = f"release {order.release} made it, later ones that change nothing there run it too"
    return well("bundle", f"The bundle of {order.key} verifies: {made}.")


async def runtime_checks(machine: Machine) -> list[Check]:
    """Every ordered runtime's process."""
    return [await _runtime_check(machine, order) for order in machine.orders.runtimes]


async def _runtime_check(machine: Machine, order: RuntimeOrder) -> Check:
    news = await machine.news(order.key)
    alive = news is not None and news.pid is not None
    if not order.running:
        return (
            bad("runtime", f"{order.key} is ordered to stop but still runs.")
            if alive
            else well("runtime", f"{order.key} is stopped as ordered.")
        )
    if order.digest is None:
        return well("runtime", f"Nothing was deployed to {order.key} yet.")
    if news is None or not alive:
        return bad("runtime", f"The process of {order.key} is not running: see {machine.home.runtime_folder(order.key) / 'process.log'}.")
    if news.hangs:
        return bad("runtime", f"{news.hangs[0].upper()}{news.hangs[1:]}.")
    if not news.ready:
        return bad("runtime", f"{order.key} runs (process {news.pid}) but is not ready: {news.reason or 'it is starting'}.")
    if unready := [group.reason for group in news.groups if not group.ready]:
        where = f"{len(unready)} of its {len(news.groups)} groups" if len(news.groups) > 1 else "its group"
        return bad("runtime", f"{order.key} runs (process {news.pid}) but is not ready in {where}: {'; '.join(dict.fromkeys(unready))}.")
    return well("runtime", f"{order.key} runs and is ready (process {news.pid}).")
