// Put the page together.

byId("source").textContent = data.source;
byId("notes").append(...data.notes.map((note) => make("p", {}, note)));
byId("tables").append(...data.tables.map(buildTable));
byId("plots").append(...data.plots.map(buildPlot));
for (const [id, list] of [["pictures", data.pictures], ["tables", data.tables], ["plots", data.plots]]) {
  byId(id).hidden = list.length === 0;
  document.querySelector(`nav a[href="#${id}"]`).hidden = list.length === 0;
}
if (data.pictures.length > 0) {
  buildFilters(applyFilter);
  buildGrid();
  applyFilter();
}
