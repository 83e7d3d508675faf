"""Forms of properties, releases and plans: they validate shape and never write. What the product refuses, its acts refuse."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.http import QueryDict

from deployments import plans, sheet
from deployments.models import STEP_FIELDS, Condition, HandOvers, Step, StepKind
from deployments.newer import Scope
from deployments.promotion import LONGEST_REASON
from portal.errors import NotAllowed
from portal.forms import Form
from portal.models import PROPERTY_KEY, Environment, Flow, Group, Placement, PropertyKind, Role, scope_name
from runtimes.models import Machine, Runtime

Choices = list[tuple[str, str]]


def show_refusal(form: forms.Form, refusal: NotAllowed) -> None:
    """Put an act's refusal where it belongs: at the field it names, else above the form; with its single findings."""
    name = refusal.field
    if isinstance(form, StepForm) and name in ("machine", "connector"):
        pickers = PICKERS.get(form.cleaned_data["kind"], ())
        name = "runtime" if "runtime" in pickers else "target" if "target" in pickers else name  # one picker for both
    form.add_error(name if name in form.fields else None, [refusal.sentence, *refusal.reasons])


# -------------------------------------------------------------------------------------------------------------- properties


class KeyField(forms.CharField):
    """A key, also when it is pasted as the placeholder `${key}`."""

    def to_python(self, value: Any) -> str:
        return (super().to_python(value) or "").removeprefix("${").removesuffix("}").strip()


