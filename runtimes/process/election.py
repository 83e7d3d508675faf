"""Who leads: pure decisions (docs/failover.md). No I/O and no clock: a view of the records, this process's own memory, and now.

All moments are seconds on this process's CLOCK_BOOTTIME. A decision says what to do next, what to show, and why, in one sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from runtimes.process.permits import ALWAYS, NEVER
from runtimes.process.records import ControlRecord, LeaderRecord, Observed, epoch_of
from runtimes.protocol import ALONE_BECAUSE, ISOLATED_BECAUSE, Cause, GroupSpec, IsolationPolicy, Preference, Status, Timing, epoch_words

ALONE_AFTER_TTLS = 3.0  # so long without a majority before a member runs alone: an election among the routers is over by then
# Shares of the time between two renewals of a candidate. A give-up compares its session; one that is refused because it was just renewed
# leaves the group Off for two transactions more. So none begins once the next renewal may come before it is through …
SETTLED_FOR = 0.6
LATE_AFTER = 1.5  # … but one that is as late as this is not waited for


class Action(StrEnum):
    """What to do with one group now."""

    LEAD = "lead"  # inbounds On
    LEAD_ALONE = "lead-alone"  # inbounds On without a permit, epoch 0: the majority is lost and the group's policy is to run alone
    FOLLOW = "follow"  # inbounds Off
    DRAIN = "drain"  # take nothing more, let what is in flight end
    HAND_OVER = "hand-over"  # Off, permit void, then give the group to `to`
    RELEASE = "release"  # Off, permit void, then leave the group vacant
    CLOSE = "close"  # end the open request with `code` and go on
    TAKE = "take"  # become the leader by one transaction


class SessionAction(StrEnum):
    LOOK = "look"  # nothing is known yet: read
    START = "start"
    WAIT = "wait"
    RENEW = "renew"


@dataclass(frozen=True, slots=True)
class Decision:
    action: Action
    status: Status
    sentence: str
    to: str | None = None  # HAND_OVER: the runtime that leads next
    cause: Cause | None = None  # TAKE, HAND_OVER, RELEASE
    actor: str = ""
    code: str = ""  # CLOSE: "" means that the request is fulfilled
    again_at: float = ALWAYS  # when time alone may change this decision
    awaits: str | None = None  # the runtime whose next renewal may change it


@dataclass(frozen=True, slots=True)
class SessionDecision:
    action: SessionAction
    sentence: str
    again_at: float = ALWAYS


@dataclass(frozen=True, slots=True)
class Own:
    """This process's own memory of one group."""

    preference: Preference = Preference.NONE
    ready: bool = True
    reason: str = ""  # why it is not ready
    stopping: bool = False
    permit_until: float = NEVER
    contact_until: float = NEVER  # the newest own transaction was sent at this - TTL + guard
    trouble: str = ""  # what the last request met
    held_off: bool = False  # a give-up's outcome is unknown, no renewal sent afterwards has succeeded yet
    busy: bool = False  # something is in flight
    drain_since: float | None = None
    vacant_since: float | None = None  # since when it has known that nobody living leads
    not_before: float = NEVER  # takes wait until here (the cluster was built anew)
    isolation: IsolationPolicy = IsolationPolicy.STOP  # of the group, as last read or as remembered from before
    disabled: bool = False  # is this member, as last read or as remembered from before
    unread: bool = False  # the last word of control/<group> was a newer program's: it may say that this member is disabled
    lost_since: float = ALWAYS  # since when no majority has answered although it was asked all the time
    alone: bool = False  # it runs alone now
    outside: str = ""  # why this machine is no part of the cluster any more; empty as far as its agent knows


