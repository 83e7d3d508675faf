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
    MANUAL = "manual", "Manual: wait for a person"
    BALANCE_FAILOVER = "balance-failover", "Balance failover"


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
    instruction = models.TextField(blank=True, default="")  # for Manual
    timeout_seconds = models.PositiveIntegerField(default=120)

    class Meta:
        abstract = True

    @property
    def title(self) -> str:
        """ "Deploy runtime external01.erp" """
        target = f"{self.machine}.{self.connector}" if self.machine and self.connector else self.machine
        return " ".join(part for part in (StepKind(self.kind).label, target, self.group) if part)


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
    status = models.CharField(max_length=12, choices=RunStatus.choices, default=RunStatus.PENDING)
    reason = models.TextField(blank=True)  # a sentence: what it waits for, or why it ended so
    attempt = models.PositiveIntegerField(default=1)
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


class StepLog(models.Model):
    """What happened in a step, line by line, per machine where it applies."""

    step = models.ForeignKey(StepRun, on_delete=models.CASCADE, related_name="log_lines")
    at = models.DateTimeField()
    level = models.CharField(max_length=8, default="info")
    machine = models.CharField(max_length=40, blank=True)
    text = models.TextField()

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return self.text
