"""Which version, in which order, how far: releases, activations, plans, deployments and their steps."""

from datetime import datetime, timedelta
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.urls import reverse
from django.utils.functional import cached_property

from portal.errors import NotAllowed
from portal.models import Environment, Project
from runtimes.models import Runtime


class Release(models.Model):
    """Immutable numbered snapshot of the Create phase and what it needs; neutral of environments. Never changed after creation.

    `content`: {"flows": [{id, name, version, connector, inbound, outbound, group, auto_start}],
                "groups": [{id, name, connector}], "connectors": [{name, system, failover, machines: [names]}],
                "machines": [{name, kind, router}],
                "plans": {environment kind: [{title, …fields of StepFields}]}}   (built by releases.build)
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="releases")
    number = models.PositiveIntegerField()
    name = models.CharField(max_length=80)
    note = models.TextField(blank=True)
    content = models.JSONField()
    digest = models.CharField(max_length=64)  # SHA-256 of the canonical JSON of content
    # What of the Create phase it does not hold, when it was made: [{flow, connector, version: the saved one that it has, or ""}]
    omitted = models.JSONField(default=list, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["project", "-number"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["project", "number"], name="one_release_per_number")]

    def __str__(self) -> str:
        return f"{self.number} {self.name}"

    def get_absolute_url(self) -> str:
        return reverse("release", args=[self.project.slug, self.number])

    def hold(self) -> None:
        """Inside a transaction, before something comes to refer to the release: retention was first (then NotAllowed), or waits and
        sees it. Databases check references only at the end of a transaction, too late for words. SQLite has one writer at a time anyway."""
        if not Release.objects.select_for_update(no_key=True).filter(pk=self.pk).values_list("pk", flat=True):
            raise NotAllowed(f"Release {self.number} was removed a moment ago by the project's rule of retention.")

    @property
    def omissions(self) -> list[str]:
        """ "Flow returns (erp) had no saved version and was left out: …", with the remedy."""
        remedy = "save a version in Create › Flows, then make a new release."
        return [
            f"Flow {item['flow']} ({item['connector']}) was edited since {item['version']}, which the release has: its edits are not in it."
            f" To have them, {remedy}"
            if item["version"]
            else f"Flow {item['flow']} ({item['connector']}) had no saved version and was left out: {remedy}"
            for item in self.omitted
        ]


class ActivationStatus(models.TextChoices):
    SCHEDULED = "scheduled", "Scheduled"
    ACTIVE = "active", "Active"  # the environment's choice now
    REPLACED = "replaced", "Replaced"  # was active
    CANCELLED = "cancelled", "Cancelled"
    FAILED = "failed", "Failed"  # due, but not allowed: see the reason
    HELD = "held", "Held"  # paused with a reason; a person resumes, reschedules or cancels it
    EXPIRED = "expired", "Expired"  # came too late to be carried out


class Activation(models.Model):
    """The choice of a release for an environment: made now or due later. Activating chooses; only deploying changes machines."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="activations")
    release = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="activations")
    status = models.CharField(max_length=12, choices=ActivationStatus.choices)
    due_at = models.DateTimeField(null=True, blank=True)  # None: at once
    activated_at = models.DateTimeField(null=True, blank=True)
    expires_after_minutes = models.PositiveIntegerField(null=True, blank=True)  # later than this it is not carried out; None: however late
    deploys = models.BooleanField(default=False)  # deploy as soon as it is activated
    leaving_out = models.JSONField(default=list, blank=True)  # names of machines to deploy without, those of them that are offline then
    override = models.TextField(blank=True)  # why the rules of the environment are set aside, given when it was scheduled
    deployment = models.ForeignKey(
        "Deployment", on_delete=models.SET_NULL, null=True, blank=True, related_name="begun_by"
    )  # that it began, when it was due
    reason = models.TextField(blank=True)  # why it waits, is held, expired, failed or was cancelled
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["environment"], condition=Q(status="active"), name="one_active_release_per_environment")
        ]

    def __str__(self) -> str:
        return f"{self.release} on {self.environment}: {self.status}"

    @property
    def expires_at(self) -> datetime | None:
        """From then on it is not carried out any more; None: however late, or not scheduled."""
        if self.due_at is None or self.expires_after_minutes is None:
            return None
        return self.due_at + timedelta(minutes=self.expires_after_minutes)


