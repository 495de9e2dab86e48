// The embedded data, how numbers are written, and what is chosen at the moment.
const data = JSON.parse(document.getElementById("topoopt-data").textContent);
const chosen = { run: 0, rate: 0, metric: data.metrics[0].key, layer: 0, edition: 0, step: null, bracket: false, course: data.runs.findIndex((run) => run.course) };
const onPaper = () => document.body.classList.contains("paper");
const byId = (id) => document.getElementById(id);
const whole = d3.format(",");
const short = (value) => d3.format(value !== 0 && Math.abs(value) < 0.001 ? ".2~e" : ".4~g")(value).replace("e+", "e");

const show = (value) => (value === null || value === undefined ? "–" : Number.isInteger(value) ? whole(value) : short(value));
const positive = (value) => value !== null && value !== undefined && value > 0;
const phaseOf = (r, edge) =>
  r === null ? "unknown" : r < 1 ? "constrained" : edge === null ? "past 1" : r < edge ? "permissive" : "simplification";

function element(parent, tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
}

function checkbox(parent, id, label, change) {
  const line = element(parent, "label", null), box = element(line, "input", null, { id, type: "checkbox" });
  element(line, "span", label);
  box.addEventListener("change", () => change(box.checked));
}

// A labelled choice; `change` gets the index of what was chosen.
function selector(parent, id, label, options, value, change) {
  const box = element(element(parent, "label", `${label} `), "select", null, { id });
  options.forEach((text, k) => element(box, "option", text, { value: k }));
  box.value = value;
  box.addEventListener("change", () => change(Number(box.value)));
  return box;
}
