// One run: controls for part and step, and what they show.

const MOST_LINES = 8; // more are rows of a map
const LARGEST_MARKED = 16; // objectives up to which the small matrices carry signs
const MEASURES = [
  ["lowest", "lowest cosine of any pair"],
  ["share", "share of conflicting pairs"],
  ["residual", "residual"],
  ["pair", "cosine of two objectives"],
];

/** The numbers of a run, by step, part, and objective or pair. */
function decode(run) {
  const k = run.objectives.length;
  const parts = run.parts.length;
  const pairs = (k * (k - 1)) / 2;
  const read = Object.fromEntries(
    ["weights", "residual", "conflicts", "status", "losses", "seconds", "conflict_share", "means", "errors", "verdicts"].map((name) => [name, floats(run[name])]),
  );
  const cosines = cosinesOf(run.cosines);
  const pair = (i, j) => (i < j ? (i * (2 * k - i - 1)) / 2 + j - i - 1 : pair(j, i));
  const every = (count, of) => Array.from({ length: count }, (_, i) => of(i));
  const lowest = every(run.steps.length * parts, (cell) =>
    cosines.subarray(cell * pairs, (cell + 1) * pairs).reduce((least, x) => (x < least || Number.isNaN(least) ? x : least), NaN));
  return {
    ...run, k, pairs, pair,
    cosine: (step, part, i, j) => cosines[(step * parts + part) * pairs + pair(i, j)],
    lowest: (step, part) => lowest[step * parts + part],
    weight: (step, part, i) => read.weights[(step * parts + part) * k + i],
    residual: (step, part) => read.residual[step * parts + part],
    conflicts: (step, part) => read.conflicts[step * parts + part],
    status: (step, part) => run.status_names[read.status[step * parts + part]] ?? "not there",
    loss: (step, i) => read.losses[step * k + i],
    seconds: read.seconds,
    share: read.conflict_share,
    mean: (part, i, j) => read.means[part * pairs + pair(i, j)],
    error: (part, i, j) => read.errors[part * pairs + pair(i, j)],
    verdict: (part, i, j) => run.verdict_names[read.verdicts[part * pairs + pair(i, j)]],
    conflictCount: (part) => read.verdicts.subarray(part * pairs, (part + 1) * pairs).reduce((n, v) => n + (run.verdict_names[v] === "conflict"), 0),
    overSteps: (of) => Float32Array.from(run.steps, (_, step) => of(step)),
    range: cosineRange(cosines, 0.99),
    lowestRange: cosineRange(lowest, 1),
  };
}

/** Beyond which colours do not change: above that share of the cosines. */
function cosineRange(cosines, share) {
  const sizes = Float32Array.from(cosines).filter((x) => !Number.isNaN(x)).map(Math.abs).sort();
  return sizes.length ? Math.min(1, roundUp(sizes[Math.floor(share * (sizes.length - 1))])) : 1;
}

class Explorer {
  constructor(root, run, id) {
    this.run = decode(run);
    this.id = id;
    this.step = run.steps.length - 1;
    this.part = 0;
    this.charts = []; // what follows the step
    this.tables = []; // what follows the part
    root.append(this.controls(), this.overTime(), this.atStep(), this.weights(), ...this.scalars());
    this.drawMap();
    this.show();
  }

  section(title, ...children) {
    return element("div", {}, element("h3", {}, title), ...children);
  }

  controls() {
    const { run, id } = this;
    this.partChoice = choice("Part", `${id}-part`, run.parts.map(({ title }, number) => [number, title]));
    this.partChoice.select.addEventListener("change", () => this.show({ part: Number(this.partChoice.select.value) }));
    this.slider = element("input", { type: "range", id: `${id}-step`, min: 0, max: run.steps.length - 1, step: 1, value: this.step });
    this.slider.addEventListener("input", () => this.show({ step: Number(this.slider.value) }));
    this.stepSaid = element("output", { for: `${id}-step` });
    const button = (text, label, by) => {
      const made = element("button", { type: "button", "aria-label": label }, text);
      made.addEventListener("click", () => this.show({ step: this.step + by }));
      return made;
    };
    this.said = element("p", { class: "said", "aria-live": "polite" });
    return element("div", { class: "controls", role: "group", "aria-label": "Part and step" },
      this.partChoice.field,
      element("div", { class: "field wide" },
        element("label", { for: `${id}-step` }, "Step"),
        button("\u2039", "Step before", -1), this.slider, button("\u203a", "Next step", 1), this.stepSaid),
      this.said);
  }

