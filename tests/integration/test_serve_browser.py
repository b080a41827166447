"""The page of ``vitrail serve`` in a real browser, as a person uses it."""

import os
from pathlib import Path

import pytest

from opened_page import Opened
from served import serving
from vitrail.sampling.sampler import Sampler
from vitrail.serve.studio import BusyError
from vitrail.serve.web import Web

SHOTS = os.environ.get("VITRAIL_SHOTS")  # a folder for pictures of the page, to be looked at
SLOW = 300  # steps of a picture that is to be stopped


class Person(Opened):
    """A tab with the page, once it knows its model."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get(url)
        self.until(lambda: "trained at 64 pixels" in self.text("#about"), "the page knows its model")

    def until(self, condition, told):
        """As ``Opened``; the page draws its pictures anew meanwhile, so that elements may be gone."""
        from selenium.common.exceptions import StaleElementReferenceException

        def fresh():
            try:
                return condition()
            except StaleElementReferenceException:
                return None

        return super().until(fresh, told)

    def click(self, selector):
        self.until(lambda: (super(Person, self).click(selector), True)[1], f"{selector} is clicked")

    def write(self, selector, text):
        field = self.one(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", field)
        field.clear()
        field.send_keys(text)

    def choose(self, selector, value):
        from selenium.webdriver.support.ui import Select

        Select(self.one(selector)).select_by_value(value)

    def wish(self, sentence, method="multidiffusion", width=128, height=96, steps=3, seed=5):
        self.write("#prompt", sentence)
        self.choose("#method", method)
        for name, value in {"width": width, "height": height, "steps": steps, "seed": seed}.items():
            self.write(f"#{name}", str(value))

    def begin(self):
        self.until(lambda: self.one("#begin").is_enabled(), "the model is free")
        self.click("#begin")

    def cards(self, status="done"):
        return self.all(f'.picture[data-status="{status}"]')

    def shot(self, name):
        if SHOTS:
            self.driver.save_screenshot(str(Path(SHOTS, f"{name}.png")))


@pytest.fixture
def served(folder):
    with serving(Sampler.from_pretrained(str(folder), "direct").backbone, folder) as server:
        yield server


@pytest.fixture
def person(driver, served):
    driver.set_window_size(1400, 1000)
    driver.get_log("browser")
    person = Person(driver, served.url)
    yield person
    driver.get("about:blank")  # before its server is gone
    assert [entry for entry in driver.get_log("browser") if "status of 4" not in entry["message"]] == []


def test_from_a_sentence_to_a_picture_looked_at_closely_and_beside_another(person):
    person.wish("a fox")
    wished = "128 × 96: 3 steps"  # a plan of the form before all was filled in may come first
    person.until(lambda: wished in person.text("#plan").replace("\u00a0", " "), "the plan is there")
    assert "evaluations of the network" in person.text("#plan")
    person.shot("plan")
    person.begin()
    person.until(lambda: len(person.cards()) == 1, "the picture is done")
    person.until(lambda: "about" in person.text("#plan"), "it is known how long another one takes")
    assert not person.one("#now").is_displayed()
    person.click(".picture .actions button:nth-of-type(2)")  # its settings, for another method
    person.choose("#method", "direct")
    person.begin()
    person.until(lambda: len(person.cards()) == 2, "the second one is done")
    person.shot("done")
    person.click(".picture .look")
    person.panes()
    person.after(lambda: person.wheel(person.one("#panes canvas"), -400))
    assert float(person.text("#zoom-level").rstrip(" ×")) > 1
    person.after(lambda: person.drag(person.one("#panes canvas"), 80, 30))
    person.shot("zoom")
    number = person.run("return document.querySelector('#other option:last-child').value")
    person.choose("#other", number)
    assert [each.text for each in person.all(".badge")] == ["direct, 128 × 96", "multidiffusion, 128 × 96"]
    person.panes()
    person.press("0")
    person.panes()
    person.shot("beside")
    person.click("#viewer-close")


@pytest.mark.thorough
def test_what_makes_a_picture_again_is_shown(person):
    person.wish("a fox <b>&amp; 'friends'")
    person.begin()
    person.until(lambda: len(person.cards()) == 1, "the picture is done")
    assert person.text(".picture strong") == "a fox <b>&amp; 'friends'"
    person.click(".picture .actions button")
    assert "vitrail sample --size=128x96 --method=multidiffusion" in person.text("#recipe-command")
    assert "Sampler.from_pretrained(" in person.text("#recipe-python") and '"seed": 5' in person.text("#recipe-json")
    person.shot("again")
    person.click("#recipe-close")


@pytest.mark.thorough
def test_a_picture_is_stopped_and_gone_on_with(person):
    person.wish("a fox", steps=SLOW)
    person.begin()
    loaded = "return document.getElementById('preview').naturalWidth"
    person.until(lambda: person.one("#preview").is_displayed() and person.run(loaded), "a preview is there")
    person.shot("work")
    person.click("#stop")
    person.until(lambda: person.cards("stopped"), "it has stopped")
    assert f"of {SLOW}" in person.text(".picture figcaption")
    person.shot("stopped")
    person.click(".picture .go-on")
    person.until(lambda: person.one("#now").is_displayed() and not person.cards("stopped"), "it goes on")
    person.click("#stop")
    person.until(lambda: person.cards("stopped") or person.cards(), "it has ended")


def test_a_size_that_cannot_be_is_said_and_nothing_begins(person):
    person.wish("a fox", width=60000, height=60000)
    person.until(lambda: "megapixels" in person.text("#plan"), "the plan refuses it")
    person.shot("refused")
    person.begin()
    person.until(lambda: "megapixels" in person.text("#said"), "so does the button")
    assert not person.all(".picture") and not person.one("#now").is_displayed()


@pytest.mark.thorough
def test_two_tabs_see_one_queue(person, served, driver):
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    try:
        second = Person(driver, served.url)
        driver.switch_to.window(first)
        person.wish("a fox", steps=SLOW)
        person.begin()
        person.until(lambda: person.one("#now").is_displayed(), "it is in work")
        driver.switch_to.window(driver.window_handles[-1])
        second.until(lambda: second.one("#now").is_displayed(), "the other tab sees it")
        assert second.text("#now-title") == "a fox" and not second.one("#begin").is_enabled()
        assert second.text("#begin") == "Busy: one picture at a time"
        told = second.run("return ask('api/pictures', {prompt: 'x', method: 'direct'}).catch((error) => error.message)")
        assert "busy with “a fox”" in told
        second.click("#stop")
        second.until(lambda: second.cards("stopped"), "either tab may stop it")
    finally:
        driver.close()
        driver.switch_to.window(first)
    person.until(lambda: person.cards("stopped"), "and both see that")


@pytest.mark.thorough
def test_a_telephone_shows_all_of_it(person, driver):
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        person.wish("a fox")
        person.until(lambda: "evaluations" in person.text("#plan"), "the plan is there")
        person.shot("telephone")
        person.begin()
        person.until(lambda: len(person.cards()) == 1, "the picture is done")
        person.run("arguments[0].scrollIntoView()", person.one(".picture"))
        person.shot("telephone-done")
        assert person.run("return document.documentElement.scrollWidth") <= 360
        person.click(".picture .look")
        person.panes()
        person.shot("telephone-zoom")
        assert person.run("return document.documentElement.scrollWidth") <= 360
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.thorough
def test_a_server_that_is_gone_is_missed_and_one_that_is_back_is_found(driver, folder, monkeypatch):
    backbone, asked, about = Sampler.from_pretrained(str(folder), "direct").backbone, [], Web.about

    def late(self, request):
        asked.append(request)
        if len(asked) == 1:
            raise BusyError("not yet")
        return about(self, request)

    monkeypatch.setattr(Web, "about", late)
    with serving(backbone, folder) as first:
        person = Person(driver, first.url)  # which waits for the second answer
        assert len(asked) == 2
        person.until(lambda: person.text("#said") == "", "the first answer is forgotten")
    person.until(lambda: "cannot reach its server" in person.text("#said"), "it is missed")
    with serving(backbone, folder, port=first.port):
        person.until(lambda: person.text("#said") == "", "it is back")
    with serving(backbone, folder, token="0123456789abcdef0123", port=first.port):
        person.until(lambda: "with its token" in person.text("#said"), "it asks for a token")
    driver.get("about:blank")
    driver.get_log("browser")  # has what could not be reached
