// Deep zoom: one picture, or two of them under a divider.

const zoom = { view: new View(), panes: [], split: 0.5, picture: null, other: null, pictures: [] };
const recipeButton = (picture) => (picture.again ? button("Recipe", () => openRecipe(picture), { class: "quiet" }) : null);

/** Open a picture; ``pictures`` are those that it can be compared with. */
function openZoom(picture, pictures) {
  Object.assign(zoom, { picture, other: null, pictures, split: 0.5 });
  zoom.view.reset();
  byId("viewer-title").textContent = picture.prompt;
  const options = pictures.filter((each) => each.shown && each.number !== picture.number).map((each) =>
    make("option", { value: each.number }, `${cellText(each)}, ${seedText(each)}`));
  byId("other").replaceChildren(make("option", { value: "" }, "nothing"), ...options);
  byId("other").disabled = options.length === 0;
  byId("viewer").showModal();
  buildZoom();
  byId("panes").focus();
}

function buildZoom() {
  const pane = zoom.other
    ? sliderPane(zoom.picture, zoom.other, zoom.split, (split) => { zoom.split = split; redrawZoom(); })
    : sidePane(zoom.picture);
  zoom.panes = [pane];
  listen(pane, zoom, redrawZoom);
  byId("panes").replaceChildren(pane.figure);
  resizeZoom();
}

function resizeZoom() {
  if (!byId("viewer").open) return;
  layOut(zoom.panes);
  redrawZoom();
}

let isDrawing = false;

/** Draw with the next frame. */
function redrawZoom() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    if (!byId("viewer").open) return;
    zoom.view.clamp(zoom.panes);
    for (const pane of zoom.panes) drawPane(pane, zoom.view, zoom.split, redrawZoom);
    byId("zoom-level").textContent = `${Number(zoom.view.zoom.toPrecision(3))} ×`;
  });
}

const moved = (right, down) => () =>
  zoom.view.move(zoom.panes[0], -0.1 * right * zoom.panes[0].width, -0.1 * down * zoom.panes[0].height);
const closer = () => zoom.view.zoomAt(zoom.panes, zoom.panes[0], STEP);
const farther = () => zoom.view.zoomAt(zoom.panes, zoom.panes[0], 1 / STEP);
const whole = () => zoom.view.reset();
const oneForOne = () => zoom.view.zoomOne(zoom.panes);
const ZOOM_KEYS = {
  "+": closer, "=": closer, "-": farther, 0: whole, 1: oneForOne,
  ArrowLeft: moved(-1, 0), ArrowRight: moved(1, 0), ArrowUp: moved(0, -1), ArrowDown: moved(0, 1),
};

function performZoom(action) {
  action();
  redrawZoom();
}

byId("viewer").addEventListener("keydown", (event) => {
  const action = ZOOM_KEYS[event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select")) return;
  event.preventDefault();
  performZoom(action);
});
const ZOOM_BUTTONS = { "zoom-in": closer, "zoom-out": farther, "zoom-fit": whole, "zoom-one": oneForOne };
for (const [id, action] of Object.entries(ZOOM_BUTTONS)) byId(id).addEventListener("click", () => performZoom(action));
byId("other").addEventListener("change", (event) => {
  zoom.other = zoom.pictures.find((each) => String(each.number) === event.target.value) ?? null;
  buildZoom();
});
byId("viewer-close").addEventListener("click", () => byId("viewer").close());
new ResizeObserver(resizeZoom).observe(byId("panes"));
