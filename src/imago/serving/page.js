"use strict";
// Texts of the server, and names of files and classes, are only ever set as text.
const zone = document.getElementById("zone"), picker = document.getElementById("picker");
const list = document.getElementById("results"), key = document.getElementById("key");
const AT_ONCE = 4, SHOWN = 5, TRIES = 20, WAIT_MS = 500;
const queue = [];
let running = 0;

const element = (name, text = "", kind = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = kind;
  return made;
};
const wait = (time) => new Promise((resolve) => setTimeout(resolve, time));

const bar = (name, share) => {
  const row = element("div", "", "bar"), meter = document.createElement("meter");
  meter.value = share;
  row.append(element("span", name, "class"), meter, element("span", `${(100 * share).toFixed(1)}%`, "share"));
  return row;
};

const show = (place, entry) => {
  if (entry.error !== null) {
    place.append(element("p", entry.error, "error"));
    return;
  }
  place.append(element("p", entry.prediction, "prediction"));
  if (entry.accepted === false) place.append(element("p", "left to a person", "person"));
  if (entry.warning !== null) place.append(element("p", entry.warning, "warning"));
  const ranked = Object.entries(entry.probabilities).sort((a, b) => b[1] - a[1]);
  for (const [name, share] of ranked.slice(0, SHOWN)) place.append(bar(name, share));
  if (entry.set !== null && entry.set.length > 1) place.append(element("p", `One of: ${entry.set.join(", ")}`, "set"));
};

const ask = async (file) => {
  const form = new FormData();
  form.append("images", file);
  const headers = key === null ? {} : { Authorization: `Bearer ${key.value}` };
  for (let tried = 1; ; tried++) {
    const answer = await fetch("predict", { method: "POST", body: form, headers });
    if (answer.status !== 429 || tried === TRIES) return answer;
    await wait(WAIT_MS);  // the server is busy
  }
};

const predict = async ({ file, place }) => {
  try {
    const answer = await ask(file);
    const content = await answer.json();
    show(place, content.predictions?.[0] ?? { error: content.detail });
  } catch (error) {
    place.append(element("p", `There was no answer: ${error.message}`, "error"));
  }
  place.classList.remove("waiting");
};

const next = async () => {
  if (running === AT_ONCE || queue.length === 0) return;
  running++;
  await predict(queue.shift());
  running--;
  next();
};

const add = (files) => {
  for (const file of files) {
    const entry = element("li", "", "waiting"), picture = document.createElement("img"), place = element("div");
    picture.src = URL.createObjectURL(file);
    picture.alt = "";
    picture.addEventListener("load", () => URL.revokeObjectURL(picture.src));
    picture.addEventListener("error", () => picture.remove());  // the browser cannot show it; the server may
    place.append(element("h2", file.name));
    entry.append(picture, place);
    list.prepend(entry);
    place.classList.add("waiting");
    queue.push({ file, place });
    next();
  }
};

for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.toggle("over", kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
document.addEventListener("paste", (event) => add(event.clipboardData.files));
picker.addEventListener("change", () => { add(picker.files); picker.value = ""; });
