"The site, looked at in a browser where there is one"

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browsers import launched
from site_builder.sources import address, contents

ROOT = Path(__file__).resolve().parents[1]
URLS = [address(book) for _, books in contents(ROOT) for book in books]
SAMPLE = ["index.html", "cutting/budget.html", "theory/splitting.html", "results/orders.html"]
WINDOWS = [(1280, "light"), (390, "dark")]  # width in pixels, colours
BACKGROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}
COLOUR = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def host(site):
    "The address of a server that has the site"

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def tab(browser, host):
    "A page that lets no request leave the machine, and remembers in `wrong` what went wrong"
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.wrong = []

    def local(route):
        if route.request.url.startswith((host, "file://", "data:")):
            route.continue_()
        else:
            page.wrong.append(f"asked for {route.request.url}")
            route.abort()

    def told(message):
        if message.type in ("error", "warning"):
            page.wrong.append(message.text)

    def answered(response):
        if response.status >= 400:
            page.wrong.append(f"{response.status} {response.url}")

    page.route("**/*", local)
    page.on("console", told)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("response", answered)
    yield page
    context.close()


# --- every page -------------------------------------------------------------------------------

LOADED = "Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode())))"
WIDTH = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
DRAWN = """[...document.querySelectorAll('math')].every(
    m => m.closest('details:not([open])') || m.getBoundingClientRect().height > 4)"""


def look_at(tab, host, urls: list[str], width: int, scheme: str) -> None:
    "Nothing complains or is fetched from elsewhere, nothing sticks out, pictures and formulas show"
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    wide = []
    for url in urls:
        tab.goto(host + url)
        tab.evaluate(LOADED)
        if tab.evaluate(WIDTH) > width:
            wide.append(url)
        assert tab.evaluate(DRAWN), url
        assert tab.evaluate(COLOUR) == BACKGROUND[scheme]
    assert not wide
    assert not tab.wrong


@pytest.mark.parametrize("width, scheme", WINDOWS)
def test_pages_open(tab, host, width, scheme):
    "A sample of what `test_every_page_opens` does for all"
    look_at(tab, host, SAMPLE, width, scheme)


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", WINDOWS)
def test_every_page_opens(tab, host, width, scheme):
    look_at(tab, host, URLS, width, scheme)


def test_the_watch_sees(tab, host):
    "What these tests would catch: a request that leaves, an error, a file that is not there"
    tab.goto(host)
    tab.evaluate("fetch('http://192.0.2.1/x').catch(() => 0)")
    assert "asked for http://192.0.2.1/x" in tab.wrong
    tab.evaluate("console.error('broken')")
    assert "broken" in tab.wrong
    tab.evaluate("fetch('none.png')")
    assert f"404 {host}none.png" in tab.wrong


# --- looks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 1279, 390])
def test_contents_at_every_width(tab, host, width):
    "Beside the text from 1280 pixels on, folded above it below that"
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(host + "method/search.html")
    assert tab.is_visible(".toc") == (width >= 1280)
    assert tab.is_visible(".contents") == (width < 1280)
    if width < 1280:
        first = tab.locator(".contents a").first
        assert not first.is_visible()
        tab.click(".contents summary")
        assert first.is_visible()


@pytest.mark.parametrize("width", [1366, 1440, 1920])
def test_a_line_of_100_characters_is_not_scrolled(tab, host, width):
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(host + "method/search.html")
    for kind in (".source pre.code", ":not(.source) > .block > pre.code"):
        code = tab.locator(kind).first
        code.evaluate("node => { node.firstChild.textContent = 'm'.repeat(100) }")
        room, needed = code.evaluate("node => [node.clientWidth, node.scrollWidth]")
        assert needed <= room, (kind, needed, room)


def test_code_is_copied(tab, host):
    "Each block of code has a button that copies it as it is"
    tab.goto(host + "index.html")
    code = tab.locator("pre.code")
    assert tab.locator(".copy").count() == code.count() > 0
    code.first.hover()
    tab.locator(".copy").first.click()
    tab.wait_for_selector("text=Copied")
    assert tab.evaluate("navigator.clipboard.readText()") == code.first.text_content()
    assert not tab.wrong


