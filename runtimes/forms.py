"""Shapes of what people send to the pages of runtimes. Forms validate and never write."""

from datetime import time, timedelta
from typing import Any

from django import forms

from portal.errors import Invalid
from portal.models import Environment
from portal.time_zones import zone_of
from runtimes import failback, failover, profiles, protocol
from runtimes.models import FailbackPolicy

CLOCK = {"type": "time", "class": "form-control"}
STAYS = [
    (60 * minutes, words) for minutes, words in ((15, "15 minutes"), (60, "1 hour"), (120, "2 hours"), (480, "8 hours"), (1440, "a day"))
]


class ConfirmForm(forms.Form):
    """A dangerous act. On Production the person types the name of what is concerned; elsewhere pressing the button is enough."""

    confirm = forms.CharField(required=False, label="Name")
    next = forms.CharField(required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, environment: Environment, name: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.name = name
        self.must_type = environment.is_production

    def clean_confirm(self) -> str:
        typed = str(self.cleaned_data["confirm"]).strip()
        if self.must_type and typed != self.name:
            raise forms.ValidationError(f"This is Production: type {self.name} to go on.")
        return typed


class GroupActForm(ConfirmForm):
    """Play, Stop, Disable or Enable. `expected_leader` is the machine that led when the person looked."""

    expected_leader = forms.CharField(required=False, widget=forms.HiddenInput)
    returns_after = forms.TypedChoiceField(
        label="Stays there", required=False, coerce=int, empty_value=None, choices=[("", "until somebody moves it"), *STAYS]
    )

    def returns(self) -> timedelta | None:
        """After how long leadership returns to the preferred leader; None: the switch stands."""
        seconds = self.cleaned_data["returns_after"]
        return timedelta(seconds=seconds) if seconds else None


class FailbackForm(ConfirmForm):
    """How leadership returns to the preferred leader. A window is two times of the day, in a time zone."""

    policy = forms.ChoiceField(
        widget=forms.RadioSelect,
        choices=[(policy.value, f"{words}. {failback.CONSEQUENCES[policy]}") for policy, words in failback.WORDS.items()],
    )
    stable_minutes = forms.FloatField(
        label="Stability time",
        min_value=0,
        max_value=failback.STABLE_LONGEST / 60,
        required=False,
        widget=forms.NumberInput(attrs={"class": "form-control", "step": "any"}),
    )
    window_start = forms.TimeField(label="From", required=False, widget=forms.TimeInput(attrs=CLOCK, format="%H:%M"))
    window_end = forms.TimeField(label="To", required=False, widget=forms.TimeInput(attrs=CLOCK, format="%H:%M"))
    zone = forms.CharField(label="Time zone", required=False, max_length=64, widget=forms.TextInput(attrs={"class": "form-control"}))

    def clean_zone(self) -> str:
        name = str(self.cleaned_data["zone"] or "UTC")
        try:
            zone_of(name)
        except Invalid as refusal:
            raise forms.ValidationError(refusal.sentence) from refusal
        return name

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if cleaned.get("policy") == FailbackPolicy.WINDOW and not self.errors and not self.window():
            self.add_error("window_start", "Say from when to when leadership may return.")
        return cleaned

    def window(self) -> tuple[time, time] | None:
        start, end = self.cleaned_data.get("window_start"), self.cleaned_data.get("window_end")
        return (start, end) if start is not None and end is not None else None

    def chosen(self) -> FailbackPolicy:
        return FailbackPolicy(self.cleaned_data["policy"])

    def stable_seconds(self) -> int:
        minutes = self.cleaned_data["stable_minutes"]
        return 300 if minutes is None else round(minutes * 60)


class IsolationForm(ConfirmForm):
    """What a member does without a majority; each choice says what it costs."""

    policy = forms.ChoiceField(
        label="Isolation policy",
        widget=forms.RadioSelect,
        choices=[(policy.value, f"{words}. {failover.POLICY_CONSEQUENCES[policy]}") for policy, words in failover.POLICY_WORDS.items()],
    )

    def chosen(self) -> protocol.IsolationPolicy:
        return protocol.IsolationPolicy(self.cleaned_data["policy"])


class ProfileForm(ConfirmForm):
    """How fast the environment fails over; each choice says what it is meant for and what it gives."""

    profile = forms.ChoiceField(
        label="Timing profile",
        widget=forms.RadioSelect,
        choices=[
            (profile.value, f"{profile.label}: leadership moves {profiles.expected(profiles.timing_of(profile).ttl)}. {words}")
            for profile, words in profiles.MEANT_FOR.items()
        ],
    )


class PreferenceForm(forms.Form):
    preference = forms.ChoiceField(choices=[("leader", "Leader"), ("backup", "Backup"), ("none", "None")])

    def chosen(self) -> protocol.Preference:
        return protocol.Preference(self.cleaned_data["preference"])
