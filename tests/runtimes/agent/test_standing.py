"""Which connections have to end when a certificate is taken back."""

import os
import socket

import pytest

from runtimes.agent import standing
from runtimes.agent.etcd_member import trusts_nobody
from runtimes.agent.standing import Connection, parse, suspects

TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100000A:094B 0200000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 111 1 0 20 4 30 10 -1
   1: 0100007F:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 112 1 0 100 0 0 10 0
   2: 0100007F:D432 0100007F:4E20 01 00000000:00000000 00:00000000 00000000  1000        0 113 1 0 20 4 30 10 -1
"""
PEER = Connection(2379, "10.0.0.2", 54321, 111)
LOCAL = Connection(54322, "127.0.0.1", 20000, 113)


def test_the_kernels_table_is_read() -> None:
    assert parse(TABLE) == [PEER, LOCAL], "what listens is no connection"
    six = TABLE.splitlines()[0] + "\n   0: 0000000000000000FFFF00000100000A:094B 0000000000000000FFFF00000200000A:D431 01 0 0 0 0 0 111"
    assert parse(six) == [PEER], "IPv4 in IPv6 is the same address"


@pytest.mark.parametrize(
    ("trusted", "own", "found"),
    [
        pytest.param({"10.0.0.2"}, {113}, [], id="a member and the machine's own program stay"),
        pytest.param(set(), {113}, [PEER], id="the member's certificate was revoked"),
        pytest.param({"10.0.0.2"}, set(), [LOCAL], id="another local user's program"),
        pytest.param({"10.0.0.9"}, set(), [PEER, LOCAL], id="nobody who is known"),
    ],
)
def test_whose_connections_have_to_end(trusted: set[str], own: set[int], found: list[Connection]) -> None:
    seen = suspects([PEER, LOCAL], network_ports={2379}, client_port=20000, trusted_hosts=trusted, own_sockets=own)
    assert seen == frozenset(found)


def test_an_own_connection_is_known_by_its_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = server.getsockname()[1]
        mine = standing.sockets_of([os.getpid()])
        tables = standing.read_tables()
        assert suspects(tables, network_ports=(), client_port=port, trusted_hosts=(), own_sockets=mine) == frozenset()
        (found,) = suspects(tables, network_ports=(), client_port=port, trusted_hosts=(), own_sockets=())
        assert found.local_port == client.getsockname()[1]


def test_the_same_port_number_elsewhere_is_another_program() -> None:
    elsewhere = Connection(54323, "192.0.2.7", 20000, 114)
    assert suspects([elsewhere], network_ports={2379}, client_port=20000, trusted_hosts=(), own_sockets=()) == frozenset()


@pytest.mark.parametrize(
    ("read", "roots", "restart"),
    [
        pytest.param("a", ["a"], False, id="the same"),
        pytest.param("a", ["b", "a"], False, id="it is being renewed: certificates of b carry a's word"),
        pytest.param("a", ["b"], True, id="the former one is retired"),
        pytest.param("b a", ["b"], False, id="it has restarted in the overlap"),
        pytest.param("", ["a"], True, id="an unknown one"),
    ],
)
def test_when_a_router_restarts_for_another_authority(read: str, roots: list[str], restart: bool) -> None:
    assert trusts_nobody(read, roots) is restart
