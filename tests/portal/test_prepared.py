"""A prepared query answers what the queryset that it was made of answers, whoever asks and whatever is given."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections
from django.db.models import Count, Exists, OuterRef, QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from portal.models import Environment, Project, Team
from portal.prepared import Prepared

pytestmark = pytest.mark.django_db


def of_team(team: int, name: str) -> "QuerySet[Project]":
    return Project.objects.filter(team=team, name__gte=name).select_related("team").order_by("name")


@pytest.fixture
def teams() -> list[Team]:
    made = [Team.objects.create(name=name, slug=name) for name in ("one", "two")]
    for team in made:
        for number in range(3):
            Project.objects.create(team=team, name=f"p{number}", slug=f"{team.slug}-{number}")
    return made


def test_it_answers_what_its_queryset_answers_with_one_query(teams: list[Team]) -> None:
    prepared = Prepared(of_team)
    for team in (*teams, *teams):
        with CaptureQueriesContext(connection) as asked:
            found = prepared.all(team.pk, "p")
            assert {project.team.name for project in found} == {team.name}
        assert found == list(of_team(team.pk, "p")) and len(asked) == 1 and len(found) == 3
    assert prepared.all(teams[0].pk, "q") == []


def test_its_sql_is_made_once(teams: list[Team]) -> None:
    built: list[int] = []

    def build(team: int) -> "QuerySet[Project]":
        built.append(team)
        return Project.objects.filter(team=team)

    prepared = Prepared(build)
    assert [len(prepared.all(team.pk)) for team in teams] == [3, 3]
    assert len(built) == 1


def test_what_was_found_is_asked_for_anew_each_time(teams: list[Team]) -> None:
    prepared = Prepared(of_team)
    before = len(prepared.all(teams[0].pk, "p"))
    Project.objects.filter(team=teams[0]).first().delete()  # type: ignore[union-attr]
    assert (before, len(prepared.all(teams[0].pk, "p"))) == (3, 2)


def test_columns_annotations_and_moments(teams: list[Team], admin: User) -> None:
    now = timezone.now()
    User.objects.filter(pk=admin.pk).update(last_login=now)
    since = Prepared(lambda moment: User.objects.filter(last_login__gte=moment).values_list("username", "last_login"))
    assert since.all(now) == [(admin.username, now)]
    assert since.all(now + timedelta(microseconds=1)) == []
    counted = Prepared(lambda team: Project.objects.filter(team=team).order_by().values_list("team_id").annotate(count=Count("pk")))
    assert counted.first(teams[1].pk) == (teams[1].pk, 3) and counted.first(0) is None
    peopled = Prepared(
        lambda pk, name: Team.objects.filter(pk=pk).annotate(
            has=Exists(Project.objects.filter(team=OuterRef("pk"), name=name)), again=Exists(Project.objects.filter(name=name))
        )
    )
    assert [(team.has, team.again) for team in (peopled.get(teams[0].pk, "p1"), peopled.get(teams[0].pk, "x"))] == [  # type: ignore[attr-defined]
        (True, True),
        (False, False),
    ]


def test_what_its_queryset_prefetches_comes_with_it(teams: list[Team]) -> None:
    prepared = Prepared(lambda pk: Team.objects.filter(pk=pk).prefetch_related("projects"))
    for team in teams:
        with CaptureQueriesContext(connection) as asked:
            assert len(prepared.get(team.pk).projects.all()) == 3
        assert len(asked) == 2


def test_the_only_row(teams: list[Team]) -> None:
    prepared = Prepared(of_team)
    assert prepared.get(teams[0].pk, "p2").slug == "one-2"
    with pytest.raises(Project.DoesNotExist):
        prepared.get(teams[0].pk, "x")
    with pytest.raises(Project.MultipleObjectsReturned):
        prepared.get(teams[0].pk, "p")


@pytest.mark.parametrize(
    "given",
    [
        pytest.param((None, "p"), id="None would be another query"),
        pytest.param((True, "p"), id="a flag may decide the query"),
        pytest.param((1,), id="too few"),
    ],
)
def test_what_cannot_be_given(given: tuple[object, ...]) -> None:
    with pytest.raises(TypeError):
        Prepared(of_team).all(*given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda team, name: Project.objects.filter(team=team), id="one that is not used"),
        pytest.param(lambda team, name: Project.objects.filter(team=team, name__startswith=name), id="one that becomes a pattern"),
        pytest.param(lambda team, name: Project.objects.filter(team=team + 1, name=name), id="one that is computed with"),
        pytest.param(
            lambda team, name: Project.objects.filter(team=team, name=name).exclude(slug__contains=name),
            id="one that is both",
        ),
    ],
)
def test_a_value_that_does_not_stand_in_the_query_as_it_is_is_a_mistake(build: Callable[..., "QuerySet[Project]"]) -> None:
    with pytest.raises(ValueError, match="as it is given"):
        Prepared(build).all(1, "p")


def test_each_thread_asks_by_its_own_connection() -> None:
    prepared = Prepared(of_team)
    prepared.all(1, "p")

    def asks_by_mine() -> bool:
        assert prepared._made is not None
        return prepared._made.asked((1, "p")).query.get_compiler("default").connection is connections["default"]

    with ThreadPoolExecutor(1) as other:
        mine, others = connections["default"], other.submit(lambda: connections["default"]).result()
        assert mine is not others
        assert asks_by_mine() and other.submit(asks_by_mine).result()


def test_environments_of_a_project_by_two_values_of_one_kind(teams: list[Team]) -> None:
    """Each value stands where it belongs."""
    project = Project.objects.filter(team=teams[0]).first()
    assert project is not None
    made = Environment.objects.create(project=project, kind="test")
    prepared = Prepared(lambda kind, slug: Environment.objects.filter(project__slug=slug, kind=kind))
    assert prepared.all("test", project.slug) == [made] and prepared.all(project.slug, "test") == []
