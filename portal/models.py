"""Who, and what was designed: teams, projects, environments, properties; systems, connectors, flows, groups, drawn machines.

Acts over several rows live in `design.py` (Design phase), `creation.py` (Create phase) and `properties.py`.
"""

import uuid
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q
from django.urls import reverse

from portal import vault
from portal.vault import SealedText

NAME = RegexValidator(r"^[a-z][a-z0-9-]{0,39}$", "Use lower-case letters, digits and dashes, starting with a letter (at most 40).")
PROPERTY_KEY = RegexValidator(r"^[a-z0-9][a-z0-9._-]{0,199}$", "Use lower-case letters, digits, dots, dashes and underscores.")


class Role(models.TextChoices):
    """Each role includes the ones before it."""

    VIEWER = "viewer", "Viewer"  # reads
    DEVELOPER = "developer", "Developer"  # designs, creates, releases; plan, properties, preferences, Deploy in Test
    OPERATOR = "operator", "Operator"  # the same in every environment; Play, Stop, Disable, Enable
    ADMINISTRATOR = "administrator", "Administrator"  # members, machine tokens

    @classmethod
    def at_least(cls, role: "Role | str") -> list[str]:
        """The given role and every role that includes it."""
        return cls.values[cls.values.index(str(role)) :]


class Team(models.Model):
    name = models.CharField(max_length=80, unique=True)
    slug = models.SlugField(unique=True)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, through="Membership", related_name="teams")

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.VIEWER)

    class Meta:
        ordering: ClassVar = ["team", "user"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["team", "user"], name="one_membership_per_person_and_team")]

    def __str__(self) -> str:
        return f"{self.user} is {self.role} of {self.team}"


class ProjectQuerySet(models.QuerySet["Project"]):
    def visible_to(self, user: AbstractBaseUser | AnonymousUser) -> "ProjectQuerySet":
        """Projects of the teams the person belongs to; a non-member learns nothing of the others (404)."""
        return self.filter(team__memberships__user_id=user.pk or 0)


class Project(models.Model):
    """A team's integration landscape."""

    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="projects")
    name = models.CharField(max_length=80)
    slug = models.SlugField(unique=True, max_length=40, validators=[NAME])
    description = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("project", args=[self.slug])


class EnvironmentKind(models.TextChoices):
    TEST = "test", "Test"
    ACCEPTANCE = "acceptance", "Acceptance"
    PRODUCTION = "production", "Production"


class TimingProfile(models.TextChoices):
    """How fast failover is, and how much silence it bears. The figures are `runtimes.protocol.PROFILES`, by the same values."""

    LAN = "lan", "LAN"
    FAST_LAN = "fast-lan", "Fast LAN"
    WAN = "wan", "WAN"


class Environment(models.Model):
    """Test, Acceptance or Production of a project: own architecture, property values, plan, active release."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="environments")
    kind = models.CharField(max_length=16, choices=EnvironmentKind.choices)
    position = models.PositiveSmallIntegerField(default=0)  # 0 Test, 1 Acceptance, 2 Production: the order of promotion
    # What the failover cluster of this environment is called in etcd, and how often it was built anew (docs/failover.md, Epoch).
    cluster = models.UUIDField(default=uuid.uuid4, editable=False)
    generation = models.PositiveIntegerField(default=1)
    # On purpose (a demonstration): then loopback, or one address for several machines, is right as Internal IP.
    one_host = models.BooleanField("all machines on one host", default=False)
    # A wish: routers and runtimes take it over with their next deployment.
    timing_profile = models.CharField(max_length=12, choices=TimingProfile.choices, default=TimingProfile.LAN)

    class Meta:
        ordering: ClassVar = ["project", "position"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["project", "kind"], name="one_environment_per_kind")]

    def __str__(self) -> str:
        return f"{self.project} {self.get_kind_display()}"

    @property
    def name(self) -> str:
        """What people read: "Test"."""
        return EnvironmentKind(self.kind).label

    @property
    def is_production(self) -> bool:
        return self.kind == EnvironmentKind.PRODUCTION

    @property
    def namespace(self) -> str:
        """Prefix of this environment's keys in etcd."""
        return f"/baton/{self.cluster.hex}/"


