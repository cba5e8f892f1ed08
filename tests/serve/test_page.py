"""The chat page in a headless Chromium, over an engine with a tiny model."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Request, expect, sync_playwright

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.keys import digest
from llamahome.lens import LensFrame
from serve.http import page as served_page
from serve.http.api import build_app
from serve.http.settings import HttpSettings
from serve.replica import Replica
from serve.security.settings import SecuritySettings
from tests.ports import free_ports
from tests.serve.one_replica import OneReplica

pytestmark = pytest.mark.timeout(300)

PATIENCE_MS = 60_000
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
TEXT = "Tell me about the sea, the hills and the roads between them, please."
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def replica(tiny_model: Path) -> Iterator[Replica]:
    made = Replica(
        ModelConfig(name=str(tiny_model)),
        PolicyConfig(budget=64, recent=16, interval=8),
        EngineConfig(slots=2, max_length=2048, num_threads=1),
    )
    yield made
    made.close()


@contextmanager
def _listening(replica: Replica, **settings: Any) -> Iterator[str]:
    """Yield the address of an application over the replica."""
    own = {"page": True, "lens": True, **settings}
    http_settings = HttpSettings(
        model_id="tiny", created=1, request_timeout_s=120, max_body_bytes=100_000, **own
    )
    (port,) = free_ports(1)
    app = build_app(OneReplica(replica), http_settings)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(replica: Replica) -> Iterator[str]:
    with _listening(replica) as address:
        yield address


def _chromium() -> str | None:
    """Return the Chromium on PATH; None is the one that `playwright install` brings."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses one to root
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=_chromium(), args=sandbox)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open pages; at the end none has logged an error, or asked for anything from elsewhere."""
    with ExitStack() as pages:
        faults: list[str] = []

        def opened(url: str, *, allowed: str | None = None, **options: Any) -> Page:
            context = pages.enter_context(browser.new_context(**options))
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.on("pageerror", lambda error: faults.append(str(error)))

            def logged(message: Any) -> None:
                if allowed is None or allowed not in message.text:
                    faults.append(message.text)

            def asked(sent: Request) -> None:
                if not sent.url.startswith(url):
                    faults.append(sent.url)

            page.on("console", logged)
            page.on("request", asked)
            page.goto(url)
            return page

        yield opened
        assert faults == []


@pytest.fixture
def page(open_page: Callable[..., Page], url: str) -> Page:
    ready: Page = open_page(url)
    expect(ready.locator(".pane")).to_be_visible()
    return ready


def ask(page: Page, text: str = TEXT, *, tokens: int = 24) -> None:
    page.locator("#tokens").evaluate("(input, value) => (input.value = value)", str(tokens))
    page.locator("#temperature").evaluate("input => (input.value = 0)")
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def answered(page: Page) -> None:
    expect(page.locator("#send")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#problem")).to_be_hidden()


def body_of(sent: Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(sent.post_data or "")
    return body


def answer_of(pane: Page | Locator) -> str:
    return pane.locator(".assistant .text").inner_text()


def last_frame(url: str, **options: Any) -> LensFrame:
    """Return the last frame of the answer that the page gets to TEXT."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": TEXT}],
        "max_tokens": 24,
        "temperature": 0,
        "stream": True,
        "lens": True,
        **options,
    }
    lines = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    *_, frame = (event["lens"] for event in events if "lens" in event)
    return LensFrame(**{**frame, "kept": base64.b64decode(frame["kept"])})


def test_a_chat_streams_and_is_told_once(page: Page) -> None:
    ask(page)
    answered(page)
    text = answer_of(page)
    assert text
    expect(page.locator(".user .text")).to_have_text(TEXT)
    expect(page.locator("#status")).to_contain_text("Conversation:")
    page.get_by_role("button", name="Regenerate").click()
    answered(page)
    assert answer_of(page) == text, "greedy, so the same again"
    assert page.locator("li.assistant").count() == 1


def test_a_second_turn_goes_on_with_the_first(page: Page) -> None:
    with page.expect_request("**/chat/completions"):
        ask(page)
    answered(page)
    with page.expect_request("**/chat/completions") as sent:
        ask(page, "And then?")
    answered(page)
    messages = body_of(sent.value)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert page.locator("li").count() == 4


def test_settings_are_sent(page: Page) -> None:
    page.locator("summary").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Policy").select_option("window")
    with page.expect_request("**/chat/completions") as sent:
        ask(page, tokens=5)
    answered(page)
    body = body_of(sent.value)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["seed"], body["temperature"], body["max_tokens"]) == (7, 0, 5)
    assert body["kv_policy"] == "window"
    assert "kv_budget" not in body
    assert body["model"] == "tiny"


