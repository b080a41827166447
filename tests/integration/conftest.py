"""A browser for the tests of report pages, opened from the disk.

They are skipped where there is no Chromium, chromedriver or Selenium; VITRAIL_BROWSER=required makes that a failure.
"""

import os
import shutil

import pytest

from drawn_page import drawn_page
from opened_page import Opened
from vitrail.experiments.page import write_page

PROGRAMS = {name: shutil.which(name) or "" for name in ("chromium", "chromedriver")}
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,1000", "--force-color-profile=srgb")


def missing():
    """What a browser needs and is not there."""
    lacking = [name for name, path in PROGRAMS.items() if not path]
    try:
        import selenium  # noqa: F401
    except ImportError:
        lacking.append("selenium")
    return ", ".join(lacking)


@pytest.fixture(scope="session")
def driver():
    """One browser for all pages."""
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
