"""The viewer of the static page in a real browser: panes that zoom and move as one, tiles, the slider."""

import math

import pytest
from PIL import Image

from drawn_page import LARGE_PAIR, ROWS

RECORD = """
    window.asked = [];
    const source = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, "src");
    const set = function (address) { window.asked.push(address); source.set.call(this, address); };
    Object.defineProperty(HTMLImageElement.prototype, "src", { ...source, set });
"""


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
