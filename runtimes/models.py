"""Where it runs, what was wished and what was heard.

`desired_*` is written by the portal's acts and sent to agents as orders; `observed_*` is written by reports only (fleet.record_report).
No page shows an observed fact without its age.
"""

import uuid
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import models
from django.db.models import Q
from django.utils import timezone

from portal.models import NAME, Connector, Environment, Group, MachineKind
from portal.vault import SealedBytes, SealedText, Unreadable
from runtimes import protocol


def choices(enum: type[StrEnum]) -> list[tuple[str, str]]:
    """Django choices of a wire enum: "no-majority" reads "No majority". What only a newer machine knows is no choice."""
    return [(member.value, member.value.replace("-", " ").capitalize()) for member in enum if member.value != "other"]


PREFERENCES = choices(protocol.Preference)


# ---------------------------------------------------------------------------------------------------------------- machines


class MachineQuerySet(models.QuerySet["Machine"]):
    def visible_to(self, user: AbstractBaseUser | AnonymousUser) -> "MachineQuerySet":
        return self.filter(environment__project__team__memberships__user_id=user.pk or 0)

    def silent_since(self, moment: datetime) -> "MachineQuerySet":
        """Machines with an agent whose last report is older than `moment`."""
        return self.filter(joined_at__isnull=False).filter(Q(last_report_at__lt=moment) | Q(last_report_at=None))


class Machine(models.Model):
    """A host of one environment. Exists from Apply to environment on; lives once its agent joined."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="machines")
    name = models.CharField(max_length=40, validators=[NAME])
    kind = models.CharField(max_length=16, choices=MachineKind.choices)
    # agent
    credential_digest = models.CharField(max_length=64, blank=True, editable=False, db_index=True)  # SHA-256 of the bearer credential
    joined_at = models.DateTimeField(null=True, blank=True)
    last_report_at = models.DateTimeField(null=True, blank=True)
    report_sequence = models.BigIntegerField(default=0)  # of the agent start below; an older report is ignored
    agent_started_at = models.CharField(max_length=40, blank=True)
    agent_version = models.CharField(max_length=40, blank=True)
    boot_id = models.CharField(max_length=64, blank=True)
    booted_at = models.DateTimeField(null=True, blank=True)  # by the boot-time clock of its last report
    late_seconds = models.FloatField(default=0.0)  # for how long its last report was under way, when that is longer than usual
    clock_ahead_seconds = models.FloatField(null=True, blank=True)  # its clock minus the portal's, at the last report
    suggested_address = models.CharField(max_length=64, blank=True)
    suggested_port = models.PositiveIntegerField(null=True, blank=True)
    listed_commands = models.JSONField(null=True, blank=True)  # names on the machine's own list; None: its agent does not tell
    # orders
    orders_version = models.BigIntegerField(default=1)  # grows with every change of what this machine should do (fleet.touch)
    orders_taken = models.BigIntegerField(default=0)  # newest version its agent said it took over

    objects = MachineQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["environment", "kind", "name"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["environment", "name"], name="one_machine_per_name_and_environment")]

    def __str__(self) -> str:
        return self.name

    @property
    def has_agent(self) -> bool:
        return self.joined_at is not None

    def is_silent(self, *, now: datetime) -> bool:
        """No report for longer than settings.AGENT_SILENT_AFTER_SECONDS (or never one)."""
        limit = timedelta(seconds=settings.AGENT_SILENT_AFTER_SECONDS)
        return self.last_report_at is None or now - self.last_report_at > limit


class JoinToken(models.Model):
    """A one-time, expiring permission for one agent to become this machine's. Only the digest is kept."""

    machine = models.ForeignKey(Machine, on_delete=models.CASCADE, related_name="join_tokens")
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)
    attempt_digest = models.CharField(max_length=64, blank=True)  # SHA-256 of the secret of the agent that used it

    def __str__(self) -> str:
        return f"token for {self.machine}"


