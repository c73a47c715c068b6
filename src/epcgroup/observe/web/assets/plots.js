// The chosen cgroup over time: what the server keeps, then what the stream adds.

import { clock, count, size } from "/assets/model.js";

export const SPANS = [["5 min", 300], ["1 h", 3600], ["4 h", 4 * 3600], ["2 weeks", 14 * 86400]];

export class Plots {
  constructor(usage, paging) {
    this.boxes = [usage, paging];
    this.span = 300;
    this.path = null;
    this.waits = true;  // the source knows who waits
    this.build();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.build());
    new ResizeObserver(() => this.fit()).observe(usage);
  }

  build() {
    const style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(`--${name}`).trim();
    const axis = values => ({ stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 }, size: 56, space: 24, values });
    const common = { width: 300, height: 120, cursor: { sync: { key: "epc" } }, padding: [6, 8, 0, 0] };
    const time = {
      stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 }, size: 28,
      values: (_, moments) => moments.map(at => clock(at, this.span < 3600)), space: 80,
    };
    const moment = { label: "at", value: (_, at) => (at == null ? "–" : clock(at)) };
    const line = (label, name, value, more = {}) => ({ label, stroke: colour(name), width: 1.5, value, ...more });
    // A rate holds for the time before its point, however long nothing happened then.
    const bare = { points: { show: false } }, steps = { paths: uPlot.paths.stepped({ align: -1 }), ...bare };
    const bytes = (_, value) => (value == null ? "–" : size(value)), pages = (_, value) => (value == null ? "–" : count(value));
    const whole = Array.from({ length: 10 }, (_, i) => [1, 2, 5].map(n => n * 10 ** i)).flat();
    this.plots?.forEach(plot => plot.destroy());
    this.plots = [
      new uPlot({
        ...common, padding: [6, 64, 0, 0],  // as wide as the other one, which has an axis there
        scales: { y: { range: (_, low, high) => [0, Math.max(high, 4096) * 1.05] } },
        axes: [time, { ...axis((_, values) => values.map(size)), incrs: Array.from({ length: 42 }, (_, i) => 2 ** i) }],
        series: [moment, line("in use", "used", bytes, { fill: colour("used") + "30", ...bare }),
          line("limit", "hit", bytes, { dash: [6, 4], ...bare }), line("unreclaimable", "stuck", bytes, bare)],
      }, [[], [], [], []], this.boxes[0]),
      new uPlot({
        ...common, scales: { y: { range: (_, low, high) => [0, Math.max(high, 1) * 1.05] }, wait: { range: [0, 100] } },
        axes: [time, { ...axis((_, values) => values.map(count)), incrs: whole }, { ...axis((_, values) => values.map(v => v + " %")), scale: "wait", side: 1, grid: { show: false } }],
        series: [moment, line("pages in/s", "used", pages, steps), line("pages out/s", "stuck", pages, steps),
          line("waiting", "pick", (_, v) => (v == null ? "–" : Math.round(v) + " %"), { ...steps, scale: "wait", width: 1 })],
      }, [[], [], [], []], this.boxes[1]),
    ];
    this.fit();
    if (this.path) this.draw();
  }

  fit() {
    this.boxes.forEach((box, i) => {
      const legend = box.querySelector(".u-legend")?.offsetHeight ?? 0;
      this.plots?.[i].setSize({ width: Math.max(200, box.clientWidth), height: Math.max(60, box.clientHeight - legend) });
    });
  }

  // History from the server; `now` is the machine's time.
  async choose(path, now) {
    this.path = path;
    this.points = [];
    const ask = new URLSearchParams({ path, begin: now - this.span });
    try {
      const answer = await fetch(`/points?${ask}`);
      if (answer.ok && path === this.path) {
        const { columns, rows } = await answer.json();
        this.points = rows.map(row => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
      }
    } catch { /* the stream tells that the server is away */ }
    this.draw();
  }

  add(group, at) {
    const { limit, current, stuck, pages_in, pages_out, some_s } = group;
    this.points.push({ at, limit, current, unreclaimable: stuck, pages_in, pages_out, some_s, step: true });
    while (this.points.length > 2 && this.points[1].at < at - this.span) this.points.shift();
    this.draw();
  }

  draw() {
    const points = this.points ?? [], at = points.map(p => p.at), per = (name, i) => {
      if (!i || points[i].current === null || points[i - 1].current === null) return null;
      const span = points[i].at - points[i - 1].at;
      return span > 0 ? Math.max(0, points[i][name] - points[i - 1][name]) / span : null;
    };
    const of = name => points.map(p => (p.current === null ? null : p[name])), rates = name => points.map((_, i) => per(name, i));
    this.plots[0].setData([at, of("current"), of("limit"), of("unreclaimable")]);
    this.plots[1].setData([at, rates("pages_in"), rates("pages_out"), rates("some_s").map(v => (v === null || !this.waits ? null : Math.min(100, v * 100)))]);
  }
}
