// The machine as the stream tells it: whole at first, then what changed. Amounts in bytes, times in seconds.

const PAGE = 4096;

export class Machine {
  constructor() { this.reset(); this.events = []; }

  reset() {
    this.groups = new Map();   // path -> group, parents first
    this.order = [];
    this.head = null;
  }

  apply(message) {
    const { columns, rows, order, events, ...head } = message;
    const span = this.head ? message.at - this.head.at : 0;
    // A simulation may be looked at more often than it moves on: then its rates hold.
    if (span !== 0) for (const group of this.groups.values()) group.rate = still(group.rate);
    for (const row of rows) {
      const group = Object.fromEntries(columns.map((name, i) => [name, row[i]]));
      group.stuck = (group.secs + group.va + group.vepc) * PAGE;
      group.rate = rate(this.groups.get(group.path), group, span);
      this.groups.set(group.path, group);
    }
    if (order) {
      const known = this.groups;
      this.order = order;
      this.groups = new Map(order.map(path => [path, known.get(path)]));
      this.children = new Map();
      for (const path of order) if (path !== "/") add(this.children, parent(path), path);
    }
    this.events.push(...events);
    if (this.events.length > 2000) this.events.splice(0, this.events.length - 2000);
    this.head = head;
  }

  get capacity() { return this.head.epc_pages * PAGE; }
  get used() { return (this.head.epc_pages - this.head.free_pages) * PAGE; }
  knows(part) { return this.head !== null && this.head.knows.includes(part); }

  // The smallest limit from a group up to the root, and whose it is.
  effective(path) {
    let best = null, whose = null;
    for (let at = path; at !== "/"; at = parent(at)) {
      const limit = this.groups.get(at)?.limit ?? null;
      if (limit !== null && (best === null || limit < best)) { best = limit; whose = at; }
    }
    return { limit: best, whose };
  }
}

const NONE = { in: 0, out: 0, wait: 0, events: 0 };
const still = rate => (rate === NONE ? rate : NONE);

function rate(old, now, span) {
  if (!old || span <= 0) return NONE;
  const per = name => Math.max(0, now[name] - old[name]) / span;
  return { in: per("pages_in"), out: per("pages_out"), wait: Math.min(1, per("some_s")), events: per("events") };
}

function add(map, key, value) {
  const list = map.get(key);
  if (list) list.push(value); else map.set(key, [value]);
}

export function parent(path) { return path.slice(0, path.lastIndexOf("/")) || "/"; }
export function leafName(path) { return path === "/" ? "/" : path.slice(path.lastIndexOf("/") + 1); }

// What a page may show of a name: control characters and lone surrogates as escapes.
export function shown(name) {
  return name.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]/gu,
    char => "\\x" + char.codePointAt(0).toString(16).padStart(2, "0"));
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "max";
  for (const [unit, factor] of [["T", 2 ** 40], ["G", 2 ** 30], ["M", 2 ** 20], ["K", 2 ** 10]]) {
    if (bytes >= factor) return (bytes / factor).toFixed(bytes % factor ? 1 : 0) + unit;
  }
  return String(bytes);
}

// A moment on a clock of 24 hours; on a day that is not today, with the day. Virtual time has no clock: seconds.
export function clock(at, seconds = true) {
  if (at < 1e8) return `${at.toFixed(at < 10 ? 3 : at < 1000 ? 1 : 0)} s`;
  const time = new Date(at * 1000), two = number => String(number).padStart(2, "0");
  const text = `${two(time.getHours())}:${two(time.getMinutes())}` + (seconds ? `:${two(time.getSeconds())}` : "");
  const day = `${two(time.getMonth() + 1)}-${two(time.getDate())}`;
  return time.toDateString() === new Date().toDateString() ? text : `${day} ${text}`;
}

export function count(number) {
  if (number < 0.5) return "0";
  if (number >= 1e6) return (number / 1e6).toFixed(1) + "M";
  return number >= 1e4 ? (number / 1e3).toFixed(1) + "k" : number.toFixed(0);
}
