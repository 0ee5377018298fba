"""The pages of the studio in a real browser, with the small models that come along and a little maze.

JAXWM_PICTURES=DIR python -m pytest tests/runs/test_studio_pages.py -k pictures -m slow
writes the screenshots of docs/studio.md."""

from __future__ import annotations

import base64
import io
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from visiting import browser, opened, until

from jaxwm.__main__ import main
from jaxwm.training.life import ACT, stream
from jaxwm.web.rooms import Studio
from jaxwm.web.runs import Shelf
from jaxwm.web.server import roots_of

BROWSER, REASON = browser()
pytestmark = pytest.mark.skipif(not BROWSER, reason=REASON)
PAGES = ("maze", "runs", "play", "dreams", "plan")
PATIENCE = 240_000  # milliseconds, for programs that are compiled first


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A studio with Dreamer V3 on Catch, and Dyna-Q in a maze."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copy(roots_of(())[-1] / "catch.safetensors", folder)
    train = f"train dyna-q --steps 600 --episodes 2 --members 2 --planning 20 --run {folder / 'maze'}"
    assert main(train.split()) == 0
    with opened(Studio(Shelf([folder]))) as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


class Visit:
    """A page of one visitor, and all that it complained about."""

    def __init__(self, chromium: Any, house: Any, hash: str, width: int = 1280, scheme: str = "light"):
        self.context = chromium.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"{house.address}#{hash}")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def sat_down(self) -> Visit:
        """Wait until one can play."""
        self.page.wait_for_selector("#new", timeout=PATIENCE)
        return self

    def wait(self, true: str, seconds: float = 120.0) -> None:
        """Wait for an expression of the page. (Not by Playwright: it needs `eval`, which the page forbids.)"""
        until(lambda: self.page.evaluate(true), seconds)

    def slide(self, label: str, value: float) -> None:
        """Move a slider."""
        self.page.get_by_role("slider", name=label, exact=True).fill(str(value))

    def press(self, *keys: str) -> None:
        """Press keys, each when the one before is painted."""
        for key in keys:
            count = self.page.evaluate("studio.latencies.length")
            self.page.keyboard.press(key)
            self.wait(f"studio.latencies.length > {count}")

    def tick(self) -> dict[str, Any]:
        """The tick that is shown."""
        return self.page.evaluate("(({image, dimage, ...rest}) => rest)(studio.player.tick)")

    def frame(self, name: str) -> np.ndarray:
        """The pixels of a canvas, `[H, W, 3]`."""
        url = self.page.evaluate(f"document.querySelector('{name}').toDataURL('image/png')")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


@pytest.fixture
def visit(chromium, house):
    return lambda *args, **options: Visit(chromium, house, *args, **options)


def test_every_page_opens_without_a_complaint(visit):
    for width in (1280, 390):
        with visit("maze", width) as guest:
            for name in PAGES:
                guest.page.evaluate(f"location.hash = '{name}'")
                guest.page.wait_for_selector(f"nav a[href='#{name}'][aria-current]")
                guest.page.wait_for_selector("h1")
                assert guest.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, width)
            assert guest.complaints == []


def test_keys_move_the_game_and_the_dream_of_imagine(visit, house):
    """Arrow keys in the page; the painted frames are those of `Agent.imagine`, called directly."""
    with visit("play?run=catch.safetensors&seed=5") as guest:
        guest.sat_down()
        before = guest.frame("#real-A")
        guest.press("ArrowLeft", "ArrowLeft", "0", "ArrowRight")
        real, dream, tick = guest.frame("#real-A"), guest.frame("#dream-A"), guest.tick()
        assert guest.complaints == []
        (session,) = house.studio.sessions.values()
        branch, desk = session.branches["A"], session.desk
        actions = np.stack([each.action for each in branch.ticks[1:]], 1)
        assert actions.tolist() == [[0, 0, 1, 2]] and tick["t"] == 4 and tick["by"] == "you"
        base = branch.base._replace(action=np.concatenate([branch.base.action[:, :-1], actions[:, :1]], 1))
        key = jax.random.fold_in(stream(branch.key, ACT, 0), 1)
        direct = jax.jit(lambda state, base, actions: desk.agent.imagine(state, base, actions, key, 4))
        obs = jax.device_get(direct(desk.player.state, base, actions)).obs[0, -1]
        assert np.array_equal(dream, desk.painter.paint(obs))
        assert np.array_equal(real, desk.painter.paint(np.asarray(branch.ticks[4].step.obs[0])))
        assert not np.array_equal(real, before)
        assert (real == dream).all(-1).mean() > 0.9, "this model is trained: its dream looks like Catch"