@dataclass(frozen=True, slots=True)
class GroupView:
    """The records of one group as last received, and this process's own memory."""

    spec: GroupSpec
    me: str
    session: str  # this process's session id
    leader: LeaderRecord | None = None
    leader_revision: int = 0
    control: ControlRecord = field(default_factory=ControlRecord)
    unreadable: bool = False  # one of the two stands but was written by a program that this one does not understand
    control_revision: int = 0
    sessions: Mapping[str, Observed] = field(default_factory=dict)
    named: Mapping[str, int] = field(default_factory=dict)  # by runtime: the newest write that made it a leader, of whichever group
    own: Own = field(default_factory=Own)
    timing: Timing = field(default_factory=Timing)
    generation: int = 1

    @property
    def epoch(self) -> int:
        """Of the leadership that stands in the records; 0 while the group is vacant or was never led."""
        if self.leader is None or self.leader.runtime is None:
            return 0
        return epoch_of(self.generation, self.leader_revision)

    @property
    def mine(self) -> bool:
        """Do the records name this very session."""
        return self.leader is not None and self.leader.runtime == self.me and self.leader.session == self.session

    @property
    def peers(self) -> list[str]:
        return [member for member in self.spec.members if member != self.me]


@dataclass(frozen=True, slots=True)
class Vacancy:
    """Nobody living leads."""

    sentence: str
    cause: Cause
    actor: str = ""


def margin(timing: Timing) -> float:
    """So many seconds before a permit ends its group is Off already."""
    return timing.ttl * 0.05


def single_node_cause(spec: GroupSpec, me: str) -> str | None:
    """Why this runtime runs the group without failover; None: it is a failover group here.

    Only what it was deployed with says so. A machine without a router is no reason: its siblings may run the very same bundle.
    """
    if not spec.failover:
        return f"failover is not on for group {spec.name}: it runs as a normal inbound"
    if not [member for member in spec.members if member != me]:
        return f"the release gives group {spec.name} no peer: its connector has one runtime only"
    return None


NO_ROUTER = (
    f"{ISOLATED_BECAUSE}this machine has no router; apply the architecture and deploy the routers, or deploy the group without failover"
)


def decide_session(observed: Observed | None, session: str, started: bool, now: float) -> SessionDecision:
    """Renew the own session, or start it where the key is absent or has stood still for its full TTL on this clock."""
    if started:
        return SessionDecision(SessionAction.RENEW, f"renewing session {session}")
    if observed is None:
        return SessionDecision(SessionAction.LOOK, "reading the records for the first time")
    if observed.revision == 0:
        return SessionDecision(SessionAction.START, "no session of this runtime stands")
    stood = now - observed.since
    if stood >= observed.ttl:
        return SessionDecision(SessionAction.START, f"the session from before has stood still for {stood:.2f} s")
    other = observed.record.session if observed.record else "unreadable"
    return SessionDecision(
        SessionAction.WAIT, f"another process of this runtime may still live (session {other})", observed.since + observed.ttl
    )


def decide(view: GroupView, now: float) -> Decision:
    """What this process does with a failover group now. The rules stand in docs/failover.md, in this order of precedence."""
    own, disabled = view.own, view.own.disabled or view.me in view.control.disabled
    if now >= own.contact_until - margin(view.timing):
        why = own.trouble or "no answer from a majority of the routers yet"
        return _without_majority(view, now, disabled, why)
    if own.held_off:
        return Decision(Action.FOLLOW, Status.FOLLOWER, "gave leadership up and waits for a renewal to tell whether that was carried out")
    if view.unreadable:
        cannot = "connected, but this group's records cannot be read: a newer program wrote them, deploy it here"
        if view.mine:  # a session that goes on would keep it from whoever can read them
            return Decision(Action.RELEASE, Status.ISOLATED, f"{cannot}; gives leadership up", cause=Cause.NOT_READY)
        return Decision(Action.FOLLOW, Status.ISOLATED, cannot)
    disabled = view.me in view.control.disabled
    if view.mine:
        return _as_leader(view, now, disabled)
    if disabled:
        return Decision(Action.FOLLOW, Status.DISABLED, _disabled_sentence(view))
    return _as_follower(view, now)


