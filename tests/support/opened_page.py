"""A report's page in a browser, through the eyes of who reads it."""

import io

from PIL import Image

from drawn_page import ROWS

WAIT = 15  # seconds at most, for what takes some milliseconds
FRAMES = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"  # until what was asked for is drawn


class Opened:
    """A page that is shown; what is asked of it waits until it is so."""

    def __init__(self, driver):
        self.driver = driver
        self.until(lambda: self.text("#count"), "the grid is there")

    def until(self, condition, told):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, WAIT, poll_frequency=0.02).until(lambda _: condition(), told)

    def run(self, code, *given):
        return self.driver.execute_script(code, *given)

    def all(self, selector):
        return [each for each in self.driver.find_elements("css selector", selector) if each.is_displayed()]

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.one(selector).text

    def click(self, selector):
        self.run("arguments[0].scrollIntoView({block: 'center'})", self.one(selector))
        self.one(selector).click()

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def drag(self, element, right, down, start=(0, 0)):
        from selenium.webdriver.common.action_chains import ActionChains

        actions = ActionChains(self.driver, duration=20).move_to_element_with_offset(element, *start).click_and_hold()
        actions.move_by_offset(right, down).release().perform()

    def wheel(self, element, turn, right=0, down=0):
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

        origin = ScrollOrigin.from_element(element, right, down)
        ActionChains(self.driver, duration=20).scroll_from_origin(origin, 0, turn).perform()

    def open(self, pair, row=0, size="256x256"):
        """The viewer, by a click on a picture."""
        self.click(f'[data-size="{size}"] [data-pair="{pair}"] figure[data-row="{ROWS[row]}"] .shot')
        self.until(lambda: self.one("#viewer").is_displayed(), "the viewer is open")
        return self.panes()

    def panes(self):
        """Where each pane looks, once all is drawn."""
        self.driver.execute_async_script(FRAMES)
        code = "return [...document.querySelectorAll('#panes canvas')].map((each) => ({...each.dataset}))"
        done = lambda panes: panes and all(pane.get("state") == "done" for pane in panes)  # noqa: E731
        panes = self.until(lambda: (found := self.run(code)) and done(found) and found, "all panes are drawn")
        return [{name: float(pane[name]) for name in ("left", "top", "width", "height", "zoom")} for pane in panes]

    def after(self, action):
        """Where panes look after an action, which must have moved them."""
        before = self.panes()
        action()
        now = self.panes()
        assert now != before
        return now

    def pixels(self, selector):
        """What is on the screen."""
        return Image.open(io.BytesIO(self.one(selector).screenshot_as_png)).convert("RGB")