class PropertyForm(Form):
    """A value of one key for one scope. `values` of a secret are never shown again: an empty one is refused, not saved."""

    key = KeyField(max_length=200, validators=[PROPERTY_KEY])
    scope = forms.ChoiceField(label="Applies to")
    value = forms.CharField(required=False, strip=False, widget=forms.Textarea(attrs={"rows": 1, "spellcheck": "false"}))
    secret = forms.BooleanField(required=False, help_text="Never shown again once saved.")
    next = forms.CharField(required=False, widget=forms.HiddenInput)
    add = forms.BooleanField(required=False, widget=forms.HiddenInput)  # a value that shall not replace another one
    seen = forms.CharField(required=False, widget=forms.HiddenInput)  # properties.tag of the value when the form was opened

    def __init__(self, *args: Any, environment: Environment, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choices: list[Any] = list(sheet.scope_choices(environment.project))
        given = str(self.data.get("scope") or self.initial.get("scope") or "|")
        if given.count("|") == 1 and given not in {value for _, some in choices for value, _ in some}:
            # A value filled in for a machine that left the design can still be read, changed and deleted.
            choices.append(("Not in the design", [(given, scope_name(*given.split("|")))]))
        field = self.fields["scope"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices

    def clean_value(self) -> str:
        # Browsers send line breaks as CR LF.
        value: str = self.cleaned_data["value"]
        return value.replace("\r\n", "\n")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if cleaned.get("secret") and cleaned.get("value") == "":
            self.add_error("value", "Type the new secret. To take it away instead, delete the value.")
        return cleaned

    def forget_secret(self, *, known: bool) -> None:
        """A refused form comes back without the secret that was typed. `known`: the key is one, whatever the box says."""
        if known or self.data.get("secret"):
            self.data = {**self.data.dict(), "value": ""} if isinstance(self.data, QueryDict) else {**self.data, "value": ""}

    @property
    def scope_of_value(self) -> Scope:
        machine, connector = self.cleaned_data["scope"].split("|")
        return machine, connector


class CellForm(forms.Form):
    """One cell of the grid. An empty field of a secret keeps it."""

    key = KeyField(max_length=200, validators=[PROPERTY_KEY])
    machine = forms.CharField(max_length=40, required=False)
    connector = forms.CharField(max_length=40, required=False)
    value = forms.CharField(required=False, strip=False)
    by = forms.ChoiceField(choices=[(name, name) for name in ("environments", "machines", "runtimes")])
    act = forms.ChoiceField(choices=[("set", "set"), ("delete", "delete")])
    seen = forms.CharField(max_length=40, required=False)  # properties.tag of the value when the form was opened

    def clean_value(self) -> str:
        value: str = self.cleaned_data["value"]
        return value.replace("\r\n", "\n")


class BulkForm(Form):
    """The same value for many keys, in one or several columns."""

    keys = forms.MultipleChoiceField(required=True, error_messages={"required": "Choose the keys first, by their boxes."})
    columns = forms.MultipleChoiceField(label="In", widget=forms.CheckboxSelectMultiple, error_messages={"required": "Choose where."})
    act = forms.ChoiceField(choices=[("set", "Set this value"), ("delete", "Delete the values")], initial="set", widget=forms.RadioSelect)
    value = forms.CharField(required=False, strip=False)

    def __init__(self, *args: Any, columns: Choices, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keys, places = self.fields["keys"], self.fields["columns"]
        assert isinstance(keys, forms.MultipleChoiceField) and isinstance(places, forms.MultipleChoiceField)
        given = self.data.getlist("keys") if isinstance(self.data, QueryDict) else []
        keys.choices = [(key, key) for key in given]
        places.choices = columns


class PasteForm(Form):
    text = forms.CharField(
        required=False,
        strip=False,
        label="Lines",
        widget=forms.Textarea(attrs={"rows": 10, "spellcheck": "false", "wrap": "off", "class": "form-control font-monospace"}),
    )
    file = forms.FileField(required=False, label="or a file", help_text="CSV, as exported here. UTF-8.")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if file := cleaned.get("file"):
            if file.size > 5_000_000:
                self.add_error("file", "The file is larger than 5 MB: import it in parts.")
                return cleaned
            try:
                cleaned["text"] = file.read().decode("utf-8-sig")
            except UnicodeDecodeError:
                self.add_error("file", "The file is not UTF-8: save it as CSV UTF-8.")
        if not str(cleaned.get("text", "")).strip() and not self.errors:
            self.add_error("text", "Paste lines, or choose a file.")
        return cleaned


class ProjectFileForm(PasteForm):
    """A project's YAML, pasted or as a file; `seen` is the digest of the plan that was shown."""

    seen = forms.CharField(required=False, max_length=64, widget=forms.HiddenInput)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["file"].help_text = "YAML, as exported."


class TypeForm(Form):
    key = KeyField(max_length=200, validators=[PROPERTY_KEY], widget=forms.HiddenInput)
    kind = forms.ChoiceField(label="Type", required=False)

    def __init__(self, *args: Any, guess: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["kind"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [("", f"Not declared{f': {guess}' if guess else ''}"), *PropertyKind.choices]


# ---------------------------------------------------------------------------------------------------------------- releases


class ReleaseForm(Form):
    name = forms.CharField(max_length=80, help_text="What people call it: “Orders by noon”.")
    note = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 3}), help_text="What changed, and why.")


class OverrideField(forms.CharField):
    """Why the rules are set aside; empty: they are not."""

    def __init__(self) -> None:
        super().__init__(
            required=False,
            max_length=LONGEST_REASON,
            label="Reason to override",
            help_text="Kept with your name. Leave it empty to stay within the rules.",
            widget=forms.Textarea(attrs={"rows": 2}),
        )


class DeployForm(Form):
    """On Production the name of the project is typed, so that nobody deploys there by accident."""

    confirm = forms.CharField(required=False)
    override = OverrideField()
    leaving_out = forms.MultipleChoiceField(required=False, widget=forms.CheckboxSelectMultiple)  # offline machines

    def __init__(self, *args: Any, environment: Environment, offline: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.environment = environment
        field = self.fields["leaving_out"]
        assert isinstance(field, forms.MultipleChoiceField)
        field.choices = [(name, name) for name in offline]
        field.error_messages["invalid_choice"] = "%(value)s is not offline any more: look at the preview again."
        if environment.is_production:
            self.fields["confirm"].label = f"Type {environment.project.slug} to deploy on Production"
        else:
            del self.fields["confirm"]

    def clean_confirm(self) -> str:
        typed: str = self.cleaned_data["confirm"]
        if typed.strip() != self.environment.project.slug:
            raise forms.ValidationError(f"Type {self.environment.project.slug}, the name of the project, to deploy on Production.")
        return typed


# -------------------------------------------------------------------------------------------------------------------- plan

RUNTIME_STEPS = (StepKind.DEPLOY_RUNTIME, StepKind.START_RUNTIME, StepKind.STOP_RUNTIME, StepKind.RESTART_RUNTIME)
GROUP_STEPS = (StepKind.GROUP_START, StepKind.GROUP_STOP)
# Which pickers a kind of step needs; the page hides the others.
PICKERS: dict[str, tuple[str, ...]] = {
    StepKind.DEPLOY_MACHINE: ("machine",),
    **dict.fromkeys(RUNTIME_STEPS, ("runtime",)),
    **dict.fromkeys(GROUP_STEPS, ("runtime", "group")),
    StepKind.FLOW_START: ("runtime", "flow"),
    StepKind.FLOW_STOP: ("runtime", "flow"),
    StepKind.MANUAL: ("instruction", "confirm_role"),
    StepKind.WAIT_HEALTHY: ("target",),
    StepKind.RUN_COMMAND: ("machine", "command"),
    StepKind.HTTP_CHECK: ("url", "expected_status"),
    StepKind.BALANCE_FAILOVER: ("hand_overs",),
}
OPTIONAL = ("target", "confirm_role", "expected_status", "hand_overs")
TEXTS = ("group", "flow", "instruction", "confirm_role", "command", "url", "hand_overs")
WHAT_TO_PICK = {
    "machine": "Pick the machine.",
    "runtime": "Pick the runtime.",
    "group": "Pick the group.",
    "instruction": "Say what the person shall do.",
    "flow": "Pick the flow.",
    "command": "Say which command.",
    "url": "Say which address.",
}


def _flows(environment: Environment) -> Choices:
    """Ungrouped flows: the others run where their group leads. One query."""
    rows = Flow.objects.filter(connector__project=environment.project, group=None).values_list("name", "connector__name")
    return [(name, f"{name} ({', '.join(sorted(c for n, c in rows if n == name))})") for name in sorted({name for name, _ in rows})]


def _targets(environment: Environment) -> tuple[Choices, Choices, Choices]:
    """Machines, runtimes ("machine|connector") and groups to pick from: what is applied; what is only designed says so. Five queries."""
    project = environment.project
    machines = list(Machine.objects.filter(environment=environment).values_list("name", flat=True))
    runtimes = list(Runtime.objects.filter(environment=environment).values_list("machine__name", "connector__name"))
    designed = list(project.designed_machines.values_list("name", flat=True))
    placed = list(Placement.objects.filter(connector__project=project).values_list("machine__name", "connector__name"))
    groups = list(Group.objects.filter(connector__project=project).values_list("name", "connector__name"))
    later = " (not applied yet)"
    return (
        [(name, name) for name in machines] + [(name, name + later) for name in designed if name not in machines],
        [(f"{machine}|{connector}", f"{machine}.{connector}") for machine, connector in runtimes]
        + [
            (f"{machine}|{connector}", f"{machine}.{connector}{later}")
            for machine, connector in placed
            if (machine, connector) not in runtimes
        ],
        [(name, f"{name} ({', '.join(sorted(c for n, c in groups if n == name))})") for name in sorted({name for name, _ in groups})],
    )


class StepForm(Form):
    """One step of a plan. Existing things are picked, never typed; a target that is gone stays visible until it is changed."""

    kind = forms.ChoiceField(choices=StepKind.choices)
    machine = forms.ChoiceField(required=False)
    runtime = forms.ChoiceField(required=False)
    group = forms.ChoiceField(required=False)
    flow = forms.ChoiceField(required=False)
    target = forms.ChoiceField(required=False, label="Of", help_text="What has to be healthy.")
    instruction = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 3}))
    confirm_role = forms.ChoiceField(
        required=False, label="Confirmed by", choices=[("", "Whoever may deploy here"), *((r.value, f"{r.label} or above") for r in Role)]
    )
    command = forms.CharField(
        required=False, max_length=80, help_text="Its name in commands.toml in the agent's home on that machine: nothing else is ever run."
    )
    url = forms.CharField(
        required=False, label="Address", max_length=500, help_text="http:// or https://; may hold ${placeholders}. Asked every 2 s."
    )
    expected_status = forms.IntegerField(required=False, label="Expected status", min_value=100, max_value=599, initial=200)
    hand_overs = forms.ChoiceField(
        required=False,
        label="Preferences",
        choices=[("", "Each group goes to its preferred machine"), *HandOvers.choices],
        help_text="A group that this deployment moved already stays where it is: there is one short gap instead of two.",
    )
    stage = forms.CharField(
        required=False,
        max_length=40,
        widget=forms.TextInput(attrs={"list": "stages"}),
        help_text="Neighbours with the same stage belong together.",
    )
    lane = forms.CharField(
        required=False, max_length=40, widget=forms.TextInput(attrs={"list": "lanes"}), help_text="Lanes of one stage run side by side."
    )
    condition = forms.ChoiceField(required=False, label="Runs", choices=Condition.choices, initial=Condition.ALWAYS)
    retries = forms.IntegerField(
        required=False, min_value=0, max_value=plans.MOST_RETRIES, initial=0, help_text="So often it is tried again by itself."
    )
    timeout_seconds = forms.IntegerField(
        required=False,
        label="Time limit (seconds)",
        min_value=1,
        max_value=plans.LONGEST_PERSON_SECONDS,
        help_text="The step times out when it is not done by then. Empty: 120 s; a manual step waits a day.",
    )

    def __init__(self, *args: Any, environment: Environment, changes: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A step keeps its kind: another kind is another step.
        self.fields["kind"].disabled = changes
        machines, runtimes, groups = _targets(environment)
        everything: Choices = [("", "The whole environment"), *((f"{name}|", label) for name, label in machines), *runtimes]
        named = {"machine": machines, "runtime": runtimes, "group": groups, "flow": _flows(environment), "target": everything}
        for name, choices in named.items():
            field = self.fields[name]
            assert isinstance(field, forms.ChoiceField)
            current = str(self.initial.get(name) or "")
            gone: Choices = [(current, f"{current.replace('|', '.')} (gone)")] if current and current not in dict(choices) else []
            field.choices = [*choices, *gone] if name == "target" else [("", "Pick one…"), *choices, *gone]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        for name in PICKERS.get(cleaned.get("kind", ""), ()):
            if not cleaned.get(name) and name not in self.errors and name not in OPTIONAL:
                self.add_error(name, WHAT_TO_PICK[name])
        return cleaned

    @property
    def step_kind(self) -> StepKind:
        return StepKind(self.cleaned_data["kind"])

    @property
    def step_fields(self) -> dict[str, str | int]:
        """What the acts of deployments.plans take; what the kind does not need is left empty."""
        needed: Sequence[str] = PICKERS.get(self.step_kind, ())
        given = self.cleaned_data
        picker = "runtime" if "runtime" in needed else "target" if "target" in needed else ""
        machine, _, connector = (given[picker] if picker else "").partition("|")
        texts = {name: given[name] if name in needed else "" for name in TEXTS}
        return {
            **texts,
            "machine": given["machine"] if "machine" in needed else machine,
            "connector": connector,
            "expected_status": given["expected_status"] or 200,
            "stage": given["stage"],
            "lane": given["lane"],
            "condition": given["condition"] or Condition.ALWAYS,
            "retries": given["retries"] or 0,
            "timeout_seconds": given["timeout_seconds"] or plans.usual_seconds(self.step_kind)[0],
        }


def step_initial(step: Step) -> dict[str, Any]:
    """A stored step's fields as StepForm shows them."""
    pair = f"{step.machine}|{step.connector}" if step.machine else ""
    return {name: getattr(step, name) for name in STEP_FIELDS} | {"runtime": pair if step.connector else "", "target": pair}