class Router(models.Model):
    """The etcd member on a machine that failover needs: a router on an external machine, the witness on the core machine."""

    machine = models.OneToOneField(Machine, on_delete=models.CASCADE, related_name="router")
    # wish: written by the step Deploy routers with resolved properties; empty until then
    desired_running = models.BooleanField(default=False)
    desired_host = models.CharField(max_length=255, blank=True)
    desired_port = models.PositiveIntegerField(null=True, blank=True)
    desired_members = models.JSONField(default=dict, blank=True)  # member name -> peer URL, the same on all machines
    desired_member_id = models.CharField(max_length=32, blank=True)  # under which the running cluster added it; empty: a founding member
    cluster_known = models.BooleanField(default=False)  # that member once ran: an empty data directory is refused from then on
    desired_gateways = models.BooleanField(default=False)  # routers without a vote reach it through the network
    desired_change = models.JSONField(null=True, blank=True)  # protocol.MemberChange that this router is to carry, as a dict
    survivor = models.BooleanField(default=False)  # the cluster of this generation is built anew from its data (until that is reported)
    leaving = models.BooleanField(default=False)  # the design has no router here any more: it goes when its member was removed
    retimed_at = models.DateTimeField(null=True, blank=True)  # when a running one was last ordered to take another profile over
    desired_profile = models.CharField(  # its etcd's heartbeat and election time-out
        max_length=12, choices=choices(protocol.TimingProfile), default=protocol.TimingProfile.LAN
    )
    # fact
    observed_state = models.CharField(max_length=16, choices=choices(protocol.RouterState), default=protocol.RouterState.ABSENT)
    observed_reason = models.TextField(blank=True)
    observed_warning = models.TextField(blank=True)
    observed_member_id = models.CharField(max_length=32, blank=True)
    observed_cluster_id = models.CharField(max_length=32, blank=True)
    observed_version = models.CharField(max_length=20, blank=True)
    observed_peers = models.JSONField(default=list, blank=True)  # protocol.PeerReport as dicts
    observed_address = models.CharField(max_length=270, blank=True)  # peer URL at which it runs
    observed_token = models.CharField(max_length=80, blank=True)  # of the cluster it runs in
    observed_trusts = models.JSONField(default=list, blank=True)  # SHA-256 of each authority's certificate that its etcd has read
    observed_free_port = models.PositiveIntegerField(null=True, blank=True)  # where the ordered port is taken: one that is free there
    observed_learner = models.BooleanField(default=False)  # it runs and has no vote yet
    observed_outside = models.BooleanField(default=False)  # it is no member: its data are gone, or a removed member's
    observed_ordered_as = models.CharField(max_length=32, blank=True)  # desired_member_id of the order that all this was said under
    observed_members = models.JSONField(default=list, blank=True)  # protocol.ClusterMember as dicts
    observed_members_at = models.BigIntegerField(default=0)  # raft index of that list
    observed_change = models.CharField(max_length=40, blank=True)  # the last change it tried …
    observed_change_error = models.TextField(blank=True)  # … and why it was not made

    def __str__(self) -> str:
        return f"{'witness' if self.machine.kind == MachineKind.CORE else 'router'} on {self.machine}"


class MembershipStatus(models.TextChoices):
    RUNNING = "running", "Running"
    SUCCEEDED = "succeeded", "Succeeded"
    REFUSED = "refused", "Refused"  # a person has to put something right first; what it had done stays done
    REPLACED = "replaced", "Replaced"  # by a newer wish
    HALTED = "halted", "Stopped halfway"  # whoever drove it has ended: a person resumes it or rolls it back


