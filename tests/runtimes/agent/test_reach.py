"""The peers' test of an address, between two agents' parts over real sockets."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from runtimes.agent import reach
from runtimes.agent.reach import Reach
from runtimes.protocol import ReachAnswer, ReachOrder, ReachOutcome, RouterOrder, TlsFiles

SECRET = "s" * 43


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(4)
        yield held


def order(port: int, host: str = "127.0.0.1", **given: object) -> ReachOrder:
    return msgspec.structs.replace(
        ReachOrder(id="t1", machine="external01", host=host, port=port, secret=SECRET, valid_seconds=3.0), **given
    )


def part(machine: str, tmp_path: Path) -> Reach:
    none = str(tmp_path / "none.pem")
    return Reach(machine, TlsFiles(authority=none, machine=none), lambda: None)


async def answer_of(agent: Reach) -> ReachAnswer:
    async with asyncio.timeout(6):
        while not agent.answers:  # noqa: ASYNC110 - looked at as reports do
            await asyncio.sleep(0.005)
    return agent.answers[-1]


@contextlib.asynccontextmanager
async def taking_part(agent: Reach, asked: ReachOrder, router: RouterOrder | None = None):  # type: ignore[no-untyped-def]
    agent.take([asked], router)
    try:
        yield await answer_of(agent)
    finally:
        await agent.close()


def test_the_owner_listens_and_the_peer_reaches_it_and_says_how_long_it_took(tmp_path: Path, port: int) -> None:
    async def story() -> None:
        owner, peer = part("external01", tmp_path), part("external02", tmp_path)
        async with taking_part(owner, order(port)) as mine:
            assert mine.outcome == ReachOutcome.LISTENING
            async with taking_part(peer, order(port)) as said:
                assert said.outcome == ReachOutcome.REACHABLE
                assert said.seconds is not None and 0 < said.seconds < 1
        owner.take([], None)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(story())


def test_a_refusal_is_told_from_a_port_that_nobody_answers_on(tmp_path: Path, port: int) -> None:
    async def story() -> None:
        async with taking_part(part("external02", tmp_path), order(port)) as said:
            assert said.outcome == ReachOutcome.REFUSED
        async with taking_part(part("external02", tmp_path), order(port, host="no-such-host.invalid")) as said:
            assert said.outcome == ReachOutcome.NO_WAY

    asyncio.run(story())


def test_a_silent_host_times_out(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "CONNECT_SECONDS", 0.1)

    async def silent(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio, "open_connection", silent)

    async def story() -> None:
        async with taking_part(part("external02", tmp_path), order(port)) as said:
            assert (said.outcome, said.reason) == (
                ReachOutcome.TIMED_OUT,
                "no answer within 0.1 s, as behind a firewall or without a way there",
            )

    asyncio.run(story())


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"x" * 5000, b"\xff\xfe\n", b"0" * 64 + b"\n"])
def test_another_answerer_does_not_pass_for_the_machine(tmp_path: Path, port: int, reply: bytes) -> None:
    async def story() -> None:
        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(reply)
            writer.close()

        server = await asyncio.start_server(other, "127.0.0.1", port)
        async with server, taking_part(part("external02", tmp_path), order(port)) as said:
            assert said.outcome == ReachOutcome.WRONG_ANSWER

    asyncio.run(story())


def test_the_owner_of_another_test_does_not_pass_either_and_a_stranger_gets_no_answer(tmp_path: Path, port: int) -> None:
    async def story() -> None:
        owner = part("external01", tmp_path)
        async with taking_part(owner, order(port, secret="o" * 43)):
            async with taking_part(part("external02", tmp_path), order(port)) as said:
                assert said.outcome == ReachOutcome.WRONG_ANSWER
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"baton-reach abc 0123\n")
            assert await asyncio.wait_for(reader.read(), 4) == b""
            writer.close()

    asyncio.run(story())


def test_the_owner_says_why_it_cannot_listen(tmp_path: Path, port: int, taken: socket.socket) -> None:
    async def story() -> None:
        busy = int(taken.getsockname()[1])
        async with taking_part(part("external01", tmp_path), order(busy)) as said:
            assert (said.outcome, said.reason) == (ReachOutcome.TAKEN, f"another program listens on 127.0.0.1:{busy}")
        async with taking_part(part("external01", tmp_path), order(port, host="192.0.2.77")) as said:
            assert (said.outcome, said.reason) == (ReachOutcome.NOT_HERE, "192.0.2.77 is no address of this machine")
        async with taking_part(part("external01", tmp_path), order(port, host="no-such-host.invalid")) as said:
            assert said.outcome == ReachOutcome.NOT_HERE

    asyncio.run(story())


def test_a_router_that_is_ordered_meanwhile_finds_its_port_free(tmp_path: Path, port: int) -> None:
    async def story() -> None:
        owner = part("external01", tmp_path)
        async with taking_part(owner, order(port)):
            router = RouterOrder(name="external01", peer_host="127.0.0.1", peer_port=port, cluster_token="t", members={})
            owner.take([order(port)], router)
            async with asyncio.timeout(2):
                await owner.begun["t1"]
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                other.bind(("127.0.0.1", port))

    asyncio.run(story())


def test_an_answer_is_repeated_until_it_is_stored_and_forgotten_with_its_order(tmp_path: Path, port: int) -> None:
    async def story() -> None:
        peer = part("external02", tmp_path)
        async with taking_part(peer, order(port)) as said:
            peer.take([order(port)], None)
            assert peer.answers == [said]
            peer.stored([said])
            assert peer.answers == []
            peer.take([order(port)], None)
            assert len(peer.begun) == 1
            peer.take([], None)
            assert peer.begun == {}

    asyncio.run(story())
