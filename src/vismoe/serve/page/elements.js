// Builds elements. Data goes in as text, never as markup; styles are set property by property, as the service's
// Content-Security-Policy wants it.

export const byId = (id) => document.getElementById(id);

/** An element with attributes, listeners (`onclick`), custom properties (`--share`) and children. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element, as `element`. */
export function drawn(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Fills a select with pairs of value and text; keeps what was chosen, if it is still there. */
export function options(select, pairs) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => element("option", { value }, text)));
  if (pairs.some(([value]) => String(value) === before)) select.value = before;
}

/** Pairs of a term and its value for a `<dl>`. */
export function facts(list, pairs) {
  list.replaceChildren(
    ...pairs.map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value))),
  );
}

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

/** A number and its noun. */
export const counted = (number, one, many) => `${number} ${number === 1 ? one : many}`;

export const milliseconds = (time) => `${time.toFixed(time < 10 ? 2 : time < 100 ? 1 : 0)} ms`;

/** A number of parameters or operations, such as 4.1 M; null: unknown. */
export function amount(number) {
  if (number === null) return "unknown";
  for (const [size, letter] of [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (number >= size) return `${(number / size).toPrecision(3)} ${letter}`;
  }
  return String(number);
}

export const median = (numbers) => {
  const sorted = [...numbers].sort((one, other) => one - other);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

const SAME = 0.05; // times that differ by less are about the same

/** How much less, or more, a time is than another, in words; null if they are about the same. */
export function less(time, other) {
  const share = 1 - time / other;
  return Math.abs(share) < SAME ? null : `${percent(Math.abs(share))} ${share > 0 ? "less" : "more"}`;
}