class MembershipChange(models.Model):
    """A wish for other routers in a running cluster, brought about one safe step at a time (runtimes.membership). What is next follows
    from what the routers report, never from this row: it keeps the wish, and tells people how far it is."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="membership_changes")
    wished = models.JSONField()  # machine -> [Internal IP, Failover port] of every router that shall vote
    passing_on = models.JSONField(default=dict, blank=True)  # the same, of those beyond the five that vote
    before = models.JSONField(default=dict, blank=True)  # like `wished`, as it was: what a roll-back wishes
    before_passing_on = models.JSONField(default=dict, blank=True)
    driven_at = models.DateTimeField(null=True, blank=True)  # when a deployment last looked at it; None: it goes on by itself
    actor = models.CharField(max_length=150)
    status = models.CharField(max_length=12, choices=MembershipStatus.choices, default=MembershipStatus.RUNNING)
    sentence = models.TextField(blank=True)  # what goes on, or what it waits for
    refused = models.BooleanField(default=False)  # the sentence says what a person has to put right
    hand_over = models.CharField(
        max_length=40, blank=True
    )  # machine whose runtimes are to give up what they lead, before its router is touched
    handed_over = models.JSONField(default=list, blank=True)  # machines that have done so
    touched = models.JSONField(default=list, blank=True)  # machines whose routers must be seen to run before it is done
    log = models.JSONField(default=list, blank=True)  # [{"at": moment, "text": sentence}], oldest first
    created_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["environment"], condition=Q(status="running"), name="one_live_membership_change")
        ]

    def __str__(self) -> str:
        return f"routers of {self.environment}: {self.status}"

    @property
    def is_driven(self) -> bool:
        """It goes on, and a deployment looks after it; else a person may resume it or roll it back."""
        return self.status == MembershipStatus.RUNNING and self.driven_at is not None


class CertificateAuthority(models.Model):
    """The environment's own authority: whoever bears a certificate of it may speak to its routers. Made when the first machine asks.

    Written by runtimes.authority only. The private key is encrypted with a key derived from settings.SECRET_KEY."""

    environment = models.OneToOneField(Environment, on_delete=models.CASCADE, related_name="certificate_authority")
    number = models.PositiveIntegerField(default=1)  # grows with each renewal
    certificate = models.TextField()  # PEM
    encrypted_key = models.TextField(editable=False)
    former = models.TextField(blank=True)  # certificate (PEM) of the authority before, while it is trusted too; its key is gone
    bridge = models.TextField(blank=True)  # this authority's key, certified by the former one (PEM): certificates.bridge
    revoked = models.TextField()  # revocation list (DER, base64), made anew with every revocation
    revoked_number = models.PositiveIntegerField(default=1)  # of that list
    taken_back = models.JSONField(default=list, blank=True)  # machines whose certificates were revoked in the day before that list was made
    created_at = models.DateTimeField()  # of this authority, not of the first one

    class Meta:
        verbose_name_plural = "certificate authorities"

    def __str__(self) -> str:
        return f"authority of {self.environment}"


class MachineCertificate(models.Model):
    """A certificate that was issued, until it expires. It outlives its machine: that of a removed one stays on the list of revoked ones."""

    authority = models.ForeignKey(CertificateAuthority, on_delete=models.CASCADE, related_name="issued")
    machine = models.ForeignKey(Machine, on_delete=models.SET_NULL, null=True, blank=True, related_name="certificates")
    name = models.CharField(max_length=40)  # the machine's
    given_by = models.PositiveIntegerField(default=1)  # CertificateAuthority.number at that time
    serial = models.CharField(max_length=40, unique=True)  # hexadecimal
    names = models.JSONField(default=list)  # that it bears
    issued_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_because = models.CharField(max_length=80, blank=True)

    class Meta:
        ordering: ClassVar = ["-issued_at"]

    def __str__(self) -> str:
        return f"certificate {self.serial[:8]} of {self.name}"


class Bundle(models.Model):
    """What a runtime runs, addressed by the SHA-256 of its bytes (protocol.BundleContent, encoded). Never changed."""

    digest = models.CharField(max_length=64, primary_key=True)
    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="bundles")
    release_number = models.PositiveIntegerField()
    content = SealedBytes()
    # SHA-256 of what decides who may take (fleet.layout_of): bundles with the same may run side by side. Empty: made before it was kept.
    layout = models.CharField(max_length=64, blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.digest[:12]

    @property
    def is_lost(self) -> bool:
        """It was sealed under a property key that is missing: what runs by it runs on, and nobody can say what it is."""
        return not self.content

    def read(self) -> protocol.BundleContent:
        """Raises vault.Unreadable when it is lost; deploying again replaces it."""
        if self.is_lost:
            raise Unreadable(f"Bundle {self} cannot be read: it was sealed under a property key that is missing. Deploy again.")
        return protocol.decode(protocol.BundleContent, bytes(self.content))


class Runtime(models.Model):
    """A connector on one machine in one environment: a real process."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="runtimes")
    machine = models.ForeignKey(Machine, on_delete=models.CASCADE, related_name="runtimes")
    connector = models.ForeignKey(Connector, on_delete=models.PROTECT, related_name="runtimes")
    failover = models.BooleanField(default=False)  # as applied to this environment
    preference = models.CharField(max_length=8, choices=PREFERENCES, default=protocol.Preference.NONE)
    # wish
    desired_running = models.BooleanField(default=True)  # the intent of a person's start or stop persists
    desired_bundle = models.ForeignKey(Bundle, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    desired_release = models.PositiveIntegerField(null=True, blank=True)  # the newest one that gives it this bundle
    held = models.TextField(blank=True)  # why it must not run until it is deployed, whatever desired_running says (fleet.hold)
    desired_restarts = models.PositiveIntegerField(default=0)
    desired_stopped_flows = models.JSONField(default=list, blank=True)  # keys of ungrouped flows a person stopped
    # fact
    observed_state = models.CharField(max_length=16, choices=choices(protocol.RuntimeState), default=protocol.RuntimeState.STOPPED)
    observed_reason = models.TextField(blank=True)
    observed_pid = models.PositiveIntegerField(null=True, blank=True)
    observed_started_at = models.CharField(max_length=40, blank=True)
    observed_starts = models.PositiveIntegerField(default=0)
    observed_restarts = models.PositiveIntegerField(default=0)
    observed_digest = models.CharField(max_length=64, blank=True)
    observed_release = models.PositiveIntegerField(null=True, blank=True)
    observed_flows = models.JSONField(default=list, blank=True)  # protocol.FlowReport as dicts
    observed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["machine", "connector"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["machine", "connector"], name="one_runtime_per_machine_and_connector"),
            models.UniqueConstraint(
                fields=["environment", "connector"],
                condition=Q(preference="leader"),
                name="one_preferred_leader_per_connector_and_environment",
            ),
        ]

    def __str__(self) -> str:
        return self.key

    @property
    def bundle_release(self) -> int | None:
        """The release whose very bundle its process runs, where later ones gave it the same; None where it is not known, or the one it is
        shown on. Reads `desired_bundle`."""
        bundle = self.desired_bundle
        as_ordered = bundle is not None and self.observed_digest == bundle.pk and self.observed_release == self.desired_release
        return bundle.release_number if as_ordered and bundle and bundle.release_number != self.observed_release else None

    @property
    def key(self) -> str:
        """ "external01.erp": what agents, etcd and logs call it. Needs machine and connector selected."""
        return protocol.runtime_key(self.machine.name, self.connector.name)


