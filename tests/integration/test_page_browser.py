"""The static page in a real browser, opened from the disk.

Skipped where there is no Chromium, chromedriver or Selenium; VITRAIL_BROWSER=required makes that a failure.
"""

import json
import math
import os
import shutil

import pytest
from PIL import Image

from drawn_page import EVIL, EVIL_PAIR, LARGE_PAIR, ROWS, drawn_page
from opened_page import Opened
from vitrail.experiments.page import write_page

PROGRAMS = {name: shutil.which(name) or "" for name in ("chromium", "chromedriver")}
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,1000", "--force-color-profile=srgb")
RECORD = """
    window.asked = [];
    const source = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, "src");
    const set = function (address) { window.asked.push(address); source.set.call(this, address); };
    Object.defineProperty(HTMLImageElement.prototype, "src", { ...source, set });
"""


def missing():
    """What a browser needs and is not there."""
    lacking = [name for name, path in PROGRAMS.items() if not path]
    try:
        import selenium  # noqa: F401
    except ImportError:
        lacking.append("selenium")
    return ", ".join(lacking)


@pytest.fixture(scope="module")
def driver():
    """One browser for the module."""
    if lacking := missing():
        reason = f"a browser is not there: {lacking}"
        (pytest.fail if os.environ.get("VITRAIL_BROWSER") == "required" else pytest.skip)(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"]
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=PROGRAMS["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def site(driver, tmp_path_factory):
    """A page in a folder whose name a browser must have quoted."""
    folder = tmp_path_factory.mktemp("a site #1")
    return write_page(drawn_page(folder), folder / "report.html")


@pytest.fixture
def page(driver, site):
    """The page, freshly opened; afterwards the browser must have had nothing to complain of."""
    driver.get(site.as_uri())
    yield Opened(driver)
    assert driver.get_log("browser") == []


def test_the_grid_shows_every_cell(page):
    assert page.text("h1") == page.driver.title == "Seams <of> three & more methods"
    assert page.text("#count") == "24 of 24 shown"
    assert len(page.all("#grids .shot img")) == 23 and len(page.all("#grids .failed")) == 1
    assert "16 rows does not fit" in page.text("#grids .failed")
    assert len(page.all("#grids .missing")) == 3  # one of the grid, two beside the large picture
    page.run("document.querySelectorAll('#grids img').forEach((image) => image.scrollIntoView())")
    loaded = (
        "return [...document.querySelectorAll('#grids img')].every((image) => image.complete && image.naturalWidth)"
    )
    page.until(lambda: page.run(loaded), "all small copies are loaded")
    first = page.one("#grids figure")
    assert first.find_element("css selector", "img").get_attribute("alt").startswith("truth: a fox on a beach (seed 0")
    assert " ".join(first.text.split()) == "LPIPS 0.1 seam – CLIP 31.25 1.5 s · 400 calls · 768 MiB Recipe"


def test_an_evil_prompt_is_text(page):
    assert page.one(f'[data-pair="{EVIL_PAIR}"] h4').get_attribute("textContent") == EVIL
    page.open(EVIL_PAIR)
    assert page.one("#viewer-title").get_attribute("textContent") == EVIL
    assert page.run("return document.querySelectorAll('b, i, script:not([id])').length") == 1


def test_filters(page):
    page.click('#filters input[value="256x256"]')
    assert page.text("#count") == "12 of 24 shown"
    page.click(f'#filters input[value="{ROWS[0]}"]')
    assert page.text("#count") == "7 of 24 shown"
    assert not page.all(f'figure[data-row="{ROWS[0]}"]')
    words = page.one("#words")
    words.send_keys("ROCKET")
    assert page.text("#count") == "2 of 24 shown"
    assert len(page.open(2, row=1, size="512x512")) == 2  # what the filter has
    page.click("#viewer-close")
    words.clear()
    words.send_keys("seed 3")
    assert page.text("#count") == "1 of 24 shown" and len(page.all("#grids .pair")) == 1
    page.click("#numbers")
    assert not page.all(".numbers")


def test_all_panes_move_as_one(page):
    panes = page.open(0)
    assert len(panes) == 6
    assert {pane["zoom"] for pane in panes} == {1}
    canvas = page.all("#panes canvas")[1]
    page.run(
        "arguments[0].addEventListener('wheel', (event) => (window.turned = [event.offsetX, event.offsetY]))", canvas
    )
    panes = page.after(lambda: page.wheel(canvas, -600))
    assert {pane["zoom"] for pane in panes} == {2}  # no turn does more at once
    zoomed = page.after(lambda: page.wheel(canvas, -300, 40, -30))
    pointer = page.run("return window.turned")
    assert {pane["zoom"] for pane in zoomed} == {4}
    same_place(zoomed)
    for before, now in zip(panes, zoomed, strict=True):  # what lies under the pointer stays there
        for side, length, point in (("left", "width", pointer[0]), ("top", "height", pointer[1])):
            assert (point - before[side]) / before[length] == pytest.approx((point - now[side]) / now[length], abs=1e-3)
    dragged = page.after(lambda: page.drag(canvas, -35, 21))
    same_place(dragged)
    for before, now in zip(zoomed, dragged, strict=True):
        assert now["left"] - before["left"] == pytest.approx(-35, abs=1e-6)
        assert now["top"] - before["top"] == pytest.approx(21, abs=1e-6)
        assert now["width"] == before["width"]


def test_two_fingers_zoom_all_panes(page):
    page.open(0)
    box = page.run("const {x, y, width, height} = arguments[0].getBoundingClientRect(); return [x, y, width, height]",
                   page.all("#panes canvas")[4])  # fmt: skip
    middle = box[0] + box[2] / 2, box[1] + box[3] / 2

    def pinch():
        for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 120), ("touchEnd", None)):
            ends = [] if apart is None else [-apart, apart]
            points = [{"x": middle[0] + end, "y": middle[1], "id": number} for number, end in enumerate(ends)]
            page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    panes = page.after(pinch)
    same_place(panes)
    assert panes[0]["zoom"] == pytest.approx(3, rel=0.02)


