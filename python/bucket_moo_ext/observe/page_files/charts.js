// Pictures whose lines and cells stretch with the page: all text in them is HTML.

/** Cells of one unit each, as few paths: neighbours of one colour in a row are one rectangle. */
function cells(rows, columns, value, range) {
  const paths = new Map();
  const add = (name, text) => paths.set(name, (paths.get(name) ?? "") + text);
  for (let row = 0; row < rows; row++) {
    for (let start = 0; start < columns; ) {
      const name = colour(value(row, start), range);
      let end = start + 1;
      while (end < columns && colour(value(row, end), range) === name) end++;
      if (name === "none") for (let x = start; x < end; x++) add(name, `M${x} ${row + 1}L${x + 1} ${row}`);
      else add(name, `M${start} ${row}h${end - start}v1h${start - end}z`);
      start = end;
    }
  }
  return [...paths].map(([name, d]) => drawing("path", { class: name, d }));
}

/** What colours mean. */
function scale(range, what, none) {
  const bins = Array.from({ length: 2 * BINS + 1 }, (_, i) => element("span", { class: colour(i - BINS, BINS) }));
  return element(
    "p",
    { class: "scale" },
    element("span", {}, `${range < 1 ? "\u2264 " : ""}${shownNumber(-range, 2)}`),
    element("span", { class: "bar", "aria-hidden": "true" }, ...bins),
    element("span", {}, `${range < 1 ? "\u2265 " : ""}${shownNumber(range, 2)} ${what}`),
    element("span", { class: "quiet" }, none),
  );
}

/**
 * Rows over steps. `rows` are texts; `pick(row, column)` is called for what is clicked, `read(row, column)` says what is
 * under the pointer.
 */
