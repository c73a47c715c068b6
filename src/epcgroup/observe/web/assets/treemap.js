// The tree as a map of EPC. A cgroup's area is its room: its limit, or where it has none what it uses or its children
// may use; the root's is all EPC. The filled part is what it uses, the darker part of that what cannot be reclaimed. So a limit is a
// tile's edge, and a tile that is full is at its limit. Children lie inside their parent, squarified
// (Bruls, Huizing, van Wijk 2000); where limits add up to more than there is, areas are shares.

import { leafName, shown, size } from "/assets/model.js";

const SMALLEST = 5;      // pixels; smaller tiles are not drawn on their own
const TITLE = 15;

export class TreeMap {
  constructor(canvas, choose) {
    this.canvas = canvas;
    this.tiles = [];       // {path, x, y, w, h}, parents first
    canvas.addEventListener("click", event => {
      const hit = this.at(event.offsetX, event.offsetY);
      if (hit) choose(hit.path);
    });
    canvas.addEventListener("mousemove", event => {
      const hit = this.at(event.offsetX, event.offsetY);
      canvas.title = hit ? hit.title : "";
    });
  }

  at(x, y) {
    return this.tiles.findLast(t => x >= t.x && x < t.x + t.w && y >= t.y && y < t.y + t.h);
  }

  draw(machine, chosen) {
    const ratio = window.devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
    this.canvas.width = box.width * ratio;
    this.canvas.height = box.height * ratio;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    this.colour = name => style.getPropertyValue(`--${name}`).trim();
    this.tiles = [];
    if (machine.head && machine.groups.has("/")) {
      this.room = new Map();
      this.tile(pen, machine, "/", 0, 0, box.width, box.height, chosen);
    }
  }

  // Bytes that a cgroup may take up on the map.
  roomOf(machine, path) {
    let room = this.room.get(path);
    if (room === undefined) {
      const group = machine.groups.get(path), below = machine.children?.get(path) ?? [];
      const children = below.reduce((sum, child) => sum + this.roomOf(machine, child), 0);
      room = path === "/" ? machine.capacity
        : Math.max(group.limit === null ? children : Math.min(group.limit, machine.capacity), group.current);
      this.room.set(path, room);
    }
    return room;
  }

  tile(pen, machine, path, x, y, w, h, chosen) {
    const group = machine.groups.get(path), room = this.roomOf(machine, path) || 1;
    const children = (machine.children?.get(path) ?? []).filter(child => this.roomOf(machine, child) > 0);
    const used = path === "/" ? machine.used : group.current;
    const full = group.limit !== null && (group.rate.events > 0 || group.limit - group.current < 4096);
    this.tiles.push({ path, x, y, w, h, title: title(machine, path) });
    pen.fillStyle = this.colour(path === "/" ? "free" : "room");
    pen.fillRect(x, y, w, h);
    const own = children.length ? own_part(machine, path, children, used) : used;
    const inner = { x: x + 2, y: y + 2, w: w - 4, h: h - 4 };
    const named = h > TITLE + 8 && w > 24;
    if (named) { inner.y += TITLE; inner.h -= TITLE; }
    if (!children.length) {
      this.fill(pen, x, y, w, h, used / room, group.stuck / room);
    } else if (inner.w > SMALLEST && inner.h > SMALLEST) {
      const parts = children.map(child => ({ path: child, room: this.roomOf(machine, child) }));
      if (own > 0) parts.push({ path: null, room: own });
      const free = room - parts.reduce((sum, part) => sum + part.room, 0);
      if (free > 0) parts.push({ path: undefined, room: free });
      for (const part of squarify(parts, inner)) {
        if (part.path === null) this.fill(pen, part.x, part.y, part.w, part.h, 1, 0);
        else if (part.path && part.w >= SMALLEST && part.h >= SMALLEST) {
          this.tile(pen, machine, part.path, part.x, part.y, part.w, part.h, chosen);
        } else if (part.path) {
          const child = machine.groups.get(part.path);
          this.tiles.push({ path: part.path, x: part.x, y: part.y, w: part.w, h: part.h, title: title(machine, part.path) });
          this.fill(pen, part.x, part.y, part.w, part.h, child.current / (part.room || 1), 0);
        }
      }
    }
    pen.strokeStyle = this.colour(path === chosen ? "pick" : full ? "hit" : "soft");
    pen.lineWidth = path === chosen ? 3 : full ? 2 : group.limit === null ? 0.5 : 1;
    if (group.limit === null && path !== "/") pen.setLineDash([4, 3]);
    pen.strokeRect(x + 0.5, y + 0.5, Math.max(0, w - 1), Math.max(0, h - 1));
    pen.setLineDash([]);
    if (named) this.label(pen, machine, path, x, y, w, children.length === 0);
  }

