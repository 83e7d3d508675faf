"""Forms of the portal's pages: they say what was typed. What is allowed, the acts say; `carried_out` shows their refusal in the form."""

from collections.abc import Callable
from typing import Any

from django import forms

from portal import components, creation
from portal.errors import Invalid, NotAllowed
from portal.models import Connector, DesignedMachine, Flow, MachineKind, Role


class Form(forms.Form):
    """A form in the frame's clothes: every form of a page is one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            dress(field)


def dress(field: forms.Field) -> None:
    """Tabler's class for the widget; browsers suggest nothing that was typed into another form."""
    widget = field.widget
    if isinstance(widget, forms.CheckboxInput | forms.RadioSelect):
        widget.attrs.setdefault("class", "form-check-input")
    elif isinstance(widget, forms.Select):
        widget.attrs.setdefault("class", "form-select")
    elif not widget.is_hidden:
        widget.attrs.setdefault("class", "form-control")
    widget.attrs.setdefault("autocomplete", "off")


def carried_out(form: forms.Form, act: Callable[[dict[str, Any]], object]) -> bool:
    """Validate the form and carry out the act with its data; a refusal becomes an error at its field, or of the whole form."""
    if not form.is_valid():
        return False
    try:
        act(form.cleaned_data)
    except NotAllowed as refusal:
        if len(refusal.faults) > 1 and refusal.faults.keys() <= form.fields.keys():
            for field, sentence in refusal.faults.items():
                form.add_error(field, sentence)
        else:
            form.add_error(refusal.field if refusal.field in form.fields else None, [refusal.sentence, *refusal.reasons])
        return False
    return True


# ------------------------------------------------------------------------------------------------------------------ design


class SystemForm(Form):
    name = forms.CharField(max_length=80, help_text="As people call it. Its connector is named after it in lower case.")
    description = forms.CharField(required=False, widget=forms.Textarea({"rows": 2}))
    multiple_runtimes = forms.BooleanField(
        required=False,
        help_text="The connector runs on more than one machine.",
        widget=forms.CheckboxInput({"data-shows": ".several-runtimes"}),
    )
    number_of_runtimes = forms.IntegerField(min_value=1, max_value=9, required=False, initial=2)
    failover = forms.BooleanField(
        required=False,
        label="Run in failover",
        help_text="In every group one runtime leads and consumes; the others follow, ready, and take over. Needs external machines. "
        "Takes effect by Architecture › Apply settings.",
    )

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        if not data.get("multiple_runtimes"):
            data["number_of_runtimes"] = 1
        elif not data.get("number_of_runtimes"):
            data["number_of_runtimes"] = 2
        return data


class MachineForm(Form):
    name = forms.CharField(max_length=40, help_text="Lower-case letters, digits and dashes, as in external01.")
    kind = forms.ChoiceField(
        choices=MachineKind.choices,
        widget=forms.RadioSelect,
        help_text="External: on premises, carries runtimes in failover. Core: beside the portal, carries the witness.",
    )


class NameForm(Form):
    name = forms.CharField(max_length=40)


