"Formulas: from the TeX of the notebooks to MathML, which browsers draw without a script"

import re
from functools import cache

from latex2mathml.converter import convert

# what the converter does not know, said in its words
TEX = [
    (r"\arg\min", r"\operatorname{argmin}"),
    (r"\!", ""),
    (r"\lVert", "‖"),
    (r"\rVert", "‖"),
    (r"\lvert", "|"),
    (r"\rvert", "|"),
]
FENCE = {r"\|": "‖", r"\langle": "⟨", r"\rangle": "⟩", r"\{": "\ue000", r"\}": "\ue001"}


def spaced_name(found: re.Match) -> str:
    "A name of several letters is an operator, with a little space unless another stands beside it"
    before, opening, name, after = found[1] or "", found[2], found[3], found[4]
    left = "0" if before else ".17em"
    right = "0" if after else ".17em"
    return f'{before}{opening}<mo lspace="{left}" rspace="{right}">{name}</mo>'


# how MathML should look: (pattern, replacement)
LOOK = [
    (r"(</mo>|<mrow>)?((?:<msub>|<msubsup>)?)<m[io]>([A-Za-z]{2,})</m[io]>(?=(<mo)?)", spaced_name),
    # capital Greek and double-struck letters stand upright
    (r"<mi>(&#x003(?:9[1-9A-F]|A[0-9]);)</mi>", r'<mi mathvariant="normal">\1</mi>'),
    (
        r"<mi>(&#x021(?:02|0D|15|19|1A|1D|24);|&#x1D5[34][0-9A-F];|[ℂℍℕℙℚℝℤ𝔸-𝕐])</mi>",
        r'<mi mathvariant="normal">\1</mi>',
    ),
    (
        r"<mo([^>]*)>(&#x0007C;|\||&#x0002F;|/)</mo>",
        r'<mo lspace="0" rspace="0" stretchy="false">\2</mo>',
    ),
    # after a relation, a comma or a bracket stands a sign, not a difference
    (
        r"((?:=|&#x0003D;|,|&#x0002C;|\(|&#x00028;|&#x02190;|&#x02192;)</mo>(?:<mspace[^>]*/>)?)"
        r"<mo>(&#x02212;|−)</mo>",
        r'\1<mo form="prefix">\2</mo>',
    ),
    (r"<mo[^>]*>(&#x02202;|&#x02207;|&#x0221E;)</mo>", r'<mi mathvariant="normal">\1</mi>'),
    (r"<mo minsize", '<mo lspace="0" rspace="0" minsize'),
    (r"<mover>", '<mover accent="true">'),
    (r'<mo stretchy="true">&#x000AF;', '<mo stretchy="false">&#x000AF;'),
    ("<mo>&#x02193;", '<mo stretchy="false">&#x02193;'),
]


def sized_fence(found: re.Match) -> str:
    return f"\\{found[1]}{FENCE[found[3]]}"


@cache
def mathml(tex: str, display: bool = False) -> str:
    "MathML of a formula without its tag; `ValueError` where a command is not understood"
    for command, known in TEX:
        tex = tex.replace(command, known)
    # `\mathbb R` is `\mathbb{R}`: the converter knows the second alone
    tex = re.sub(r"\\(math(?:bb|cal|bf|frak|scr))\s+([A-Za-z0-9])", r"\\\1{\2}", tex)
    tex = re.sub(
        r"\\(big|Big|bigg|Bigg)([lrm]?)(\\[|{}]|\\[lr]angle)",
        sized_fence,
        tex,
    )
    drawn = convert(tex.strip(), display="block" if display else "inline")
    drawn = drawn.replace("\ue000", "{").replace("\ue001", "}")
    for pattern, look in LOOK:
        drawn = re.sub(pattern, look, drawn)
    words = re.sub(r"<[^>]*>", "", drawn)
    if "\\" in words:
        left = re.search(r"\\[^\s<>]*", words)[0]
        raise ValueError(f"not understood in the formula {tex!r}: {left}")
    return drawn


def displayed_formula(tex: str) -> str:
    "A formula on a line of its own, with its number at the right"
    tag = re.search(r"\\tag\{([^}]*)\}", tex)
    body = mathml(re.sub(r"\\tag\{[^}]*\}", "", tex), True)
    scroll = f'<div class="scroll">{body}</div>'
    if not tag:
        return f'<div class="eq">{scroll}</div>'
    number = f'<a class="tag" href="#eq-{tag[1]}">({tag[1]})</a>'
    return f'<div class="eq" id="eq-{tag[1]}">{scroll}{number}</div>'