  overTime() {
    const { run, id } = this;
    const names = run.objectives.map((name, number) => [number, name]);
    this.measure = choice("Show", `${id}-measure`, run.k > 1 ? MEASURES : [MEASURES[2]]);
    this.first = choice("of", `${id}-first`, names);
    this.second = choice("and", `${id}-second`, names);
    if (run.k > 1) [this.first.select.value, this.second.select.value] = this.clearest();
    for (const { select } of [this.measure, this.first, this.second]) select.addEventListener("change", () => this.drawMap());
    this.map = heatMap({
      label: "Parts of the gradients over steps",
      rows: run.parts.map(({ title }) => title),
      steps: run.steps,
      pick: (part, step) => this.show({ part, step }),
      read: (part, step) => `Step ${run.steps[step]}, ${run.parts[part].title}: ${this.measureSaid(part, step)}`,
    });
    this.key = element("div");
    const shown = spread(run.steps.length, 24);
    this.mapTable = folded("The map as a table", () => [
      `${this.measureName()}, by part and step${shown.length < run.steps.length ? `; ${shown.length} of ${run.steps.length} steps` : ""}`,
      ["part", ...shown.map((step) => `step ${run.steps[step]}`)],
      run.parts.map(({ title }, part) => [title, ...shown.map((step) => this.measureText(part, step))]),
    ]);
    return this.section("Over time",
      element("div", { class: "choices" }, this.measure.field, this.first.field, this.second.field),
      this.map.root, this.key, this.mapTable);
  }

  /** The pair of the whole gradients with the lowest mean. */
  clearest() {
    let best = [0, 1];
    for (let i = 0; i < this.run.k; i++) {
      for (let j = i + 1; j < this.run.k; j++) if (this.run.mean(0, i, j) < this.run.mean(0, ...best)) best = [i, j];
    }
    return best;
  }

  get pair() {
    return [Number(this.first.select.value), Number(this.second.select.value)];
  }

  measured(part, step) {
    const { run } = this;
    const [i, j] = this.pair;
    const of = {
      lowest: () => run.lowest(step, part),
      share: () => run.conflicts(step, part),
      residual: () => run.residual(step, part),
      pair: () => (i === j ? NaN : run.cosine(step, part, i, j)),
    };
    return of[this.measure.select.value]();
  }

  measureName() {
    const { select } = this.measure;
    const name = select.options[select.selectedIndex].text;
    if (select.value !== "pair") return name[0].toUpperCase() + name.slice(1);
    const [i, j] = this.pair;
    return `Cosine of ${this.run.objectives[i]} and ${this.run.objectives[j]}`;
  }

  measureText(part, step) {
    const value = this.measured(part, step);
    return this.measure.select.value === "share" ? shownShare(value) : shownNumber(value);
  }

  measureSaid(part, step) {
    return `${this.measureName()} ${this.measureText(part, step)}`;
  }