def test_what_is_cut_off_shows_it(tab, host):
    "On a phone a wide equation scrolls, in a box with a shadow at the side that is cut off"
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(host + "theory/splitting.html")
    boxes = tab.locator(".eq .scroll")
    wide = boxes.evaluate_all("all => all.filter(box => box.scrollWidth > box.clientWidth).length")
    assert wide
    cue = "all => all.map(box => getComputedStyle(box).backgroundAttachment)"
    assert set(boxes.evaluate_all(cue)) == {"local, local, scroll, scroll"}


def test_only_plots_are_inverted_in_the_dark(tab, host):
    tab.emulate_media(color_scheme="dark")
    tab.goto(host + "tutorials/clip.html")
    look = "all => all.map(image => getComputedStyle(image).filter)"
    pictures = tab.locator("img.picture").evaluate_all(look)
    assert pictures
    assert not any("invert" in found for found in pictures)
    tab.goto(host + "results/orders.html")
    plots = tab.locator("img.plot").evaluate_all(look)
    assert plots
    assert all("invert" in found for found in plots)


def test_tables_of_results_are_legible_on_a_phone(tab, host):
    "Letters keep their size; the first column stays while the numbers scroll; wide figures scroll"
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(host + "results/orders.html")
    size = "node => parseFloat(getComputedStyle(node).fontSize)"
    assert tab.locator(".out table").first.evaluate(size) >= 13
    name = tab.locator(".out tbody th").first
    tab.locator(".out").first.evaluate("box => { box.scrollLeft = 150 }")
    assert 0 <= name.bounding_box()["x"] < 30
    width = "all => all.map(image => image.getBoundingClientRect().width / image.naturalWidth)"
    assert all(share > 0.6 for share in tab.locator("figure img").evaluate_all(width))


def test_light_dark_and_the_menu(tab, host):
    "The choice is kept from page to page; on a phone the sidebar opens and leads on"
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.emulate_media(color_scheme="light")
    tab.goto(host)
    tab.click("#ui-theme")
    assert tab.evaluate(COLOUR) == BACKGROUND["dark"]
    assert not tab.is_visible("#ui-sidebar")
    tab.click("#ui-menu")
    tab.click('#ui-sidebar a[href="method/search.html"]')
    tab.wait_for_url("**/search.html")
    assert tab.evaluate(COLOUR) == BACKGROUND["dark"]
    assert not tab.wrong


# --- search -----------------------------------------------------------------------------------


def typed(tab, text: str) -> list[str]:
    "Addresses of what the search shows"
    tab.fill("#ui-search", text)
    tab.wait_for_function("document.querySelector('#ui-hits').hidden === false")
    tab.wait_for_timeout(50)
    return tab.eval_on_selector_all("#ui-hits .hit", "all => all.map(link => link.href)")


@pytest.mark.parametrize("where", ["server", "file"])
def test_search_finds_the_page(tab, host, site, where):
    "Full text; from any page; also where the site is opened as files"
    root = host if where == "server" else site.as_uri() + "/"
    tab.goto(root + "theory/pairs.html")
    assert typed(tab, "shrink")[0] == root + "method/inclusion.html#shrink"
    tab.press("#ui-search", "Enter")
    tab.wait_for_url("**/inclusion.html#shrink")
    assert tab.locator("#shrink").is_visible()
    assert typed(tab, "große okapis") == []
    assert tab.inner_text("#ui-hits") == "Nothing found."
    assert any("inverse_scale_space.html" in hit for hit in typed(tab, "irrepresentable"))
    assert not tab.wrong


def test_search_by_keyboard(tab, host):
    "`/` goes to the box, arrows choose, words that were found are marked"
    tab.goto(host)
    tab.keyboard.press("/")
    tab.keyboard.type("how do I export to ONNX")
    tab.wait_for_selector("#ui-hits .hit mark")
    marked = tab.eval_on_selector_all("#ui-hits .hit mark", "all => all.map(m => m.textContent)")
    assert {"onnx", "export"} & {word.lower() for word in marked}
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    chosen = tab.get_attribute("#ui-hits a.at", "href")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/" + chosen)


def test_the_page_asks_as_node_does(tab, host):
    "What is shown is what `search` answers, which test_site_search.py asks"
    tab.goto(host)
    shown = typed(tab, "how do I prune a language model")
    ask = "text => search(prepare(window.INDEX), text).map(hit => hit.page.url)"
    answers = tab.evaluate(ask, "how do I prune a language model")
    assert [hit.removeprefix(host).partition("#")[0] for hit in shown] == answers[: len(shown)]
