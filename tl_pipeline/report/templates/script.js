"use strict";
(() => {
  const one = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const read = (id) => { const from = document.getElementById(id); return from ? JSON.parse(from.textContent) : null; };
  const names = read("class-names"), points = read("map-rows") || {}, tip = one("#tip");
  const name = (number) => (number < 0 ? "another class" : names[number]);

  const gallery = one(".gallery.long, .gallery"), errors = all(".error"), filter = one(".filter");
  const show = (cell) => {
    if (!filter) return;
    const [label, predicted] = cell.split(" ").map(Number);
    const hits = errors.filter((error) => !(error.hidden = error.dataset.cell !== cell));
    gallery.classList.add("open");
    filter.hidden = false;
    filter.querySelector("b").textContent = `${name(label)}, taken for ${name(predicted)}: ` +
      (hits.length ? `${hits.length} with a picture` : "none of these has a picture here; ask tl sql for their uris");
    one("#errors").scrollIntoView({ behavior: "smooth" });
  };
  const reset = () => { errors.forEach((error) => { error.hidden = false; }); filter.hidden = true; gallery.classList.remove("open"); };
  one("#all-errors")?.addEventListener("click", reset);
  one("#more-errors")?.addEventListener("click", (event) => { gallery.classList.add("open"); event.target.parentNode.remove(); });
  document.addEventListener("click", (event) => {
    const cell = event.target.closest(".miss[data-cell], button[data-cell]");
    if (cell) show(cell.dataset.cell);
  });

  const place = (event) => {
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(4, Math.min(event.pageX + 14, room))}px`;
    tip.style.top = `${event.pageY + 14}px`;
  };
  const tell = (event, lines, src) => {
    tip.replaceChildren();
    if (src) { const image = new Image(); image.src = src; tip.append(image); }
    lines.filter(Boolean).forEach((line) => { const row = document.createElement("div"); row.textContent = line; tip.append(row); });
    tip.hidden = false;
    place(event);
  };
  document.addEventListener("mousemove", (event) => {
    const cell = event.target.closest(".matrix [data-cell]"), point = event.target.closest(".map [data-row]");
    if (cell) {
      const [label, predicted] = cell.dataset.cell.split(" ").map(Number);
      tell(event, [`${cell.dataset.n} of ${name(label)}`, label === predicted ? "right" : `taken for ${name(predicted)}`]);
    } else if (point) {
      const [label, predicted, confidence, src, text] = points[point.dataset.row];
      tell(event, [name(label), `${label === predicted ? "right" : `taken for ${name(predicted)}`} at ${confidence} %`, text], src);
    } else { tip.hidden = true; }
  });

  const value = (row, column) => { const cell = row.cells[column]; return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent; };
  all("table.sortable th button").forEach((button) => button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const up = button.dataset.order === "down";
    table.querySelectorAll("button[data-order]").forEach((other) => delete other.dataset.order);
    button.dataset.order = up ? "up" : "down";
    const rows = [...body.rows].sort((a, b) => { const x = value(a, column), y = value(b, column); return x < y ? -1 : x > y ? 1 : 0; });
    body.append(...(up ? rows : rows.reverse()));
  }));
})();
