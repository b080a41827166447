"""Tiles of a picture that many threads ask for at once, as a browser does."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from PIL import Image

from vitrail.serve.pyramid import NotThereError, Pyramid

THREADS = 8


def test_threads_that_ask_at_once_get_the_tiles_of_one_that_asks_alone(monkeypatch):
    monkeypatch.setattr("vitrail.pictures.tiles.TILE", 64)
    image = Image.effect_noise((2048, 1536), 60).convert("RGB")
    alone = Pyramid(image, 1)
    wanted = {level: alone.tile(level, 0, 0) for level in range(len(alone.sizes))}
    with Image.open(io.BytesIO(wanted[5])) as smallest:
        assert smallest.size == (64, 48)
    asked, together, reduce = Pyramid(image, 1), Barrier(THREADS), Image.Image.reduce

    def late(self, factor):
        time.sleep(0.01)  # the other threads go first
        return reduce(self, factor)

    def ask(number):
        level = len(wanted) - 1 - number % 3
        together.wait()
        return level, asked.tile(level, 0, 0)

    monkeypatch.setattr(Image.Image, "reduce", late)
    with ThreadPoolExecutor(THREADS) as threads:
        assert all(tile == wanted[level] for level, tile in threads.map(ask, range(THREADS)))


@pytest.mark.parametrize("place", [(0, 1, 0), (0, 0, 1), (1, 0, 0), (-1, 0, 0), (0, -1, 0)])
def test_there_are_no_tiles_beside_the_picture(place):
    with pytest.raises(NotThereError):
        Pyramid(Image.new("RGB", (64, 48)), 1).tile(*place)