def _without_majority(view: GroupView, now: float, disabled: bool, why: str) -> Decision:
    """Stop; or, where the group's policy says so, run alone once the majority has been lost for ALONE_AFTER_TTLS."""
    own = view.own
    if disabled:
        return Decision(Action.FOLLOW, Status.DISABLED, f"{ISOLATED_BECAUSE}{why}")
    if own.isolation != IsolationPolicy.RUN_ALONE:
        return Decision(Action.FOLLOW, Status.ISOLATED, f"{ISOLATED_BECAUSE}{why}")
    if own.outside:  # not cut off from the majority but put out of it, which goes on without this machine
        return Decision(Action.FOLLOW, Status.ISOLATED, f"{ISOLATED_BECAUSE}{own.outside}")
    if own.unread:  # they may say that it is disabled
        newer = "this group's records, written by a newer program, cannot be read, so it does not run alone"
        return Decision(Action.FOLLOW, Status.ISOLATED, f"{ISOLATED_BECAUSE}{why}; {newer}")
    if own.stopping:
        if own.alone:
            return Decision(Action.DRAIN, Status.SINGLE_NODE, f"draining: the runtime is asked to stop; isolated: {why}")
        return Decision(Action.FOLLOW, Status.ISOLATED, f"{ISOLATED_BECAUSE}{why}; this runtime is stopping")
    at = own.lost_since + ALONE_AFTER_TTLS * view.timing.ttl
    if now >= at:
        return Decision(Action.LEAD_ALONE, Status.SINGLE_NODE, f"{ALONE_BECAUSE}{why}")
    soon = "; it is about to run alone" if at < ALWAYS else ""  # one that stood still knows nothing of that time: it asks anew first
    return Decision(Action.FOLLOW, Status.ISOLATED, f"{ISOLATED_BECAUSE}{why}{soon}", again_at=at)


def ready_followers(view: GroupView, now: float) -> list[str]:
    """Peers that could lead at once, the best preferred first."""
    ready = [peer for peer in view.peers if not why_not_ready(view, peer, now)]
    return sorted(ready, key=lambda peer: (_rank(_preference(view, peer)), peer))


def _stays_up_to_date(view: GroupView, followers: list[str]) -> list[str]:
    """Those first that run this member's own release, then the newest: nobody asked for one that is left over from a former release."""
    releases = {key: session.record.release for key, session in view.sessions.items() if session.record is not None}
    own = releases.get(view.me)
    return sorted(followers, key=lambda peer: (releases.get(peer) != own, -releases.get(peer, 0)))  # stable: then the best preferred


def why_not_ready(view: GroupView, peer: str, now: float) -> str:
    """Why a member cannot lead now, or nothing."""
    if peer not in view.spec.members:
        return f"{peer} is no member of this group"
    if peer in view.control.disabled:
        return f"{peer} is disabled"
    observed = view.sessions.get(peer)
    if observed is None or observed.record is None:
        return f"{peer} has no session"
    if now - observed.since >= observed.ttl:
        return f"the session of {peer} has stood still for {now - observed.since:.1f} s"
    mark = observed.record.groups.get(view.spec.id)
    if mark is None:
        return f"the release of {peer} does not know this group"
    return "" if mark.ready else f"{peer} says that it is not ready"