def test_back_in_time_and_a_second_branch(visit):
    with visit("play?run=catch.safetensors&seed=6") as guest:
        guest.sat_down()
        guest.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
        last = guest.frame("#real-A")
        guest.page.keyboard.press("[")
        guest.page.keyboard.press("[")
        guest.wait("studio.player.t === 1")
        guest.press("ArrowRight")
        assert guest.page.evaluate("[...studio.player.branches.keys()].join() + studio.player.current") == "A,BB"
        guest.page.check("#compare")
        guest.page.wait_for_selector("#real-A")
        guest.page.click("button:has-text('A ·')")
        guest.page.keyboard.press("]")
        guest.wait("studio.player.t === 3")
        until(lambda: np.array_equal(guest.frame("#real-A"), last))
        with guest.page.expect_download() as found:
            guest.page.click("#gif")
        assert Path(found.value.path()).read_bytes()[:6] == b"GIF89a"
        assert guest.complaints == []


def test_the_policy_takes_over_and_hands_back(visit):
    with visit("play?run=catch.safetensors&seed=7") as guest:
        guest.sat_down()
        guest.page.keyboard.press("p")
        guest.wait("studio.player.tick.t >= 3 && studio.player.tick.by === 'policy'")
        guest.press("ArrowRight")
        assert guest.tick()["by"] == "you" and guest.page.get_attribute("#policy", "aria-pressed") == "false"


def test_visitors_do_not_disturb_each_other_and_a_closed_tab_frees_its_session(visit, house):
    until(lambda: not house.studio.sessions)
    with visit("play?run=catch.safetensors&seed=8") as one, visit("play?run=catch.safetensors&seed=8") as two:
        one.sat_down(), two.sat_down()
        for key in ("ArrowLeft", "ArrowRight", "0"):
            one.press(key)
            two.press("ArrowRight")
        apart = one.frame("#real-A"), one.frame("#dream-A"), one.tick()
        assert len(house.studio.sessions) == 2 and two.tick()["action"] == "right"
        two.page.close()
        until(lambda: len(house.studio.sessions) == 1)
    until(lambda: not house.studio.sessions)
    with visit("play?run=catch.safetensors&seed=8") as alone:
        alone.sat_down().press("ArrowLeft", "ArrowRight", "0")
        assert np.array_equal(alone.frame("#real-A"), apart[0]) and np.array_equal(alone.frame("#dream-A"), apart[1])
        assert alone.tick() == apart[2]


def test_how_long_from_key_to_paint(visit, record_property, capsys):
    with visit("play?run=catch.safetensors") as guest:
        guest.sat_down()
        guest.press(*["ArrowLeft", "ArrowRight"] * 15)
        times = np.array(guest.page.evaluate("studio.latencies"))[5:]
    with capsys.disabled():
        print(f"\nkey to paint: median {np.median(times):.0f} ms, 95th percentile {np.percentile(times, 95):.0f} ms")
    record_property("latency_p95_ms", float(np.percentile(times, 95)))
    assert np.median(times) < 2000


