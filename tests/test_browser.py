"""The page in a real browser: what a person sees and does. Screenshots go to `artifacts/`, which git ignores."""

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import requests
from playwright.sync_api import Page, expect, sync_playwright

from tests.conftest import ROOT, clean_environment, free_port, needs

ARTIFACTS = ROOT / "artifacts"
CHROMIUM = "/usr/bin/chromium"
PATIENCE = 30_000
"""Milliseconds; the machine may be busy."""

ODD = 'It costs $5 or $6, "quoted" and \'so\': <b id="bold">x</b> ![p](http://pictures.example/p.png)'


@pytest.fixture(scope="module")
def address(echo_service) -> Iterator[str]:
    """The client in a Streamlit server of its own."""
    needs("chromium")
    port = free_port()
    options = [f"--server.port={port}", "--server.address=127.0.0.1", "--server.headless=true"]
    command = [sys.executable, "-m", "streamlit", "run", "frontend/app.py", *options]
    environment = clean_environment({"PARLEY_URL": echo_service.url, "PARLEY_UI_MAX_INPUT_CHARS": "5000"})
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(f"{url}/_stcore/health")
            yield url
        finally:
            server.terminate()


def wait_until_up(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return requests.get(url, timeout=5).raise_for_status()
        except requests.RequestException:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def page(address) -> Iterator[Page]:
    """A fresh browser on the page; fails the test that makes it ask any other host."""
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 800})
        shown.set_default_timeout(PATIENCE)
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(address)
        expect(shown.get_by_test_id("stSidebar")).to_contain_text("Ready", timeout=PATIENCE)
        yield shown
        browser.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def ask(page: Page, question: str) -> None:
    box = page.get_by_placeholder("Ask about comics")
    box.fill(question)
    box.press("Enter")


def answer(page: Page) -> str:
    """What the last chat message shows."""
    return page.get_by_test_id("stChatMessage").last.get_by_test_id("stMarkdown").first.inner_text()


def wait_for_growth(page: Page, before: str) -> str:
    expect(page.get_by_test_id("stChatMessage").last).not_to_have_text(before, timeout=PATIENCE)
    return answer(page)


def download(page: Page, label: str) -> str:
    with page.expect_download() as started:
        page.get_by_role("button", name=label).click()
    return started.value.path().read_bytes().decode()


def test_tokens_arrive_while_a_person_clicks_and_stop_keeps_them(page):
    """Answers come in one piece, a click kills them, or Stop loses what had come."""
    page.screenshot(path=ARTIFACTS / "1-empty.png")
    ask(page, "slow " + " ".join(f"word{number}" for number in range(400)))
    page.get_by_text(re.compile("slow word0 word1")).nth(1).wait_for()
    first = answer(page)
    page.screenshot(path=ARTIFACTS / "2-streaming.png")
    assert download(page, "Markdown").startswith("## You\n\nslow word0")
    grown = wait_for_growth(page, first)
    assert grown.startswith(first.rsplit(" ", 1)[0])
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Cut short:")).to_be_visible(timeout=PATIENCE)
    kept = answer(page)
    assert kept.startswith(grown.rsplit(" ", 1)[0])
    assert "word399" not in kept
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    page.screenshot(path=ARTIFACTS / "3-stopped.png")


def test_reload_goes_on_where_it_was(page, address):
    """A reload loses what was said or the answer under way; or another tab is shown what this one said."""
    ask(page, "mine alone")
    expect(page.get_by_text("tokens read")).to_be_visible(timeout=PATIENCE)
    ask(page, "slow " + " ".join(f"word{number}" for number in range(150)))
    page.get_by_text(re.compile("slow word0 word1")).nth(1).wait_for()
    page.reload()
    expect(page.get_by_text("word149")).to_have_count(2, timeout=PATIENCE)
    expect(page.get_by_text("mine alone")).to_have_count(2)
    page.screenshot(path=ARTIFACTS / "8-reloaded.png")
    other = page.context.browser.new_page()
    other.goto(address)
    expect(other.get_by_test_id("stSidebar")).to_contain_text("Ready", timeout=PATIENCE)
    expect(other.get_by_role("button", name="Who is Batman?")).to_be_visible()
    assert other.get_by_text("mine alone").count() == 0


def test_page_is_dark_for_who_prefers_it(page):
    """The page is white at night whatever the browser asks for."""
    colours = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.reload()
        expect(page.get_by_test_id("stSidebar")).to_contain_text("Ready", timeout=PATIENCE)
        found = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
        colours[scheme] = [int(part) for part in re.findall(r"\d+", found)[:3]]
        page.screenshot(path=ARTIFACTS / f"9-{scheme}.png")
    assert min(colours["light"]) > 200
    assert max(colours["dark"]) < 60


def test_odd_text_is_shown_and_downloaded_as_it_is(page):
    """Model text runs as HTML, loads a picture from elsewhere, or becomes a formula; downloads differ from the page."""
    ask(page, ODD)
    expect(page.get_by_text("tokens read")).to_be_visible(timeout=PATIENCE)
    assert answer(page).strip() == ODD
    assert page.locator("#bold").count() == 0
    conversation = [["user", ODD], ["assistant", ODD]]
    rows = list(csv.reader(download(page, "CSV").splitlines()))
    assert rows == [["role", "content", "note"], *([*turn, ""] for turn in conversation)]
    assert json.loads(download(page, "JSON")) == [{"role": role, "content": text} for role, text in conversation]
    assert download(page, "Markdown") == f"## You\n\n{ODD}\n\n## Parley\n\n{ODD}\n"
    page.screenshot(path=ARTIFACTS / "4-answered.png")


def test_diagram_is_shown_as_code(page):
    """Fails when a diagram in an answer is drawn, and loads a picture from wherever the model says."""
    ask(page, '```Mermaid\nflowchart LR\n  a@{ img: "http://pictures.example/p.png" }\n```')
    expect(page.get_by_text("tokens read")).to_be_visible(timeout=PATIENCE)
    code = page.get_by_test_id("stChatMessage").last.get_by_test_id("stMarkdownPre")
    expect(code).to_contain_text("flowchart LR", timeout=PATIENCE)
    assert code.locator("[id*=mermaid]").count() == 0


def test_clear_and_suggestions(page):
    """The page cannot be emptied, or an empty page offers nothing to begin with."""
    page.get_by_role("button", name="Who is Batman?").click()
    expect(page.get_by_text("tokens read")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("button", name="Who is Batman?")).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(0, timeout=PATIENCE)
    expect(page.get_by_role("button", name="Who is Batman?")).to_be_visible()


def test_input_has_a_limit(page):
    """The setting for the longest message has no effect."""
    box = page.get_by_placeholder("Ask about comics")
    box.fill("x" * 5000)
    box.press("End")
    box.press_sequentially("yz")
    assert len(box.input_value()) == 5000