class CommandRun(models.Model):
    """A command of a machine's own list, to be run once by its agent. Written by runtimes.commands and reports only."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    machine = models.ForeignKey(Machine, on_delete=models.CASCADE, related_name="commands")
    name = models.CharField(max_length=80)
    actor = models.CharField(max_length=150)  # "deployment 12"
    timeout_seconds = models.PositiveIntegerField()
    status = models.CharField(max_length=12, choices=choices(protocol.CommandStatus), default=protocol.CommandStatus.PENDING)
    exit_status = models.IntegerField(null=True, blank=True)
    reason = models.TextField(blank=True)
    output = models.JSONField(default=list, blank=True)  # lines
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} on {self.machine}"


class ReachTest(models.Model):
    """The last test of a machine's Internal IP : Failover port by the other machines (runtimes/reach.py)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    machine = models.OneToOneField(Machine, on_delete=models.CASCADE, related_name="reach_test")  # whose address it is
    host = models.CharField(max_length=255)
    port = models.PositiveIntegerField()
    secret = SealedText()  # by which the agents know each other
    actor = models.CharField(max_length=150)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)  # everybody has answered

    def __str__(self) -> str:
        return f"{self.host}:{self.port} of {self.machine}"


class ReachResult(models.Model):
    """One machine's part in a test: the owner's, or of one that tried to reach it."""

    test = models.ForeignKey(ReachTest, on_delete=models.CASCADE, related_name="results")
    machine = models.ForeignKey(Machine, on_delete=models.CASCADE, related_name="+")
    outcome = models.CharField(max_length=16, choices=choices(protocol.ReachOutcome))
    reason = models.CharField(max_length=500, blank=True)
    seconds = models.FloatField(null=True, blank=True)  # to connect
    at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["test", "machine"], name="one_result_per_test_and_machine")]

    def __str__(self) -> str:
        return f"{self.machine}: {self.outcome}"


LIVE_COMMANDS = (protocol.CommandStatus.PENDING, protocol.CommandStatus.RUNNING)


