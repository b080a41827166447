// Where panes look: one zoom and one centre for all of them, relative to each picture.

const LARGEST_PIXEL = 32; // of the screen, for one of the picture
const STEP = 1.25; // of the zoom, for a key or a button

class View {
  constructor() {
    this.reset();
  }

  /** The whole picture. */
  reset() {
    this.zoom = 1; // of the size at which the picture fits into its pane
    this.x = 0.5; // what lies in the middle of every pane, as a share of the picture
    this.y = 0.5;
    this.cross = null; // where the crosshair is, as shares of the picture
  }

  /** The rectangle of a picture in a pane, in pixels of CSS. */
  place(pane, picture) {
    const scale = fit(pane, picture) * this.zoom;
    const [width, height] = [picture.width * scale, picture.height * scale];
    return { left: pane.width / 2 - this.x * width, top: pane.height / 2 - this.y * height, width, height };
  }

  /** What lies at a point of a pane, as shares of the picture. */
  at(pane, left, top) {
    const place = this.place(pane, pane.pictures[0]);
    return { x: (left - place.left) / place.width, y: (top - place.top) / place.height };
  }

  /** Move the pictures by pixels of one pane. */
  move(pane, right, down) {
    const place = this.place(pane, pane.pictures[0]);
    this.x -= right / place.width;
    this.y -= down / place.height;
  }

  /** Zoom by a factor; what lies at a point of one pane stays there. */
  zoomAt(panes, pane, factor, left = pane.width / 2, top = pane.height / 2) {
    const still = this.at(pane, left, top);
    this.zoom = Math.min(largestZoom(panes), Math.max(1, this.zoom * factor));
    const place = this.place(pane, pane.pictures[0]);
    this.x = still.x + (pane.width / 2 - left) / place.width;
    this.y = still.y + (pane.height / 2 - top) / place.height;
  }

  /** One pixel of the largest picture as one of the screen. */
  zoomOne(panes) {
    const fits = panes.flatMap((pane) => pane.pictures.map((picture) => fit(pane, picture)));
    this.zoom = Math.max(1, 1 / (Math.min(...fits) * devicePixelRatio));
  }

  /** Keep the edges of the pictures at those of the panes, or beyond them. */
  clamp(panes) {
    const places = panes.flatMap((pane) => pane.pictures.map((picture) => [pane, this.place(pane, picture)]));
    const across = Math.min(0.5, ...places.map(([pane, place]) => pane.width / (2 * place.width)));
    const down = Math.min(0.5, ...places.map(([pane, place]) => pane.height / (2 * place.height)));
    this.x = Math.min(1 - across, Math.max(across, this.x));
    this.y = Math.min(1 - down, Math.max(down, this.y));
  }
}

const fit = (pane, picture) => Math.min(pane.width / picture.width, pane.height / picture.height);

function largestZoom(panes) {
  const fits = panes.flatMap((pane) => pane.pictures.map((picture) => fit(pane, picture)));
  return Math.max(1, LARGEST_PIXEL / Math.min(...fits));
}
