"""A browser without a network, from the system; tests are skipped, with the reason, where there is none."""

import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test)")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])  # pages are the tests' own
        yield browser
        browser.close()


class Opened:
    """A page that is open, with what went wrong in it, and what it asked a network for."""

    def __init__(self, context, path, fragment=""):
        self.page = context.new_page()
        self.faults, self.asked = [], []
        self.page.on(
            "console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.absolute().as_uri() + fragment)
        self.page.wait_for_selector("#questions")

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def move(self, key):
        """Presses a key that opens another group, and returns which is open then."""
        before = self.at()
        self.page.keyboard.press(key)
        self.page.wait_for_function("before => location.hash !== before", arg=before)
        return self.at()

    def text(self, selector):
        return self.page.inner_text(selector)

    def at(self):
        """The group that is open, as the address says it."""
        return self.page.evaluate("location.hash")


@pytest.fixture
def opened(chromium):
    """Opens a page, of a width and in a theme."""
    contexts = []

    def show(path, *, width=1280, dark=False, fragment=""):
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            offline=True,
            reduced_motion="reduce",
        )
        contexts.append(context)
        return Opened(context, path, fragment)

    yield show
    for context in contexts:
        context.close()
