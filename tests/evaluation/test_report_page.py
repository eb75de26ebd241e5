"""The report as a page: what a real browser makes of it, opened from the disk."""

from __future__ import annotations

import io
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_samples import FPS, HOSTILE, METRICS, WIDTH, make_gallery, make_item, write_sample


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_sample(tmp_path_factory.mktemp("written") / "report", make_gallery(tmp_path_factory.mktemp("gallery")))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    candidates = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in candidates if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"none of these browsers is on this machine: {', '.join(candidates)}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def opened(browser, report):
    """The page on screen. One for all tests, since loading it takes a second or more: each leaves it as it was.

    Its content security policy is off, because the tests' own waiting is evaluated text, which it forbids. At the end:
    it logged no error, and asked for nothing but files.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light", bypass_csp=True)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("window.reportReady")
    yield page
    page.close()
    assert complaints == []
    assert any(url.endswith("plotly.min.js") for url in requests), "else nothing was recorded"
    assert [url for url in requests if url.split(":")[0] not in ("file", "data", "blob")] == []


def frame_on_screen(video) -> int:
    """Which frame is drawn, by where its white bar stands."""
    with Image.open(io.BytesIO(video.screenshot())) as picture:
        row = np.asarray(picture.convert("L"))[picture.height // 2].copy()
    row[[0, 1, -2, -1]] = 0  # where the edge lies between two pixels, the page shines through
    bar_middle = np.flatnonzero(row > 140).mean() + 0.5
    return round((bar_middle * WIDTH / len(row) - 3) / 2)


TIMES = "card => [...card.querySelectorAll('video')].map(video => video.currentTime)"


def wait_for_videos(page) -> None:
    page.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState >= 2 && !v.seeking)")


def wait_for_time(page, card, time_s: float) -> None:
    """Until all three videos of `card` are at that very time."""
    same = f"card => ({TIMES})(card).every(time => time === {time_s})"
    page.wait_for_function(same, arg=card.element_handle())
    wait_for_videos(page)


@pytest.mark.slow
def test_a_browser_plays_the_gallery_in_step(opened):
    cards = opened.locator(".card")
    assert cards.count() == 3
    for index in range(3):  # far ones are loaded only once they are near the screen
        cards.nth(index).scroll_into_view_if_needed()
        videos = "videos => videos.every(video => video.readyState >= 2 && !video.error)"
        opened.wait_for_timeout(50)
        wait_for_videos(opened)
        assert cards.nth(index).locator("video").evaluate_all(videos)
    card = opened.locator(".card[data-episode='4']")
    card.get_by_role("button", name="Play", exact=True).click()
    opened.wait_for_function("document.querySelector('[data-episode=\"4\"] input').value > 8")
    playing = card.evaluate(TIMES)
    assert min(playing) > 5 / FPS
    assert max(playing) - min(playing) < 1 / FPS
    card.get_by_role("button", name="Pause", exact=True).click()
    wait_for_time(opened, card, (int(card.locator("input").input_value()) + 0.5) / FPS)


@pytest.mark.slow
def test_the_slider_and_the_keys_are_exact_to_the_frame(opened):
    card = opened.locator(".card[data-episode='9']")
    card.scroll_into_view_if_needed()
    wait_for_videos(opened)

    def shows(frame: int) -> None:
        wait_for_time(opened, card, (frame + 0.5) / FPS)
        for video in card.locator("video").all():
            deadline = time.monotonic() + 5  # what is decoded reaches the screen a moment later
            while (drawn := frame_on_screen(video)) != frame and time.monotonic() < deadline:
                opened.wait_for_timeout(20)
            assert drawn == frame
        assert f"Frame {frame + 1} of 40" in card.locator(".readout").inner_text()

    slider = card.get_by_label("Frame")
    for frame in (23, 4, 39):
        slider.fill(str(frame))
        shows(frame)
    slider.fill("20")
    assert "Dataset frame 120 Step 4" in re.sub(r"\s+", " ", card.locator(".readout").inner_text())
    card.focus()
    opened.keyboard.press("ArrowRight")
    shows(21)
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowLeft")
    shows(19)
    opened.keyboard.press(" ")
    opened.wait_for_function("document.querySelector('[data-episode=\"9\"] input').value > 21")
    opened.keyboard.press(" ")
    assert card.get_by_role("button", name="Play", exact=True).count() == 1


@pytest.mark.slow
def test_cards_are_sorted_and_hostile_tasks_are_text(opened):
    def order() -> list[str]:
        return opened.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.episode)")

    assert order() == ["2", "4", "9"]
    opened.get_by_label("Sort by").select_option("psnr")
    assert order() == ["9", "4", "2"], "what has no score comes last"
    opened.locator("#sort-direction").click()
    assert order() == ["4", "9", "2"]
    opened.get_by_label("Sort by").select_option("translation_error_m")
    assert order() == ["2", "4", "9"], "the largest first"
    opened.get_by_label("Sort by").select_option("")
    opened.locator("#sort-direction").click()
    assert order() == ["2", "4", "9"]
    heading = opened.locator(".card[data-episode='2'] h3")
    assert heading.evaluate("element => element.firstChild.data") == HOSTILE
    assert opened.locator("img").count() == 0
    opened.locator(".card").first.scroll_into_view_if_needed()
    wait_for_videos(opened)
    assert opened.locator(".card").first.locator(".dimension").count() == 4


@pytest.mark.slow
def test_theme_and_metric_can_be_switched(opened):
    tick = "document.querySelector('#horizon-chart .xtick text').style.fill"
    colours = f"[getComputedStyle(document.body).backgroundColor, {tick}]"
    light = opened.evaluate(colours)
    opened.locator("#theme-toggle").click()
    dark = opened.evaluate(colours)
    assert light[0] != dark[0]
    assert light[1] != dark[1], "the chart follows"
    opened.reload()
    opened.evaluate("window.reportReady")
    assert opened.evaluate(colours) == dark, "the choice is kept"
    opened.locator("#theme-toggle").click()
    assert opened.evaluate(colours) == light
    switch = opened.get_by_role("button", name="LPIPS")
    assert switch.is_disabled()
    assert switch.get_attribute("title") == "No weights on this machine."
    assert "Rollout" in opened.locator("#horizon-chart").inner_text()


# Each would set window.touched, were it taken for anything but text.
ATTACKS = (
    "<script>window.touched = 1</script>",
    "</script><script>window.touched = 2</script>",
    "<!--<script></script><script>window.touched = 3</script>",
    '" onmouseover="window.touched = 4" x="',
    "' onfocus='window.touched = 5' autofocus tabindex='1",
    "<img src=x onerror=window.touched=6>",
    "<svg onload=window.touched=7>",
    "]]><script>window.touched = 8</script>",
    "\u2028window.touched = 9\u2028",
    "</title></style><script>window.touched = 10</script>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt;window.touched = 11&lt;/script&gt;",
    "\x1b[31mred \u202e half a pair: \ud800",
)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory) -> Path:
    """A report with an attack wherever text comes from data."""
    folder = tmp_path_factory.mktemp("attacked")
    attack = "".join(ATTACKS)
    item = make_item(folder, 1, attack, 20.0)
    item = replace(item, action_names=[attack, *ATTACKS[:3]], action_units=list(ATTACKS[:4]))
    return write_sample(
        folder / "report",
        [item],
        METRICS | {"verdict": attack, "lpips_status": attack},
        settings={attack: attack, "nested": {"root": attack}},
        checkpoint={"id": attack},
        dataset={"root": f"/data/{attack.replace('/', '')}"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("bypass_csp", [False, True], ids=["with its policy", "by escaping alone"])
def test_no_text_of_the_data_is_run(browser, attacked, bypass_csp):
    page = browser.new_page(bypass_csp=bypass_csp)
    complaints, dialogs = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    page.goto(attacked.as_uri())
    page.evaluate("window.reportReady")
    page.locator(".card").scroll_into_view_if_needed()
    page.locator(".card h3").first.hover()
    assert page.evaluate("document.querySelectorAll('script').length") == 4
    assert page.evaluate("document.querySelectorAll('img, [onmouseover], [onfocus], svg[onload]').length") == 0
    assert page.evaluate("typeof window.touched") == "undefined"
    shown = page.locator(".card h3").first.evaluate("element => element.firstChild.data")
    assert shown == "".join(ATTACKS).replace("\ud800", "?")
    assert (complaints, dialogs) == ([], [])
    page.close()


@pytest.mark.slow
def test_the_policy_stops_what_escaping_would_have_missed(browser, report):
    """And lets the page itself do all it does: nothing is reported until markup is put in on purpose."""
    page = browser.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("window.reportReady")
    assert page.evaluate("document.querySelectorAll('#horizon-chart .scatterlayer path.js-line').length") > 0
    video = page.locator(".card video").first
    video.scroll_into_view_if_needed()
    deadline = time.monotonic() + 20
    while not video.evaluate("video => video.readyState >= 2") and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert video.evaluate("video => video.readyState >= 2 && !video.error")
    assert complaints == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.touched=1>')")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/x.png>')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.touched = 2'}))")
    page.wait_for_timeout(200)
    assert page.evaluate("typeof window.touched") == "undefined"
    assert len([text for text in complaints if "Content Security Policy" in text]) >= 3
    page.close()