def vacancy(view: GroupView, now: float) -> tuple[Vacancy | None, float]:
    """Is nobody living the leader, and when could time alone make it so."""
    leader = view.leader
    if leader is None:
        return Vacancy("nobody has led yet", Cause.FIRST), ALWAYS
    if leader.runtime is None:
        words = {Cause.DISABLE: "was disabled", Cause.RELEASE: "stopped cleanly", Cause.NOT_READY: "was not ready any more"}
        how = words.get(leader.cause, "gave it up")
        return Vacancy(f"{leader.previous or 'the leader'} {how}", leader.cause, leader.actor), ALWAYS
    observed = view.sessions.get(leader.runtime)
    if observed is None:
        return None, ALWAYS  # never heard of: the next answer tells
    if observed.revision == 0:
        return Vacancy(f"the session of {leader.runtime} is gone: its process ended", Cause.CRASH), ALWAYS
    if observed.record is not None and observed.record.session != leader.session:
        return Vacancy(f"{leader.runtime} has begun another session since it led", Cause.CRASH), ALWAYS
    if now - observed.since >= observed.ttl:
        # No figure here: a sentence that changed all the time would be news all the time.
        return Vacancy(f"the session of {leader.runtime} has stood still for a full TTL ({observed.ttl:g} s)", Cause.SILENCE), ALWAYS
    return None, observed.since + observed.ttl


def _as_leader(view: GroupView, now: float, disabled: bool) -> Decision:
    own, request = view.own, view.control.request
    if disabled:
        return _stop_leading(view, now, Status.DISABLED, Cause.DISABLE, view.control.disabled[view.me].actor, _disabled_sentence(view))
    if own.stopping:
        return _stop_leading(view, now, Status.LEADER, Cause.RELEASE, "", "the runtime is asked to stop")
    if not own.ready and _somebody_else_can(view, now):
        return _stop_leading(view, now, Status.LEADER, Cause.NOT_READY, "", f"not ready any more: {own.reason}")
    if request is not None:
        return _with_request(view, now)
    if not _permitted(view, now):
        return Decision(Action.FOLLOW, Status.LEADER, "leads by the records; waits for a renewal's permit")
    alone = "" if own.ready else f", though it is not ready ({own.reason}): nor is another member"
    return Decision(Action.LEAD, Status.LEADER, f"leads with epoch {epoch_words(view.epoch)}{alone}")


def _permitted(view: GroupView, now: float) -> bool:
    return now < view.own.permit_until - margin(view.timing)


def _before_draining(view: GroupView, to: str, now: float) -> Decision | None:
    """Lead on for a moment: `to` is about to renew its session, by its cadence or because it was just made leader of another group. None:
    its session stands for long enough now, or is late, or nothing is On here that could go on."""
    observed = view.sessions[to]
    every = view.timing.renewal / view.timing.ttl * observed.ttl  # under another profile about so
    until = observed.since + LATE_AFTER * every
    soon = now >= observed.since + SETTLED_FOR * every or observed.revision < view.named.get(to, 0)
    if not soon or now >= until or view.own.drain_since is not None or not _permitted(view, now):
        return None
    sentence = f"leads with epoch {epoch_words(view.epoch)}, until {to} has renewed its session; then hands over"
    return Decision(Action.LEAD, Status.LEADER, sentence, again_at=until, awaits=to)


def _somebody_else_can(view: GroupView, now: float) -> bool:
    """A leader that is not ready any more gives up to somebody who is, never to nobody: it may yet work again before anybody else can."""
    return bool(ready_followers(view, now))


def _with_request(view: GroupView, now: float) -> Decision:
    """The leader answers the one open request: refuses it, drains for it, or fulfils it."""
    own, request = view.own, view.control.request
    assert request is not None

    def close(code: str, sentence: str) -> Decision:
        return Decision(Action.CLOSE, Status.LEADER, sentence, code=code)

    if request.to == view.me:
        return close("", f"{view.me} leads already")
    if request.expected_epoch != view.epoch:
        now_and_then = f"epoch {epoch_words(view.epoch)}, expected {epoch_words(request.expected_epoch)}"
        return close("stale", f"leadership has changed since the request was made: {now_and_then}")
    if request.to is not None and (why := why_not_ready(view, request.to, now)):
        return close("not-ready", f"leadership stays here: {why}")
    candidates = [request.to] if request.to is not None else _stays_up_to_date(view, ready_followers(view, now))
    if not candidates:
        return close(
            "not-ready", f"leadership stays here: no other member is ready ({_why_nobody(view, now)}); Disable stops it all the same"
        )
    if (wait := _before_draining(view, candidates[0], now)) is not None:
        return wait
    if own.busy or own.drain_since is None:
        limit = (own.drain_since if own.drain_since is not None else now) + view.timing.drain
        if now >= limit:
            return close("drain-limit", f"leadership stays here: what was in flight did not end within {view.timing.drain:g} s")
        return Decision(Action.DRAIN, Status.LEADER, f"draining before {candidates[0]} takes over", again_at=limit)
    sentence = f"hands over to {candidates[0]}" + (f" as {request.actor} asked" if request.actor else "")
    return Decision(Action.HAND_OVER, Status.LEADER, sentence, to=candidates[0], cause=request.cause, actor=request.actor)


