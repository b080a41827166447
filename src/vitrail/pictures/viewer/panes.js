// Panes of the viewer: a canvas with one picture, or with two and a divider between them.

const CAPTION = 40; // pixels of CSS below a pane's picture
const MOST_PANES = 12; // opened at once; more can be chosen

/** A pane of one cell; a failed one says why and has no picture to draw. */
function sidePane(picture) {
  const where = make("span", { class: "where soft" });
  const name = make("strong", { title: altText(picture) }, cellText(picture));
  const canvas = make("canvas", { role: "img", "aria-label": altText(picture) });
  const stage = make("div", { class: "stage" }, picture.shown ? canvas : failure(picture));
  const figure = make("figure", { class: "pane" }, stage, make("figcaption", {}, name, where, recipeButton(picture)));
  return { figure, stage, canvas, where, pictures: picture.shown ? [picture.shown] : [], width: 0, height: 0 };
}

/** The fewest columns at which the pictures are largest in a room of ``width`` by ``height`` pixels. */
function columnsFor(count, width, height, shape) {
  let best = { columns: 1, scale: 0 };
  for (let columns = 1; columns <= count; columns++) {
    const [wide, high] = [width / columns, height / Math.ceil(count / columns) - CAPTION];
    const scale = Math.min(wide / shape.width, high / shape.height);
    if (scale > 1.001 * best.scale) best = { columns, scale };
  }
  return best.columns;
}

/** Lay panes out and learn how large each is. */
function layOut(panes) {
  const room = byId("panes");
  const shape = panes.find((pane) => pane.pictures.length > 0)?.pictures[0] ?? { width: 1, height: 1 };
  room.style.setProperty("--columns", columnsFor(panes.length, room.clientWidth, room.clientHeight, shape));
  for (const pane of panes) {
    const box = pane.stage.getBoundingClientRect();
    for (const side of ["width", "height"]) {
      const pixels = Math.max(1, Math.floor(box[side] * devicePixelRatio)); // whole ones, or the screen would blur them
      pane[side] = pixels / devicePixelRatio;
      pane.canvas[side] = pixels;
      pane.canvas.style[side] = `${pane[side]}px`;
    }
  }
}

/** Draw a pane: its second picture, if any, to the right of ``split``, a share of the pane's width. */
function drawPane(pane, view, split, redraw) {
  const { canvas } = pane;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  const divider = Math.round(split * canvas.width);
  const states = pane.pictures.map((shown, number) => {
    const [from, to] = pane.pictures.length === 1 ? [0, canvas.width] : [[0, divider], [divider, canvas.width]][number];
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, canvas.height);
    context.clip();
    const state = drawPicture(context, shown, onScreen(view.place(pane, shown)), redraw);
    context.restore();
    return state;
  });
  if (view.cross) drawCross(context, onScreen(view.place(pane, pane.pictures[0])), view.cross);
  tell(pane, view, ["lost", "waiting", "done"].find((state) => states.includes(state)));
}

/** A rectangle of CSS in pixels of the screen. */
function onScreen(place) {
  return Object.fromEntries(Object.entries(place).map(([side, value]) => [side, value * devicePixelRatio]));
}

function drawCross(context, place, cross) {
  const left = Math.round(place.left + cross.x * place.width) + 0.5;
  const top = Math.round(place.top + cross.y * place.height) + 0.5;
  const gap = 7 * devicePixelRatio;
  const { width, height } = context.canvas;
  const lines = [
    [left, 0, left, top - gap], [left, top + gap, left, height],
    [0, top, left - gap, top], [left + gap, top, width, top],
  ];
  for (const [style, thick] of [["rgb(0 0 0 / 45%)", 3], ["rgb(255 255 255 / 90%)", 1]]) {
    context.strokeStyle = style;
    context.lineWidth = thick * devicePixelRatio;
    context.beginPath();
    for (const [fromX, fromY, toX, toY] of lines) {
      context.moveTo(fromX, fromY);
      context.lineTo(toX, toY);
    }
    context.stroke();
  }
}

/** Say where a pane looks: beside it in words, and on the canvas for scripts. */
function tell(pane, view, state) {
  const shown = pane.pictures[0];
  const place = view.place(pane, shown);
  const words = [`${Number((100 * place.width * devicePixelRatio / shown.width).toPrecision(3))} %`];
  const { cross } = view;
  if (cross && Math.min(cross.x, cross.y) >= 0 && Math.max(cross.x, cross.y) < 1) {
    words.push(`x ${Math.floor(cross.x * shown.width)}, y ${Math.floor(cross.y * shown.height)}`);
  }
  if (state === "lost") words.push("its file cannot be loaded");
  pane.where.textContent = words.join(" · ");
  Object.assign(pane.canvas.dataset, place, { state, zoom: view.zoom });
}
