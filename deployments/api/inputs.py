"""What several acts of deployments take in their bodies."""

from typing import Any

from rest_framework import serializers

from deployments import promotion


class OverrideField(serializers.CharField):
    """Why the rules of the environment are set aside; empty: they are not."""

    def __init__(self, **options: Any) -> None:
        said = "Why the environment's rules (order, windows, freezes; never approvals) are set aside: operators only, kept."
        super().__init__(default="", allow_blank=True, max_length=promotion.LONGEST_REASON, help_text=said, **options)


class LeavingOutField(serializers.ListField):
    """Machines that a deployment goes on without."""

    child = serializers.CharField(max_length=40)

    def __init__(self, **options: Any) -> None:
        said = "Names of offline machines: their steps are skipped, and they get the release by themselves when they return."
        super().__init__(default=list, max_length=100, **{"help_text": said, **options})
