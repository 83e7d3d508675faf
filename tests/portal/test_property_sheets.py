"""Lines of a spreadsheet."""

import pytest

from portal.property_sheets import Line, parse, scope_of


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        pytest.param("", [], id="nothing"),
        pytest.param("a\t1\nb\t2", [Line(1, "test", "a", value="1"), Line(2, "test", "b", value="2")], id="two columns as copied"),
        pytest.param("a,external01.erp,1", [Line(1, "test", "a", "external01", "erp", "1")], id="three columns: key, scope, value"),
        pytest.param("\n${a};x\n", [Line(2, "test", "a", value="x")], id="semicolons, a placeholder as key, empty lines"),
        pytest.param(
            "environment,key,scope,value,secret,used by\nproduction,a,connector erp,x,,y\nTest,p,global,,yes,",
            [Line(2, "production", "a", "", "erp", "x"), Line(3, "test", "p", value="", secret=True, kept=True)],
            id="as exported; a secret that was left out stays",
        ),
        pytest.param("key,scope,value\na,,\nb,global,\n", [Line(3, "test", "b", value="")], id="an exported key without value is left out"),
        pytest.param(
            "key\tTest\texternal01\na\t1\t\nb\t\t2",
            [Line(2, "test", "a", value="1"), Line(3, "test", "b", "external01", "", "2")],
            id="a matrix; empty cells change nothing",
        ),
        pytest.param(
            'key,value\na,"two\nlines"\nb,2', [Line(2, "test", "a", value="two\nlines"), Line(4, "test", "b", value="2")], id="quoted"
        ),
        pytest.param(
            "key,value\na,'=1+1\nb,'quoted", [Line(2, "test", "a", value="=1+1"), Line(3, "test", "b", value="'quoted")], id="formulas"
        ),
        pytest.param("key,value\na,''=1", [Line(2, "test", "a", value="'=1")], id="an exported text that begins with an apostrophe"),
        pytest.param("a\t'-x'", [Line(1, "test", "a", value="'-x'")], id="what was typed stays as it is"),
        pytest.param(
            'a\tsay "x"\nb\t"two\tparts"',
            [Line(1, "test", "a", value='say "x"'), Line(2, "test", "b", value="two\tparts")],
            id="quotation marks and tabs inside",
        ),
        pytest.param("key,value,scope\na\nb,2", [Line(3, "test", "b", value="2")], id="rows that end early"),
    ],
)
def test_lines_are_read(text: str, lines: list[Line]) -> None:
    assert parse(text, environment="test") == lines


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param("alone", "Write key and value", id="one column"),
        pytest.param("a,b,c,d", "Write key and value", id="too many columns"),
        pytest.param("key,environment,value\na,moon,1", "is no environment", id="an unknown environment"),
        pytest.param("key,scope,value\na,on the moon,1", "is no scope", id="nonsense as scope"),
        pytest.param("key,value,secret\na,1,perhaps", "secret is", id="secret perhaps"),
        pytest.param('key,value\na,1\nb,"' + "x" * 140_000, "Is a quotation mark not closed?", id="an open quotation mark"),
        pytest.param('one\t"abc\ntwo\tx\nthree\ty', "Is a quotation mark not closed?", id="one that would swallow the lines after it"),
        pytest.param('one\t"C:\\x" -v', "Is a quotation mark not closed?", id="text after a closed quotation mark"),
        pytest.param("key\tthe moon\na\t1", "neither an environment nor a scope", id="a column of nonsense"),
    ],
)
def test_a_line_that_cannot_be_understood_says_why(text: str, error: str) -> None:
    found = [line.error for line in parse(text, environment="test") if line.error]
    assert len(found) == 1
    assert error in found[0]


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("global", ("", "")),
        ("external01", ("external01", "")),
        ("external01.erp", ("external01", "erp")),
        ("connector erp", ("", "erp")),
        ("a.b.c", None),
    ],
)
def test_scopes_have_names(name: str, scope: tuple[str, str] | None) -> None:
    assert scope_of(name) == scope
