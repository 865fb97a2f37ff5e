// Curves, bars and tables of shares, drawn by hand: SVG and HTML.

import { drawn, element, percent } from "./elements.js";
import { colourOf } from "./overlay.js";

const [WIDTH, HEIGHT] = [560, 240];
const EDGE = { left: 52, right: 12, top: 12, bottom: 34 };
const LOOKS = 4; // colours of lines
const DASHES = ["", "7 4", "2 3", "10 3 2 3"];

/** Curves over steps. `series`: name and points [step, value]; `title` names the chart. */
export function curves(title, series) {
  const all = series.flatMap(({ points }) => points);
  const [x, y] = [scale(all.map(([step]) => step)), scale(all.map(([, value]) => value))];
  const left = (step) => EDGE.left + x.at(step) * (WIDTH - EDGE.left - EDGE.right);
  const top = (value) => HEIGHT - EDGE.bottom - y.at(value) * (HEIGHT - EDGE.top - EDGE.bottom);
  const last = series.map(({ name, points }) => `${name} ${short(points.at(-1)[1])}`).join(", ");
  const chart = drawn("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    class: "curves",
    role: "img",
    "aria-label": `${title} by step; last: ${last}`,
  });
  for (const value of y.ticks) {
    chart.append(
      drawn("line", { class: "grid", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: top(value), y2: top(value) }),
      drawn("text", { x: EDGE.left - 8, y: top(value) + 4, "text-anchor": "end" }, short(value)),
    );
  }
  for (const step of x.ticks) {
    const end = step === x.ticks.at(-1); // its number would not fit on both sides
    const place = end ? { x: WIDTH - 2, "text-anchor": "end" } : { x: left(step), "text-anchor": "middle" };
    chart.append(drawn("text", { ...place, y: HEIGHT - 12 }, short(step)));
  }
  series.forEach(({ points }, number) => {
    const place = points.map(([step, value]) => `${left(step).toFixed(1)},${top(value).toFixed(1)}`);
    if (points.length === 1) {
      const [cx, cy] = place[0].split(",");
      chart.append(drawn("circle", { ...look(number), "stroke-dasharray": null, cx, cy, r: 3 }));
    } else chart.append(drawn("polyline", { ...look(number), points: place.join(" ") }));
  });
  const names = series.map(({ name, points }, number) =>
    element(
      "li",
      {},
      drawn(
        "svg",
        { viewBox: "0 0 28 8", class: "key", "aria-hidden": "true" },
        drawn("line", { ...look(number), x1: 0, x2: 28, y1: 4, y2: 4 }),
      ),
      `${name} ${short(points.at(-1)[1])}`,
    ),
  );
  return element(
    "figure",
    { class: "chart" },
    element("figcaption", {}, title),
    chart,
    element("ul", { class: "keys" }, names),
  );
}

/** A colour and a dash for each curve: the fifth has the first one's colour and the second one's dash. */
function look(number) {
  const dash = DASHES[(number + Math.floor(number / LOOKS)) % DASHES.length];
  return { class: `line line-${number % LOOKS}`, "stroke-dasharray": dash || null };
}

function scale(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const size = high - low || Math.abs(high) || 1;
  const rough = size / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const [first, last] = [Math.floor(low / step), Math.max(Math.ceil(high / step), Math.floor(low / step) + 1)];
  const ticks = Array.from({ length: last - first + 1 }, (_, number) => (first + number) * step);
  return { ticks, at: (value) => (value - ticks[0]) / (ticks.at(-1) - ticks[0]) };
}

const short = (value) => (Math.abs(value) >= 1000 ? value.toLocaleString("en") : String(Number(value.toPrecision(3))));

const sumOf = (numbers) => numbers.reduce((total, value) => total + value, 0);

