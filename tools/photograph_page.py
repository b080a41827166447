"""Open a report's page in a headless Chromium and save screenshots.

Usage: PYTHONPATH=src:tests/support python tools/photograph_page.py runs/methods/report.html --out shots

Writes grid.png, zoom.png, slider.png and tables.png of a wide window, and narrow.png of a phone. Fails if the browser
logs anything.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from browser import missing, started
from opened_page import Opened

TURN, STEPS = -200, 4  # scroll distance of the wheel in pixels, and number of events
LOADED = """return [...document.querySelectorAll(".shot img")].every((image) => {
  const { left, right, top, bottom } = image.getBoundingClientRect();
  return image.complete || bottom < 0 || top > innerHeight || right < 0 || left > innerWidth;
});"""
PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}


def photograph(driver: Any, page: Path, out: Path) -> None:
    """Save screenshots of every view of a page.

    Args:
        driver: A selenium driver.
        page: The HTML file.
        out: Folder for the PNG files.
    """
    driver.get(page.resolve().as_uri())
    opened = Opened(driver)
    opened.until(lambda: opened.run(LOADED), "the small pictures are there")
    driver.save_screenshot(str(out / "grid.png"))
    opened.all(".shot")[0].click()
    opened.panes()
    canvas = opened.all("#panes canvas")[0]
    for _ in range(STEPS):
        opened.wheel(canvas, TURN)
    opened.panes()
    driver.save_screenshot(str(out / "zoom.png"))
    opened.click("#mode-slider")
    opened.click("#zoom-fit")
    opened.panes()
    driver.save_screenshot(str(out / "slider.png"))
    opened.click("#viewer-close")
    opened.run("document.getElementById('tables').scrollIntoView()")
    driver.save_screenshot(str(out / "tables.png"))
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    opened.run("document.querySelector('.pair').scrollIntoView()")
    opened.until(lambda: opened.run(LOADED), "the small pictures are there")
    driver.save_screenshot(str(out / "narrow.png"))


def main(
    page: Annotated[Path, typer.Argument(help="A report.html.", exists=True)],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
) -> None:
    """Save screenshots of one page."""
    if lacking := missing():
        raise SystemExit(f"a browser is not there: {lacking}")
    out.mkdir(parents=True, exist_ok=True)
    driver = started()
    try:
        photograph(driver, page, out)
        if complaints := driver.get_log("browser"):
            raise SystemExit(f"{page}: {complaints}")
    finally:
        driver.quit()
    print(f"{page}: {', '.join(sorted(file.name for file in out.glob('*.png')))} in {out}")


if __name__ == "__main__":
    typer.run(main)
