"use strict";
// Elements, numbers and colours. Text from recordings becomes text nodes and attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const BINS = 10; // colours on each side of 0
const MARKS = { conflict: "\u25bc", agreement: "\u25b2", noise: "\u223c", undecided: "?" };

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const drawing = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const isolated = (text) => element("bdi", {}, text);

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
const floats = (text) => new Float32Array(bytes(text));
const cosinesOf = (text) => Float32Array.from(new Int16Array(bytes(text)), (unit) => (unit === -32768 ? NaN : unit / 1e4));

function shownNumber(value, digits = 3) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "Infinity" : "-Infinity";
  const size = Math.abs(value);
  return size > 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(digits - 1) : value.toFixed(digits);
}

const shownShare = (value) => (Number.isNaN(value) ? "no pair" : `${Math.round(100 * value)} %`);

/** The class of a value's colour: n10 ... n1, z, p1 ... p10; none for what is not a number. */
function colour(value, range) {
  if (Number.isNaN(value)) return "none";
  const bin = Math.max(-BINS, Math.min(BINS, Math.round((value / range) * BINS)));
  return bin < 0 ? `n${-bin}` : bin > 0 ? `p${bin}` : "z";
}

/** The smallest of ..., 0.1, 0.2, 0.5, 1, 2, 5, ... that is not below. */
function roundUp(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 2, 5, 10].find((factor) => factor * unit >= value * (1 - 1e-9));
}

/** At most `most` of 0 ... count - 1, evenly, both ends among them. */
function spread(count, most) {
  if (count <= most) return Array.from({ length: count }, (_, i) => i);
  return Array.from({ length: most }, (_, i) => Math.round((i * (count - 1)) / (most - 1)));
}

/** A table in a box of its own; rows begin with their heading. */
function table(caption, head, rows) {
  const line = (row) =>
    element("tr", {}, element("th", { scope: "row" }, isolated(row[0])), ...row.slice(1).map((cell) => element("td", {}, isolated(cell))));
  return element(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    element(
      "table",
      {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...head.map((cell) => element("th", { scope: "col" }, isolated(cell))))),
      element("tbody", {}, ...rows.map(line)),
    ),
  );
}

/** A table that is made when it is first looked at. `make` gives what table() takes. */
function folded(title, make) {
  const made = element("details", {}, element("summary", {}, title));
  made.fresh = false;
  made.refresh = () => {
    made.fresh = false;
    if (made.open) made.show();
  };
  made.show = () => {
    if (made.fresh) return;
    made.fresh = true;
    made.replaceChildren(made.firstChild, table(...make()));
  };
  made.addEventListener("toggle", () => made.open && made.show());
  return made;
}

function choice(label, id, options) {
  const select = element("select", { id }, ...options.map(([value, text]) => element("option", { value }, text)));
  return { select, field: element("div", { class: "field" }, element("label", { for: id }, label), select) };
}