# ------------------------------------------------------------------------------------------------------------------ design


class System(models.Model):
    """An external application that the project connects."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="systems")
    name = models.CharField(max_length=80)
    slug = models.SlugField(max_length=40, validators=[NAME])
    description = models.TextField(blank=True)
    multiple_runtimes = models.BooleanField(default=False)
    number_of_runtimes = models.PositiveSmallIntegerField(default=1)
    failover = models.BooleanField("run in failover", default=False)  # the wish, on the Solution page
    failover_applied = models.BooleanField(default=False)  # settled by Design › Architecture › Apply settings

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["project", "slug"], name="one_system_per_slug"),
            models.CheckConstraint(condition=Q(failover=False) | Q(multiple_runtimes=True), name="failover_needs_multiple_runtimes"),
            models.CheckConstraint(condition=Q(number_of_runtimes__gte=1), name="at_least_one_runtime"),
        ]

    def __str__(self) -> str:
        return self.name


class Connector(models.Model):
    """The designed program that holds a system's flows; named like its system unless there are several."""

    system = models.ForeignKey(System, on_delete=models.CASCADE, related_name="connectors")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="connectors")
    name = models.SlugField(max_length=40, validators=[NAME])
    # Create phase: failover support was transferred from Design (cluster settings, groups offered).
    failover = models.BooleanField(default=False)

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["project", "name"], name="one_connector_per_name")]

    def __str__(self) -> str:
        return self.name


class MachineKind(models.TextChoices):
    EXTERNAL = "external", "External"  # on premises
    CORE = "core", "Core"  # beside the portal


