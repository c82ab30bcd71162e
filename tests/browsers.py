"A Chromium for tests of the site, where there is one"

import shutil
from contextlib import contextmanager

import pytest


def chromium() -> str | None:
    "The path of a Chromium, or None for the one that playwright has of its own"
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def launched():
    "A browser; skips the test where playwright or Chromium is missing"
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()
