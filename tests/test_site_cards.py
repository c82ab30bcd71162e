"Cards: what the site says of functions, classes and properties, read from their source"

import re
from pathlib import Path

from site_builder.cells import source_block
from site_builder.signatures import exported, is_private
from site_builder.sources import load, name_anchors

ROOT = Path(__file__).resolve().parents[1]


def test_everything_public_has_a_meaning():
    "No public parameter, field, property or result is without one"
    missing = [
        f"{page.book}: {api.name}: {', '.join(api.undescribed())}"
        for page in load(ROOT)
        for api in page.cards
        if api.undescribed()
    ]
    assert not missing, "\n".join(missing)


def test_a_card_says_what_is_needed(site):
    "Signature, what a parameter means, what comes back; the methods of a class, `@patch` included"
    page = (site / "method/inclusion.html").read_text(encoding="utf-8")
    card = re.search(r'(?s)<section class="api" id="shrink">.*?</section>', page)[0]
    for what in ("shrink(", "→ ", "threshold λ ≥ 0", "= 1.0", "returns"):
        assert what in card
    path = (site / "method/path.html").read_text(encoding="utf-8")
    for method in ("", ".cut", ".load", ".to_pandas"):
        assert f'id="solutionpath{method}"' in path


def only(code: str):
    found = exported(code)
    assert len(found) == 1
    return found[0]


def test_comments_in_a_signature():
    "A comment at the end of a line is for its last parameter; behind the colon, for the result"
    found = only("def f(a, b=1) -> int:  # the sum\n    pass\n")
    assert found.sig == "f(a, b=1) → int"
    assert [row.meaning for row in found.params] == ["", ""]
    assert found.returns == ("int", "the sum")
    assert found.undescribed() == ["a", "b"]

    found = only("def f(\n    a,  # one\n    *,\n    b=1,  # two\n) -> int:  # three\n    pass\n")
    assert [row.meaning for row in found.params] == ["one", "two"]
    assert found.returns.meaning == "three"
    assert found.undescribed() == []

    found = only("def f(\n    a,  # one\n):  # two\n    pass\n")
    assert (found.params[0].meaning, found.returns) == ("one", ("", "two"))

    found = only("def f(\n    a,  # one\n    **more,  # two\n):\n    # not three\n    pass\n")
    assert [row.name for row in found.params] == ["a", "**more"]
    assert found.returns == ("", "")


def test_comments_in_defaults_of_several_lines():
    "The comment behind a default counts, or the one in its first line; those inside do not"
    code = """
def f(
    a=(
        1,  # not this
    ),  # one
    b=dict(  # two
        x=1,
    ),
    c: Literal["x"]
    | None = None,  # three
) -> dict[
    str, int
]:  # four
    pass
"""
    found = only(code)
    assert [row.meaning for row in found.params] == ["one", "two", "three"]
    assert found.returns == ("dict[str, int]", "four")
    assert found.sig == "f(a=(1,), b=dict(x=1), c=None) → dict[str, int]"


def test_options_of_a_command():
    "The help of an option is the meaning of its parameter"
    code = """
@app.command()
def f(
    a: Annotated[int, typer.Option(help="one")] = 3,
    b: Annotated[
        list[str],
        typer.Option("--bee", help="two " "words"),
    ] = None,
    c: Annotated[str, "no option"] = "",  # three
):
    "Do it."
"""
    found = only(code)
    assert [row.meaning for row in found.params] == ["one", "two words", "three"]
    assert [row.type for row in found.params] == ["int", "list[str]", "str"]


def test_methods_and_properties():
    "A property is no call; patched methods belong to their class; setters are left out"
    code = """
class A(B):
    "Doc"
    def __init__(self, x: int = 1, *, y="a"):
        pass
    @property
    def n(self) -> int:
        "How many."
    @n.setter
    def n(self, value):
        pass
    @cached_property
    def m(self) -> int:
        pass
    @classmethod
    def load(cls, file) -> "A":  # it
        pass
    @staticmethod
    def of(file):
        pass
    def _hidden(self):
        pass
@patch
def g(self: A, *z):
    pass
@patch(as_prop=True)
def h(self: A) -> int:
    pass
@patch(cls_method=True)
def make(cls: A, n):
    pass
"""
    found = exported(code)
    assert [(api.sig, api.kind) for api in found] == [
        ('A(x=1, *, y="a")', "class"),
        ("A.n → int", "property"),
        ("A.m → int", "property"),
        ("A.load(file) → A", "classmethod"),
        ("A.of(file)", "staticmethod"),
        ("A.g(*z)", "method"),
        ("A.h → int", "property"),
        ("A.make(n)", "classmethod"),
    ]
    assert found[1].undescribed() == []
    assert found[2].undescribed() == ["docstring"]


def test_fields_of_a_dataclass():
    code = """
@dataclass
class A:
    x: int  # one
    y: dict = field(default_factory=dict)  # two
    z: list = field(
        default_factory=lambda: [1, 2]
    )  # three
    w: int = field(init=False, default=0)  # four
    _hidden: int = 0
    known: ClassVar[int] = 3
"""
    found = only(code)
    assert found.sig == "A(x, y=dict(), z=[1, 2])"
    assert [row.meaning for row in found.params] == ["one", "two", "three", "four"]


def test_cards_share_no_anchor():
    cards = exported("def a():\n    pass\nclass A:\n    pass\n")
    name_anchors(cards)
    assert [api.anchor for api in cards] == ["a", "a-2"]


def test_private_helpers_are_folded():
    "What a reader needs is open, what helps it is folded"
    assert is_private("def _f():\n    pass\n\n_known = {}\n")
    assert not is_private("def _f():\n    pass\n\ndef g():\n    pass\n")
    assert not is_private("_x = 1\nprint(_x)\n")
    assert source_block("def _f():\n    pass", False).startswith(
        '<details class="source"><summary>'
    )
    assert source_block("def f():\n    pass", True).startswith('<details class="source" open>')
    assert source_block("print(1)", False).startswith("<pre")
    assert "%" in source_block("%pip install spp", False)
