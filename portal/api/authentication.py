"""Basic authentication that does not hash the password anew at every call.

Argon2 is slow on purpose; a program that polls with a password would keep a core busy with it. A pair that was once verified is
remembered for a minute in this process: only as a keyed digest, and bound to the stored hash, so that a changed password ends it.
"""

import hashlib
import hmac
import time
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from drf_spectacular.authentication import BasicScheme
from rest_framework.authentication import BasicAuthentication
from rest_framework.request import Request

REMEMBERED_SECONDS = 60.0
REMEMBERED_AT_MOST = 1000
_remembered: dict[bytes, float] = {}  # digest -> monotonic moment until which it counts


def _digest(user: User, password: str) -> bytes:
    return hmac.digest(settings.SECRET_KEY.encode(), f"{user.pk}\0{user.password}\0{password}".encode(), hashlib.sha256)


class RememberingBasicAuthentication(BasicAuthentication):
    www_authenticate_realm = "baton"

    def authenticate_credentials(self, userid: str, password: str, request: Request | None = None) -> tuple[Any, None]:
        """As BasicAuthentication; raises AuthenticationFailed for a wrong pair or a deactivated person."""
        now = time.monotonic()
        user = get_user_model().objects.filter(username=userid, is_active=True).first()
        if user and _remembered.get(_digest(user, password), 0.0) > now:
            return user, None
        verified: tuple[Any, None] = super().authenticate_credentials(userid, password, request)
        if len(_remembered) >= REMEMBERED_AT_MOST:
            _remembered.clear()
        _remembered[_digest(verified[0], password)] = now + REMEMBERED_SECONDS
        return verified


class RememberingBasicScheme(BasicScheme):  # type: ignore[no-untyped-call]
    """How the OpenAPI document names it: plain HTTP basic authentication."""

    target_class = RememberingBasicAuthentication  # type: ignore[assignment]
