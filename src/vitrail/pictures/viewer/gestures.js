// Mouse, pen and fingers on a pane: they move the one view that all panes share.

/** Factor of the zoom for a turn of the wheel; pinching on a touchpad arrives as a wheel with the control key. */
function wheelFactor(event) {
  const lines = [1, 16, 120][event.deltaMode];
  const turn = Math.max(-300, Math.min(300, event.deltaY * lines));
  return 2 ** (-turn / (event.ctrlKey ? 100 : 300));
}

/** Middle of two points, and how far apart they are. */
function pinch([one, other]) {
  const apart = Math.hypot(one.left - other.left, one.top - other.top);
  return { left: (one.left + other.left) / 2, top: (one.top + other.top) / 2, apart: Math.max(1, apart) };
}

/** Let a pane be moved and zoomed; ``viewer`` has the view and the panes, ``changed`` draws. */
function listen(pane, viewer, changed) {
  const { canvas } = pane;
  const pointers = new Map();
  const pointOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return { left: event.clientX - box.left, top: event.clientY - box.top };
  };
  const zoom = (factor, { left, top }) => viewer.view.zoomAt(viewer.panes, pane, factor, left, top);
  const on = (name, action, options) => canvas.addEventListener(name, action, options);

  on("wheel", (event) => {
    event.preventDefault();
    const point = pointOf(event);
    zoom(wheelFactor(event), point);
    viewer.view.clamp(viewer.panes);
    viewer.view.cross = viewer.view.at(pane, point.left, point.top);
    changed();
  }, { passive: false });
  on("dblclick", (event) => {
    zoom(2, pointOf(event));
    changed();
  });
  on("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, pointOf(event));
  });
  on("pointermove", (event) => {
    const point = pointOf(event);
    if (pointers.has(event.pointerId)) drag(event.pointerId, point);
    if (pointers.size < 2) viewer.view.cross = viewer.view.at(pane, point.left, point.top);
    changed();
  });
  for (const name of ["pointerup", "pointercancel"]) on(name, (event) => pointers.delete(event.pointerId));
  on("pointerleave", () => {
    viewer.view.cross = null;
    changed();
  });

  function drag(id, point) {
    const before = [...pointers.values()];
    pointers.set(id, point);
    const after = [...pointers.values()];
    const [from, to] = before.length < 2 ? [before[0], after[0]] : [pinch(before), pinch(after)];
    if (before.length > 1) zoom(to.apart / from.apart, from);
    viewer.view.move(pane, to.left - from.left, to.top - from.top);
    viewer.view.clamp(viewer.panes);
  }
}
