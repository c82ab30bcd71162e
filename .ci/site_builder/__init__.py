"""The documentation site, made from `_quarto.yml` and the stored outputs of the notebooks.

sources      the notebooks, their order and their addresses
signatures   functions and classes as their source describes them
formulas     TeX to MathML
prose        Markdown to HTML: links, anchors, folded answers, coloured code
cells        cells to HTML: cards, code, outputs, and what the search knows of them
frame        what stands around a page: sidebar, contents, head and foot
building     all pages, written to a folder
"""
