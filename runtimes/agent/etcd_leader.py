"""Where etcd's own leader stands, so that one cut link takes no leadership from a group (docs/failover.md, Who leads when links are cut).

etcd does not pass on what a member asks that is cut off from etcd's leader alone, although both see a third one. So the agent whose
router leads etcd watches its siblings closely, and hands etcd's leadership on, by etcd's own MoveLeader:

- as soon as a sibling falls silent while another answers: the other may see both;
- at rest, to the machine that leads every group: then no single cut concerns it at all.

Nothing here decides who leads a group. Without it, or when it is wrong, leadership of groups moves where it might have stayed, safely.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
import structlog

from runtimes.agent.etcd_member import passes_on
from runtimes.agent.peers import addresses
from runtimes.agent.router import RouterSupervisor
from runtimes.process.etcd import Etcd, OutcomeUnknown, read_prefix, values_of
from runtimes.process.records import LeaderRecord, parse
from runtimes.process.tls import ClientTls
from runtimes.protocol import RouterOrder, TlsFiles

log = structlog.get_logger()
LOOK_SECONDS = 0.1  # between two looks at a sibling that answers
SILENT_LOOK_SECONDS = 1.0  # between two looks at one that does not
LAG_SECONDS = 0.05  # by so much too late, this agent itself stood still, and what it saw says nothing
ASK_SECONDS = 1.0  # between two questions to the own router: does it lead, and who leads the groups
REST_SECONDS = 5.0  # for which every sibling has answered before etcd's leadership follows the groups'
MOVE_AGAIN_SECONDS = 2.0  # between two moves


@dataclass(frozen=True)
class Seen:
    """What the agent of the machine that leads etcd sees."""

    me: str
    answers: Mapping[str, bool]  # by sibling
    fallen: frozenset[str] = frozenset()  # siblings that answered since this router leads, and fell silent since the last move
    all_answer_since: float | None = None  # monotonic; None: not all do
    group_leaders: frozenset[str] = frozenset()  # machines that lead a group
    moved_at: float = float("-inf")  # monotonic


@dataclass(frozen=True)
class Move:
    to: str
    because: str


def next_move(seen: Seen, *, now: float) -> Move | None:
    """To whom etcd's leadership goes now; None: it stays."""
    if now < seen.moved_at + MOVE_AGAIN_SECONDS:
        return None
    if seen.fallen:
        others = [machine for machine, answers in seen.answers.items() if answers and machine not in seen.fallen]
        if not others:
            return None
        to = min(others, key=lambda machine: (machine not in seen.group_leaders, machine))
        return Move(to, f"{' and '.join(sorted(seen.fallen))} cannot be reached from here, {to} can, and may reach both")
    if seen.all_answer_since is not None and now >= seen.all_answer_since + REST_SECONDS and len(seen.group_leaders) == 1:
        (to,) = seen.group_leaders
        if to in seen.answers:
            return Move(to, f"{to} leads every group, and so depends on no other router's links")
    return None


