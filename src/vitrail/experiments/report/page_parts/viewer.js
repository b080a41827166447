// The viewer: the pictures of one prompt side by side, or two of them under a slider, seen through one view.

const viewer = {
  view: new View(),
  panes: [], // those with pictures
  framed: [], // all of them
  pair: null,
  mode: "side",
  chosen: new Set(), // cells side by side
  couple: [null, null], // pictures under the slider
  split: 0.5,
};

/** Open the viewer at a picture, or at a prompt alone. */
function openViewer(pair, picture, mode = "side") {
  Object.assign(viewer, { pair, mode, split: 0.5 });
  const asked = pair.pictures.filter((each) => each === picture || filter.has(each));
  viewer.chosen = new Set([picture, ...asked].filter(Boolean).slice(0, MOST_PANES).map(cellKey));
  viewer.couple = coupleOf(asked.filter((each) => each.shown), pair.pictures.filter((each) => each.shown), picture);
  viewer.view.reset();
  byId("viewer").showModal();
  build();
  byId("panes").focus();
}

/** Two pictures to begin with, of one size if there are: the first, and the one that was clicked on or the last. */
function coupleOf(asked, all, picture) {
  const pool = asked.length > 1 ? asked : all;
  if (pool.length < 2) return [null, null];
  const size = sizeKey((picture?.shown ? picture : pool[0]).size);
  const same = pool.filter((each) => sizeKey(each.size) === size);
  const left = same[0];
  const right = picture?.shown && picture !== left ? picture : same.at(-1);
  return [left, right === left ? pool.find((each) => each !== left) : right];
}

/** Make panes anew. */
function build() {
  const { pair, mode } = viewer;
  const drawable = pair.pictures.filter((picture) => picture.shown);
  byId("viewer-title").textContent = pair.prompt;
  byId("viewer-seed").textContent = `seed ${pair.seed}`;
  byId("mode-side").setAttribute("aria-pressed", mode === "side");
  byId("mode-slider").setAttribute("aria-pressed", mode === "slider");
  byId("mode-slider").disabled = drawable.length < 2;
  if (mode === "slider") {
    byId("chooser").replaceChildren(sliderChooser(drawable, viewer.couple, buildPanes));
  } else {
    const cells = pair.pictures.map((picture) => [cellKey(picture), cellText(picture)]);
    byId("chooser").replaceChildren(chips("Shown", cells, viewer.chosen, buildPanes));
  }
  buildPanes();
}

function buildPanes() {
  viewer.framed = viewer.mode === "slider" ? [sliderPane(...viewer.couple, viewer.split, slide)] : sidePanes();
  viewer.panes = viewer.framed.filter((pane) => pane.pictures.length > 0);
  for (const pane of viewer.panes) listen(pane, viewer, redraw);
  const nothing = make("p", { class: "soft" }, "Nothing is chosen.");
  byId("panes").replaceChildren(...(viewer.framed.length ? viewer.framed.map((pane) => pane.figure) : [nothing]));
  resize();
}

const sidePanes = () => viewer.pair.pictures.filter((each) => viewer.chosen.has(cellKey(each))).map(sidePane);

function slide(split) {
  viewer.split = split;
  redraw();
}

function resize() {
  if (!byId("viewer").open) return;
  layOut(viewer.framed);
  redraw();
}

let isWaiting = false;

/** Draw all panes with the next frame. */
function redraw() {
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => {
    isWaiting = false;
    if (!byId("viewer").open || viewer.panes.length === 0) return;
    viewer.view.clamp(viewer.panes);
    for (const pane of viewer.panes) drawPane(pane, viewer.view, viewer.split, redraw);
    byId("zoom-level").textContent = `${Number(viewer.view.zoom.toPrecision(3))} ×`;
  });
}

/** The next or the previous prompt that the filter has. */
function turn(step) {
  const shown = pairs.filter((pair) => filter.hasPair(pair));
  const next = shown[shown.indexOf(viewer.pair) + step];
  if (!next) return;
  const drawable = next.pictures.filter((picture) => picture.shown);
  const couple = viewer.couple.map((old) => drawable.find((each) => old && cellKey(each) === cellKey(old)));
  viewer.couple = couple.every(Boolean) ? couple : coupleOf(drawable, drawable, null);
  if (drawable.length < 2) viewer.mode = "side";
  viewer.pair = next;
  build();
}

const act = {
  closer: () => viewer.view.zoomAt(viewer.panes, viewer.panes[0], STEP),
  farther: () => viewer.view.zoomAt(viewer.panes, viewer.panes[0], 1 / STEP),
  all: () => viewer.view.reset(),
  one: () => viewer.view.zoomOne(viewer.panes),
  move: (right, down) => {
    const pane = viewer.panes[0];
    viewer.view.move(pane, -0.1 * right * pane.width, -0.1 * down * pane.height);
  },
};

const KEYS = {
  "+": act.closer,
  "=": act.closer,
  "-": act.farther,
  0: act.all,
  1: act.one,
  ArrowLeft: () => act.move(-1, 0),
  ArrowRight: () => act.move(1, 0),
  ArrowUp: () => act.move(0, -1),
  ArrowDown: () => act.move(0, 1),
  PageUp: () => turn(-1),
  PageDown: () => turn(1),
};

/** Do something with the view, if there is one, and show what lies in the middle. */
function perform(action) {
  if (viewer.panes.length === 0 && ![KEYS.PageUp, KEYS.PageDown].includes(action)) return;
  action();
  viewer.view.clamp(viewer.panes);
  viewer.view.cross = action === act.all ? null : { x: viewer.view.x, y: viewer.view.y };
  redraw();
}

function setMode(mode) {
  viewer.mode = mode;
  build();
}

byId("viewer").addEventListener("keydown", (event) => {
  const action = KEYS[event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select")) return;
  event.preventDefault();
  perform(action);
});
const BUTTONS = {
  "zoom-in": act.closer,
  "zoom-out": act.farther,
  "zoom-fit": act.all,
  "zoom-one": act.one,
  "pair-back": KEYS.PageUp,
  "pair-on": KEYS.PageDown,
};
for (const [id, action] of Object.entries(BUTTONS)) byId(id).addEventListener("click", () => perform(action));
byId("mode-side").addEventListener("click", () => setMode("side"));
byId("mode-slider").addEventListener("click", () => setMode("slider"));
byId("viewer-close").addEventListener("click", () => byId("viewer").close());
new ResizeObserver(resize).observe(byId("panes"));