/** One bar an expert: its share of the choices. A track is twice an even share, or more if an expert has more. */
export function loadBars(load, dead) {
  const sum = sumOf(load) || 1;
  const even = 1 / load.length;
  const whole = Math.min(1, Math.max(2 * even, ...load.map((value) => value / sum))); // what fills a track
  const rows = load.map((value, expert) =>
    element(
      "li",
      { "--share": `${(100 * value) / sum / whole}%`, "--colour": colourOf(expert) },
      element("span", { class: "label" }, `Expert ${expert}`),
      element("span", { class: "bar", "aria-hidden": "true" }),
      element("span", { class: "number" }, dead.includes(expert) ? "dead" : percent(value / sum, 1)),
    ),
  );
  return element("ol", { class: "bars", "--even": `${(100 * even) / whole}%` }, rows);
}

/** Counts (rows × columns) as shares: each row adds up to 1. */
export const perRow = (values) => values.map((line) => line.map((value) => value / (sumOf(line) || 1)));

/** Counts (rows × columns) as shares: each column adds up to 1. */
export function perColumn(values) {
  const sums = values[0].map((_, column) => sumOf(values.map((line) => line[column])) || 1);
  return values.map((line) => line.map((value, column) => value / sums[column]));
}

/**
 * A table of shares (rows × columns) in per cent.
 * `rows`, `columns`: names; `corner`: what rows and columns are.
 */
export function shares(corner, rows, columns, values) {
  const head = element(
    "tr",
    {},
    element("th", { scope: "col" }, corner),
    columns.map((name) => element("th", { scope: "col" }, name)),
  );
  const body = values.map((line, row) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, rows[row]),
      line.map((value) => {
        const share = Math.round(100 * value);
        return element("td", { "--strength": `${share}%` }, share);
      }),
    ),
  );
  return scrolled(corner, element("table", { class: "heat" }, element("thead", {}, head), element("tbody", {}, body)));
}

/** A table that scrolls, also with the keyboard, where it is too wide. */
export function scrolled(name, table) {
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table: ${name}` }, table);
}

/** Where in the image an expert's patches are: a small map, the stronger the more. */
export function positionMap(values, label) {
  const most = Math.max(...values.flat()) || 1;
  const [rows, columns] = [values.length, values[0].length];
  const map = drawn("svg", {
    viewBox: `0 0 ${columns} ${rows}`,
    class: "position",
    role: "img",
    "aria-label": label,
    "shape-rendering": "crispEdges",
  });
  values.forEach((line, row) =>
    line.forEach((value, column) =>
      map.append(drawn("rect", { x: column, y: row, width: 1, height: 1, "fill-opacity": (value / most).toFixed(3) })),
    ),
  );
  return map;
}

/** Any JSON as nested lists of terms; lists of objects as tables. */
export function nested(value) {
  if (
    Array.isArray(value) &&
    value.length > 0 &&
    value.every((one) => one && typeof one === "object" && !Array.isArray(one))
  ) {
    const names = [...new Set(value.flatMap(Object.keys))];
    const head = element(
      "tr",
      {},
      names.map((name) => element("th", { scope: "col" }, name)),
    );
    const rows = value.map((one) =>
      element(
        "tr",
        {},
        names.map((name) => element("td", {}, nested(one[name] ?? null))),
      ),
    );
    return scrolled(
      names.join(", "),
      element("table", { class: "plain" }, element("thead", {}, head), element("tbody", {}, rows)),
    );
  }
  if (Array.isArray(value)) return element("span", {}, value.map(plain).join(", ") || "–");
  if (value === null || typeof value !== "object") return element("span", {}, plain(value));
  if (Object.keys(value).length === 0) return element("span", {}, "–");
  const pairs = Object.entries(value).map(([name, one]) => {
    return element(
      "div",
      { class: isShort(one) ? null : "long" },
      element("dt", {}, name.replaceAll("_", " ")),
      element("dd", {}, nested(one)),
    );
  });
  return element("dl", { class: "facts" }, pairs);
}

/** Whether a value stands beside its term: it has no terms of its own. */
function isShort(value) {
  if (value === null || typeof value !== "object") return true;
  const parts = Object.values(value);
  return parts.length === 0 || (Array.isArray(value) && parts.every((one) => one === null || typeof one !== "object"));
}

function plain(value) {
  if (value === null) return "–";
  if (Array.isArray(value)) return `(${value.map(plain).join(", ")})`;
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value);
}
