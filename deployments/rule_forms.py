"""Forms of an environment's rules and approvals, and times in its zone. They validate shape and never write."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django import forms

from deployments import windows
from deployments.forms import OverrideField
from deployments.models import DeploymentWindow, EnvironmentRules
from deployments.promotion import WindowInput
from deployments.schedules import LONGEST_MINUTES
from portal.errors import Invalid
from portal.forms import Form
from portal.time_zones import zone_of

WALL_FORMATS = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
WEEKDAYS = [(str(number), name) for number, name in enumerate(windows.DAYS)]


class WallField(forms.DateTimeField):
    """Date and time as a wall clock shows it: naive until a zone is known."""

    def __init__(self, **options: Any) -> None:
        widget = forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")
        super().__init__(input_formats=WALL_FORMATS, widget=widget, **options)

    def to_python(self, value: Any) -> datetime | None:
        found: datetime | None = super().to_python(value)
        return found.replace(tzinfo=None) if found else None


class SecondField(forms.TypedChoiceField):
    """Which of two equal times, when the clocks are set back."""

    def __init__(self, **options: Any) -> None:
        choices = [("", "It happens once"), ("first", "The first"), ("second", "The second")]
        super().__init__(
            choices=choices,
            coerce=lambda chosen: chosen == "second",
            empty_value=None,
            required=False,
            label="When the clocks are set back and a time happens twice",
            **options,
        )


class Asking(Form):
    """A form with a SecondField, which is asked only once a time turned out to be no single moment."""

    asks_which = False


def moment(form: Asking, name: str, zone: ZoneInfo, *, second: bool | None) -> datetime | None:
    """The moment of a WallField in a zone; a time that the clocks skip or show twice becomes the field's error."""
    wall = form.cleaned_data.get(name)
    if wall is None:
        return None
    try:
        return windows.instant(wall, zone, second=second, field=name)
    except Invalid as refusal:
        form.asks_which = True
        form.add_error(name, refusal.sentence)
        return None


# --------------------------------------------------------------------------------------------------------------- activations


