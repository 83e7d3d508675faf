"""/api/v1/projects/: the projects of a person's teams, and a new one."""

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from portal import teams
from portal.access import get_team
from portal.api.fields import ExactInput, body_of, signed_in
from portal.models import Project, Role


class ProjectSerializer(serializers.ModelSerializer[Project]):
    team = serializers.CharField(source="team.slug")
    environments = serializers.SerializerMethodField()

    class Meta:
        model = Project
        fields = ("slug", "name", "description", "team", "environments")

    def get_environments(self, project: Project) -> list[str]:
        """Their kinds, in the order in which a release passes them."""
        return [environment.kind for environment in sorted(project.environments.all(), key=lambda row: row.position)]


class NewProject(ExactInput):
    team = serializers.SlugField(help_text="The slug of a team that you administer")
    name = serializers.CharField(max_length=80)
    slug = serializers.CharField(max_length=40, help_text="Its name in addresses: lower-case letters, digits and dashes")
    description = serializers.CharField(default="", allow_blank=True)


class ProjectViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Project]):
    """Projects of the teams that the person belongs to."""

    serializer_class = ProjectSerializer
    queryset = Project.objects.none()
    lookup_field, lookup_value_regex = "slug", "[-a-zA-Z0-9_]+"

    def get_queryset(self) -> QuerySet[Project]:
        return Project.objects.visible_to(self.request.user).select_related("team").prefetch_related("environments").order_by("slug")

    @extend_schema(request=NewProject, responses={201: ProjectSerializer})
    def create(self, request: Request) -> Response:
        """A project with its environments Test, Acceptance and Production; for administrators of the team."""
        given = body_of(NewProject, request)
        team = get_team(signed_in(request), given.pop("team"), role=Role.ADMINISTRATOR)
        return Response(ProjectSerializer(teams.create_project(team, **given)).data, status=status.HTTP_201_CREATED)
