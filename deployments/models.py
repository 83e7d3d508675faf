"""Which version, in which order, how far: releases, activations, plans, deployments and their steps."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.urls import reverse

from portal.models import Environment, Project


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
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["project", "-number"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["project", "number"], name="one_release_per_number")]

    def __str__(self) -> str:
        return f"{self.number} {self.name}"

    def get_absolute_url(self) -> str:
        return reverse("release", args=[self.project.slug, self.number])


class ActivationStatus(models.TextChoices):
    SCHEDULED = "scheduled", "Scheduled"
    ACTIVE = "active", "Active"  # the environment's choice now
    REPLACED = "replaced", "Replaced"  # was active
    CANCELLED = "cancelled", "Cancelled"
    FAILED = "failed", "Failed"  # due, but not allowed: see the reason


class Activation(models.Model):
    """The choice of a release for an environment: made now or due later. Activating chooses; only deploying changes machines."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="activations")
    release = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="activations")
    status = models.CharField(max_length=12, choices=ActivationStatus.choices)
    due_at = models.DateTimeField(null=True, blank=True)  # None: at once
    activated_at = models.DateTimeField(null=True, blank=True)
    reason = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["environment"], condition=Q(status="active"), name="one_active_release_per_environment")
        ]

    def __str__(self) -> str:
        return f"{self.release} on {self.environment}: {self.status}"


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


class Condition(models.TextChoices):
    """When a step runs at all; a deploy step whose bundle did not change is skipped in any case."""

    ALWAYS = "always", "Always"
    CHANGED = "changed", "Only when this deployment changed its target"


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
FINISHED = (RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.TIMED_OUT, RunStatus.SKIPPED, RunStatus.CANCELLED)


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
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["environment"], condition=Q(status__in=LIVE), name="one_live_deployment_per_environment")
        ]

    def __str__(self) -> str:
        return f"deployment {self.pk} of {self.release} on {self.environment}"

    def get_absolute_url(self) -> str:
        return reverse("deployment", args=[self.environment.project.slug, self.environment.kind, self.pk])


class FrozenValues(models.Model):
    """The property values a deployment uses, and the preferences it found (deployments/frozen.py). Never changed; resuming adds another."""

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
    step = models.ForeignKey(StepRun, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    choice = models.CharField(max_length=12, choices=Choice.choices)
    machine = models.CharField(max_length=40, blank=True)  # for Leave the machine out
    reason = models.TextField(blank=True)
    at = models.DateTimeField()
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return f"{self.choice} in deployment {self.deployment_id}"


class Exclusion(models.Model):
    """An offline machine that a deployment left out. It gets the release by itself, in a deployment of its own, when it returns."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="exclusions")
    machine = models.CharField(max_length=40)
    reason = models.TextField(blank=True)
    at = models.DateTimeField()
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    ended_at = models.DateTimeField(null=True, blank=True)  # it caught up, or need not any more
    ended_because = models.TextField(blank=True)
    caught_up_by = models.ForeignKey(Deployment, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["deployment", "machine"], name="one_exclusion_per_machine")]

    def __str__(self) -> str:
        return f"{self.machine} left out of deployment {self.deployment_id}"


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
