// One page for one machine: the stream comes in, map, list, plots and log are drawn from it.

import { Machine, clock, shown, size } from "/assets/model.js";
import { Plots, SPANS } from "/assets/plots.js";
import { Tree } from "/assets/tree.js";
import { TreeMap } from "/assets/treemap.js";

const at = id => document.getElementById(id);
const machine = new Machine();
const map = new TreeMap(at("map"), choose), tree = new Tree(at("tree"), at("rows"), choose);
const plots = new Plots(at("usage"), at("paging"));
const BAD = new Set(["limit", "disabled", "refused", "failed", "killed"]);
let chosen = decodeURIComponent(location.hash.slice(1)) || "/", logged = 0, pending = false;

function choose(path) {
  if (!machine.groups.has(path)) path = "/";
  chosen = tree.chosen = path;  // now: the next key may come before the next painting
  history.replaceState(null, "", path === "/" ? location.pathname : "#" + encodeURIComponent(path));
  plots.waits = machine.knows("pressure");
  if (machine.head) plots.choose(path, machine.head.at);
  logged = -1;
  paint();
}

function paint() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    if (!machine.head) return;
    map.draw(machine, chosen);
    tree.show(machine, chosen);
    facts();
    log();
  });
}

function facts() {
  const { head, used, capacity } = machine, group = machine.groups.get(chosen);
  const virtual = head.started ? "" : ` · ${clock(head.at)} virtual`;
  at("machine").textContent = `${shown(head.name)} · policy ${shown(head.policy)}${virtual}`;
  at("fill").value = capacity ? used / capacity : 0;
  at("total").textContent = `${size(used)} of ${size(capacity)} EPC in use`;
  document.title = `${size(used)} of ${size(capacity)} – epcgroup`;
  at("chosen").textContent = shown(chosen.slice(0, 400));
  const effective = machine.effective(chosen), own = machine.head.enclaves.filter(e => !e.ended && inside(e.group));
  const words = [`${size(chosen === "/" ? used : group.current)} in use`, `peak ${size(group.peak)}`];
  if (effective.limit !== null) {
    words.push(`limit ${size(effective.limit)}` + (effective.whose === chosen ? "" : ` (of ${shown(effective.whose.slice(0, 200))})`));
  } else if (chosen !== "/") words.push("no limit");
  words.push(`hit ${group.events} times`);
  if (machine.knows("enclaves")) words.push(`${own.length} enclave${own.length === 1 ? "" : "s"}`);
  if (machine.knows("unreclaimable")) words.push(`${size(group.stuck)} cannot be reclaimed`);
  at("facts").textContent = words.join(" · ");
}

const inside = path => chosen === "/" || path === chosen || path.startsWith(chosen + "/");

function log() {
  const newest = machine.events.at(-1)?.serial ?? 0;
  if (logged === newest) return;
  logged = newest;
  const wanted = machine.events.filter(event => !at("only").checked || inside(event.group ?? "")).slice(-200).reverse();
  at("log").replaceChildren(...wanted.map(line));
}

function line(event) {
  const item = document.createElement("li"), time = document.createElement("time"), kind = document.createElement("span");
  time.textContent = clock(event.until || event.at);
  kind.textContent = event.kind;
  kind.className = BAD.has(event.kind) ? "bad" : "";
  const words = document.createElement("span");
  words.textContent = told(event);
  item.append(time, kind, words);
  return item;
}

function told(event) {
  const parts = [shown((event.group || "/").slice(0, 200))];
  if (event.enclave != null) parts.push(`enclave ${event.enclave}`);
  if (event.command) parts.push(`${shown(event.command)} (${event.pid})`);
  if (event.kind === "limit") parts.push(`refused ${event.count ?? 1} times`);
  if (event.kind === "burst") parts.push(`${event.count} pages evicted`);
  if (event.kind === "set" || event.kind === "made" || event.kind === "limit") parts.push(`limit ${size(event.limit ?? null)}`);
  if (event.reason) parts.push(shown(event.reason));
  return parts.join(" · ");
}

function link(text, bad) {
  at("link").textContent = text;
  at("link").classList.toggle("bad", bad);
}

const stream = new EventSource("/stream");
let serial = 0;
stream.addEventListener("state", event => {
  const message = JSON.parse(event.data), first = machine.head === null, before = machine.head?.at;
  for (const one of message.events) one.serial = ++serial;
  machine.apply(message);
  link("live", false);
  if (first || !machine.groups.has(chosen)) choose(chosen);
  else if (message.at !== before) plots.add(machine.groups.get(chosen), message.at);
  paint();
});
stream.addEventListener("gone", event => {
  machine.reset();
  link(JSON.parse(event.data).why, true);
});
stream.addEventListener("error", () => { machine.reset(); link("the server of this page does not answer; trying again …", true); });

for (const [name, seconds] of SPANS) {
  const button = document.createElement("button");
  button.textContent = name;
  button.role = "radio";
  button.addEventListener("click", () => {
    plots.span = seconds;
    spans();
    if (machine.head) plots.choose(chosen, machine.head.at);
  });
  at("spans").append(button);
}
function spans() { [...at("spans").children].forEach((b, i) => b.setAttribute("aria-checked", SPANS[i][1] === plots.span)); }
spans();
at("filter").addEventListener("input", () => { tree.filter = at("filter").value; paint(); });
at("sort").addEventListener("change", () => { tree.sort = at("sort").value; paint(); });
at("only").addEventListener("change", () => { logged = -1; paint(); });
at("map").addEventListener("keydown", event => tree.key(event));
document.addEventListener("keydown", event => {
  if (event.key === "/" && document.activeElement !== at("filter")) { event.preventDefault(); at("filter").focus(); }
});
new ResizeObserver(paint).observe(at("map"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
