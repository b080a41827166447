"""A headless Chromium, if it is there."""

import shutil

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


def started():
    """A driver of one that notes what pages complain of; ``quit`` ends it."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"]
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(executable_path=PROGRAMS["chromedriver"]))