class RetentionRule(models.Model):
    """Which releases of a project may go by themselves (deployments/retention.py). No row: none."""

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="retention")
    enabled = models.BooleanField(default=False)
    keep_last = models.PositiveIntegerField(default=20)  # the newest so many stay
    keep_days = models.PositiveIntegerField(default=90)  # those younger than so many days stay
    updated_at = models.DateTimeField(auto_now=True)
    updated_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    def __str__(self) -> str:
        return f"retention of {self.project}"


class ReleaseRemoval(models.Model):
    """A release that the retention rule removed, with its deployments. Never changed; its number is not given again."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="removals")
    number = models.PositiveIntegerField()
    name = models.CharField(max_length=80)
    digest = models.CharField(max_length=64)
    deployments = models.PositiveIntegerField(default=0)  # how many went with it
    at = models.DateTimeField()
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")  # None: the clock

    class Meta:
        ordering: ClassVar = ["-number"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["project", "number"], name="one_removal_per_number")]

    def __str__(self) -> str:
        return f"{self.number} {self.name}"


# ------------------------------------------------------------------------------------------------------ rules of an environment


class EnvironmentRules(models.Model):
    """What an environment asks before a release is activated or deployed there. Written by deployments.promotion; no row: the defaults."""

    environment = models.OneToOneField(Environment, on_delete=models.CASCADE, related_name="rules")
    in_order = models.BooleanField(default=True)  # only after a successful deployment in the environment before
    approvals = models.PositiveSmallIntegerField(default=0)  # people, not the requester
    approval_days = models.PositiveSmallIntegerField(default=14)  # an approval request ends after so many days
    time_zone = models.CharField(max_length=60, default="UTC")  # in which its times are entered, shown and its windows open
    expires_after_minutes = models.PositiveIntegerField(default=60)  # a scheduled activation that is later than this is not carried out
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name_plural = "environment rules"

    def __str__(self) -> str:
        return f"rules of {self.environment}"


class DeploymentWindow(models.Model):
    """When releases may be activated and deployed, in the environment's time zone. Without any: always. Closing at or before opening
    means the next day."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="windows")
    days = models.CharField(max_length=7)  # digits of weekdays on which it opens, 0 Monday to 6 Sunday
    opens = models.TimeField()
    closes = models.TimeField()

    class Meta:
        ordering: ClassVar = ["environment", "days", "opens"]

    def __str__(self) -> str:
        return f"{self.days} {self.opens:%H:%M}–{self.closes:%H:%M}"


class DeploymentFreeze(models.Model):
    """A time in which nothing is activated or deployed."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="freezes")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    reason = models.CharField(max_length=200)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["starts_at"]
        constraints: ClassVar = [models.CheckConstraint(condition=Q(ends_at__gt=models.F("starts_at")), name="freeze_ends_after_it_starts")]

    def __str__(self) -> str:
        return f"{self.environment} frozen: {self.reason}"


class RuleChange(models.Model):
    """Who changed the rules of an environment, when, and how. Never changed."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="rule_changes")
    at = models.DateTimeField()
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    sentence = models.TextField()

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return self.sentence


