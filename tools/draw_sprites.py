"""Draw the demo data set's object sprites from the Noto emoji (Apache-2.0).

Usage: python tools/draw_sprites.py PATH_TO/icons.json

``icons.json`` comes from the npm package ``@iconify-json/noto`` (``npm pack @iconify-json/noto``).
The sprites are committed, so only a change of the object list needs this tool
(``pip install resvg-py``).
"""

import io
import json
import sys
from pathlib import Path

import resvg_py
from PIL import Image

SIZE = 512  # side of a sprite in pixels
OBJECTS = {
    "fox": "fox",
    "cat": "cat-face",
    "panda": "panda",
    "tiger": "tiger-face",
    "rabbit": "rabbit-face",
    "frog": "frog",
    "penguin": "penguin",
    "octopus": "octopus",
    "red-apple": "red-apple",
    "strawberry": "strawberry",
    "banana": "banana",
    "pizza": "pizza",
    "automobile": "automobile",
    "rocket": "rocket",
    "sunflower": "sunflower",
    "astronaut": "astronaut",
}
FOLDER = Path(__file__).parents[1] / "src/vitrail/demo/sprites"


def draw(icons: dict, icon: str) -> Image.Image:
    """Rasterise one icon and crop it to its painted box, centred in a square."""
    entry = icons["icons"][icon]
    width = entry.get("width", icons.get("width", 128))
    height = entry.get("height", icons.get("height", 128))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{entry["body"]}</svg>'
    )
    large = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg, width=2 * SIZE, height=2 * SIZE))))
    painted = large.convert("RGBA").crop(large.getchannel("A").getbbox())
    side = max(painted.size)
    square = Image.new("RGBA", (side, side))
    square.paste(painted, ((side - painted.width) // 2, (side - painted.height) // 2))
    return square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main() -> None:
    """Draw all sprites from the file on the command line."""
    icons = json.loads(Path(sys.argv[1]).read_text())
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, icon in OBJECTS.items():
        draw(icons, icon).save(FOLDER / f"{name}.webp", lossless=True, quality=100, method=6)


if __name__ == "__main__":
    main()
