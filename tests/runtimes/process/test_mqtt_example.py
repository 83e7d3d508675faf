"""The worked example of docs/commands.md: Debian's `mosquitto_sub`, a program nobody here wrote, in failover against a real MQTT broker."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimes.protocol import BundleContent, Component, ComponentKind, FlowSpec, GroupSpec, Preference
from tests.runtimes.process.lab import ROOT, Broker, EtcdCluster, Launched, free_port, launch, queue, stop, until

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin")


class Mqtt:
    """A real mosquitto that keeps what a known client missed."""

    def __init__(self, home: Path) -> None:
        assert MOSQUITTO and shutil.which("mosquitto_sub"), "apt install mosquitto mosquitto-clients"
        self.port = free_port()
        (home / "mosquitto.conf").write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\nmax_queued_messages 0\n")
        self.log = home / "mosquitto.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([MOSQUITTO, "-v", "-c", home / "mosquitto.conf"], stdout=log, stderr=log)
        until(lambda: "running" in self.log.read_text(), 5, "mosquitto runs")

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            message = json.dumps({"id": f"sale-{number}", "total": number})
            command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(self.port), "-t", "tills/1/sales", "-q", "1", "-m", message]
            subprocess.run(command, check=True, timeout=10)


@pytest.fixture
def mqtt(tmp_path: Path) -> Iterator[Mqtt]:
    made = Mqtt(tmp_path)
    yield made
    stop(made.process)


def settings_in_docs() -> dict[str, str]:
    """The flow as docs/commands.md tells to fill it in."""
    text = (ROOT / "docs" / "commands.md").read_text().split("## An MQTT broker", 1)[1]
    block = text.split("```text\n", 1)[1].split("```", 1)[0]
    settings: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        if not line.startswith(" "):
            name, _, value = line.partition(":")
            settings[name] = value.strip()
        else:
            settings[name] = f"{settings[name]}\n{line.strip()}".strip()
    return settings


def test_the_example_takes_every_message_once_over_a_crash_and_the_broker_sees_one_client_at_a_time(
    tmp_path: Path, three_routers: EtcdCluster, broker: Broker, mqtt: Mqtt
) -> None:
    three_routers.clear()
    values = {"${tills.mqtt.host}": "127.0.0.1", "${tills.mqtt.port}": str(mqtt.port), "${tills.mqtt.password}": "not-asked-for"}
    settings = settings_in_docs()
    for placeholder, value in values.items():
        settings = {name: text.replace(placeholder, value) for name, text in settings.items()}
    flow = FlowSpec(
        id="f",
        name="till-sales",
        version="1.0.0",
        inbound=Component(kind=ComponentKind.COMMAND, settings=settings),
        outbound=queue(broker),
        group="g",
    )
    members = ["external01.tills", "external02.tills"]
    processes: list[Launched] = []

    def start(number: int, preference: Preference) -> Launched:
        bundle = BundleContent(
            environment="test", machine=f"external0{number}", connector="tills", release=1, flows=[flow],
            groups=[GroupSpec(id="g", name="sales", failover=True, members=members)],
        )  # fmt: skip
        process = launch(
            tmp_path, bundle, members[number - 1], three_routers.urls[number], number, {"g": preference}, tls=three_routers.tls
        )
        processes.append(process)
        return process

    def sales() -> list[int]:
        entries = [fields for _, fields in broker.client.xrange("t:orders")]
        return [json.loads(broker.client.lindex(fields[b"upload"], 0))["total"] for fields in entries]

    try:
        first = start(1, Preference.LEADER)
        until(first.leads, 10, "the first leads")
        second = start(2, Preference.BACKUP)
        until(second.follows, 10, "the second follows: the program is on its machine")
        until(lambda: "SUBSCRIBE" in mqtt.log.read_text(), 5, "it has subscribed")
        mqtt.publish(1, 2, 3)
        until(lambda: sales() == [1, 2, 3], 5)
        first.kill(keeper=True)
        mqtt.publish(4, 5)
        until(second.leads, 5, "the second leads")
        mqtt.publish(6)
        until(lambda: sorted(sales()) == [1, 2, 3, 4, 5, 6], 10, "also what was published while nobody led")
        second.process.terminate()
        assert second.process.wait(10) == 0
        mqtt.publish(7)
        third = start(1, Preference.LEADER)
        until(third.leads, 10)
        until(lambda: sorted(sales()) == [1, 2, 3, 4, 5, 6, 7], 10, "after a planned stop too")
        assert "already connected" not in mqtt.log.read_text(), "never two clients of the one name at once"
    finally:
        for process in processes:
            process.close()