  drawMap() {
    const { run } = this;
    const kind = this.measure.select.value;
    const isPair = kind === "pair";
    this.first.field.hidden = this.second.field.hidden = !isPair;
    const isCosine = isPair || kind === "lowest";
    const range = isPair ? run.range : kind === "lowest" ? run.lowestRange : 1;
    const sign = kind === "share" ? -1 : 1; // more conflict: the colour of conflict
    const [i, j] = this.pair;
    const marks = run.parts.map((_, part) => {
      if (isPair) return i === j ? "" : MARKS[run.verdict(part, i, j)];
      const count = kind === "lowest" ? run.conflictCount(part) : 0;
      return count ? `${MARKS.conflict}${count}` : "";
    });
    this.map.draw((part, step) => sign * this.measured(part, step), range, marks);
    const none = `diagonal line: not a number. ${isPair ? this.marksSaid() : kind === "lowest" ? "\u25bc and a number: pairs that conflict above noise there, over all records." : ""}`;
    const key = isCosine ? scale(range, "cosine", none) : this.oneSided(kind, none);
    this.key.replaceChildren(key);
    this.mapTable.refresh();
  }

  oneSided(kind, none) {
    const side = kind === "share" ? -1 : 1;
    const bins = Array.from({ length: BINS + 1 }, (_, i) => element("span", { class: colour(side * i, BINS) }));
    const [low, high] = kind === "share" ? ["no pair conflicts", "all do"] : ["0, stationary", "1"];
    return element("p", { class: "scale" }, element("span", {}, low), element("span", { class: "bar", "aria-hidden": "true" }, ...bins), element("span", {}, high), element("span", { class: "quiet" }, none));
  }

  marksSaid() {
    return "\u25bc conflict, \u25b2 agreement, \u223c noise, ? too few records: of the mean over the records up to the last.";
  }

  atStep() {
    const { run } = this;
    this.tiles = run.parts.map(({ title }, part) => {
      const picture = drawing("svg", { viewBox: `0 0 ${run.k} ${run.k}`, role: "img" });
      const made = element("figure", { class: "tile" }, picture, element("figcaption", { title }, isolated(title)));
      made.addEventListener("click", () => this.show({ part }));
      return { made, picture };
    });
    this.matrixBox = element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Cosines of the chosen part at the chosen step" });
    this.matrix = this.makeMatrix();
    this.matrixBox.append(this.matrix.root);
    const matrices = element("div", { class: "tiles", tabindex: "0", role: "group", "aria-label": "Cosines of all pairs, a square for each part" }, ...this.tiles.map(({ made }) => made));
    this.about = element("p", { class: "quiet" });
    const about = run.k > 1 ? [this.about, this.matrixBox, scale(run.range, "cosine", this.marksSaid()), element("h4", {}, "All parts at this step"), matrices] : [element("p", {}, "There is one objective, so there are no pairs.")];
    return this.section("At a step", ...about);
  }

  makeMatrix() {
    const { run } = this;
    const caption = element("caption");
    const data = [];
    const weights = [];
    const rows = run.objectives.map((name, i) => {
      const row = run.objectives.map((_, j) => (i === j ? element("td", { class: "same" }, "1") : element("td", {}, element("span"), " ", element("span", { class: "sign" }))));
      data.push(row);
      weights.push(element("td"));
      return element("tr", {}, element("th", { scope: "row" }, isolated(name)), ...row, weights[i]);
    });
    const head = element("tr", {}, element("td"), ...run.objectives.map((name) => element("th", { scope: "col" }, isolated(name))), element("th", { scope: "col" }, "weight"));
    return { caption, data, weights, root: element("table", { class: "matrix" }, caption, element("thead", {}, head), element("tbody", {}, ...rows)) };
  }

  weights() {
    this.weightBox = element("div");
    const shown = spread(this.run.steps.length, 60);
    this.weightTable = folded("Weights as a table", () => [
      `Weights of ${this.run.parts[this.weightedPart()].title}${shown.length < this.run.steps.length ? `; ${shown.length} of ${this.run.steps.length} steps` : ""}`,
      ["step", ...this.run.objectives],
      shown.map((step) => [String(this.run.steps[step]), ...this.run.objectives.map((_, i) => shownNumber(this.run.weight(step, this.weightedPart(), i)))]),
    ]);
    this.tables.push(this.weightTable);
    return this.section("Weights", this.weightBox, this.weightTable);
  }

