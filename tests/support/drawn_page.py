"""A page of drawn scenes: three rows, four prompts, two sizes, and one picture that is large enough for tiles."""

import torch
from PIL import Image, ImageDraw, ImageFilter

from vitrail.demo.scenes import Placement, Scene, render
from vitrail.experiments.report.page import Page, PagePicture, PagePlot, PageTable

EVIL = 'a <b>bold</b> "fox" & \'</script><script>document.title="owned"</script><!-- {{data}} \\u003c on a beach'
SHOWN = (("fox", "beach"), ("panda", "meadow"), ("rocket", "night"), ("penguin", "snow"))
SCENES = tuple(Scene(place, (Placement(name, 0.6, 0.5, 0.5),)) for name, place in SHOWN)
ROWS = ("truth", "blurred", "a method with a long name, overlap 0.5")
SIZES = ((256, 256), (512, 512))
LARGE = (3000, 5000)  # height, width
EVIL_PAIR, LARGE_PAIR = 1, 4


def picture_of(scene, row, height, width, seed):
    """What a row makes of a scene: as it is, soft, or with the grid of its tiles."""
    pixels = render(scene, height, width, torch.Generator().manual_seed(seed))
    image = Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())
    if row == 1:
        return image.filter(ImageFilter.GaussianBlur(width / 128))
    if row == 2:
        draw = ImageDraw.Draw(image)
        for at in range(64, width, 64):
            draw.line([(at, 0), (at, height)], fill=(90, 90, 90))
            draw.line([(0, at), (width, at)], fill=(90, 90, 90))
    return image


def large_picture():
    """A scene with numbers that say where they are, so that no tile can stand in another's place."""
    height, width = LARGE
    image = picture_of(SCENES[0], 0, 300, 500, 0).resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for left in range(0, width, 250):
        for top in range(0, height, 250):
            draw.text((left + 4, top + 4), f"{left},{top}", fill="white")
            draw.line([(left, top), (left + 240, top + 240)], fill="black")
    return image


def cells():
    """Row, size, pair and scene of all pictures; row 2 failed at one place and is not made at another."""
    for height, width in SIZES:
        for pair, scene in enumerate(SCENES):
            for row in range(len(ROWS)):
                if (row, pair, height) != (2, 3, 512):
                    yield row, (height, width), pair, scene


def drawn_page(folder, large=True):
    """Draw all pictures into a folder, and say what its page shows."""
    pictures = []
    for row, size, pair, scene in cells():
        file = f"pictures/{pair}{row}/{size[0]} #{pair}.png"
        failed = (row, pair, size) == (1, 2, (256, 256))
        if not failed:
            _save(picture_of(scene, row, *size, pair), folder / file)
        prompt = EVIL if pair == EVIL_PAIR else scene.caption
        pictures.append(_cell(row, size, pair, prompt, None if failed else file))
    if large:
        file = "pictures/large.png"
        _save(large_picture(), folder / file)
        pictures.append(_cell(0, LARGE, LARGE_PAIR, "a wall of numbers", file))
    plot = Image.new("RGB", (640, 320), "white")
    ImageDraw.Draw(plot).line([(20, 300), (200, 120), (400, 180), (620, 30)], fill="navy", width=3)
    _save(plot, folder / "plots/time.png")
    return Page(
        title="Seams <of> three & more methods",
        source="Table 2 of a paper that is drawn here",
        notes=("Four prompts at two sizes; the third row shows where views meet.", "Made for tests, of drawn scenes."),
        rows=ROWS,
        sizes=(*SIZES, LARGE) if large else SIZES,
        pictures=pictures,
        tables=(_table(),),
        plots=(PagePlot(title="Seconds over pixels", file="plots/time.png", text="Seconds grow with pixels"),),
    )


def _cell(row, size, pair, prompt, file):
    metrics = {"LPIPS": f"{0.1 + row / 7:.3f}", "seam": "-" if row == 0 else f"{row:.2f}", "CLIP": f"{31.25 - row:.2f}"}
    recipe = {
        "run": {"prompt": prompt, "seed": pair, "height": size[0], "width": size[1], "negative_prompt": None},
        "method": {"stages": [{"patching": {"type": "windows", "overlap": 0.5}, "guidance": ["sync"]}]},
        "versions": {"vitrail": "0.1.0"},
    }
    return PagePicture(
        row=ROWS[row],
        method=ROWS[row],
        size=size,
        pair=pair,
        prompt=prompt,
        seed=pair,
        file=file,
        metrics=metrics if file else {},
        seconds=1.5 * (row + 1) if file else None,
        model_calls=400 * (row + 1) if file else None,
        peak_bytes=3 * 2**28 if file else None,
        recipe=recipe,
        command=f"vitrail replay '{file}'" if file else "",
        error=None if file else "OutOfMemory: a forward of 16 rows does not fit; give --memory low",
    )


def _table():
    rows = (
        ("truth", "9.5 ± 0.2", "1,024", "–", "b2"),
        ("blurred", "10.25 ± 0.1", "88", "0.3", "b10"),
        ("third <i>", "2.0 ± 0.4", "512", "0.04", "a"),
    )
    return PageTable(title="All metrics", header=("method", "FID", "calls", "seam", "name"), rows=rows, best=((2, 1),),
                     note="Bold is best; intervals hold 95 %.")  # fmt: skip


def _save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=1)
