// The grid of pictures: a section a size, a column a prompt and seed, a row a method.

/** Prompts with seeds in order, each with its pictures. */
const pairs = [];
for (const picture of data.pictures) {
  let pair = pairs.find((known) => known.number === picture.pair);
  if (!pair) pairs.push((pair = { number: picture.pair, prompt: picture.prompt, seed: picture.seed, pictures: [] }));
  pair.pictures.push(picture);
}
pairs.sort((one, other) => one.number - other.number);
for (const { pictures } of pairs) {
  const order = (picture) => data.sizes.findIndex((size) => sizeKey(size) === sizeKey(picture.size));
  pictures.sort((one, other) => order(one) - order(other) || data.rows.indexOf(one.row) - data.rows.indexOf(other.row));
}

const sections = [];

function buildGrid() {
  for (const size of data.sizes) {
    const columns = pairs
      .map((pair) => [pair, pair.pictures.filter((picture) => sizeKey(picture.size) === sizeKey(size))])
      .filter(([, pictures]) => pictures.length > 0);
    const heads = data.rows.map((row) => make("div", { class: "row-head", "data-row": row }, row));
    const grid = make("div", { class: "grid" });
    grid.append(make("div", { class: "heads", "aria-hidden": "true" }, make("div", {}), ...heads));
    grid.append(...columns.map(([pair, pictures]) => column(pair, pictures)));
    const title = make("h3", {}, `${sizeText(size)} pixels`);
    const label = `Pictures of ${sizeText(size)} pixels`;
    const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, grid);
    const section = make("section", { class: "size", "data-size": sizeKey(size) }, title, scroll);
    sections.push({ size: sizeKey(size), section });
    byId("grids").append(section);
  }
  const widest = Math.max(1, ...sections.map(({ section }) => section.querySelectorAll(".pair").length));
  const room = byId("grids").clientWidth - 150;
  setWidth(Math.round(Math.min(320, Math.max(152, room / widest - 14)) / 8) * 8);
}

function column(pair, pictures) {
  const slider = button("Slider", () => openViewer(pair, null, "slider"), { class: "quiet" });
  slider.setAttribute("aria-label", `Slider between two pictures of: ${pair.prompt}, ${seedText(pair)}`);
  slider.disabled = pair.pictures.filter((picture) => picture.shown).length < 2;
  const foot = make("p", { class: "pair-foot" }, make("span", { class: "soft" }, seedText(pair)), slider);
  const prompt = make("h4", { title: pair.prompt }, pair.prompt);
  const cells = data.rows.map((row) => {
    const picture = pictures.find((each) => each.row === row);
    return picture ? card(pair, picture) : make("div", { class: "card missing", "data-row": row }, "not made");
  });
  const head = make("header", { class: "pair-head" }, prompt, foot);
  return make("section", { class: "pair", "data-pair": pair.number, "aria-label": pair.prompt }, head, ...cells);
}

function card(pair, picture) {
  const { shown } = picture;
  const caption = make("figcaption", {}, make("p", { class: "row-name" }, picture.row), numbersOf(picture));
  caption.append(recipeButton(picture));
  const face = shown ? shot(pair, picture) : failure(picture);
  return make("figure", { class: "card", "data-row": picture.row }, face, caption);
}

function shot(pair, picture) {
  const { shown } = picture;
  const [height, width] = shown.thumb_size;
  const later = { loading: "lazy", decoding: "async" };
  const image = make("img", { src: shown.thumb, width, height, alt: altText(picture), ...later });
  return button(image, () => openViewer(pair, picture), { class: "shot", title: "Zoom" });
}

function failure(picture) {
  return make("div", { class: "failed" }, make("strong", {}, "Failed"), make("p", {}, picture.error));
}

/** Metrics and cost. */
function numbersOf(picture) {
  const list = Object.entries(picture.metrics).map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  const cost = costText(picture);
  const below = cost ? make("p", { class: "cost soft" }, cost) : null;
  return make("div", { class: "numbers" }, make("dl", {}, ...list), below);
}

/** Show what the filter has. */
function applyFilter() {
  let count = 0;
  for (const { size, section } of sections) {
    section.hidden = !filter.sizes.has(size);
    for (const each of section.querySelectorAll("[data-row]")) each.hidden = !filter.rows.has(each.dataset.row);
    for (const each of section.querySelectorAll(".pair")) {
      each.hidden = !filter.hasPair(pairs.find((pair) => pair.number === Number(each.dataset.pair)));
      if (!section.hidden && !each.hidden) count += each.querySelectorAll("figure:not([hidden])").length;
    }
  }
  byId("grids").style.setProperty("--rows", filter.rows.size + 1);
  byId("count").textContent = `${count} of ${data.pictures.length} shown`;
}