  /** The chosen part, or for the whole gradients without weights of their own the part with most conflicts. */
  weightedPart() {
    const { run, part } = this;
    const there = (of) => run.steps.some((_, step) => run.objectives.some((_, i) => !Number.isNaN(run.weight(step, of, i))));
    if (part !== 0 || there(0)) return part;
    return run.parts.map((_, of) => of).filter(there).reduce((best, of) => (best && run.conflictCount(best) >= run.conflictCount(of) ? best : of), 0);
  }

  drawWeights() {
    const { run } = this;
    const part = this.weightedPart();
    const series = run.objectives.map((name, i) => ({ name, x: run.steps, y: run.overSteps((step) => run.weight(step, part, i)) }));
    this.weightChart = this.linesOrRows(`Weights of ${run.parts[part].title}`, series, { zero: true });
    const other = element("p", { class: "quiet" }, "The whole gradients have no weights of their own: every part has. Choose one above.");
    this.weightBox.replaceChildren(...(part === this.part ? [] : [other]), this.weightChart.root);
  }

  linesOrRows(label, series, options = {}) {
    const pick = (x) => this.show({ step: this.nearest(x) });
    if (series.length <= MOST_LINES) return lineChart({ label, series, pick, ...options });
    const { steps } = this.run;
    const sizes = series.flatMap(({ y }) => Array.from(y)).filter(Number.isFinite).map(Math.abs);
    const map = heatMap({
      label, rows: series.map(({ name }) => name), steps,
      pick: (_, step) => this.show({ step }),
      read: (row, step) => `Step ${steps[step]}, ${series[row].name}: ${shownNumber(series[row].y[step])}`,
    });
    const range = roundUp(sizes.reduce((a, b) => Math.max(a, b), 0));
    map.draw((row, step) => series[row].y[step], range);
    const root = element("figure", { class: "chart" }, element("figcaption", {}, label), map.root, scale(range, "", "diagonal line: not a number."));
    return { root, select: (step) => map.select(0, steps.indexOf(step)) };
  }

  nearest(x) {
    const { steps } = this.run;
    return steps.reduce((best, step, i) => (Math.abs(step - x) < Math.abs(steps[best] - x) ? i : best), 0);
  }

  scalars() {
    const { run } = this;
    const x = run.steps;
    const pick = (at) => this.show({ step: this.nearest(at) });
    const follow = (chart) => (this.charts.push(chart), chart.root);
    const sections = [];
    this.residualBox = element("div");
    sections.push(this.section("Residuals and conflicts", this.residualBox,
      follow(lineChart({ label: "Share of pairs whose cosine is negative", zero: true, missing: true, text: shownShare, pick, series: [
        { name: "in parts", x, y: run.share },
        { name: "in the whole gradients", x, y: run.overSteps((step) => run.conflicts(step, 0)) },
      ] }))));
    const logged = run.objectives.map((name, i) => ({ name, x, y: run.overSteps((step) => run.loss(step, i)) })).filter(({ y }) => y.some((loss) => !Number.isNaN(loss)));
    if (logged.length > MOST_LINES) {
      const minus = logged.map(({ name, y }) => ({ name, x, y: y.map((loss) => loss - y.find(Number.isFinite)) }));
      sections.push(this.section("Losses", follow(this.linesOrRows("Loss of each objective, minus its first", minus))));
    } else if (logged.length) {
      sections.push(this.section("Losses", follow(this.linesOrRows("Loss of each objective", logged, { missing: true }))));
    }
    if (run.seconds.some((each) => !Number.isNaN(each))) {
      sections.push(this.section("Step times", follow(lineChart({ label: "Seconds a step", zero: true, pick, series: [{ name: "seconds", x, y: run.seconds }] }))));
    }
    return sections;
  }