class RuleOverride(models.Model):
    """An act that the rules forbade and a person did all the same: which rules, why. Never changed."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="overrides")
    release = models.ForeignKey(Release, on_delete=models.CASCADE, related_name="overrides")
    act = models.CharField(max_length=40)  # "activate", "deploy", "activate at 2027-01-04 02:00 UTC"
    rules = models.JSONField(default=list)  # the sentences that forbade it
    reason = models.TextField()
    at = models.DateTimeField()
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"{self.act} {self.release} on {self.environment}: {self.reason}"


class ApprovalStatus(models.TextChoices):
    OPEN = "open", "Open"
    REJECTED = "rejected", "Rejected"
    WITHDRAWN = "withdrawn", "Withdrawn"
    ENDED = "ended", "Ended"  # too old, or another took its place after values or plan changed: see the reason


class ApprovalRequest(models.Model):
    """A wish to take one release to one environment with the values and the plan of that moment; it does not hold while they differ."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="approval_requests")
    release = models.ForeignKey(Release, on_delete=models.CASCADE, related_name="approval_requests")
    status = models.CharField(max_length=12, choices=ApprovalStatus.choices, default=ApprovalStatus.OPEN)
    note = models.TextField(blank=True)
    values_digest = models.CharField(max_length=64)
    values = models.JSONField()  # as FrozenValues.values: to name what changed
    plan_digest = models.CharField(max_length=64, default="")  # of the environment's plan (plans.digest)
    reason = models.TextField(blank=True)  # why it is no longer open
    created_at = models.DateTimeField()
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    expires_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["environment", "release"], condition=Q(status="open"), name="one_open_approval_request_per_release"
            )
        ]

    def __str__(self) -> str:
        return f"approval of {self.release} on {self.environment}: {self.status}"


class Approval(models.Model):
    """One person's yes. Withdrawn ones are kept."""

    request = models.ForeignKey(ApprovalRequest, on_delete=models.CASCADE, related_name="approvals")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    comment = models.TextField(blank=True)
    at = models.DateTimeField()
    withdrawn_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["request", "person"], condition=Q(withdrawn_at=None), name="one_standing_approval_per_person")
        ]

    def __str__(self) -> str:
        return f"{self.person} approved {self.request}"


# ---------------------------------------------------------------------------------------------------------- plans and deployments


class StepKind(models.TextChoices):
    """What a step does; one small class each in deployments/steps.py."""

    ALERTING_OFF = "alerting-off", "Alerting off until the deployment ends"
    DEPLOY_ROUTERS = "deploy-routers", "Deploy routers"
    DEPLOY_MACHINE = "deploy-machine", "Deploy machine"
    DEPLOY_RUNTIME = "deploy-runtime", "Deploy runtime"
    START_RUNTIME = "start-runtime", "Start runtime"
    STOP_RUNTIME = "stop-runtime", "Stop runtime"
    RESTART_RUNTIME = "restart-runtime", "Restart runtime"
    GROUP_START = "group-start", "Start group on a runtime"
    GROUP_STOP = "group-stop", "Stop group on a runtime"
    FLOW_START = "flow-start", "Start flow on a runtime"
    FLOW_STOP = "flow-stop", "Stop flow on a runtime"
    MANUAL = "manual", "Manual: wait for a person"
    WAIT_HEALTHY = "wait-healthy", "Wait until healthy"
    RUN_COMMAND = "run-command", "Run command on machine"
    HTTP_CHECK = "http-check", "HTTP check"
    BALANCE_FAILOVER = "balance-failover", "Balance failover"


DEPLOYS = (StepKind.DEPLOY_MACHINE, StepKind.DEPLOY_RUNTIME)  # what brings a release to runtimes


class Condition(models.TextChoices):
    """When a step runs at all; a deploy step whose bundle did not change is skipped in any case."""

    ALWAYS = "always", "Always"
    CHANGED = "changed", "Only when this deployment changed its target"


class HandOvers(models.TextChoices):
    """How far Balance failover goes for a preference; empty: as far as it takes."""

    ONCE = "once", "At most one hand-over per group in a deployment"


class Plan(models.Model):
    """The ordered recipe of an environment."""

    environment = models.OneToOneField(Environment, on_delete=models.CASCADE, related_name="plan")
    updated_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"plan of {self.environment}"


