// Which rows, sizes and prompts are shown.

const filter = {
  rows: new Set(data.rows),
  sizes: new Set(data.sizes.map(sizeKey)),
  words: "",

  /** Whether a prompt and seed are asked for. */
  hasPair(pair) {
    return `${pair.prompt} ${seedText(pair)}`.toLowerCase().includes(this.words);
  },

  has(picture) {
    return this.rows.has(picture.row) && this.sizes.has(sizeKey(picture.size)) && this.hasPair(picture);
  },
};

/** Checkboxes as a row of names; ``chosen`` is the set of the keys that are checked. */
function chips(legend, options, chosen, changed) {
  const boxes = options.map(([key, text]) => {
    const box = make("input", { type: "checkbox", value: key, checked: chosen.has(key) });
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(key);
      else chosen.delete(key);
      changed();
    });
    return make("label", { class: "chip" }, box, make("span", {}, text));
  });
  return make("fieldset", { class: "chips" }, make("legend", {}, legend), ...boxes);
}

function buildFilters(changed) {
  const place = byId("filters");
  if (data.sizes.length > 1) {
    place.append(chips("Size", data.sizes.map((size) => [sizeKey(size), sizeText(size)]), filter.sizes, changed));
  }
  place.append(chips("Row", data.rows.map((row) => [row, row]), filter.rows, changed));
  const words = make("input", { type: "search", id: "words", placeholder: "words or a seed", autocomplete: "off" });
  words.addEventListener("input", () => {
    filter.words = words.value.trim().toLowerCase();
    changed();
  });
  place.append(make("label", { class: "field" }, make("span", {}, "Prompt"), words));
  const width = make("input", { type: "range", id: "width", min: 96, max: 480, step: 8 });
  width.addEventListener("input", () => setWidth(Number(width.value)));
  place.append(make("label", { class: "field" }, make("span", {}, "Width"), width));
  const numbers = make("input", { type: "checkbox", id: "numbers", checked: true });
  numbers.addEventListener("change", () => byId("grids").classList.toggle("bare", !numbers.checked));
  place.append(make("label", { class: "chip" }, numbers, make("span", {}, "Numbers")));
}

/** Pixels of a picture's width in the grid. */
function setWidth(pixels) {
  byId("width").value = pixels;
  byId("grids").style.setProperty("--shot", `${pixels}px`);
}
