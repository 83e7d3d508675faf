"""/api/v1/token/: name and password for a token. The one endpoint that strangers may ask."""

from rest_framework.authtoken.views import ObtainAuthToken
from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView

from portal.api.parsers import FormParser, JSONParser, MultiPartParser

MOST_BYTES = 16 * 1024


class ShortJSON(JSONParser):
    most = MOST_BYTES


class ShortForm(FormParser):
    most = MOST_BYTES


class ShortParts(MultiPartParser):
    most = MOST_BYTES


class PerAddress(SimpleRateThrottle):
    """Beside the lock of a name after wrong passwords (AXES_…): nobody keeps a process busy with hashing."""

    scope = "token"
    rate = "30/min"

    def get_cache_key(self, request: Request, view: APIView) -> str:
        return str(self.cache_format % {"scope": self.scope, "ident": request.META.get("REMOTE_ADDR", "")})


class Token(ObtainAuthToken):
    """A token for the API, for name and password (429 after 30 tries within a minute from one address)."""

    parser_classes = (ShortJSON, ShortForm, ShortParts)
    throttle_classes = (PerAddress,)