def same_place(panes):
    """Whether panes of one size look at the same place, whatever the size of their pictures."""
    for pane in panes:
        assert pane == pytest.approx(panes[0])


def test_the_crosshair_is_at_one_place_of_all_pictures(page):
    page.open(0)
    canvas = page.all("#panes canvas")[0]
    page.drag(canvas, 11, 7)
    found = page.until(lambda: [each.text for each in page.all(".where") if "x " in each.text], "places are told")
    places = [tuple(int(word.split()[1]) for word in text.split("·")[1].split(",")) for text in found]
    assert len(places) == 6 and len(set(places[:3])) == len(set(places[3:])) == 1
    assert all(abs(2 * small - large) <= 1 for small, large in zip(places[0], places[3], strict=True))


def test_keys(page):
    from selenium.webdriver.common.keys import Keys

    first = page.open(0)
    assert page.run("return document.activeElement.id") == "panes"
    for _ in range(4):
        closer = page.after(lambda: page.press("+"))
    assert closer[0]["zoom"] == pytest.approx(1.25**4)
    for key, side, sign in ((Keys.ARROW_RIGHT, "left", -1), (Keys.ARROW_LEFT, "left", 1), (Keys.ARROW_DOWN, "top", -1),
                            (Keys.ARROW_UP, "top", 1)):  # fmt: skip
        before = page.panes()
        now = page.after(lambda key=key: page.press(key))
        assert sign * (now[0][side] - before[0][side]) > 10
        same_place(now)
    assert page.after(lambda: page.press("-"))[0]["zoom"] == pytest.approx(1.25**3)
    assert page.after(lambda: page.press("0")) == first
    page.press(Keys.PAGE_DOWN)
    page.until(lambda: page.text("#viewer-seed") == "seed 1", "the next prompt")
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.one("#viewer").is_displayed(), "the viewer is closed")
    assert "shot" in page.run("return document.activeElement.className")