def _stop_leading(view: GroupView, now: float, status: Status, cause: Cause, actor: str, why: str) -> Decision:
    """Drain while the permit lasts, then hand over to a ready follower, or leave the group vacant."""
    own = view.own
    followers = _stays_up_to_date(view, ready_followers(view, now))
    if followers and status == Status.LEADER and (wait := _before_draining(view, followers[0], now)) is not None:
        return wait  # a disabled leader stops at once
    drained = not own.busy and own.drain_since is not None
    limit = min((own.drain_since if own.drain_since is not None else now) + view.timing.drain, own.permit_until - margin(view.timing))
    if not drained and now < limit:
        return Decision(Action.DRAIN, status, f"draining: {why}", again_at=limit)
    if followers:
        return Decision(Action.HAND_OVER, status, f"hands over to {followers[0]}: {why}", to=followers[0], cause=cause, actor=actor)
    return Decision(Action.RELEASE, status, f"gives leadership up, no other member is ready: {why}", cause=cause, actor=actor)


def _as_follower(view: GroupView, now: float) -> Decision:
    own = view.own

    def follow(sentence: str, again_at: float = ALWAYS) -> Decision:
        return Decision(Action.FOLLOW, Status.FOLLOWER, sentence, again_at=again_at)

    vacant, again_at = vacancy(view, now)
    if vacant is None:
        leader = view.leader.runtime if view.leader else "nobody"
        behind = "" if own.ready else f"; it is not ready to take over: {own.reason}"
        return follow(f"follows {leader}, which holds epoch {epoch_words(view.epoch)}{behind}", again_at)
    if own.stopping:
        return follow(f"{vacant.sentence}; this runtime is stopping")
    if not own.ready:
        return follow(f"{vacant.sentence}; this runtime is not ready: {own.reason}")
    if now < own.not_before:
        return follow(f"{vacant.sentence}; the cluster was built anew, a TTL is waited", own.not_before)
    since = own.vacant_since if own.vacant_since is not None else now
    better = _better_preferred(view, now)
    if better and now < since + view.timing.renewal:
        return follow(f"{vacant.sentence}; {better} is better preferred and goes first", since + view.timing.renewal)
    return Decision(Action.TAKE, Status.FOLLOWER, f"takes over: {vacant.sentence}", cause=vacant.cause, actor=vacant.actor)


def _better_preferred(view: GroupView, now: float) -> str | None:
    mine = _rank(view.own.preference)
    better = [peer for peer in ready_followers(view, now) if _rank(_preference(view, peer)) < mine]
    return better[0] if better else None


def _preference(view: GroupView, peer: str) -> Preference:
    observed = view.sessions.get(peer)
    mark = observed.record.groups.get(view.spec.id) if observed and observed.record else None
    return mark.preference if mark else Preference.NONE


def _rank(preference: Preference) -> int:
    return 0 if preference == Preference.LEADER else 1


def _why_nobody(view: GroupView, now: float) -> str:
    return "; ".join(why_not_ready(view, peer, now) for peer in view.peers) or "it has no peers"


def _disabled_sentence(view: GroupView) -> str:
    actor = view.control.disabled[view.me].actor
    return "disabled until enabled again" + (f", by {actor}" if actor else "")
