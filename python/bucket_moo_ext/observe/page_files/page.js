// The page: which run is shown, what two runs have in common, printing.

const data = JSON.parse(document.getElementById("data").textContent);
const sections = [...document.querySelectorAll("section.run")];
const explorers = new Map();

function explore(number) {
  if (data.runs[number] && !explorers.has(number)) {
    explorers.set(number, new Explorer(sections[number].querySelector(".explorer"), data.runs[number], `run-${number}`));
  }
}

function chooseRun() {
  const names = sections.map((section, number) => [number, section.dataset.name]);
  const { select, field } = choice("Run", "run", names);
  const show = () => {
    sections.forEach((section, number) => (section.hidden = number !== Number(select.value)));
    explore(Number(select.value));
  };
  select.addEventListener("change", show);
  document.querySelector(".choose").append(field);
  show();
}

/** Two runs in one picture each. */
function drawBoth() {
  const runs = data.runs.map(decode);
  const mean = (values) => {
    const finite = values.filter(Number.isFinite);
    return finite.length ? finite.reduce((a, b) => a + b) / finite.length : NaN;
  };
  const of = (value) => runs.map((run) => ({ name: run.name, x: run.steps, y: run.overSteps((step) => value(run, step)) }));
  const charts = [
    ["Residual of the whole gradients", of((run, step) => run.residual(step, 0)), shownNumber],
    ["Share of conflicting pairs in parts", of((run, step) => run.share[step]), shownShare],
    ["Mean loss of the objectives", of((run, step) => mean(run.objectives.map((_, i) => run.loss(step, i)))), shownNumber],
    ["Seconds a step", of((run, step) => run.seconds[step]), shownNumber],
  ];
  for (const [label, series, text] of charts) {
    if (!series.some(({ y }) => y.some(Number.isFinite))) continue;
    const chart = lineChart({ label, series, zero: !label.startsWith("Mean loss"), text });
    chart.select(runs[0].steps.at(-1));
    document.querySelector(".both").append(chart.root);
  }
}

if (data.side_by_side) {
  drawBoth();
  data.runs.forEach((_, number) => explore(number));
} else if (data.runs.length > 1) {
  chooseRun();
} else {
  explore(0);
}

const PAPER = 690 / 0.75; // pixels across a page, about, where letters are 12 pixels in place of 16
const SMALLEST = 0.6; // below that nobody reads it, and the table is cut instead
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) {
    details.open = true;
    details.show?.();
  }
  for (const table of document.querySelectorAll("table")) table.style.zoom = Math.max(SMALLEST, Math.min(1, PAPER / table.scrollWidth));
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
  for (const table of document.querySelectorAll("table")) table.style.zoom = "";
});