  // From the bottom up, as a vessel.
  fill(pen, x, y, w, h, share, stuck) {
    const height = h * Math.min(1, share), low = h * Math.min(1, stuck);
    pen.fillStyle = this.colour("used");
    pen.fillRect(x, y + h - height, w, height);
    pen.fillStyle = this.colour("stuck");
    pen.fillRect(x, y + h - low, w, low);
  }

  label(pen, machine, path, x, y, w, leaf) {
    const group = machine.groups.get(path);
    const of = path === "/" ? size(machine.capacity) : size(group.limit);
    const used = size(path === "/" ? machine.used : group.current);
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "top";
    const name = path === "/" ? "EPC" : shown(leafName(path).slice(0, 80));
    const text = [`${name}  ${used} of ${of}`, `${name}  ${used}`, name].find(one => pen.measureText(one).width < w - 8) ?? name;
    pen.save();
    pen.beginPath();
    pen.rect(x + 2, y + 1, w - 4, TITLE);
    pen.clip();
    if (leaf) {
      pen.fillStyle = this.colour("panel");
      pen.globalAlpha = 0.8;
      pen.fillRect(x + 2, y + 1, Math.min(w - 4, pen.measureText(text).width + 6), TITLE);
      pen.globalAlpha = 1;
    }
    pen.fillStyle = this.colour("text");
    pen.fillText(text, x + 5, y + 3);
    pen.restore();
  }
}

// What a group uses that none of its children does.
function own_part(machine, path, children, used) {
  return Math.max(0, used - children.reduce((sum, child) => sum + machine.groups.get(child).current, 0));
}

function title(machine, path) {
  const group = machine.groups.get(path);
  const used = path === "/" ? machine.used : group.current;
  return `${shown(path.slice(0, 300))}\n${size(used)} in use, limit ${path === "/" ? size(machine.capacity) : size(group.limit)}`;
}

function squarify(parts, box) {
  const rest = parts.filter(part => part.room > 0).sort((a, b) => b.room - a.room);
  const scale = (box.w * box.h) / rest.reduce((sum, part) => sum + part.room, 0), placed = [];
  let { x, y, w, h } = box;
  while (rest.length) {
    const side = Math.min(w, h), row = [];
    let area = 0, worst = Infinity;
    while (rest.length) {
      const next = rest[0].room * scale, total = area + next;
      const largest = Math.max(next, row.length ? row[0].area : 0), smallest = next;
      const bad = Math.max((side * side * largest) / (total * total), (total * total) / (side * side * smallest));
      if (row.length && bad > worst) break;
      row.push({ part: rest.shift(), area: next });
      area = total;
      worst = bad;
    }
    const thick = side ? area / side : 0;
    let along = w >= h ? y : x;
    for (const { part, area: own } of row) {
      const length = thick ? own / thick : 0;
      placed.push(w >= h ? { ...part, x, y: along, w: thick, h: length } : { ...part, x: along, y, w: length, h: thick });
      along += length;
    }
    if (w >= h) { x += thick; w -= thick; } else { y += thick; h -= thick; }
  }
  return placed;
}
