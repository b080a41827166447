"""A server of the tests of ``vitrail serve``, and a browser for pages: of reports, opened from the disk, and its own.

Tests with a browser are skipped where there is no Chromium, chromedriver or Selenium; VITRAIL_BROWSER=required makes
that a failure.
"""

import os

import pytest

from browser import missing, started
from drawn_page import drawn_page
from opened_page import Opened
from served import serving
from vitrail.experiments.report.page import write_page
from vitrail.sampling.sampler import Sampler


@pytest.fixture(scope="module")
def backbone(folder):
    """The model that is served, loaded."""
    return Sampler.from_pretrained(str(folder), "direct").backbone


@pytest.fixture(scope="module")
def served(backbone, folder):
    """A server for the tests of one file."""
    with serving(backbone, folder) as server:
        yield server


@pytest.fixture(scope="session")
def driver():
    """One browser for all pages."""
    if lacking := missing():
        reason = f"a browser is not there: {lacking}"
        (pytest.fail if os.environ.get("VITRAIL_BROWSER") == "required" else pytest.skip)(reason)
    driver = started()
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