  drawResiduals() {
    const { run, part } = this;
    const of = (number) => ({ name: run.parts[number].title, x: run.steps, y: run.overSteps((step) => run.residual(step, number)) });
    const series = part === 0 ? [of(0)] : [of(0), of(part)];
    this.residualChart = lineChart({ label: "Residual: distance from stationarity, 0 to 1", series, zero: true, missing: true, pick: (x) => this.show({ step: this.nearest(x) }) });
    this.residualBox.replaceChildren(this.residualChart.root);
  }

  /** Shows another step or part. */
  show({ step = this.step, part = this.part } = {}) {
    const { run } = this;
    const isNew = part !== this.part || !this.residualChart;
    [this.step, this.part] = [Math.max(0, Math.min(run.steps.length - 1, step)), part];
    this.slider.value = this.step;
    this.partChoice.select.value = part;
    const number = run.steps[this.step];
    this.stepSaid.textContent = `${number} (${this.step + 1} of ${run.steps.length})`;
    this.slider.setAttribute("aria-valuetext", `step ${number}`);
    const parts = [`Step ${number}, ${run.parts[part].title}: status ${run.status(this.step, part).replaceAll("_", " ")}`, `residual ${shownNumber(run.residual(this.step, part))}`];
    if (run.k > 1) parts.push(`lowest cosine ${shownNumber(run.lowest(this.step, part))}`, `conflicting pairs ${shownShare(run.conflicts(this.step, part))}`);
    this.said.textContent = `${parts.join(", ")}.`;
    this.map.select(part, this.step);
    this.fillMatrix();
    this.fillTiles();
    if (isNew) {
      this.fillVerdicts();
      this.drawWeights();
      this.drawResiduals();
      this.tables.forEach((each) => each.refresh());
    }
    for (const chart of [this.weightChart, this.residualChart, ...this.charts]) chart?.select(number);
  }

  fillMatrix() {
    const { run, step, part } = this;
    this.about.textContent = `${run.parts[part].title}: ${run.parts[part].about}.`;
    this.matrix.caption.textContent = `Cosines at step ${run.steps[step]}`;
    this.matrix.data.forEach((row, i) => row.forEach((cell, j) => {
      if (i === j) return;
      const value = run.cosine(step, part, i, j);
      cell.className = colour(value, run.range);
      cell.firstChild.textContent = Number.isNaN(value) ? "NaN" : value.toFixed(2);
    }));
    this.matrix.weights.forEach((cell, i) => {
      const weight = run.weight(step, part, i);
      cell.textContent = Number.isNaN(weight) ? "\u2013" : shownNumber(weight);
    });
  }

  /** What the matrix says of all records. */
  fillVerdicts() {
    const { run, part } = this;
    this.matrix.data.forEach((row, i) => row.forEach((cell, j) => {
      if (i === j) return;
      const verdict = run.verdict(part, i, j);
      cell.title = `${run.objectives[i]} and ${run.objectives[j]}, over all records: mean ${shownNumber(run.mean(part, i, j), 4)}, standard error ${shownNumber(run.error(part, i, j), 4)}, ${verdict}`;
      cell.lastChild.replaceChildren(element("span", { "aria-hidden": "true" }, MARKS[verdict]), element("span", { class: "unseen" }, ` ${verdict}`));
    }));
  }

  fillTiles() {
    const { run, step } = this;
    if (run.k < 2) return;
    this.tiles.forEach(({ made, picture }, part) => {
      const value = (i, j) => (i === j ? 0 : run.cosine(step, part, i, j));
      let signs = "";
      for (let i = 0; run.k <= LARGEST_MARKED && i < run.k; i++) {
        for (let j = 0; j < run.k; j++) if (i !== j && run.verdict(part, i, j) === "conflict") signs += `M${j + 0.3} ${i + 0.35}h.4l-.2 .35z`;
      }
      picture.replaceChildren(...cells(run.k, run.k, value, run.range), drawing("path", { class: "signs", d: signs }));
      picture.setAttribute("aria-label", `${run.parts[part].title}: lowest cosine ${shownNumber(run.lowest(step, part))}`);
      made.classList.toggle("chosen", part === this.part);
    });
  }
}
