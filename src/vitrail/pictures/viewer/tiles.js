// Pictures drawn at any zoom: a large one from the tiles of its pyramid that are to be seen, others from their file.

const MOST_TILES = 400; // kept; the ones that were drawn longest ago go first
const images = new Map();

/** An image by its address, asked for if it is not there yet; ``redraw`` is called once it can be drawn. */
function imageAt(url, redraw) {
  let entry = images.get(url);
  if (entry) images.delete(url);
  else {
    entry = { image: new Image(), isReady: false, isLost: false };
    entry.image.src = url;
    entry.image.decode().then(
      () => { entry.isReady = true; redraw(); },
      () => { entry.isLost = true; redraw(); },
    );
  }
  images.set(url, entry);
  if (images.size > MOST_TILES) images.delete(images.keys().next().value);
  return entry;
}

/** A picture as levels from the finest to the coarsest, each of tiles; a plain one has one level of one tile. */
function levelsOf(shown) {
  if (!shown.tiles) return [{ ...shown, side: Infinity, address: () => shown.url }];
  const { url, side, levels } = shown.tiles;
  return levels.map(([height, width], level) => {
    return { width, height, side, address: (row, column) => `${url}/${level}/${row}_${column}.webp` };
  });
}

/** The coarsest level that has a pixel for every one of ``width``. */
function levelFor(levels, width) {
  return levels.findLastIndex((level) => level.width >= width - 0.5);
}

/** Tiles of a level that are to be seen, with where they are drawn, edges at whole pixels so that none shows. */
function visibleTiles(level, place, screen) {
  const across = place.width / level.width;
  const down = place.height / level.height;
  const tiles = [];
  const [firstRow, lastRow] = span(level.height, level.side, down, place.top, screen.height);
  const [firstColumn, lastColumn] = span(level.width, level.side, across, place.left, screen.width);
  for (let row = firstRow; row <= lastRow; row++) {
    for (let column = firstColumn; column <= lastColumn; column++) {
      const [top, bottom] = edges(row, level.height, level.side, down, place.top);
      const [left, right] = edges(column, level.width, level.side, across, place.left);
      if (right > left && bottom > top) tiles.push({ url: level.address(row, column), left, top, right, bottom });
    }
  }
  return tiles;
}

/** The first and last tile of an axis that lie on the screen. */
function span(length, side, scale, start, screen) {
  const last = Math.ceil(length / side) - 1;
  if (side === Infinity) return [0, 0];
  const first = Math.floor(-start / scale / side);
  return [Math.max(0, first), Math.min(last, Math.floor((screen - start) / scale / side))];
}

/** Where a tile begins and ends on the screen. */
function edges(number, length, side, scale, start) {
  const begin = side === Infinity ? 0 : number * side;
  return [Math.round(start + begin * scale), Math.round(start + Math.min(length, begin + side) * scale)];
}

/**
 * Draw a picture into a rectangle of the screen, both in the screen's pixels: sharp pixels where it is magnified.
 * Until its tiles are there, coarser ones and the small copy stand in.
 * Returns "done", "waiting", or "lost" if a file of it cannot be loaded.
 */
function drawPicture(context, shown, place, redraw) {
  const screen = context.canvas;
  const levels = (shown.levels ??= levelsOf(shown));
  const finest = Math.max(0, levelFor(levels, place.width));
  const wanted = visibleTiles(levels[finest], place, screen).map((tile) => [tile, imageAt(tile.url, redraw)]);
  const isDone = wanted.every(([, entry]) => entry.isReady);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  if (!isDone) drawCoarser(context, shown, levels.slice(finest + 1), place);
  context.imageSmoothingEnabled = place.width <= shown.width;
  for (const [tile, entry] of wanted) if (entry.isReady) drawTile(context, tile, entry.image);
  if (wanted.some(([, entry]) => entry.isLost)) return "lost";
  return isDone ? "done" : "waiting";
}

function drawCoarser(context, shown, levels, place) {
  const small = imageAt(shown.thumb, () => {});
  if (small.isReady) context.drawImage(small.image, place.left, place.top, place.width, place.height);
  for (const level of levels.toReversed()) {
    for (const tile of visibleTiles(level, place, context.canvas)) {
      const entry = images.get(tile.url);
      if (entry?.isReady) drawTile(context, tile, entry.image);
    }
  }
}

function drawTile(context, tile, image) {
  context.drawImage(image, tile.left, tile.top, tile.right - tile.left, tile.bottom - tile.top);
}
