// Tables that a click on a heading sorts, and plots.

/** The first number in a text, such as 1234.5 in "1,234.5 ± 0.7"; nan if it does not begin with one. */
function leadingNumber(text) {
  const found = /^\s*([-+−]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)/i.exec(text);
  return found ? Number(found[1].replaceAll(",", "").replace("−", "-")) : NaN;
}

const isBlank = (text) => ["", "-", "–", "—", "nan"].includes(text.trim().toLowerCase());

/** Whether every cell of a column that says something begins with a number. */
function isNumeric(rows, column) {
  const texts = rows.map((row) => row[column]).filter((text) => !isBlank(text));
  return texts.length > 0 && texts.every((text) => !Number.isNaN(leadingNumber(text)));
}

/** Numbers of rows in order; blank cells come last either way, equal ones stay as they were. */
function sorted(rows, column, direction) {
  const order = rows.map((_, number) => number);
  if (direction === "none") return order;
  const sign = direction === "ascending" ? 1 : -1;
  const compare = isNumeric(rows, column)
    ? (one, other) => leadingNumber(one) - leadingNumber(other)
    : (one, other) => one.localeCompare(other, undefined, { numeric: true });
  return order.sort((a, b) => {
    const [one, other] = [rows[a][column], rows[b][column]];
    if (isBlank(one) || isBlank(other)) return isBlank(one) - isBlank(other);
    return sign * compare(one, other);
  });
}

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function buildTable(table) {
  const best = new Set(table.best.map(([row, column]) => `${row},${column}`));
  const numeric = table.header.map((_, column) => isNumeric(table.rows, column));
  const lines = table.rows.map((row, number) =>
    make("tr", {}, ...row.map((text, column) => {
      const tag = column === 0 ? "th" : "td";
      const attributes = { class: numeric[column] ? "number" : null, scope: column === 0 ? "row" : null };
      return make(tag, attributes, best.has(`${number},${column}`) ? make("strong", {}, text) : text);
    })));
  const body = make("tbody", {}, ...lines);
  const heads = table.header.map((name, column) => {
    const head = make("th", { scope: "col", "aria-sort": "none", class: numeric[column] ? "number" : null });
    head.append(button(name, () => {
      const direction = NEXT[head.getAttribute("aria-sort")];
      for (const each of heads) each.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", direction);
      body.append(...sorted(table.rows, column, direction).map((number) => lines[number]));
    }));
    return head;
  });
  const drawn = make("table", {}, make("caption", {}, table.title), make("thead", {}, make("tr", {}, ...heads)), body);
  const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": table.title }, drawn);
  return make("div", { class: "table" }, scroll, table.note ? make("p", { class: "soft" }, table.note) : null);
}

function buildPlot(plot) {
  const image = make("img", { src: plot.url, alt: plot.text || plot.title, loading: "lazy" });
  const link = make("a", { href: plot.url, title: "Open the figure alone" }, image);
  return make("figure", { class: "plot" }, link, make("figcaption", {}, plot.title));
}
