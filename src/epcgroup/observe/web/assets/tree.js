// The cgroups as a list that may have ten thousand rows: only those in sight are in the page.

import { count, leafName, shown, size } from "/assets/model.js";

const HEIGHT = 22;
const KEYS = {
  current: group => group.current, paging: group => group.rate.in + group.rate.out, stall: group => group.rate.wait,
  events: group => group.events,
};

export class Tree {
  constructor(box, rows, choose) {
    Object.assign(this, { box, rows, choose, paths: [], filter: "", sort: "tree", elements: new Map() });
    box.addEventListener("scroll", () => this.paint());
    box.addEventListener("keydown", event => this.key(event));
    new ResizeObserver(() => this.paint()).observe(box);
  }

  show(machine, chosen) {
    this.machine = machine;
    this.chosen = chosen;
    let paths = machine.order;
    const wanted = this.filter.toLowerCase();
    if (wanted) paths = paths.filter(path => path.toLowerCase().includes(wanted));
    if (this.sort === "tree") paths = wanted ? paths : inTree(machine);
    else {
      const value = KEYS[this.sort];
      paths = [...paths].sort((a, b) => value(machine.groups.get(b)) - value(machine.groups.get(a)));
    }
    this.paths = paths;
    this.rows.style.height = `${paths.length * HEIGHT}px`;
    this.paint();
  }

  paint() {
    if (!this.machine) return;
    const first = Math.max(0, Math.floor(this.box.scrollTop / HEIGHT) - 2);
    const last = Math.min(this.paths.length, first + Math.ceil(this.box.clientHeight / HEIGHT) + 4);
    const seen = new Set();
    for (let i = first; i < last; i++) {
      const path = this.paths[i];
      seen.add(path);
      this.row(path, i);
    }
    for (const [path, element] of this.elements) {
      if (!seen.has(path)) { element.remove(); this.elements.delete(path); }
    }
  }

  row(path, i) {
    let element = this.elements.get(path);
    if (!element) {
      element = document.createElement("div");
      element.className = "row";
      element.role = "option";
      for (let n = 0; n < 6; n++) element.append(document.createElement("span"));
      element.addEventListener("click", () => this.choose(path));
      this.rows.append(element);
      this.elements.set(path, element);
    }
    const group = this.machine.groups.get(path), whole = this.sort !== "tree" || this.filter;
    const depth = whole || path === "/" ? 0 : path.split("/").length - 1;
    const root = path === "/", paging = this.machine.knows("paging");
    const texts = [
      shown(whole ? path : leafName(path)).slice(0, 400), size(root ? this.machine.used : group.current),
      root ? `(${size(this.machine.capacity)})` : size(group.limit),
      paging ? count(group.rate.in) : "-", paging ? count(group.rate.out) : "-",
      this.machine.knows("pressure") ? `${Math.round(group.rate.wait * 100)} %` : "-",
    ];
    texts.forEach((text, n) => { if (element.children[n].textContent !== text) element.children[n].textContent = text; });
    element.style.top = `${i * HEIGHT}px`;
    element.children[0].style.paddingLeft = `${Math.min(depth, 20) * 12}px`;
    element.classList.toggle("hit", group.limit !== null && group.rate.events > 0);
    element.setAttribute("aria-selected", path === this.chosen);
    element.setAttribute("aria-label", `${texts[0]}: ${texts[1]} in use, limit ${texts[2]}`);
  }

  key(event) {
    const at = this.paths.indexOf(this.chosen), page = Math.floor(this.box.clientHeight / HEIGHT) - 1;
    const to = {
      ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: this.paths.length - 1,
      ArrowLeft: this.paths.indexOf(this.chosen.slice(0, this.chosen.lastIndexOf("/")) || "/"),
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const index = Math.max(0, Math.min(this.paths.length - 1, to));
    this.choose(this.paths[index]);
    const top = index * HEIGHT;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + HEIGHT > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + HEIGHT - this.box.clientHeight;
  }
}

function inTree(machine) {
  const found = [], todo = ["/"];
  while (todo.length) {
    const path = todo.pop();
    found.push(path);
    todo.push(...[...(machine.children?.get(path) ?? [])].reverse());
  }
  return found;
}
