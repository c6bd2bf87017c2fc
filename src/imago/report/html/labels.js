"use strict";
// One image at a time. Names from the data are only ever set as text.
const get = (id) => document.getElementById(id);
const facts = JSON.parse(get("facts").textContent), entries = facts.entries, decisions = new Map(Object.entries(facts.decisions).map(([at, made]) => [Number(at), made]));
let here = 0;

function undecided(from) {
  for (let step = 0; step < entries.length; step++) {
    const at = (from + step) % entries.length;
    if (!decisions.has(at)) return at;
  }
  return from;
}

function show(at) {
  here = Math.min(Math.max(at, 0), entries.length - 1);
  const entry = entries[here], made = decisions.get(here);
  get("picture").src = `image/${here}`;
  get("picture").alt = entry.path;
  get("path").textContent = entry.path;
  get("label").textContent = entry.label;
  get("suggestion").textContent = entry.suggestion;
  get("choice").value = made && made[0] === "relabel" ? made[1] : entry.suggestion;
  get("made").textContent = made ? (made[0] === "relabel" ? `relabel: ${made[1]}` : made[0]) : "undecided";
  get("place").textContent = `${here + 1} of ${entries.length}`;
  get("count").textContent = `${decisions.size} decided`;
  get("done").value = decisions.size;
  get("neighbours").replaceChildren(...entry.neighbours.map((each, number) => {
    const item = document.createElement("li"), text = document.createElement("span");
    text.textContent = each.label;
    text.className = each.label === entry.label ? "good" : "bad";
    item.append(Object.assign(new Image(), { src: `image/${here}/${number}`, alt: each.path, title: each.path }), text);
    return item;
  }));
}

const GONE = "The server has ended. Start it again with the same command, and open the address that it prints.";
async function send(decision) {
  const answer = await fetch("decide", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(decision) }).catch(() => null);
  const body = answer ? await answer.json().catch(() => null) : null; // another server at this port answers otherwise
  get("error").textContent = body ? body.error || "" : GONE;
  get("settings").textContent = body?.settings ?? get("settings").textContent;
  return body && !body.error ? body : null;
}

let isBusy = false; // one decision at a time, in the order of the keys
async function once(action) {
  if (isBusy) return;
  isBusy = true;
  try { await action(); } finally { isBusy = false; }
}

const decide = (kind) => once(async () => {
  const at = here, label = kind === "relabel" ? get("choice").value : entries[at].label;
  if (await send({ index: at, decision: kind, label })) {
    decisions.delete(at);
    decisions.set(at, [kind, label]);
    show(undecided(at + 1));
  }
});

const undo = () => once(async () => {
  const body = await send({ decision: "undo" });
  if (body && body.index !== null) {
    decisions.delete(body.index);
    if (body.made) decisions.set(body.index, body.made);
    show(body.index);
  }
});

const actions = { k: () => decide("keep"), r: () => decide("relabel"), x: () => decide("exclude"), u: undo, ArrowLeft: () => show(here - 1), ArrowRight: () => show(here + 1) };
for (const button of document.querySelectorAll("button[data-key]")) button.addEventListener("click", () => actions[button.dataset.key]());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === get("choice")) {
    if (event.key === "Enter") { event.preventDefault(); get("choice").blur(); decide("relabel"); }
    if (event.key === "Escape") get("choice").blur();
    return;
  }
  if (event.key === "c") { event.preventDefault(); get("choice").focus(); get("choice").select(); }
  else if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
});
show(undecided(0));
