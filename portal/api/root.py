"""What answers below /api/v1/ where nothing else does."""

from django.http import Http404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView


class NoSuchEndpoint(APIView):
    """404 as problem+json (401 without credentials), for every method."""

    schema = None

    def _refuse(self, request: Request) -> Response:
        raise Http404(f"There is no endpoint {request.path}; see /api/v1/schema/.")

    get = post = put = patch = delete = _refuse
