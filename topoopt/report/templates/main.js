// Sets the page up: choices, sliders, and drawing anew where the width changes.
function draw() {
  timelineLegend();
  drawTimeline();
  drawHeatMap();
  layerControls();
  drawLayer();
  drawCourse();
}

function chooseRun(k) {
  Object.assign(chosen, { run: k, layer: widest(k), edition: Infinity, rate: 0 });
  chosen.edition = Math.max(editionsOf().length - 1, 0);
  document.querySelectorAll(".run-choice select").forEach((box) => (box.value = k));
  draw();
  if (steps.length) readout();
}

// The layer that is opened first: the one of most neurons.
const widest = (k) => Math.max(0, d3.maxIndex(data.runs[k].heat.neurons));

// The first metric that is known of three cells in four, or else the one that is known of most.
function firstMetric() {
  const shares = data.metrics.map(({ key }) => d3.mean(data.runs.flatMap((run) => run.heat.values[key].flat()), (value) => Number(value !== null)) ?? 0);
  const known = shares.findIndex((share) => share >= 0.75), k = known >= 0 ? known : Math.max(0, d3.maxIndex(shares));
  chosen.metric = data.metrics[k].key;
  return k;
}

function setUp() {
  const names = data.runs.map((run) => run.name), rates = d3.max(data.runs, (run) => run.timeline.lr.length) || 0;
  if (names.length > 1) for (const [id, label] of [["timeline-controls", "r_pair and rates of"], ["heat-controls", "Run"]])
    selector(byId(id), `${id}-run`, label, names, 0, chooseRun).parentNode.classList.add("run-choice");
  const simplified = d3.range(names.length).filter((k) => data.runs[k].course);
  if (simplified.length > 1) selector(byId("course-controls"), "course-run", "Run", simplified.map((k) => names[k]), 0, (k) => {
    chosen.course = simplified[k];
    drawCourse();
  });
  if (rates > 1) selector(byId("timeline-controls"), "rate-choice", "Parameter group", d3.range(rates), 0, (g) => {
    chosen.rate = g;
    drawTimeline();
    readout();
  });
  if (boundIsFar()) checkbox(byId("timeline-controls"), "whole-bracket", "Down to r_pair, the lower bound", (on) => {
    chosen.bracket = on;
    timelineLegend();
    drawTimeline();
  });
  selector(byId("heat-controls"), "metric-choice", "Show", data.metrics.map((metric) => metric.label), firstMetric(), (k) => {
    chosen.metric = data.metrics[k].key;
    drawHeatMap();
  }).querySelectorAll("option").forEach((option, k) => {
    const known = data.runs.some((run) => run.heat.values[data.metrics[k].key].flat().some((value) => value !== null));
    if (!known) Object.assign(option, { disabled: true, textContent: `${option.textContent} (not measured)` });
  });
  const cursor = byId("cursor"), edition = byId("edition");
  cursor.max = Math.max(steps.length - 1, 0);
  cursor.disabled = steps.length < 2;
  cursor.addEventListener("input", () => setCursor(Number(cursor.value)));
  edition.addEventListener("input", () => {
    chosen.edition = Number(edition.value);
    drawLayer();
  });
  chosen.layer = widest(0);
  chosen.edition = Math.max(editionsOf().length - 1, 0);
  chosen.step = steps[steps.length - 1] ?? null;
  offerDownloads();
  draw();
  if (steps.length) setCursor(steps.length - 1);
}

// On paper a picture is as wide as the paper, whatever the window is.
const PAPER = 720;

function redrawWhenWider() {
  let width = byId("timeline-chart").clientWidth;
  new ResizeObserver(() => {
    const now = byId("timeline-chart").clientWidth;
    if (Math.abs(now - width) < 2 || onPaper()) return;
    width = now;
    draw();
  }).observe(byId("timeline-chart"));
}

function prepareForPrint() {
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")].filter((one) => !one.closest(".several"));
    closed.forEach((one) => (one.open = true));
    document.body.classList.add("paper");
    document.body.style.width = `${PAPER}px`;
    draw();
  });
  window.addEventListener("afterprint", () => {
    closed.forEach((one) => (one.open = false));
    document.body.classList.remove("paper");
    document.body.style.width = "";
    draw();
  });
}

setUp();
redrawWhenWider();
prepareForPrint();