function heatMap({ label, rows, steps, pick, read }) {
  const svg = drawing("svg", { viewBox: `0 0 ${steps.length} ${rows.length}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  const column = drawing("rect", { class: "cursor", y: 0, width: 1, height: rows.length });
  const row = drawing("rect", { class: "cursor", x: 0, width: steps.length, height: 1 });
  const paths = drawing("g");
  svg.append(paths, column, row);
  svg.style.height = `${rows.length * 18}px`;
  const labels = rows.map((text) => element("div", { title: text }, element("span", { class: "mark" }), isolated(text)));
  const ticks = element("div", { class: "ticks", "aria-hidden": "true" }, ...tickLabels(steps.map((_, i) => (i + 0.5) / steps.length), steps));
  const inner = element("div", {}, svg, ticks);
  inner.style.minWidth = `${4 * steps.length}px`;
  const area = element("div", { class: "across", tabindex: "0", role: "group", "aria-label": `${label}. Arrow keys choose a row and a step.` }, inner);
  const said = element("p", { class: "pointed quiet" }, "\u00a0");
  const root = element(
    "div",
    { class: "map" },
    element("div", { class: "down" }, element("div", { class: "labels", "aria-hidden": "true" }, ...labels), area),
    said,
  );
  let chosen = [0, 0];
  const under = (event) => {
    const box = svg.getBoundingClientRect();
    const at = (part, count) => Math.max(0, Math.min(count - 1, Math.floor(part * count)));
    return [at((event.clientY - box.top) / box.height, rows.length), at((event.clientX - box.left) / box.width, steps.length)];
  };
  svg.addEventListener("pointermove", (event) => (said.textContent = read(...under(event))));
  svg.addEventListener("pointerleave", () => (said.textContent = read(...chosen)));
  svg.addEventListener("click", (event) => pick(...under(event)));
  labels.forEach((each, number) => each.addEventListener("click", () => pick(number, chosen[1])));
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  area.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const within = (value, count) => Math.max(0, Math.min(count - 1, value));
    pick(within(chosen[0] + move[0], rows.length), within(chosen[1] + move[1], steps.length));
  });
  return {
    root,
    draw(value, range, marks = []) {
      paths.replaceChildren(...cells(rows.length, steps.length, value, range));
      labels.forEach((each, number) => (each.firstChild.textContent = marks[number] ?? ""));
      said.textContent = read(...chosen);
    },
    select(toRow, toColumn) {
      chosen = [toRow, toColumn];
      row.setAttribute("y", toRow);
      column.setAttribute("x", toColumn);
      said.textContent = read(...chosen);
    },
  };
}

/** Some of the numbers under an axis, each at its place from 0 to 1. */
function tickLabels(places, texts) {
  return spread(texts.length, 5).map((i) => {
    const tick = element("span", {}, i === 0 ? `step ${texts[i]}` : String(texts[i]));
    tick.style.left = `${100 * places[i]}%`;
    return tick;
  });
}

function niceTicks(low, high) {
  const step = roundUp((high - low) / 4);
  const first = Math.floor(low / step + 1e-9) * step;
  const ticks = [];
  for (let tick = first; ; tick += step) {
    ticks.push(tick);
    if (tick >= high - step * 1e-6) return ticks;
  }
}

/**
 * Lines over steps. `series`: {name, x, y}; what is not a number is a gap, and a cross below where `missing` is true.
 * `text` says a value; `pick(step)` is called for a click.
 */
function lineChart({ label, series, zero = false, missing = false, text = shownNumber, pick = () => {} }) {
  const finite = series.flatMap(({ y }) => Array.from(y)).filter(Number.isFinite);
  const xs = series.flatMap(({ x }) => Array.from(x));
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  let [low, high] = finite.length ? [finite.reduce((a, b) => Math.min(a, b)), finite.reduce((a, b) => Math.max(a, b))] : [0, 1];
  if (zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
  if (low === high) [low, high] = zero ? [0, high || 1] : [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
  const ticks = niceTicks(low, high);
  [low, high] = [ticks[0], ticks[ticks.length - 1]];
  const place = (x) => (right > left ? (x - left) / (right - left) : 0.5);
  const height = (y) => 1 - (y - low) / (high - low);
  const svg = drawing("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", role: "img", "aria-label": label });
  for (const tick of ticks) svg.append(drawing("path", { class: "grid", d: `M0 ${height(tick)}h1` }));
  const cursor = drawing("path", { class: "cursor", d: "" });
  svg.append(cursor);
  const plot = element("div", { class: "plot" }, svg);
  series.forEach(({ name, x, y }, number) => {
    let d = "";
    let open = false;
    for (let i = 0; i < x.length; i++) {
      const at = `${place(x[i])} ${Number.isFinite(y[i]) ? height(y[i]) : ""}`;
      if (Number.isFinite(y[i])) d += open ? `L${at}` : `M${at}h0`;
      else if (missing) {
        const cross = element("span", { class: "cross", title: `${name}, step ${x[i]}: ${shownNumber(y[i])}` }, "\u00d7");
        cross.style.left = `${100 * place(x[i])}%`;
        plot.append(cross);
      }
      open = Number.isFinite(y[i]);
    }
    svg.append(drawing("path", { class: `line l${number % 8}`, d }));
  });
  const digits = Math.max(0, Math.min(6, 1 - Math.floor(Math.log10(high - low))));
  const side = element("div", { class: "side", "aria-hidden": "true" }, ...ticks.map((tick) => {
    const made = element("span", {}, tick.toFixed(digits));
    made.style.top = `${100 * height(tick)}%`;
    return made;
  }));
  const all = [...new Set(xs)].sort((a, b) => a - b);
  plot.append(element("div", { class: "ticks", "aria-hidden": "true" }, ...tickLabels(all.map(place), all)));
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    pick(left + ((event.clientX - box.left) / box.width) * (right - left));
  });
  const values = series.map(() => element("span", { class: "value" }));
  const legend = element("ul", { class: "legend" }, ...series.map(({ name }, number) =>
    element("li", {},
      drawing("svg", { class: "sample", viewBox: "0 0 30 8", "aria-hidden": "true" }, drawing("path", { class: `line l${number % 8}`, d: "M1 4h28" })),
      isolated(name), " ", values[number])));
  const root = element("figure", { class: "chart" }, element("figcaption", {}, label), element("div", { class: "frame" }, side, plot), legend);
  return {
    root,
    select(step) {
      cursor.setAttribute("d", step >= left && step <= right ? `M${place(step)} 0v1` : "");
      series.forEach(({ x, y }, number) => {
        const at = Array.from(x).indexOf(step);
        values[number].textContent = at < 0 ? "" : text(y[at]);
      });
    },
  };
}