# ------------------------------------------------------------------------------------------------------------------ groups


class FailbackPolicy(models.TextChoices):
    """How leadership returns to the preferred leader (runtimes.failback)."""

    MANUAL = "manual", "Manual"
    AUTOMATIC = "automatic", "Automatic"  # once the preferred member has been ready for the stability time
    WINDOW = "window", "In a window"  # the same, within a time of the day


class FailoverGroup(models.Model):
    """A portal Group in one environment: made by Deploy routers/runtimes from the release that runs, kept for its history."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="failover_groups")
    group = models.ForeignKey(Group, on_delete=models.PROTECT, related_name="failover_groups")
    name = models.CharField(max_length=40)  # as the deployed release calls it
    failover = models.BooleanField(default=True)  # False: a group in a connector that does not run in failover
    epoch = models.BigIntegerField(default=0)  # highest heard of; a report below it is not believed
    last_gap_seconds = models.FloatField(null=True, blank=True)  # the last one that a new leader could measure …
    last_gap_at = models.DateTimeField(null=True, blank=True)  # … and when: later changes may have none
    isolation_policy = models.CharField(  # wish: what a member does without a majority
        max_length=12, choices=choices(protocol.IsolationPolicy), default=protocol.IsolationPolicy.STOP
    )
    failback = models.CharField(max_length=12, choices=FailbackPolicy.choices, default=FailbackPolicy.MANUAL)
    failback_stable_seconds = models.PositiveIntegerField(default=300)
    failback_window_start = models.TimeField(null=True, blank=True)  # in failback_zone; later than the end: over midnight
    failback_window_end = models.TimeField(null=True, blank=True)
    failback_zone = models.CharField(max_length=64, default="UTC")
    failback_held_by = models.CharField(max_length=150, blank=True)  # who keeps it from returning
    return_asked_at = models.DateTimeField(null=True, blank=True)  # when a return was last asked for: the claim of one worker

    class Meta:
        ordering: ClassVar = ["environment", "name"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["environment", "group"], name="one_failover_group_per_environment")]

    def __str__(self) -> str:
        return self.name


class GroupMember(models.Model):
    """A runtime in a group, as last reported. What a page says of it goes through `runtimes.failover.verdict` (age, lower epochs)."""

    group = models.ForeignKey(FailoverGroup, on_delete=models.CASCADE, related_name="members")
    runtime = models.ForeignKey(Runtime, on_delete=models.CASCADE, related_name="memberships")
    observed_status = models.CharField(max_length=16, choices=choices(protocol.Status), default=protocol.Status.UNKNOWN)
    observed_state = models.CharField(max_length=8, choices=choices(protocol.State), default=protocol.State.OFF)
    observed_reason = models.TextField(blank=True)
    observed_epoch = models.BigIntegerField(default=0)
    observed_ready = models.BooleanField(default=False)
    ready_since = models.DateTimeField(null=True, blank=True)  # ready, enabled and heard of without a break; None: it is not
    observed_since = models.CharField(max_length=40, blank=True)
    observed_last_activity = models.CharField(max_length=40, blank=True)
    observed_disabled = models.BooleanField(default=False)
    observed_isolation = models.CharField(max_length=12, choices=choices(protocol.IsolationPolicy), default=protocol.IsolationPolicy.STOP)
    observed_ttl = models.FloatField(null=True, blank=True)  # seconds, of the profile that its process runs under
    observed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["group", "runtime"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["group", "runtime"], name="one_member_per_group_and_runtime")]

    def __str__(self) -> str:
        return f"{self.runtime} in {self.group}"


class LeadershipChange(models.Model):
    """One change of leadership, as the new leader told it, and the cause as the former one's machine told it afterwards.

    Unique by epoch; read-only history, written by runtimes.history."""

    group = models.ForeignKey(FailoverGroup, on_delete=models.CASCADE, related_name="changes")
    epoch = models.BigIntegerField()
    runtime = models.CharField(max_length=82)  # key
    previous = models.CharField(max_length=82, blank=True)
    cause = models.CharField(max_length=16, choices=choices(protocol.Cause))
    actor = models.CharField(max_length=150, blank=True)
    detail = models.TextField(blank=True)  # how the former leader ended, in its machine's words
    at = models.DateTimeField()  # by the portal's clock, however wrong the machine's is
    heard_at = models.DateTimeField(default=timezone.now)  # by the portal's: when the report came
    detection_seconds = models.FloatField(null=True, blank=True)
    gap_seconds = models.FloatField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-epoch"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["group", "epoch"], name="one_change_per_group_and_epoch")]

    def __str__(self) -> str:
        return f"{self.group}: {self.runtime} leads since epoch {protocol.epoch_words(self.epoch)}"


class LeadershipEnd(models.Model):
    """How a leadership ended that was not handed over, as the former leader's machine told it; explains the change that
    followed and tells its gap."""

    group = models.ForeignKey(FailoverGroup, on_delete=models.CASCADE, related_name="ends")
    epoch = models.BigIntegerField()  # of the leadership that ended
    runtime = models.CharField(max_length=82)  # key
    cause = models.CharField(max_length=16, choices=choices(protocol.Cause))
    reason = models.TextField(blank=True)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-epoch"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["group", "epoch", "runtime"], name="one_end_per_leadership")]

    def __str__(self) -> str:
        return f"{self.group}: {self.runtime} led in epoch {protocol.epoch_words(self.epoch)} until {self.cause}"


class LeadershipInterruption(models.Model):
    """A leader lost its permit, was Off, and led on under the same epoch, as nobody had taken over: no change of leadership, and yet nobody
    led meanwhile. From its machine's words: how it ended, and since when it leads again."""

    group = models.ForeignKey(FailoverGroup, on_delete=models.CASCADE, related_name="interruptions")
    epoch = models.BigIntegerField()
    runtime = models.CharField(max_length=82)  # key
    cause = models.CharField(max_length=16, choices=choices(protocol.Cause))
    reason = models.TextField(blank=True)
    since = models.DateTimeField()
    until = models.DateTimeField()
    seconds = models.FloatField()  # until - since

    class Meta:
        ordering: ClassVar = ["-since"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["group", "epoch", "since"], name="one_interruption_per_moment")]

    def __str__(self) -> str:
        return f"{self.group}: {self.runtime} did not lead for {self.seconds:.1f} s in epoch {protocol.epoch_words(self.epoch)}"