class ScheduleForm(Asking):
    """A moment of the environment's own time zone; `due_at` comes out in UTC."""

    at = WallField(required=False, label="Date and time")
    second = SecondField()
    override = OverrideField()

    def __init__(self, *args: Any, zone: ZoneInfo, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zone = zone

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if self.wants_time(cleaned):
            if not cleaned.get("at") and "at" not in self.errors:
                self.add_error("at", "Say when.")
            cleaned["due_at"] = moment(self, "at", self.zone, second=cleaned.get("second"))
        return cleaned

    def wants_time(self, cleaned: dict[str, Any]) -> bool:
        return True

    @property
    def due_at(self) -> datetime | None:
        """The moment in UTC; None: now."""
        return self.cleaned_data.get("due_at")


class ActivateForm(ScheduleForm):
    """Now, or at a time; then also whether to deploy, and how late is too late."""

    when = forms.ChoiceField(choices=[("now", "Now"), ("at", "At a time")], initial="now", widget=forms.RadioSelect)
    deploys = forms.BooleanField(required=False, label="Deploy after activation")
    leaving_out = forms.MultipleChoiceField(required=False, widget=forms.CheckboxSelectMultiple)  # machines
    expires_after_minutes = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=LONGEST_MINUTES,
        label="Expires when later than (minutes)",
        help_text="When the portal was off at that time. Empty: carried out however late.",
    )

    def __init__(self, *args: Any, machines: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["leaving_out"]
        assert isinstance(field, forms.MultipleChoiceField)
        field.choices = [(name, name) for name in machines]
        field.error_messages["invalid_choice"] = "%(value)s is no machine that this plan deploys to."

    def wants_time(self, cleaned: dict[str, Any]) -> bool:
        return cleaned.get("when") == "at"


# -------------------------------------------------------------------------------------------------------------------- rules


class RulesForm(Form):
    in_order = forms.BooleanField(
        required=False,
        label="Only after success in the environment before",
        help_text="A release reaches this environment after a successful deployment in the one before it.",
    )
    approvals = forms.IntegerField(
        min_value=0, max_value=20, label="Approvals needed", help_text="People who approve, the requester not counted. 0: none."
    )
    approval_days = forms.IntegerField(min_value=1, max_value=365, label="Approval requests stay open (days)")
    expires_after_minutes = forms.IntegerField(
        min_value=1,
        max_value=7 * 24 * 60,
        label="A late scheduled activation expires after (minutes)",
        help_text="The portal was off at 02:00: it must not deploy at 09:00 unless told to. Each activation can say otherwise.",
    )
    time_zone = forms.CharField(max_length=60, help_text="Windows and times are entered and shown in it, for instance Europe/Amsterdam.")

    def clean_time_zone(self) -> str:
        name: str = self.cleaned_data["time_zone"]
        try:
            zone_of(name)
        except Invalid as refusal:
            raise forms.ValidationError(refusal.sentence) from refusal
        return name

    @staticmethod
    def of(rules: EnvironmentRules) -> dict[str, Any]:
        return {name: getattr(rules, name) for name in RulesForm.base_fields}


class WindowForm(Form):
    """One deployment window; the empty last one adds another."""

    days = forms.MultipleChoiceField(choices=WEEKDAYS, required=False, widget=forms.CheckboxSelectMultiple)
    opens = forms.TimeField(required=False, widget=forms.TimeInput(attrs={"type": "time"}, format="%H:%M"))
    closes = forms.TimeField(required=False, widget=forms.TimeInput(attrs={"type": "time"}, format="%H:%M"))
    remove = forms.BooleanField(required=False, label="Remove")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if cleaned.get("remove") or not (cleaned.get("days") or cleaned.get("opens") or cleaned.get("closes")):
            return cleaned
        if not cleaned.get("days"):
            self.add_error("days", "Choose at least one day of the week.")
        for name, word in (("opens", "opens"), ("closes", "closes")):
            if cleaned.get(name) is None and name not in self.errors:
                self.add_error(name, f"Say when it {word}.")
        return cleaned

    @property
    def wanted(self) -> WindowInput | None:
        given = self.cleaned_data
        if given.get("remove") or not given.get("days") or given.get("opens") is None:
            return None
        return WindowInput("".join(sorted(given["days"])), given["opens"], given["closes"])

    @staticmethod
    def of(row: DeploymentWindow) -> dict[str, Any]:
        return {"days": list(row.days), "opens": row.opens, "closes": row.closes}


WindowForms = forms.formset_factory(WindowForm, extra=1, max_num=20)


class FreezeForm(Asking):
    starts = WallField(label="From")
    ends = WallField(label="Until")
    second = SecondField()
    reason = forms.CharField(max_length=200, help_text="Whoever is refused reads it: “Stocktaking”.")

    def __init__(self, *args: Any, zone: ZoneInfo, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zone = zone

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        for name in ("starts", "ends"):
            cleaned[f"{name}_at"] = moment(self, name, self.zone, second=cleaned.get("second"))
        return cleaned


# ---------------------------------------------------------------------------------------------------------------- approvals


class ApprovalRequestForm(Form):
    note = forms.CharField(
        required=False, max_length=2000, widget=forms.Textarea(attrs={"rows": 3}), help_text="What the approvers should know."
    )


class CommentForm(Form):
    comment = forms.CharField(required=False, max_length=2000, widget=forms.Textarea(attrs={"rows": 3}))


# ---------------------------------------------------------------------------------------------------------------- retention


class RetentionForm(Form):
    enabled = forms.BooleanField(required=False, label="Remove old releases every hour")
    keep_last = forms.IntegerField(min_value=1, max_value=10_000, label="Keep the newest")
    keep_days = forms.IntegerField(min_value=0, max_value=3650, label="Keep those younger than (days)")