class StepFields(models.Model):
    """What a step of a plan and its execution share. Targets are names, so that a plan can be copied to another environment."""

    kind = models.CharField(max_length=20, choices=StepKind.choices)
    machine = models.CharField(max_length=40, blank=True, default="")
    connector = models.CharField(max_length=40, blank=True, default="")  # with machine: the runtime
    group = models.CharField(max_length=40, blank=True, default="")  # group name, for Group steps
    flow = models.CharField(max_length=80, blank=True, default="")  # name of an ungrouped flow, for Flow steps
    instruction = models.TextField(blank=True, default="")  # for Manual
    confirm_role = models.CharField(max_length=16, blank=True, default="")  # for Manual: who may confirm; empty: who may deploy
    command = models.CharField(max_length=80, blank=True, default="")  # name in the machine's own list, for Run command
    url = models.CharField(max_length=500, blank=True, default="")  # for HTTP check; may hold ${placeholders}
    expected_status = models.PositiveSmallIntegerField(default=200)  # for HTTP check
    hand_overs = models.CharField(max_length=8, choices=HandOvers.choices, blank=True, default="")  # for Balance failover
    stage = models.CharField(max_length=40, blank=True, default="")  # neighbours with the same name are one stage
    lane = models.CharField(max_length=40, blank=True, default="")  # lanes of one stage run side by side, steps of one lane in order
    condition = models.CharField(max_length=8, choices=Condition.choices, default=Condition.ALWAYS)
    retries = models.PositiveSmallIntegerField(default=0)  # tried again by itself so often
    timeout_seconds = models.PositiveIntegerField(default=120)

    class Meta:
        abstract = True

    @property
    def title(self) -> str:
        """ "Deploy runtime external01.erp" """
        target = f"{self.machine}.{self.connector}" if self.machine and self.connector else self.machine
        what = self.group or self.flow or self.command or self.url
        return " ".join(part for part in (StepKind(self.kind).label, target, what) if part)


# What a plan's step hands to its execution, and a copied plan to its copy.
STEP_FIELDS = tuple(field.name for field in StepFields._meta.fields)


class Step(StepFields):
    plan = models.ForeignKey(Plan, on_delete=models.CASCADE, related_name="steps")
    position = models.PositiveIntegerField()

    class Meta:
        ordering: ClassVar = ["plan", "position"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["plan", "position"], name="one_step_per_position")]

    def __str__(self) -> str:
        return f"{self.position}. {self.title}"


class RunStatus(models.TextChoices):
    """Of a deployment and of each of its steps."""

    PENDING = "pending", "Pending"
    RUNNING = "running", "Running"
    WAITING = "waiting", "Waiting for a person"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    TIMED_OUT = "timed-out", "Timed out"
    SKIPPED = "skipped", "Skipped"
    CANCELLED = "cancelled", "Cancelled"


LIVE = (RunStatus.PENDING, RunStatus.RUNNING, RunStatus.WAITING)
BROKEN = (RunStatus.FAILED, RunStatus.TIMED_OUT)  # a deployment that can be resumed
DONE = (RunStatus.SUCCEEDED, RunStatus.SKIPPED)  # a step after which the next one may begin
NOT_DONE = tuple(status for status in RunStatus if status not in DONE)
UNTIL_DEPLOYED = "it stays as it is until it is deployed again."  # what a broken promise to a machine left out ends with


class DeploymentQuerySet(models.QuerySet["Deployment"]):
    def that_ran(self) -> "DeploymentQuerySet":
        """With what a release came to run: by the whole plan, ended well, and what was to be deployed was deployed (or ran already):
        nothing of it skipped by a person, nor all of it left out with its machines."""
        skipped = Decision.objects.filter(deployment=OuterRef("pk"), choice=Choice.SKIP, step__kind__in=DEPLOYS)
        left_out = Exclusion.objects.filter(deployment=OuterRef("deployment"), machine=OuterRef("machine"))
        brought = StepRun.objects.filter(deployment=OuterRef("pk"), kind__in=DEPLOYS)
        brought = brought.filter(Q(status=RunStatus.SUCCEEDED) | (Q(status=RunStatus.SKIPPED) & ~Exists(left_out)))
        return self.filter(Exists(brought), ~Exists(skipped), status=RunStatus.SUCCEEDED, completes=None)