LIVE_REQUESTS = (protocol.RequestStatus.PENDING, protocol.RequestStatus.RUNNING)


class GroupRequest(models.Model):
    """A wish for a group (see RequestKind), carried to etcd by an agent. The database allows one live one per group."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    group = models.ForeignKey(FailoverGroup, on_delete=models.CASCADE, related_name="requests")
    kind = models.CharField(max_length=8, choices=choices(protocol.RequestKind))
    machine = models.CharField(max_length=40, blank=True)  # candidate, or whose member; empty: any ready follower
    expected_epoch = models.BigIntegerField(null=True, blank=True)
    policy = models.CharField(max_length=12, blank=True, choices=choices(protocol.IsolationPolicy))  # kind policy only
    cause = models.CharField(max_length=16, choices=choices(protocol.Cause))
    actor = models.CharField(max_length=150)
    status = models.CharField(max_length=12, choices=choices(protocol.RequestStatus), default=protocol.RequestStatus.PENDING)
    code = models.CharField(max_length=40, blank=True)
    reason = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["group"], condition=Q(status__in=LIVE_REQUESTS), name="one_live_request_per_group")
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.machine or 'any'} in {self.group}: {self.status}"


class ItemInquiry(models.Model):
    """A question about the failed items of a flow in a runtime, or an act on them, and the agent's answer. A question is forgotten after a
    while: the items themselves stay where they are. Of an act (try again, discard) who did it to which items is kept."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    runtime = models.ForeignKey(Runtime, on_delete=models.CASCADE, related_name="inquiries")
    flow = models.CharField(max_length=16)  # key
    flow_name = models.CharField(max_length=80, blank=True, default="")  # when it was asked
    act = models.CharField(max_length=8, choices=choices(protocol.ItemAct))
    keys = models.JSONField(default=list, blank=True)
    actor = models.CharField(max_length=150)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    answered_at = models.DateTimeField(null=True, blank=True)
    problem = models.TextField(blank=True)
    total = models.PositiveIntegerField(default=0)
    items = models.JSONField(default=list, blank=True)  # protocol.FailedItem as dicts
    content = SealedBytes(blank=True, default=b"")  # act view: the first bytes, as the machine masked them
    size = models.PositiveBigIntegerField(default=0)
    acted = models.PositiveIntegerField(null=True, blank=True)  # on how many items; None: not an act, not answered, or an older agent
    done = models.JSONField(default=list, blank=True)  # those items (of many the first): [{key, item, name}]

    class Meta:
        ordering: ClassVar = ["-created_at"]
        verbose_name_plural = "item inquiries"

    def __str__(self) -> str:
        return f"{self.act} failed items of {self.flow} in {self.runtime}"