class PlaceForm(Form):
    connector = forms.ModelChoiceField(Connector.objects.none())
    machine = forms.ModelChoiceField(DesignedMachine.objects.none())
    origin = forms.ModelChoiceField(DesignedMachine.objects.none(), required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, project: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["connector"].queryset = project.connectors.all()  # type: ignore[attr-defined]
        for name in ("machine", "origin"):
            self.fields[name].queryset = project.designed_machines.all()  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------------ create


def _may_stay(bound: forms.BoundField, setting: components.Setting) -> bool:
    """Nothing need be said of it, nothing was, and nothing is wrong with it."""
    usual = not setting.required or bool(setting.choices)
    return usual and not bound.errors and (bound.value() or "") in ("", setting.default)


class FlowForm(Form):
    """A flow with the settings of every kind; those of the chosen kinds count. Fields are "inbound_file_folder"."""

    name = forms.CharField(max_length=40, help_text="Lower-case letters, digits and dashes.")
    auto_start = forms.BooleanField(
        required=False,
        initial=True,
        label="Start with the runtime",
        help_text="Only without a group in failover: a grouped inbound starts with leadership.",
    )

    def __init__(self, *args: Any, flow: Flow, **kwargs: Any) -> None:
        self.flow = flow
        initial = {"name": flow.name, "auto_start": flow.auto_start, "inbound_kind": flow.inbound_kind, "outbound_kind": flow.outbound_kind}
        super().__init__(*args, initial=initial, **kwargs)
        for side, kinds in components.REGISTRY.items():
            choices = [(kind, str(getattr(kind, "label", kind))) for kind in kinds]
            select = forms.Select({"data-shows": f".{side}-kind"})
            self.fields[f"{side}_kind"] = forms.ChoiceField(choices=choices, label="Kind", widget=select)
            kept = getattr(flow, f"{side}_settings") if flow.pk else {}
            for kind, settings in kinds.items():
                for setting in settings:
                    chosen = flow.pk and getattr(flow, f"{side}_kind") == kind
                    # One that a choice was added to since: the choice that stands for how it was.
                    lacking = setting.default if setting.choices else ""
                    value = kept.get(setting.name) or lacking if chosen else setting.default
                    self.fields[f"{side}_{kind}_{setting.name}"] = setting_field(setting, value)
        for field in self.fields.values():
            dress(field)

    def sides(self) -> list[dict[str, Any]]:
        """For the template: the kind's field and, per kind, the fields of its settings: those to look at, and `more`, which may stay as
        they are."""
        return [
            {
                "side": side,
                "title": "Inbound" if side == "inbound" else "Outbound",
                "text": "where items come from" if side == "inbound" else "where they go",
                "kind": self[f"{side}_kind"],
                "kinds": [
                    {
                        "kind": str(kind),
                        "label": str(getattr(kind, "label", kind)),
                        "fields": [
                            (bound, setting) for bound, setting in self._fields(side, kind, settings) if not _may_stay(bound, setting)
                        ],
                        "more": [(bound, setting) for bound, setting in self._fields(side, kind, settings) if _may_stay(bound, setting)],
                    }
                    for kind, settings in kinds.items()
                ],
            }
            for side, kinds in components.REGISTRY.items()
        ]

    def _fields(self, side: str, kind: str, settings: list[components.Setting]) -> list[tuple[forms.BoundField, components.Setting]]:
        return [(self[f"{side}_{kind}_{setting.name}"], setting) for setting in settings]

    def settings(self, side: components.Side) -> dict[str, str]:
        """The settings of the chosen kind."""
        kind = self.cleaned_data[f"{side}_kind"]
        return {setting.name: self.cleaned_data.get(f"{side}_{kind}_{setting.name}", "") for setting in components.settings_of(side, kind)}

    def clean(self) -> dict[str, Any]:
        """Everything that is wrong says so at once, each at its field."""
        data: dict[str, Any] = super().clean() or {}
        faults: dict[str, str] = {}
        for side in components.SIDES:
            if kind := data.get(f"{side}_kind"):
                try:
                    components.checked(side, kind, self.settings(side))
                except Invalid as refusal:
                    faults |= {f"{side}_{kind}_{field.removeprefix(f'{side}_')}": said for field, said in refusal.faults.items()}
        if "name" in data:
            try:
                creation.check_flow_name(self.flow, data["name"])
            except Invalid as refusal:
                faults |= refusal.faults
        for field, sentence in faults.items():
            if field not in self.errors:
                self.add_error(field, sentence)
        return data

    def wrong(self) -> list[tuple[forms.BoundField, str]]:
        """The fields to correct, with what they are called where both sides have one of that name."""
        found = []
        for name in self.fields:
            if name in self.errors:
                side = name.partition("_")[0]
                found.append((self[name], f"{self[name].label} of the {side}" if side in components.SIDES else str(self[name].label)))
        return found


def setting_field(setting: components.Setting, initial: str) -> forms.Field:
    """A text, several lines, or a choice; what is allowed is said by portal/components.py."""
    if setting.choices:
        choices = [*setting.choices, *([] if initial in dict(setting.choices) else [(initial, initial)])]
        return forms.ChoiceField(label=setting.label, required=False, choices=choices, help_text=setting.help, initial=initial)
    plain = {"class": "form-control mono", "autocomplete": "off", "spellcheck": "false"}
    if setting.example:
        plain["placeholder"] = setting.example
    widget = forms.Textarea({**plain, "rows": 3}) if setting.lines else forms.TextInput(plain)
    return forms.CharField(label=setting.label, required=False, help_text=setting.help, initial=initial, widget=widget)


class GroupForm(Form):
    NEW = "new"
    NONE = "none"

    group = forms.ChoiceField(widget=forms.RadioSelect)
    new_name = forms.CharField(max_length=40, required=False, label="Name of the new group")

    def __init__(self, *args: Any, flow: Flow, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = list(flow.connector.groups.all())
        choices = [(str(group.pk), group.name) for group in self.groups]
        self.fields["group"].choices = [*choices, (self.NEW, "A new group"), (self.NONE, "No group")]  # type: ignore[attr-defined]
        self.fields["group"].initial = str(flow.group_id) if flow.group_id else (self.NEW if not self.groups else self.NONE)
        taken = {group.name for group in self.groups}
        self.fields["new_name"].initial = "" if flow.name in taken else flow.name

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        if data.get("group") == self.NEW and not data.get("new_name"):
            self.add_error("new_name", "Name the new group.")
        return data


class VersionForm(Form):
    bump = forms.ChoiceField(
        choices=[
            ("patch", "Patch: a correction"),
            ("minor", "Minor: something more"),
            ("major", "Major: something else than before"),
        ],
        initial="minor",
        widget=forms.RadioSelect,
        label="Kind of change",
    )
    description = forms.CharField(max_length=200, required=False, help_text="What changed, for whoever makes the release.")


# ------------------------------------------------------------------------------------------------------------------- teams


class MemberForm(Form):
    username = forms.CharField(max_length=150, label="User name", help_text="Of an existing account. Accounts are made in the admin site.")
    role = forms.ChoiceField(choices=Role.choices, initial=Role.VIEWER)


class RoleForm(Form):
    role = forms.ChoiceField(choices=Role.choices)


class ProjectForm(Form):
    name = forms.CharField(max_length=80)
    slug = forms.CharField(max_length=40, label="Name in addresses", help_text="Lower-case letters, digits and dashes, as in webshop.")
    description = forms.CharField(required=False, widget=forms.Textarea({"rows": 2}))
