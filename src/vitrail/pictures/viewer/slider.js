// The slider: two pictures of a prompt in one pane, parted by a divider.

const DIVIDER_STEP = 0.02; // of the pane's width, for an arrow key

/** A pane of two pictures; ``changed`` is called with where the divider is, as a share of the pane's width. */
function sliderPane(left, right, split, changed) {
  const label = `Left: ${altText(left)}. Right: ${altText(right)}.`;
  const canvas = make("canvas", { role: "img", "aria-label": label });
  const handle = make("div", { id: "divider", role: "slider", tabindex: "0", "aria-label": "Divider" });
  handle.setAttribute("aria-valuemin", "0");
  handle.setAttribute("aria-valuemax", "100");
  const badge = (picture, side) => make("span", { class: `badge on-${side}` }, cellText(picture));
  const stage = make("div", { class: "stage" }, canvas, badge(left, "left"), badge(right, "right"), handle);
  const where = make("span", { class: "where soft" });
  const figure = make("figure", { class: "pane" }, stage, make("figcaption", {}, where));
  const slide = (share) => {
    const bounded = Math.min(1, Math.max(0, share));
    placeDivider(handle, bounded);
    changed(bounded);
  };
  placeDivider(handle, split);
  listenToDivider(handle, stage, slide);
  return { figure, stage, canvas, where, pictures: [left.shown, right.shown], width: 0, height: 0 };
}

function placeDivider(handle, share) {
  handle.style.left = `${100 * share}%`;
  const percent = Math.round(100 * share);
  handle.setAttribute("aria-valuenow", percent);
  handle.setAttribute("aria-valuetext", `${percent} % of the left picture`);
}

function listenToDivider(handle, stage, slide) {
  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    handle.focus();
  });
  handle.addEventListener("pointermove", (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const box = stage.getBoundingClientRect();
    slide((event.clientX - box.left) / box.width);
  });
  handle.addEventListener("keydown", (event) => {
    const now = parseFloat(handle.style.left) / 100;
    const step = event.shiftKey ? 5 * DIVIDER_STEP : DIVIDER_STEP;
    const to = {
      ArrowLeft: now - step, ArrowDown: now - step, ArrowRight: now + step, ArrowUp: now + step, Home: 0, End: 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    slide(to);
  });
}

/** Selects for the two pictures. */
function sliderChooser(pictures, chosen, changed) {
  const selects = ["Left", "Right"].map((side, number) => {
    const options = pictures.map((picture) =>
      make("option", { value: cellKey(picture), selected: chosen[number] === picture }, cellText(picture)));
    const select = make("select", { id: `slider-${side.toLowerCase()}` }, ...options);
    select.addEventListener("change", () => {
      chosen[number] = pictures.find((picture) => cellKey(picture) === select.value);
      changed();
    });
    return make("label", { class: "field" }, make("span", {}, side), select);
  });
  return make("div", { class: "selects" }, ...selects);
}