class AlarmKind(models.TextChoices):
    OFF = "leader-but-off", "Leader but Off"
    PARTLY = "partly", "Partly"
    SILENT = "leader-but-silent", "Leader but silent"
    STRAY = "on-without-leading", "On without leading"
    ALONE = "runs-alone", "Runs alone"


class Alarm(models.Model):
    """A member of a group that does not do what its status says. Raised and cleared by runtimes.alarms, kept as history."""

    group = models.ForeignKey(FailoverGroup, on_delete=models.CASCADE, related_name="alarms")
    runtime = models.CharField(max_length=82)  # key
    kind = models.CharField(max_length=20, choices=AlarmKind.choices)
    subject = models.CharField(max_length=80, blank=True)  # the flow, of a silent inbound
    sentence = models.TextField()
    remedy = models.TextField()
    since = models.DateTimeField()  # first seen
    raised_at = models.DateTimeField(null=True, blank=True)  # None: it may yet be a passing state
    cleared_at = models.DateTimeField(null=True, blank=True)
    cleared_because = models.TextField(blank=True)

    class Meta:
        ordering: ClassVar = ["-since", "-pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["group", "runtime", "kind", "subject"], condition=Q(cleared_at=None), name="one_open_alarm_per_kind_and_member"
            )
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.runtime} in {self.group}"


class SwitchEnding(models.TextChoices):
    """How a switch for a time ended."""

    RETURNED = "returned", "Returned"
    CANCELLED = "cancelled", "Cancelled"  # somebody let it stand
    OVERTAKEN = "overtaken", "Overtaken"  # leadership moved otherwise
    GIVEN_UP = "given-up", "Given up"  # the preferred member could not lead
    FAILED = "failed", "Failed"  # the switch itself did not happen


class TimedSwitch(models.Model):
    """A switch by hand that is for a time only: at its end leadership returns to the preferred leader (runtimes.failback)."""

    group = models.ForeignKey(FailoverGroup, on_delete=models.CASCADE, related_name="timed_switches")
    request = models.OneToOneField(GroupRequest, on_delete=models.CASCADE, related_name="timed")
    machine = models.CharField(max_length=40, blank=True)  # moved to; empty: any ready follower
    actor = models.CharField(max_length=150)
    until = models.DateTimeField()
    tried_since = models.DateTimeField(null=True, blank=True)  # the first look after its end at which it was known who leads
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    ending = models.CharField(max_length=12, choices=SwitchEnding.choices, blank=True)
    reason = models.TextField(blank=True)

    class Meta:
        verbose_name_plural = "timed switches"
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["group"], condition=Q(ended_at=None), name="one_standing_timed_switch_per_group")
        ]

    def __str__(self) -> str:
        return f"{self.group} on {self.machine or 'another member'} until {self.until:%Y-%m-%d %H:%M} UTC"


class RuntimeLog(models.Model):
    """A line of a runtime's, router's or agent's log; bounded per machine and source (settings.LOG_LINES_KEPT_PER_RUNTIME)."""

    machine = models.ForeignKey(Machine, on_delete=models.CASCADE, related_name="log_lines")
    source = models.CharField(max_length=82)  # runtime key, "router" or "agent"
    at = models.DateTimeField()
    level = models.CharField(max_length=8, choices=choices(protocol.LogLevel))
    text = models.TextField()

    class Meta:
        ordering: ClassVar = ["id"]
        indexes: ClassVar = [models.Index(fields=["machine", "source", "id"], name="log_by_machine_and_source")]

    def __str__(self) -> str:
        return f"{self.source}, {self.at:%Y-%m-%d %H:%M:%S}"  # never the text: it is shown masked only