class DesignedMachine(models.Model):
    """A machine drawn in Design. `router` says that Apply settings put a router (on core: the witness) on it."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="designed_machines")
    name = models.SlugField(max_length=40, validators=[NAME])
    kind = models.CharField(max_length=16, choices=MachineKind.choices, default=MachineKind.EXTERNAL)
    router = models.BooleanField(default=False)

    class Meta:
        ordering: ClassVar = ["kind", "name"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["project", "name"], name="one_designed_machine_per_name")]

    def __str__(self) -> str:
        return self.name

    @property
    def is_witness(self) -> bool:
        return self.router and self.kind == MachineKind.CORE


class Placement(models.Model):
    """A connector put on a designed machine."""

    connector = models.ForeignKey(Connector, on_delete=models.CASCADE, related_name="placements")
    machine = models.ForeignKey(DesignedMachine, on_delete=models.CASCADE, related_name="placements")

    class Meta:
        ordering: ClassVar = ["machine", "connector"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["connector", "machine"], name="one_placement_per_connector_and_machine")]

    def __str__(self) -> str:
        return f"{self.connector} on {self.machine}"


# ------------------------------------------------------------------------------------------------------------------ create


def new_group_key() -> str:
    return f"g{uuid.uuid4().hex[:12]}"


class Group(models.Model):
    """A name on inbounds of one connector. `key` is what machines and etcd know it by: a rename keeps it."""

    connector = models.ForeignKey(Connector, on_delete=models.CASCADE, related_name="groups")
    name = models.SlugField(max_length=40, validators=[NAME])
    key = models.CharField(max_length=16, unique=True, default=new_group_key, editable=False)

    class Meta:
        ordering: ClassVar = ["connector", "name"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["connector", "name"], name="one_group_per_name_and_connector")]

    def __str__(self) -> str:
        return self.name


class InboundKind(models.TextChoices):
    """What portal/components.py knows the settings of."""

    FILE = "file", "File: a folder is polled"
    QUEUE = "queue", "Queue: messages are consumed"
    COMMAND = "command", "Command: any program runs while this runtime leads"
    HTTP = "http", "HTTP: a URL is polled"
    SFTP = "sftp", "SFTP: a folder of an SSH server is polled"
    AMQP = "amqp", "AMQP: messages of a RabbitMQ queue are consumed"
    TIMER = "timer", "Timer: an item at each instant of a schedule"


class OutboundKind(models.TextChoices):
    FILE = "file", "File: written into a folder"
    QUEUE = "queue", "Queue: messages are published"
    LOG = "log", "Log: written to the runtime's log"
    HTTP = "http", "HTTP: each item is a request"
    SFTP = "sftp", "SFTP: written into a folder of an SSH server"
    AMQP = "amqp", "AMQP: published to a RabbitMQ exchange or queue"
    SQL = "sql", "SQL: one statement per item, fenced by the database"


def new_flow_key() -> str:
    return f"f{uuid.uuid4().hex[:12]}"


class Flow(models.Model):
    """Steps from a source to a target. These fields are the working copy; only saved versions enter a release."""

    connector = models.ForeignKey(Connector, on_delete=models.CASCADE, related_name="flows")
    name = models.SlugField(max_length=40, validators=[NAME])
    key = models.CharField(max_length=16, unique=True, default=new_flow_key, editable=False)
    group = models.ForeignKey(Group, on_delete=models.SET_NULL, null=True, blank=True, related_name="flows")
    auto_start = models.BooleanField(default=True)  # without a group: start with the runtime
    inbound_kind = models.CharField(max_length=16)  # of InboundKind
    inbound_settings = models.JSONField(default=dict, blank=True)  # text values, placeholders allowed
    outbound_kind = models.CharField(max_length=16)  # of OutboundKind
    outbound_settings = models.JSONField(default=dict, blank=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["connector", "name"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["connector", "name"], name="one_flow_per_name_and_connector")]

    def __str__(self) -> str:
        return self.name

    def definition(self) -> dict[str, Any]:
        """The working copy in the shape a version keeps: {name, inbound, outbound, group (key or None), group_name, auto_start}."""
        return {
            "name": self.name,
            "inbound": {"kind": self.inbound_kind, "settings": self.inbound_settings},
            "outbound": {"kind": self.outbound_kind, "settings": self.outbound_settings},
            "group": self.group.key if self.group else None,
            "group_name": self.group.name if self.group else None,
            "auto_start": self.auto_start,
        }


class FlowVersion(models.Model):
    """A saved version of a flow: never changed afterwards."""

    flow = models.ForeignKey(Flow, on_delete=models.CASCADE, related_name="versions")
    major = models.PositiveIntegerField()
    minor = models.PositiveIntegerField()
    patch = models.PositiveIntegerField()
    description = models.CharField(max_length=200, blank=True)
    definition = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["flow", "-major", "-minor", "-patch"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["flow", "major", "minor", "patch"], name="one_flow_version_per_number")]

    def __str__(self) -> str:
        return f"{self.flow} {self.number}"

    @property
    def number(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


# -------------------------------------------------------------------------------------------------------------- properties


class PropertyKind(models.TextChoices):
    """What the value of a key has to look like (portal/property_types.py)."""

    TEXT = "text", "Text"
    NUMBER = "number", "Whole number"
    DECIMAL = "decimal", "Number"
    PORT = "port", "Port"
    IP = "ip", "IP address"
    HOST = "host", "Host"
    URL = "url", "URL"
    CRON = "cron", "Cron"
    SECRET = "secret", "Secret"  # every value of the key is one
    FILE = "file", "File or folder"


class PropertyType(models.Model):
    """The declared type of a key, for every environment of the project. Without a row it is guessed from where the key is used."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="property_types")
    key = models.CharField(max_length=200, validators=[PROPERTY_KEY])
    kind = models.CharField("type", max_length=8, choices=PropertyKind.choices)
    updated_at = models.DateTimeField(auto_now=True)
    updated_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["project", "key"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["project", "key"], name="one_type_per_key")]

    def __str__(self) -> str:
        return f"{self.key}: {self.get_kind_display()}"