def test_stop_ends_the_answer_and_frees_its_slot(page: Page, replica: Replica) -> None:
    ask(page, tokens=1900)
    expect(page.locator(".assistant .text")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    answered(page)
    assert answer_of(page)
    while replica._async_engine.stats().slots_used:
        time.sleep(0.02)
    assert replica._async_engine.stats().requests_cancelled >= 1


def shown(pane: Page | Locator) -> list[str]:
    """Return the shade of each token, in order."""
    return [
        next(part for part in name.split() if part.startswith("h"))
        for name in pane.locator("[data-at]").evaluate_all("all => all.map(one => one.className)")
    ]


def expected(frame: LensFrame) -> list[str]:
    total = frame.layers * frame.heads
    places = [(layer, head) for layer in range(frame.layers) for head in range(frame.heads)]
    counts = [0] * frame.length
    for place in places:
        for token in frame.held(*place):
            counts[token] += 1
    return [f"h{math.ceil(count / total * 8)}" for count in counts]


def test_tokens_are_lit_by_the_heads_that_hold_them(page: Page, url: str) -> None:
    ask(page)
    answered(page)
    frame = last_frame(url)
    want = expected(frame)
    assert shown(page)[: frame.length] == want
    assert "h0" in want, "some are forgotten"
    assert "".join(page.locator(".user .text [data-at]").all_text_contents()) == TEXT


def test_a_token_shows_its_layers_and_heads(page: Page, url: str) -> None:
    ask(page)
    answered(page)
    frame = last_frame(url)
    word = page.locator(".user .text [data-at]").nth(3)
    place = int(word.get_attribute("data-at") or "")
    word.click()
    cells = page.locator(".heads-grid i").evaluate_all("all => all.map(one => one.className)")
    assert cells == [
        "on" if place in frame.held(layer, head) else ""
        for head in range(frame.heads)
        for layer in range(frame.layers)
    ]
    expect(page.locator(".about")).to_contain_text(f"token {place + 1} is held by")
    expect(page.locator(".map")).to_have_attribute("aria-label", re.compile("^Of .* tokens read"))


def test_the_slider_chooses_the_budget(page: Page, url: str) -> None:
    slider = page.get_by_label("Memory of each head")
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("12", "64")
    slider.focus()
    slider.press("Home")
    expect(page.locator(".size")).to_have_text("12 tokens")
    with page.expect_request("**/chat/completions") as sent:
        ask(page)
    answered(page)
    assert body_of(sent.value)["kv_budget"] == 12
    frame = last_frame(url, kv_budget=12)
    assert shown(page)[: frame.length] == expected(frame)


def test_two_budgets_answer_side_by_side(page: Page, url: str) -> None:
    page.get_by_role("button", name="Two budgets").click()
    first, second = (page.get_by_role("region", name=f"{name} budget", exact=True)
                     for name in ("First", "Second"))  # fmt: skip
    expect(second.locator(".size")).to_have_text("24 tokens")
    ask(page)
    answered(page)
    for pane, options in ((first, {}), (second, {"kv_budget": 24})):
        frame = last_frame(url, **options)
        assert shown(pane)[: frame.length] == expected(frame)
    first.locator(".user .text [data-at]").first.click()
    for pane in (first, second):
        expect(pane.locator(".about")).to_contain_text("is held by")
    assert shown(first) != shown(second)


def test_all_of_it_works_by_keyboard(page: Page) -> None:
    press = page.keyboard.press
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("Hello there, how are you on this fine day?")
    press("Enter")
    answered(page)
    expect(page.locator("#prompt")).to_be_focused()
    press("Shift+Tab")
    expect(page.locator(".transcript")).to_be_focused()
    press("ArrowRight")
    press("ArrowRight")
    expect(page.locator(".about")).to_contain_text("token 2 is held")
    expect(page.locator("#status")).to_contain_text("token 2 is held")
    press("Escape")
    expect(page.locator(".inspector")).to_be_hidden()
    press("Shift+Tab")
    expect(page.get_by_label("Policy")).to_be_focused()
    press("Shift+Tab")
    press("ArrowLeft")
    expect(page.locator(".size")).to_have_text("63 tokens")
    press("Shift+Tab")
    expect(page.locator("#theme")).to_be_focused()
    press("Enter")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Callable[..., Page], url: str, scheme: str) -> None:
    page = open_page(url, color_scheme=scheme, reduced_motion="reduce")
    expect(page.locator(".pane")).to_be_visible()
    assert Axe().run(page).response["violations"] == []
    page.get_by_role("button", name="Two budgets").click()
    page.locator("summary").click()
    ask(page)
    answered(page)
    page.locator(".user .text [data-at]").first.click()
    assert Axe().run(page).response["violations"] == []


@pytest.mark.parametrize("two", [False, True])
def test_nothing_is_wider_than_a_phone(open_page: Callable[..., Page], url: str, two: bool) -> None:
    page = open_page(url, viewport=PHONE)
    if two:
        page.get_by_role("button", name="Two budgets").click()
    ask(page)
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_key_is_asked_for_and_kept_in_the_tab(
    open_page: Callable[..., Page], replica: Replica
) -> None:
    security = SecuritySettings(api_key=digest("secret"))
    with _listening(replica, security=security) as address:
        page = open_page(address, allowed="401")
        field = page.get_by_label("API key")
        assert Axe().run(page).response["violations"] == []
        field.fill("wrong")
        field.press("Enter")
        expect(field).to_be_visible()
        field.fill("secret")
        field.press("Enter")
        expect(page.locator(".pane")).to_be_visible()
        ask(page, tokens=3)
        answered(page)
        assert page.evaluate("sessionStorage.getItem('llamahome.key')") == "secret"
        assert page.evaluate("JSON.stringify({...localStorage})") == "{}"


def test_without_the_lens_the_chat_works_and_says_what_it_kept(
    open_page: Callable[..., Page], replica: Replica
) -> None:
    with _listening(replica, lens=False) as address:
        page = open_page(address)
        expect(page.get_by_role("button", name="Memory lens")).to_be_disabled()
        ask(page)
        answered(page)
        assert answer_of(page)
        assert page.locator("[data-at]").count() == 0
        expect(page.locator(".dense-bytes")).to_contain_text("KiB")


def test_a_refusal_is_shown(open_page: Callable[..., Page], url: str) -> None:
    page = open_page(url, allowed="400")
    expect(page.locator(".pane")).to_be_visible()
    ask(page, tokens=0)
    expect(page.get_by_role("alert")).to_contain_text("max_tokens")


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in served_page.FOLDER.iterdir()) < 300_000