def test_sliders_change_the_plots(visit):
    with visit("dreams?run=maze") as guest:
        guest.page.wait_for_selector("#horizon input", timeout=PATIENCE)
        drawn = "document.querySelector('canvas.chart').toDataURL()"
        before = guest.page.evaluate(drawn)
        guest.page.locator("#horizon input").fill("4")
        assert guest.page.evaluate(drawn) != before
        guest.page.click("#spread")
        guest.page.wait_for_selector("img.sheet", timeout=PATIENCE)
        first = guest.page.get_attribute("img.sheet", "src")
        guest.slide("Step", 9)
        assert guest.page.get_attribute("img.sheet", "src") != first
        assert guest.complaints == []


def test_runs_are_drawn(visit):
    with visit("runs") as guest:
        guest.page.wait_for_selector("#metric option:nth-child(2)", state="attached", timeout=60_000)
        drawn = "document.querySelector('canvas.chart').toDataURL()"
        before = guest.page.evaluate(drawn)
        guest.page.select_option("#metric", index=2)
        guest.wait(f"{drawn} !== {before!r}")
        assert guest.page.get_by_text("catch.safetensors").count() and guest.complaints == []


@pytest.mark.slow
def test_the_maze_is_learned_in_front_of_the_visitor(visit):
    with visit("maze") as guest:
        guest.slide("Speed", 500)
        guest.wait("studio.maze[1].last?.episodes > 5")
        assert guest.page.evaluate("studio.maze[0].last.dreamed") == 0
        count = guest.page.evaluate("studio.maze[1].last.count")
        guest.page.keyboard.press("ArrowUp")  # the visitor leads: it no longer plays by itself
        guest.wait(f"studio.maze[1].last.count > {count}")
        guest.page.get_by_role("button", name="Show the plan").click()
        guest.wait("studio.maze[1].way.length > 1")
        assert guest.complaints == []


def test_what_cannot_be_played_says_why(visit):
    with visit("play?run=nothing") as guest:
        guest.page.wait_for_selector("[role=alert]")
        assert "no run" in guest.page.inner_text("[role=alert]")


@pytest.mark.slow
@pytest.mark.skipif("JAXWM_PICTURES" not in os.environ, reason="pictures are made on request: set JAXWM_PICTURES=DIR")
def test_pictures_for_the_docs(chromium):
    """Every page, wide and narrow, light and dark, with the runs of JAXWM_RUNS (else the models that come along)."""
    out = Path(os.environ["JAXWM_PICTURES"])
    out.mkdir(parents=True, exist_ok=True)
    roots = [Path(x) for x in os.environ.get("JAXWM_RUNS", "").split(":") if x] or roots_of(())[-1:]
    with opened(Studio(Shelf(roots))) as found:
        run = next(label for label in found.studio.shelf.paths() if "breakout" in label)
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
            for name in PAGES:
                with Visit(chromium, found, f"{name}?run={run}", width, scheme) as guest:
                    _pose(guest, name, run)
                    guest.page.screenshot(path=out / f"{name}-{width}-{scheme}.png", full_page=True)
                    assert guest.complaints == [], name


def _pose(guest: Visit, name: str, run: str) -> None:
    """Wait for a page to show something worth a picture."""
    page = guest.page
    if name == "maze":
        guest.wait("studio.maze[1].last?.episodes > 6")
    elif name in ("play", "plan"):
        page.evaluate(f"location.hash = 'play?run={run}&seed=3'")
        guest.sat_down()
        page.evaluate("studio.player.set({doubt: true})")
        for _ in range(26):
            page.evaluate("studio.player.step(null)")
            guest.wait("!studio.player.working")
        page.evaluate("studio.player.dream()")
        for action in (None, None, None, 1, 1, None, None, 2, None, None):
            page.evaluate("a => studio.player.step(a)", action)
            guest.wait("!studio.player.working")
        if name == "plan":
            page.evaluate("location.hash = 'plan'")
            page.wait_for_selector("text=Sixteen futures", timeout=PATIENCE)
            guest.slide("Steps ahead", 9)
    elif name == "dreams":
        page.wait_for_selector("#spread", timeout=PATIENCE)
        page.click("#spread")
        page.wait_for_selector("img.sheet", timeout=PATIENCE)
        guest.slide("Step", 24)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(900)
