"use strict";
// The page works without this script. Values from the data are read from attributes, and are only ever set as text.
document.documentElement.classList.add("js");
const all = (selector, where = document) => [...where.querySelectorAll(selector)];

// Tables of classes: a click on a heading sorts, a word in the field above searches.
for (const head of all("table.sortable th")) {
  head.tabIndex = 0;
  head.setAttribute("role", "button");
  const sort = () => {
    const table = head.closest("table"), column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    all("th", table).forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = all("tr", table).slice(1).map((row) => {
      const cell = row.cells[column], text = cell.dataset.key ?? cell.textContent, number = parseFloat(text);
      return { row, key: head.classList.contains("n") && !isNaN(number) ? number : text };
    });
    const order = (a, b) => typeof a !== typeof b ? (typeof a === "number" ? -1 : 1) : typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
    rows.sort((a, b) => (down ? -1 : 1) * order(a.key, b.key));
    table.tBodies[0].append(...rows.map((each) => each.row));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}
for (const field of all("input.search"))
  field.addEventListener("input", () => {
    const word = field.value.toLowerCase();
    for (const row of all("tr", document.getElementById(field.dataset.table)).slice(1))
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(word);
  });

// Confusion matrices of many classes: point at a cell to read it.
for (const map of all(".map[data-cells]")) {
  const names = JSON.parse(map.dataset.names), totals = JSON.parse(map.dataset.totals);
  const flat = JSON.parse(map.dataset.cells), cells = new Map();
  for (let i = 0; i < flat.length; i += 3) cells.set(flat[i] * names.length + flat[i + 1], flat[i + 2]);
  const image = map.querySelector("img"), readout = document.getElementById(map.dataset.readout);
  image.addEventListener("mousemove", (event) => {
    const place = (offset, length) => Math.min(names.length - 1, Math.max(0, Math.floor(offset / length * names.length)));
    const row = place(event.offsetY, image.clientHeight), column = place(event.offsetX, image.clientWidth);
    const n = cells.get(row * names.length + column) || 0, share = totals[row] ? (100 * n / totals[row]).toFixed(1) : "0.0";
    readout.textContent = `true ${names[row]}, predicted ${names[column]}: ${n} of ${totals[row]} images (${share}%)`;
  });
}

// A click on a picture enlarges it.
const dialog = document.getElementById("enlarged");
for (const image of all(".pictures img[data-whole]"))
  image.addEventListener("click", () => {
    dialog.querySelector(".picture").replaceChildren(Object.assign(new Image(), { src: image.src, alt: image.alt }));
    dialog.querySelector(".what").textContent = image.dataset.caption || "";
    dialog.querySelector(".path").textContent = image.dataset.whole || "";
    dialog.showModal();
  });
if (dialog)
  dialog.addEventListener("click", (event) => event.target.closest("code, button") || dialog.close());
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const range = document.createRange(); // a page that was opened as a file may not use the newer clipboard
  range.selectNodeContents(button.parentElement.querySelector(".path"));
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  document.execCommand("copy");
  button.textContent = "copied";
});

// Ticked images become the text of two files.
const selection = document.getElementById("selection");
const quoted = (text) => /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
const unique = (lines) => [...new Set(lines)];
function update() {
  const entries = all(".actions");
  const leave = unique(entries.filter((each) => each.querySelector(".leave")?.checked).map((each) => each.dataset.line));
  const known = new Set(all("#class-names option").map((each) => each.value));
  const rows = new Map();
  for (const each of entries) {
    const label = each.querySelector(".label"), wanted = each.querySelector(".change").checked;
    label.setCustomValidity(!wanted || known.has(label.value) ? "" : "Not a class of this run");
    if (wanted && known.has(label.value)) rows.set(each.dataset.path, label.value);
  }
  // Both files begin with what this run had, of which new corrections win, so that a file without ticks is not lost.
  const relabelled = [...new Map([...JSON.parse(selection.dataset.corrections), ...rows])];
  const text = {
    exclude: unique([...JSON.parse(selection.dataset.before), ...leave]),
    relabel: relabelled.length ? ["path,label", ...relabelled.map((row) => row.map(quoted).join(","))] : [],
  };
  for (const [kind, lines] of Object.entries(text)) {
    document.getElementById(kind).value = lines.map((line) => `${line}\n`).join("");
    document.getElementById(`save-${kind}`).disabled = !lines.length;
  }
  const files = [text.exclude.length ? "data.exclude=exclude.txt" : "", relabelled.length ? "data.relabel=relabel.csv" : ""];
  document.getElementById("settings").textContent = files.filter(Boolean).join(" ");
  document.getElementById("counts").textContent = `${leave.length} to leave out, ${rows.size} to relabel`;
  selection.hidden = !leave.length && !entries.some((each) => each.querySelector(".change").checked);
}
if (selection) {
  for (const each of all(".actions")) {
    each.addEventListener("input", update);
    each.querySelector(".label").addEventListener("input", () => { each.querySelector(".change").checked = true; update(); });
  }
  for (const [kind, name] of [["exclude", "exclude.txt"], ["relabel", "relabel.csv"]])
    document.getElementById(`save-${kind}`).addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([document.getElementById(kind).value], { type: "text/plain" }));
      link.download = name;
      link.click();
    });
  update();
}
