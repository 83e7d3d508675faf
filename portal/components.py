"""What inbounds and outbounds can be set: one entry per kind. A new kind is one entry here and one connector in runtimes/process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

from jinja2 import Environment, TemplateSyntaxError, meta, nodes

from portal import property_types
from portal.errors import Invalid
from portal.models import InboundKind, OutboundKind, PropertyKind
from portal.placeholders import check_placeholders, placeholders, without_placeholders
from portal.time_zones import zone_of

Side = Literal["inbound", "outbound"]
SIDES: tuple[Side, ...] = ("inbound", "outbound")


@dataclass(frozen=True)
class Setting:
    """One field. `default` is filled in for a new flow, `example` only shown in grey while the field is empty; `least` and `most` bound a
    number; `choices` are words with their labels; `lines` makes it a field of several lines, of the form name<sign>value where `sign` is
    set. `kind` is what a placeholder that stands for the whole setting has to be: values of its key are checked against it unless another
    type is declared. A secret has to be a placeholder."""

    name: str
    label: str
    help: str
    required: bool = True
    default: str = ""
    example: str = ""
    least: float | None = None
    most: float | None = None
    kind: PropertyKind = PropertyKind.TEXT
    choices: tuple[tuple[str, str], ...] = ()
    lines: bool = False
    sign: str = ""


_KEPT = [
    Setting("failed_days", "Keep failed items (days)", "From 0.01 to 3650. Empty: 30.", required=False, least=0.01, most=3650),
    Setting("failed_items", "Keep failed items (at most)", "The oldest go first. Empty: 1000.", required=False, least=1, most=100000),
]
_URL = Setting(
    "url",
    "Server",
    "Address of the queue server, as redis://… Usually a placeholder, for it differs by environment.",
    default="${queues.url}",
    kind=PropertyKind.URL,
)
_QUEUE = Setting("queue", "Queue", "Name of the queue. Producer and consumer name the same one.")
_PREFIX = Setting(
    "prefix", "Key prefix", "Goes before every key in a server that is shared with others.", required=False, default="${queues.prefix}"
)

_HTTP = [
    Setting(
        "headers",
        "Headers",
        "One Name: value per line. Passwords and tokens by placeholders.",
        required=False,
        lines=True,
        sign=":",
    ),
    Setting("timeout_seconds", "Time-out (seconds)", "From 0.1 to 300. Empty: 10.", required=False, least=0.1, most=300),
    Setting(
        "ca_file",
        "Authority's certificate",
        "A file in PEM on the machine. Empty: the authorities that the machine trusts. Certificates are always verified.",
        required=False,
        kind=PropertyKind.FILE,
    ),
]

_SFTP = [
    Setting("host", "Server", "Name or address.", example="${partner.sftp.host}", kind=PropertyKind.HOST),
    Setting("port", "Port", "Empty: 22.", required=False, least=1, most=65535, kind=PropertyKind.PORT),
    Setting("user", "User", "Who signs in.", example="${partner.sftp.user}"),
    Setting("password", "Password", "A placeholder of a secret. Or give a private key.", required=False, kind=PropertyKind.SECRET),
    Setting(
        "private_key",
        "Private key",
        "A placeholder of a secret: the key in OpenSSH's or PEM form, without a passphrase.",
        required=False,
        kind=PropertyKind.SECRET,
    ),
    Setting(
        "host_key",
        "Host key",
        "The server's public key, as ssh-keyscan prints it after the name: ssh-ed25519 AAAA… Several: one per line. It is always verified.",
        lines=True,
        example="${partner.sftp.host-key}",
    ),
    Setting("folder", "Folder on the server", "An absolute path, or one below where the user arrives."),
]
_NO_YES = (("no", "No"), ("yes", "Yes"))
_AMQP = [
    Setting("host", "Broker", "Name or address.", example="${rabbitmq.host}", kind=PropertyKind.HOST),
    Setting("port", "Port", "Empty: 5672, with TLS 5671.", required=False, least=1, most=65535, kind=PropertyKind.PORT),
    Setting("virtual_host", "Virtual host", "Empty: /", required=False),
    Setting("user", "User", "Who signs in. RabbitMQ lets its guest in from its own machine only.", example="${rabbitmq.user}"),
    Setting("password", "Password", "A placeholder of a secret.", example="${rabbitmq.password}", kind=PropertyKind.SECRET),
    Setting(
        "tls",
        "TLS",
        "The broker's certificate is always verified. Without, the password is readable on the way.",
        choices=_NO_YES,
        default="no",
    ),
]
_AMQP_MORE = [
    Setting(
        "ca_file",
        "Authority's certificate",
        "Only with TLS: a file in PEM on the machine. Empty: the authorities that the machine trusts.",
        required=False,
        kind=PropertyKind.FILE,
    ),
    Setting(
        "certificate_file", "Own certificate", "Only where the broker asks for one: a file in PEM.", required=False, kind=PropertyKind.FILE
    ),
    Setting("key_file", "Its key", "A file in PEM, without a passphrase.", required=False, kind=PropertyKind.FILE),
    Setting(
        "heartbeat_seconds",
        "Heartbeat (seconds)",
        "Within three of them the broker notices a machine without power, and gives back what it held. From 2 to 300. Empty: 5.",
        required=False,
        least=2,
        most=300,
    ),
    Setting("timeout_seconds", "Time-out (seconds)", "From 0.1 to 60. Empty: 10.", required=False, least=0.1, most=60),
]
_KINDS_OF_TEXT = (("text", "Text"), ("json", "JSON"), ("xml", "XML"))
_TRANSFORM = [
    Setting(
        "transform",
        "Transform",
        "A Jinja2 template that makes of each item what goes out. It finds text, data (parsed JSON or XML) and item. Empty: as it is.",
        required=False,
        lines=True,
    ),
    Setting("transform_from", "Read the item as", "Only with a template.", default="text", choices=_KINDS_OF_TEXT),
    Setting(
        "transform_to", "The template makes", "JSON and XML are checked; in XML values are escaped.", default="text", choices=_KINDS_OF_TEXT
    ),
    Setting(
        "transform_empty",
        "When it makes nothing",
        "Only with a template.",
        default="deliver",
        choices=(("deliver", "An empty item goes out"), ("skip", "The item is left out")),
    ),
]

INBOUNDS: dict[str, list[Setting]] = {
    InboundKind.FILE: [
        Setting(
            "folder",
            "Folder",
            "Polled for files. Only the folder itself; names starting with a dot or ending in .tmp or .part are left alone.",
            kind=PropertyKind.FILE,
        ),
        Setting(
            "error_folder",
            "Error folder",
            "Where a file goes, with the reason, that cannot be delivered. Empty: below the runtime's own folder.",
            required=False,
            kind=PropertyKind.FILE,
        ),
        Setting(
            "poll_seconds",
            "Poll every (seconds)",
            "From 0.05 to 3600. Empty: 0.1.",
            required=False,
            least=0.05,
            most=3600,
            kind=PropertyKind.DECIMAL,
        ),
        *_KEPT,
    ],
    InboundKind.QUEUE: [_URL, _QUEUE, _PREFIX, *_KEPT],
    InboundKind.COMMAND: [
        Setting("program", "Program", "An absolute path, or a name on the PATH of the agent. No shell is involved."),
        Setting(
            "arguments", "Arguments", "One per line, as they are: no quoting is needed, and none understood.", required=False, lines=True
        ),
        Setting(
            "environment",
            "Environment",
            "One NAME=value per line, for secrets too: arguments can be read by every user of the machine.",
            required=False,
            lines=True,
            sign="=",
        ),
        Setting(
            "items",
            "Its items",
            "What of it becomes an item of this flow.",
            default="none",
            choices=(
                ("none", "None: it emits by itself"),
                ("lines", "Each line of its standard output"),
                ("folder", "Each file it puts into its folder"),
            ),
        ),
        Setting(
            "outbox",
            "Its folder",
            "Only for items that are files; the program finds it in BATON_OUTBOX. Empty: below the runtime's own folder.",
            required=False,
        ),
        Setting(
            "acknowledge",
            "Acknowledge lines",
            "Only for items that are lines: it gets one JSON line on standard input for each that the target has.",
            default="no",
            choices=(("no", "No"), ("yes", "Yes")),
        ),
        Setting(
            "stop_seconds",
            "Time to stop (seconds)",
            "From SIGTERM to SIGKILL of its whole tree, from 0.1 to 4.5: a hand-over waits for 5 s (the drain limit). Empty: 4.",
            required=False,
            least=0.1,
            most=4.5,
        ),
        Setting(
            "again_seconds",
            "Start again after (seconds)",
            "When it ended with status 0. After a failure: 1 s, doubling to 30 s. Empty: 1.",
            required=False,
            least=0.1,
            most=86400,
        ),
        Setting(
            "health_seconds",
            "Sign of health within (seconds)",
            "It must touch the file BATON_HEALTH_FILE so often, or it is ended and started again. Empty or 0: not asked for.",
            required=False,
            least=0,
            most=3600,
        ),
        *_KEPT,
    ],
    InboundKind.HTTP: [
        Setting(
            "url",
            "URL",
            "Asked by GET. {cursor} stands for the cursor of the answer before.",
            example="${erp.feed}",
            kind=PropertyKind.URL,
        ),
        Setting("poll_seconds", "Poll every (seconds)", "From 0.1 to 86400. Empty: 10.", required=False, least=0.1, most=86400),
        Setting(
            "items_path",
            "Items at",
            "Where a JSON answer has its list, as data.items; a dot for the answer itself. Empty: the whole answer is one item.",
            required=False,
        ),
        Setting("id_path", "Id at", "Where an element has an id of its own. Empty: its content and the cursor make it.", required=False),
        Setting(
            "cursor_path",
            "Next cursor at",
            "Where the answer has the next cursor, as next or data.items.-1.id. Empty: no cursor.",
            required=False,
        ),
        Setting("first_cursor", "First cursor", "For the first time ever.", required=False),
        *_HTTP,
        *_KEPT,
    ],
    InboundKind.SFTP: [
        *_SFTP,
        Setting(
            "poll_seconds",
            "Poll every (seconds)",
            "A file is taken when it was the same at two looks. From 0.1 to 3600. Empty: 5.",
            required=False,
            least=0.1,
            most=3600,
        ),
        *_KEPT,
    ],
    InboundKind.AMQP: [
        *_AMQP,
        Setting("queue", "Queue", "Name of the queue that is consumed."),
        Setting(
            "declare",
            "Declare the queue",
            "A declared queue is durable.",
            default="no",
            choices=(("no", "No: it must be there"), ("classic", "As a classic queue"), ("quorum", "As a quorum queue")),
        ),
        Setting("exchange", "Bind it to exchange", "Empty: its bindings are left as they are.", required=False),
        Setting("routing_key", "Binding key", "Only with an exchange.", required=False),
        Setting(
            "prefetch",
            "Prefetch",
            "How many messages are held unacknowledged at a time. From 1 to 1000. Empty: 10.",
            required=False,
            least=1,
            most=1000,
        ),
        Setting(
            "exclusive",
            "Only consumer",
            "Yes: the broker refuses every other consumer of this queue, a new leader too until it has noticed the end of the former one.",
            default="no",
            choices=_NO_YES,
        ),
        Setting(
            "without_id",
            "Messages without a message-id",
            "The property message-id is the item's id. Without it nothing tells two equal messages from one that came twice.",
            default="each",
            choices=(
                ("each", "Each delivery gets a new id: one that comes twice is not known"),
                ("content", "Content and properties make it: equal messages count as one"),
                ("refuse", "They are failed items"),
            ),
        ),
        *_AMQP_MORE,
        *_KEPT,
    ],
    InboundKind.TIMER: [
        Setting("schedule", "Schedule", "Five fields: minute, hour, day, month, weekday; as 30 2 * * mon-fri.", kind=PropertyKind.CRON),
        Setting("time_zone", "Time zone", "As Europe/Amsterdam. Empty: UTC.", required=False),
        Setting(
            "missed",
            "Missed instants",
            "Those of a time when nobody led. An instant fires at most a minute late without being missed.",
            default="once",
            choices=(("once", "The latest one fires, once"), ("every", "Each fires"), ("none", "None fires")),
        ),
        Setting(
            "content",
            "Content",
            "Of the item; {instant} and {local} stand for its moment. Empty: a JSON object of these.",
            required=False,
            lines=True,
        ),
        *_KEPT,
    ],
}
OUTBOUNDS: dict[str, list[Setting]] = {
    OutboundKind.FILE: [
        Setting("folder", "Folder", "Each item is written here as <id>-<original name>, byte for byte.", kind=PropertyKind.FILE),
        Setting("receipts", "Receipts file", "Gets one JSON line per delivery. Empty: none.", required=False, kind=PropertyKind.FILE),
    ],
    OutboundKind.QUEUE: [_URL, _QUEUE, _PREFIX],
    OutboundKind.LOG: [],
    OutboundKind.HTTP: [
        Setting("url", "URL", "Gets one request per item.", example="${erp.orders}", kind=PropertyKind.URL),
        Setting("method", "Method", "How it is sent.", default="POST", choices=(("POST", "POST"), ("PUT", "PUT"), ("PATCH", "PATCH"))),
        Setting("content_type", "Content type", "Empty: application/octet-stream.", required=False),
        *_HTTP,
    ],
    OutboundKind.SFTP: [*_SFTP],
    OutboundKind.AMQP: [
        *_AMQP,
        Setting("exchange", "Exchange", "Empty: the default one, where the routing key names a queue.", required=False),
        Setting("routing_key", "Routing key", "Empty only with an exchange that needs none (fanout).", required=False),
        Setting(
            "declare",
            "Declare",
            "What is declared is durable. A message that no queue takes is never lost: it stays in its source.",
            default="no",
            choices=(
                ("no", "Nothing: it must be there"),
                ("queue", "The queue named by the routing key"),
                ("direct", "A direct exchange"),
                ("topic", "A topic exchange"),
                ("fanout", "A fanout exchange"),
            ),
        ),
        Setting("content_type", "Content type", "Empty: what the source said, or application/octet-stream.", required=False),
        *_AMQP_MORE,
    ],
    OutboundKind.SQL: [
        Setting(
            "url",
            "Database",
            "sqlite:///path or postgresql://user:password@host/database. Usually a placeholder, kept as a secret.",
            example="${orders.database}",
        ),
        Setting(
            "statement",
            "Statement",
            "One statement per item. It may name :id :content (bytes) :text :name :size :flow :group :epoch :machine.",
            lines=True,
        ),
        Setting(
            "remember_days",
            "Remember delivered ids (days)",
            "So long a repeated item is known and changes nothing. From 1 to 3650. Empty: 90.",
            required=False,
            least=1,
            most=3650,
        ),
    ],
}
for _settings in OUTBOUNDS.values():
    _settings += _TRANSFORM
REGISTRY: dict[str, dict[str, list[Setting]]] = {"inbound": INBOUNDS, "outbound": OUTBOUNDS}


def settings_of(side: Side, kind: str) -> list[Setting]:
    """Raises Invalid for a kind that does not exist."""
    known = REGISTRY[side]
    if kind not in known:
        raise Invalid(f"There is no {side} of kind {kind}: choose {', '.join(known)}.", field=f"{side}_kind")
    return known[kind]


def checked(side: Side, kind: str, given: Mapping[str, str]) -> dict[str, str]:
    """The settings as they are kept: trimmed, empty optional ones left out.

    Raises:
        Invalid: missing, unknown or malformed settings; `faults` names each, as "<side>_<name>".
    """
    fields = {setting.name: setting for setting in settings_of(side, kind)}
    faults = {
        f"{side}_{name}": f"The {side} of kind {kind} has no setting {name}; it has {', '.join(fields) or 'none'}."
        for name in given
        if name not in fields
    }
    kept = settled(side, kind, given)
    for name, setting in fields.items():
        where = f"{side}_{name}"
        try:
            _check(kept.get(name, ""), setting, side, where)
        except Invalid as refusal:
            faults[where] = refusal.sentence
    if faults:
        refuse(faults)
    return kept


def refuse(faults: Mapping[str, str]) -> NoReturn:
    """Raises Invalid that names every field of `faults`."""
    reasons = list(faults.values())
    raise Invalid(" ".join(reasons), reasons=reasons if len(reasons) > 1 else None, field=next(iter(faults)), faults=faults)


def settled(side: Side, kind: str, given: Mapping[str, str]) -> dict[str, str]:
    """These settings as the form keeps them, judged or not: trimmed, empty ones left out, choices that were left open at what they mean.

    What is not known (any more) stays as it is.
    """
    known = REGISTRY[side].get(kind, [])
    names = {setting.name for setting in known}
    kept = {name: value for name, value in given.items() if name not in names}
    for setting in known:
        value = str(given.get(setting.name, "")).replace("\r\n", "\n").strip() or (setting.default if setting.choices else "")
        if value:
            kept[setting.name] = value
    if "transform" not in kept:  # without a template how it reads and writes means nothing
        kept = {name: value for name, value in kept.items() if not name.startswith("transform")}
    return kept


def label(side: Side, kind: str, name: str) -> str:
    """What the form calls a setting: "Folder"; its own name where the kind does not know it (any more)."""
    return next((setting.label for setting in REGISTRY[side].get(kind, []) if setting.name == name), name)


# what runtimes/process/transformer.py gives a template, and what macros find by themselves
_GIVEN_TO_TEMPLATES = {"text", "data", "item", "range", "dict", "namespace", "caller", "varargs", "kwargs", "self"}


def _unknown_word(template: str) -> str:
    """What a template names that is not there, which would fail with every item on the machine; empty: nothing. It is only read here, never
    rendered. Raises TemplateSyntaxError."""
    environment = Environment(autoescape=True)
    read = environment.parse(template)
    for kind, known, what in ((nodes.Filter, environment.filters, "filter"), (nodes.Test, environment.tests, "test")):
        for node in read.find_all(kind):
            if node.name not in known:
                return f", line {node.lineno}: there is no {what} {node.name}."
    strange = meta.find_undeclared_variables(read) - _GIVEN_TO_TEMPLATES
    return f": {min(strange)} is nothing that a template finds: there are text, data and item." if strange else ""


def _check(value: str, setting: Setting, side: Side, where: str) -> None:
    """Raises Invalid. What a placeholder will stand for is judged on the machine."""
    if not value:
        if setting.required and not setting.choices:
            raise Invalid(f"{setting.label} of the {side} is empty: fill in a value, or a placeholder such as ${{my.{setting.name}}}.")
        return
    check_placeholders(value, field=where)
    if setting.name == "transform":
        try:
            unknown = _unknown_word(value)
        except TemplateSyntaxError as error:
            raise Invalid(f"Transform, line {error.lineno}: {error.message}", field=where) from None
        if unknown:
            raise Invalid(f"Transform{unknown}", field=where)
    if setting.kind == PropertyKind.SECRET and without_placeholders(value).strip():
        raise Invalid(f"{setting.label} is a secret: write a placeholder, and keep its value as a secret property.", field=where)
    if not setting.lines and "\n" in value:
        raise Invalid(f"{setting.label} has more than one line.", field=where)
    for row in value.split("\n") if setting.sign else []:
        name, found, _ = row.partition(setting.sign)
        if row.strip() and not placeholders(row) and not (name.strip() and found):
            raise Invalid(f'{setting.label}: "{row.strip()}" is no name{setting.sign}value. Write one per line.', field=where)
        if setting.sign == ":" and not row.isascii():
            raise Invalid(f'{setting.label}: "{row.strip()}" is not all ASCII, and no header carries more: encode it.', field=where)
    if placeholders(value):
        return
    if setting.choices and value not in dict(setting.choices):
        raise Invalid(f"{setting.label}: {value} is none of {', '.join(dict(setting.choices))}.", field=where)
    if setting.least is not None:
        _check_number(value, setting, where)
    elif setting.name == "time_zone":
        _check_zone(value, setting, where)
    elif not setting.lines and (wrong := property_types.fault(setting.kind, value)):
        raise Invalid(f"{setting.label}: {value} {wrong}: {property_types.REMEDIES[setting.kind]}.", field=where)


def _check_zone(value: str, setting: Setting, where: str) -> None:
    try:
        zone_of(value)
    except Invalid:
        raise Invalid(f"{setting.label}: {value} is no time zone: write it as Europe/Amsterdam.", field=where) from None


def _check_number(value: str, setting: Setting, where: str) -> None:
    try:
        within = (setting.least or 0) <= float(value) <= (setting.most or float("inf"))
    except ValueError:
        within = False
    if not within:
        raise Invalid(f"{setting.label}: {value} is not a number from {setting.least:g} to {setting.most:g}.", field=where)