class EtcdLeader:
    """Runs for ever; does nothing while another machine's router leads etcd."""

    def __init__(self, router: RouterSupervisor, tls: TlsFiles, namespace: Callable[[], str]) -> None:
        self.router = router
        self.files = tls
        self.tls = ClientTls(tls)
        self.namespace = namespace
        self.moved_at = float("-inf")
        self.group_leaders: frozenset[str] = frozenset()

    async def run(self) -> None:
        while True:
            endpoint, order = self.router.endpoint, self.router.order
            if endpoint is not None and order is not None and len(order.members) > 2 and not passes_on(order):
                client = Etcd(endpoint, self.files)
                try:
                    if await self._leads(client):
                        await self._watch_over(client, order)
                except OutcomeUnknown:
                    pass  # the own router is away or is asked too early: then it leads nothing
                finally:
                    await client.close()
            await asyncio.sleep(ASK_SECONDS)

    async def _leads(self, client: Etcd) -> bool:
        status = await client.ask("/v3/maintenance/status", {}, timeout=ASK_SECONDS)
        return int(status.get("leader", 0)) == int(status["header"]["member_id"])

    async def _watch_over(self, client: Etcd, order: RouterOrder) -> None:
        """While this machine's router leads etcd. Raises: OutcomeUnknown."""
        watches = {machine: Watched(host, port, self.tls, order.election_ms / 2000) for machine, (host, port) in addresses(order).items()}
        looking = [asyncio.create_task(watch.run()) for watch in watches.values()]
        loop = asyncio.get_running_loop()
        asked_at, rest_since = float("-inf"), None
        try:
            while self.router.order == order:
                now = loop.time()
                if now >= asked_at + ASK_SECONDS:
                    asked_at = now
                    if not await self._leads(client):
                        return
                    self.group_leaders = await self._machines_that_lead(client)
                answers = {machine: watch.answers for machine, watch in watches.items()}
                rest_since = (rest_since or now) if all(answers.values()) else None
                fallen = frozenset(machine for machine, watch in watches.items() if watch.fell)
                seen = Seen(order.name, answers, fallen, rest_since, self.group_leaders, self.moved_at)
                move = next_move(seen, now=loop.time())
                if move is not None:
                    self.moved_at = loop.time()
                    for watch in watches.values():
                        watch.fell = False
                    await self._move(client, move)
                    asked_at = float("-inf")
                await asyncio.sleep(LOOK_SECONDS / 4)
        finally:
            for task in looking:
                task.cancel()
            await asyncio.gather(*looking, return_exceptions=True)

    async def _machines_that_lead(self, client: Etcd) -> frozenset[str]:
        wanted = read_prefix(f"{self.namespace()}leaders/")["request_range"]
        answer = await client.ask("/v3/kv/range", wanted | {"serializable": True}, timeout=ASK_SECONDS)
        found = [parse(LeaderRecord, value) for value in values_of(answer)]
        return frozenset(record.runtime.partition(".")[0] for record in found if record is not None and record.runtime is not None)

    async def _move(self, client: Etcd, move: Move) -> None:
        members = (await client.ask("/v3/cluster/member/list", {}, timeout=ASK_SECONDS)).get("members", [])
        target = next((member["ID"] for member in members if member.get("name") == move.to), None)
        if target is None:
            return
        try:
            await client.ask("/v3/maintenance/transfer-leadership", {"targetID": target}, timeout=ASK_SECONDS)
        except OutcomeUnknown as error:
            log.info("etcd_leader_stays", text=f"etcd's leadership could not be handed to {move.to}: {error}.")
            return
        log.info("etcd_leader_moved", text=f"etcd's leadership goes to {move.to}: {move.because}.")


class Watched:
    """One sibling's router, asked again and again over one kept connection.

    It answers when it does so within half an election time-out: a renewal that was lost in a cut is given up after 0.3 s (LAN), and the
    next one must find another leader of etcd.
    """

    def __init__(self, host: str, port: int, tls: ClientTls, within: float) -> None:
        where = f"[{host}]" if ":" in host else host
        self.url = f"https://{where}:{port}/version"
        self.tls = tls
        self.within = within
        self.answers = False
        self.fell = False  # it answered before, and does not now

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        transport = httpx.AsyncHTTPTransport(verify=self.tls.context, retries=0, limits=httpx.Limits(max_connections=1))
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            while True:
                began = loop.time()
                # Whoever did not answer needs a handshake first, and has time for it: it cannot fall silent.
                answers = (self.answers or await self._ask(client, SILENT_LOOK_SECONDS)) and await self._ask(client, self.within)
                stood_still = self.answers and not answers and loop.time() - began > self.within + LAG_SECONDS
                if not stood_still:
                    self.fell = not answers and (self.answers or self.fell)
                    self.answers = answers
                await asyncio.sleep(max(began + (LOOK_SECONDS if self.answers else SILENT_LOOK_SECONDS) - loop.time(), 0.001))

    async def _ask(self, client: httpx.AsyncClient, within: float) -> bool:
        with contextlib.suppress(httpx.HTTPError, OSError, TimeoutError):
            self.tls.refresh()
            async with asyncio.timeout(within):
                return (await client.get(self.url)).status_code == 200
        return False