def test_a_magnified_picture_has_sharp_pixels(page, site):
    """The screen holds the file's very pixels, each as a square of one colour."""
    page.open(0)
    for box in page.all("#chooser input")[1:]:
        box.click()
    for _ in range(9):
        (pane,) = page.after(lambda: page.press("+"))
    page.after(lambda: page.drag(page.one("#panes canvas"), -60, 60, (100, 100)))
    (pane,) = page.panes()
    screen = page.pixels("#panes canvas")
    with Image.open(site.parent / "pictures/00/256 #0.png") as image:
        checked = pixels_agree(screen, image.convert("RGB"), pane)
    assert pane["width"] / 256 > 8 and checked > 500


def pixels_agree(screen, image, pane):
    """How many pixels of a picture were found on the screen: those that are whole and far from the crosshair."""
    scale, count = pane["width"] / image.width, 0
    cross = [screen.width / 2 + 160, screen.height / 2 + 160]
    first = [math.ceil(-pane[side] / scale) for side in ("left", "top")]
    for column in range(first[0], min(image.width, first[0] + int(screen.width / scale))):
        for row in range(first[1], min(image.height, first[1] + int(screen.height / scale))):
            point = round(pane["left"] + (column + 0.5) * scale), round(pane["top"] + (row + 0.5) * scale)
            far = all(abs(a - b) > 130 for a, b in zip(point, cross, strict=True))
            if far and 0 < point[0] < screen.width and 0 < point[1] < screen.height:
                assert screen.getpixel(point) == image.getpixel((column, row)), (column, row)
                count += 1
    return count