class Deployment(models.Model):
    """One execution of the plan, from a release. The database allows one live deployment per environment."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="deployments")
    release = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="deployments")
    status = models.CharField(max_length=12, choices=RunStatus.choices, default=RunStatus.PENDING)
    completes = models.ForeignKey(
        "self", on_delete=models.CASCADE, null=True, blank=True, related_name="completed_by"
    )  # a machine left out
    log_lines = models.PositiveIntegerField(default=0)  # how many lines its log has: they are numbered 1 to this, without a gap
    alerting_off = models.BooleanField(default=False)  # set by its step, ends with the deployment
    rollback_of = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, blank=True, related_name="rolled_back_by")
    is_rollback = models.BooleanField(default=False)  # stays when retention removes the deployment that was rolled back
    undone = models.BooleanField(default=False)  # a later roll back took it away; written down before retention removes that one
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = DeploymentQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["environment"], condition=Q(status__in=LIVE), name="one_live_deployment_per_environment")
        ]

    def __str__(self) -> str:
        return f"deployment {self.pk} of {self.release} on {self.environment}"

    def get_absolute_url(self) -> str:
        return reverse("deployment", args=[self.environment.project.slug, self.environment.kind, self.pk])

    @property
    def scheduled(self) -> Activation | None:
        """The scheduled activation that began it; None: a person did. Prefetch `begun_by` for lists."""
        return next(iter(self.begun_by.all()), None)


class FrozenValues(models.Model):
    """The property values a deployment uses, and the preferences it found (deployments/frozen.py). Resuming adds another. Never changed,
    but for one thing: the text of a key that becomes a secret is taken out of it."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="frozen")
    number = models.PositiveIntegerField()
    digest = models.CharField(max_length=64)  # SHA-256 over keys, scopes and digests of values
    values = models.JSONField()  # [{key, machine, connector, secret, value (None of a secret), digest}]
    preferences = models.JSONField(default=dict)  # runtime key -> preference
    created_at = models.DateTimeField()
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["deployment", "-number"]
        verbose_name_plural = "frozen values"
        constraints: ClassVar = [models.UniqueConstraint(fields=["deployment", "number"], name="one_freeze_per_number")]

    def __str__(self) -> str:
        return self.digest[:12]


class RunningValues(models.Model):
    """Which frozen values the bundle of a runtime was last made of: what it runs with. Written with its order (frozen.given)."""

    runtime = models.OneToOneField(Runtime, on_delete=models.CASCADE, related_name="+")
    frozen = models.ForeignKey(FrozenValues, on_delete=models.CASCADE, related_name="+")

    class Meta:
        verbose_name_plural = "running values"

    def __str__(self) -> str:
        return f"values of {self.runtime}"


