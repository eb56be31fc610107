// Texts of data sets, models and methods reach the document through textContent and setAttribute only, never as markup.
const META = JSON.parse(document.getElementById("meta").textContent);
const $ = (id) => document.getElementById(id);
const DASH = "–";
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
function options(select, items, chosen) {
  select.replaceChildren(...items.map(([value, text]) => make("option", { value, selected: String(value) === String(chosen) }, text)));
  select.value = String(chosen);
}
const mean = (values) => (values.length && values.every((v) => v !== null) ? values.reduce((a, b) => a + b, 0) / values.length : null);
const spread = (values) => {
  const m = mean(values);
  return Math.sqrt(values.reduce((a, v) => a + (v - m) ** 2, 0) / (values.length - 1));
};
const one = (value) => (value === null ? DASH : value.toFixed(1));
function significant(value) {
  if (value === null) return DASH;
  const digits = value ? Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))) : 0;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
const inUnit = (set, value) => (value === null ? null : set.max === 1 ? 100 * value : value);
const unitOf = (set) => (set.max === 1 ? "%" : set.max === null ? "points" : `points of ${set.max}`) + (set.lower ? ", lower is better" : "");
const uniq = (values) => [...new Set(values)];

// ------------------------------------------------------------------------------------------------------------ markers
// colour and marker of a line's method, as in the figures beside LEADERBOARD.md
const look = (line) => model.looks[line];
const isNone = (line) => model.cells.some((c) => c.line === line && c.unpruned);
const colour = (line) => (isNone(line) ? "var(--ink)" : `color-mix(in srgb, ${look(line).colour} var(--strength), white)`);
function glyph(line, r) {
  const path = draw("path", { d: look(line).mark, transform: `scale(${r})`, "stroke-width": 1.6, "vector-effect": "non-scaling-stroke" });
  path.style.stroke = colour(line);
  path.style.fill = look(line).setting ? "var(--paper)" : colour(line);  // hollow: a second setting
  return path;
}
const swatch = (line) => draw("svg", { class: "swatch", viewBox: "-8 -8 16 16", "aria-hidden": "true" }, glyph(line, 6));
