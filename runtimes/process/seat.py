"""This process's place in one group: its flows, its duty, and what it remembers between decisions."""

from dataclasses import dataclass, field

from runtimes.process.election import Decision
from runtimes.process.flows import Flow
from runtimes.process.permits import NEVER, Clock, Duty
from runtimes.protocol import GroupReport, GroupSpec, RanAlone, State, Status


@dataclass(slots=True)
class Seat:
    """Written by the election loop only."""

    spec: GroupSpec
    flows: list[Flow]
    clock: Clock
    duty: Duty | None = None
    decision: Decision | None = None
    drain_since: float | None = None
    vacant_since: float | None = None
    on_at: float = NEVER  # when it was last seen On, while it was its own leader
    detection: tuple[int, float] | None = None  # epoch, seconds from the old leader's last sign to the take
    announced: int = 0  # the epoch whose event was sent
    cut: int = 0  # the epoch whose end, by a permit that ran out, was told
    status: Status | None = None
    since: str = ""
    ran: RanAlone | None = None  # while it runs alone
    last_report: GroupReport | None = field(default=None, repr=False)

    @property
    def ready(self) -> bool:
        return all(flow.ready for flow in self.flows)

    @property
    def reason(self) -> str:
        return next((f"flow {flow.spec.name}: {flow.why_not_ready}" for flow in self.flows if not flow.ready), "")

    @property
    def busy(self) -> bool:
        return any(flow.busy for flow in self.flows)

    @property
    def alone(self) -> bool:
        """Does it run without a permit, because the majority is lost and the group's policy says so."""
        return self.duty is not None and self.duty.epoch == 0

    @property
    def state(self) -> State:
        """Do the inbounds really run: a worker that has not noticed yet that its permit is void takes nothing, so it counts as off."""
        if self.duty is None or not self.duty.valid():
            return State.OFF
        running = sum(flow.on for flow in self.flows)
        if running == len(self.flows):
            return State.ON
        return State.PARTLY if running else State.OFF

    @property
    def last_activity(self) -> str:
        return max((flow.last_activity for flow in self.flows), default="")

    def lead(self, epoch: int, until: float) -> bool:
        """Turn On under a permit; False when it already is."""
        if self.duty is not None and self.duty.epoch == epoch and self.duty.valid():
            if self.duty.taking:
                return False
            self.duty.resume()
        else:
            self.off()
            self.duty = Duty(self.spec.id, self.spec.name, epoch, until, self.clock)
        self.drain_since = None
        self.cut = 0
        for flow in self.flows:
            flow.start(self.duty)
        return True

    def drain(self, now: float) -> None:
        """Take nothing more; what is in flight may end under the permit."""
        if self.drain_since is None:
            self.drain_since = now
        if self.duty is not None:
            self.duty.stop_taking()
        for flow in self.flows:
            flow.stop()

    def off(self) -> None:
        """Void the duty and cut what is in flight."""
        if self.duty is None:
            return
        self.duty.void()
        self.duty = None
        for flow in self.flows:
            flow.abort()