def scope_name(machine: str, connector: str) -> str:
    """What people read: "global", "external01", "connector erp" or "external01.erp"."""
    if machine and connector:
        return f"{machine}.{connector}"
    return machine or (f"connector {connector}" if connector else "global")


class Property(models.Model):
    """The value of a placeholder `${key}` in one environment, for everything (both scopes empty), a machine, or a runtime (both set).

    The most specific value wins: runtime, then machine, then connector, then global (portal/properties.py).
    Scopes are names, so that values can be filled in before the architecture is applied.
    """

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="properties")
    key = models.CharField(max_length=200, validators=[PROPERTY_KEY])
    machine = models.CharField(max_length=40, blank=True, default="", help_text="Empty: every machine.")
    connector = models.CharField(max_length=40, blank=True, default="", help_text="Empty: every connector.")
    value = models.TextField(blank=True)  # empty for a secret
    secret = models.BooleanField(default=False, help_text="Never shown again once saved.")
    sealed = SealedText(blank=True, default="", editable=False)  # a secret's value
    updated_at = models.DateTimeField(auto_now=True)
    updated_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")

    class Meta:
        ordering: ClassVar = ["key", "machine", "connector"]
        verbose_name_plural = "properties"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["environment", "key", "machine", "connector"], name="one_value_per_key_and_scope"),
            models.CheckConstraint(condition=Q(secret=False, sealed="") | Q(secret=True, value=""), name="a_secret_is_never_kept_readable"),
        ]

    def __str__(self) -> str:
        return f"{self.key} ({self.scope})"

    @property
    def scope(self) -> str:
        return scope_name(self.machine, self.connector)

    @property
    def shown_value(self) -> str:
        """What a page may show."""
        return f"set on {self.updated_at:%Y-%m-%d %H:%M} UTC" if self.secret else self.value

    def reveal(self) -> str:
        """What a machine gets: the only way to a secret. Raises vault.Unreadable when its key is gone."""
        return vault.unseal(self.sealed, named=f"The secret {self}") if self.secret and self.sealed else self.value


class PropertyChange(models.Model):
    """One value that a person (or an act of the product) set or deleted. Rows of one act share `act`. Never changed, but for one thing:
    the sealed former value of a secret, kept so that the last change can be undone, is forgotten at the next change of its key."""

    environment = models.ForeignKey(Environment, on_delete=models.CASCADE, related_name="property_changes")
    act = models.UUIDField()
    cause = models.CharField(max_length=40)  # "set", "deleted", "pasted", "imported", "undone"
    at = models.DateTimeField(db_index=True)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    key = models.CharField(max_length=200)
    machine = models.CharField(max_length=40, blank=True, default="")
    connector = models.CharField(max_length=40, blank=True, default="")
    # None: there was no value. Empty for a secret, in both.
    before = models.TextField(null=True)  # noqa: DJ001 - an empty value is a value
    after = models.TextField(null=True)  # noqa: DJ001
    secret_before = models.BooleanField(default=False)
    secret_after = models.BooleanField(default=False)
    sealed_before = SealedText(blank=True, default="", editable=False)

    class Meta:
        ordering: ClassVar = ["-pk"]
        indexes: ClassVar = [models.Index(fields=["environment", "key", "-id"], name="history_of_a_key")]

    def __str__(self) -> str:
        return f"{self.key} ({self.scope}): {self.cause}"

    @property
    def scope(self) -> str:
        return scope_name(self.machine, self.connector)


class Heartbeat(models.Model):
    """The last sign of a background part ("worker", "beat"), read by /readyz."""

    name = models.CharField(max_length=20, primary_key=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name} at {self.at}"
