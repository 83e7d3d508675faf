"""Shapes of what people send to the pages of runtimes. Forms validate and never write."""

from typing import Any

from django import forms

from portal.models import Environment
from runtimes import failover, profiles, protocol


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