class StepRun(StepFields):
    """One execution of one step; copied from the plan when the deployment was prepared."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="steps")
    number = models.PositiveIntegerField()
    stage_number = models.PositiveIntegerField(default=1)  # a stage begins when every step of the one before is done
    status = models.CharField(max_length=12, choices=RunStatus.choices, default=RunStatus.PENDING)
    reason = models.TextField(blank=True)  # a sentence: what it waits for, or why it ended so
    attempt = models.PositiveIntegerField(default=1)
    retried = models.PositiveSmallIntegerField(default=0)  # by itself, since a person last decided
    override = models.TextField(blank=True)  # why, and by whom, it may touch a leader without a ready follower
    memory = models.JSONField(default=dict, blank=True)  # what begin() leaves for check(): requests made, evidence
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    deadline_at = models.DateTimeField(null=True, blank=True)
    woken_at = models.DateTimeField(null=True, blank=True)  # last time a worker looked at it; the sweep re-sends what stands still

    class Meta:
        ordering: ClassVar = ["deployment", "number"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["deployment", "number"], name="one_step_run_per_number")]

    def __str__(self) -> str:
        return f"{self.number}. {self.title}: {self.status}"

    @cached_property
    def told(self) -> "list[StepLog]":
        """Lines that are not written down yet (looks.tell)."""
        return []


class StepAttempt(models.Model):
    """One try of a step that did not end well, kept when the step was tried again, skipped or left out."""

    step = models.ForeignKey(StepRun, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    status = models.CharField(max_length=12, choices=RunStatus.choices)
    reason = models.TextField(blank=True)
    memory = models.JSONField(default=dict, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["step", "number"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["step", "number"], name="one_row_per_attempt")]

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.step_id}: {self.status}"


class Choice(models.TextChoices):
    """What a person may decide about a deployment that stopped at a failure."""

    RETRY = "retry", "Retry"
    OVERRIDE = "override", "Go on without a standby"
    SKIP = "skip", "Skip"
    EXCLUDE = "exclude", "Leave the machine out"
    ROLL_BACK = "roll-back", "Roll back"
    ABORT = "abort", "Abort"


class Decision(models.Model):
    """What a person decided about a deployment, and why. Never changed."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="decisions")
    step = models.ForeignKey(StepRun, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")  # the first that it is about
    steps = models.JSONField(default=list, blank=True)  # the numbers of all of them: several lanes may stop at once
    choice = models.CharField(max_length=12, choices=Choice.choices)
    machine = models.CharField(max_length=40, blank=True)  # for Leave the machine out
    reason = models.TextField(blank=True)
    at = models.DateTimeField()
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return f"{self.choice} in deployment {self.deployment_id}"

    @property
    def numbers(self) -> list[int]:
        """Of the steps that it is about; of an old one that kept only the first, that."""
        return list(self.steps) or ([self.step.number] if self.step else [])


class Exclusion(models.Model):
    """An offline machine that a deployment left out. It gets the release by itself, in a deployment of its own, when it returns."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="exclusions")
    machine = models.CharField(max_length=40)
    reason = models.TextField(blank=True)
    at = models.DateTimeField()
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    waits = models.TextField(blank=True)  # why it has not caught up though it is back; empty: it is away
    ended_at = models.DateTimeField(null=True, blank=True)  # it caught up, or need not any more
    ended_because = models.TextField(blank=True)
    caught_up_by = models.ForeignKey(Deployment, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["deployment", "machine"], name="one_exclusion_per_machine")]

    def __str__(self) -> str:
        return f"{self.machine} left out of deployment {self.deployment_id}"

    @property
    def promise(self) -> str:
        """What the machine gets when it returns, or what became of that, a sentence. Reads `deployment.release` and `caught_up_by`."""
        number = self.deployment.release.number
        if self.caught_up_by is not None:
            its = f"deployment {self.caught_up_by_id}"
            status = self.caught_up_by.status
            if status == RunStatus.SUCCEEDED:
                return f"It is back and got release {number} in {its}."
            if status in LIVE:
                return f"It is back: {its} brings it release {number}."
            if status in BROKEN:
                return f"It is back, but {its}, which brings it release {number}, stopped at a failure: see there how it goes on."
            return f"It is back, but {its}, which brought it release {number}, was cancelled: {UNTIL_DEPLOYED}"
        if self.ended_at is not None:
            return self.ended_because
        if self.deployment.status in LIVE:
            return f"It gets release {number} by itself when it returns, once this deployment has ended well."
        if self.deployment.status in BROKEN:
            return (
                f"Whether it gets release {number} when it returns is decided with this deployment: once that has ended well, by itself; "
                "after Abort or Roll back, not."
            )
        return self.waits or f"It gets release {number} by itself when it returns."


class StepLog(models.Model):
    """What happened in a deployment, line by line, per step and machine. Secrets are masked before they are written."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="log")
    number = models.PositiveIntegerField()  # within the deployment, from 1 on, without a gap
    step = models.ForeignKey(StepRun, on_delete=models.CASCADE, related_name="log_lines")
    attempt = models.PositiveIntegerField(default=1)
    at = models.DateTimeField()
    level = models.CharField(max_length=8, default="info")
    machine = models.CharField(max_length=40, blank=True)
    text = models.TextField()

    class Meta:
        ordering: ClassVar = ["deployment", "number"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["deployment", "number"], name="one_log_line_per_number")]

    def __str__(self) -> str:
        return self.text