def test_a_large_picture_is_drawn_from_its_tiles(page, site):
    page.run(RECORD)
    (fitted,) = page.open(LARGE_PAIR, size="5000x3000")
    assert fitted["width"] < 1600
    (pane,) = page.after(lambda: page.click("#zoom-one"))
    assert pane["width"] == pytest.approx(5000)
    screen = page.pixels("#panes canvas")
    box = [-math.floor(pane[side] + 0.5) for side in ("left", "top")]
    with Image.open(site.parent / "pictures/large.png") as image:
        wanted = image.convert("RGB").crop((*box, box[0] + screen.width, box[1] + screen.height))
    corner = (0, 0, screen.width // 2 - 4, screen.height // 2 - 4)  # over several tiles, and clear of the crosshair
    assert screen.crop(corner).tobytes() == wanted.crop(corner).tobytes()
    asked = [address for address in page.run("return window.asked") if "/thumbs/" not in address]
    assert len(asked) == len(set(asked)) and all("/tiles/" in address for address in asked)
    assert 8 <= sum("/0/" in address for address in asked) <= 20  # of 60 at full size


def test_the_slider(page):
    page.open(0, row=2)
    page.click("#mode-slider")
    (pane,) = page.panes()
    assert [badge.text for badge in page.all(".badge")] == ["truth, 256 × 256", f"{ROWS[2]}, 256 × 256"]
    divider = page.one("#divider")
    assert divider.get_attribute("aria-valuenow") == "50"
    before = page.pixels("#panes canvas")
    page.drag(divider, 200, 0)
    page.until(lambda: int(divider.get_attribute("aria-valuenow")) > 55, "the divider moved")
    assert page.pixels("#panes canvas").tobytes() != before.tobytes()
    assert page.panes() == [pane]  # the picture did not move
    from selenium.webdriver.common.keys import Keys

    divider.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert divider.get_attribute("aria-valuenow") == "2"
    page.one("#slider-right").send_keys("blurred, 512")
    page.until(lambda: page.all(".badge")[1].text == "blurred, 512 × 512", "another picture")
    assert page.one("#divider").get_attribute("aria-valuenow") == "2"
    assert page.after(lambda: page.wheel(page.one("#panes canvas"), -300, 100))[0]["zoom"] == 2


def test_either_side_of_the_divider_is_its_picture(page, site):
    page.open(0, row=1)
    page.click("#mode-slider")
    (pane,) = page.panes()
    page.run("document.querySelector('.badge').remove()")
    screen = page.pixels("#panes canvas")
    scale = pane["width"] / 256
    for side, file in ((60, "pictures/00/256 #0.png"), (200, "pictures/01/256 #0.png")):
        with Image.open(site.parent / file) as image:
            for row in range(20, 236):
                point = round(pane["left"] + (side + 0.5) * scale), round(pane["top"] + (row + 0.5) * scale)
                assert screen.getpixel(point) == image.convert("RGB").getpixel((side, row))


def test_recipe_and_command(page):
    page.click('[data-pair="1"] figure .quiet')
    page.until(lambda: page.one("#recipe").is_displayed(), "the recipe is open")
    assert page.text("#recipe-command") == "vitrail replay 'pictures/10/256 #1.png'"
    readable = page.one("#recipe-text").get_attribute("textContent")
    assert f"run:\n  prompt: {EVIL}\n  seed: 1\n" in readable and "negative" not in readable
    recipe = json.loads(page.one("#recipe-json").get_attribute("textContent"))
    assert recipe["run"]["prompt"] == EVIL and recipe["method"]["stages"][0]["patching"]["overlap"] == 0.5
    copier = page.all("#recipe .copy")[0]
    copier.click()
    page.until(lambda: copier.text == "Copied", "it is copied")
    page.click("#recipe-close")
    from selenium.webdriver.common.keys import Keys

    page.one("#words").send_keys(Keys.CONTROL, "v")
    assert page.one("#words").get_attribute("value") == "vitrail replay 'pictures/10/256 #1.png'"


def test_a_failed_cell_tells_its_error(page):
    page.open(2)
    assert len(page.all("#panes .pane")) == 6 and len(page.all("#panes canvas")) == 5
    assert "does not fit" in page.text("#panes .failed")


def test_tables_sort_by_what_they_mean(page):
    heads = page.all("thead th")
    column = lambda: [row.text.split()[0] for row in page.all("tbody th")]  # noqa: E731
    assert column() == ["truth", "blurred", "third"]
    wanted = {
        1: (["third", "truth", "blurred"], ["blurred", "truth", "third"]),  # 2.0 < 9.5 < 10.25
        2: (["blurred", "third", "truth"], ["truth", "third", "blurred"]),  # 88 < 512 < 1,024
        3: (["third", "blurred", "truth"], ["blurred", "third", "truth"]),  # what is not known comes last
        4: (["third", "truth", "blurred"], ["blurred", "truth", "third"]),  # a < b2 < b10
    }
    for number, orders in wanted.items():
        for direction, order in zip(("ascending", "descending"), orders, strict=True):
            page.click(f"thead th:nth-child({number + 1}) button")
            assert heads[number].get_attribute("aria-sort") == direction
            assert column() == order
    page.click("thead th:nth-child(5) button")
    assert column() == ["truth", "blurred", "third"]
    assert page.one("tbody strong").text == "2.0 ± 0.4"


def test_everything_that_acts_has_a_name_and_is_reached_by_keys(page):
    page.open(0)
    nameless = """
        const image = (each) => each.querySelector("img")?.alt;
        const named = (each) => each.textContent.trim() || each.ariaLabel || each.labels?.length || image(each);
        const acting = document.querySelectorAll("button, input, select, a, canvas, [role=slider], [tabindex]");
        return [...acting].filter((each) => !named(each)).map((each) => each.outerHTML);
    """
    assert page.run(nameless) == []
    assert page.run("return [...document.images].every((image) => image.alt)")
    assert page.run("return document.querySelectorAll('[tabindex]:not([tabindex=\"0\"])').length") == 0


def test_a_narrow_page_scrolls_only_down(page):
    sides = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sides)
    try:
        page.until(lambda: page.run("return innerWidth") == 360, "the page is narrow")
        wide = "return document.documentElement.scrollWidth"
        assert page.run(wide) == 360
        panes = page.open(0)
        assert len(panes) == 6 and all(pane["width"] >= 100 for pane in panes)
        assert (
            page.run("const {right} = document.getElementById('viewer-close').getBoundingClientRect(); return right")
            < 360
        )
        page.click("#mode-slider")
        assert page.panes()[0]["width"] > 300 and page.run(wide) == 360
        assert page.run("const viewer = document.getElementById('viewer'); return viewer.scrollWidth") == 360
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark(page):
    paper = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    for scheme, is_right in (("dark", lambda grey: grey < 60), ("light", lambda grey: grey > 200)):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert all(is_right(grey) for grey in page.run(paper))
