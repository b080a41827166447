"""The static page in a real browser: grid, filters, tables, recipes."""

import json

from drawn_page import EVIL, EVIL_PAIR, ROWS


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
    assert " ".join(first.text.split()) == "LPIPS 0.100 seam - CLIP 31.25 1.5 s · 400 calls · 768 MiB Recipe"


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
