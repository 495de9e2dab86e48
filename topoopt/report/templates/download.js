// The embedded data as files, made in the page.
function csv(head, rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value; // no spreadsheet takes text for a formula
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return `${[head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
}

function timelineCsv() {
  const groups = d3.max(data.runs, (run) => run.timeline.lr.length) || 0, names = ["r", "r_pair", "edge", "loss", "scale", "warming"];
  const rows = data.runs.flatMap(({ name, timeline: t }) =>
    t.step.map((step, k) => [name, step, ...names.map((one) => t[one][k]), ...d3.range(groups).map((g) => (t.lr[g] ? t.lr[g][k] : null))]));
  return csv(["run", "step", ...names, ...d3.range(groups).map((g) => `lr_${g}`)], rows);
}

function layersCsv() {
  const keys = data.metrics.map((metric) => metric.key);
  return csv(["run", "layer", "step", ...keys], data.runs.flatMap(({ name, heat }) =>
    heat.layers.flatMap((layer, i) => heat.steps.map((step, j) => [name, layer, step, ...keys.map((key) => heat.values[key][i][j])]))));
}

function featuresCsv() {
  return csv(["run", "layer", "step", "degree", "birth", "death"], data.runs.flatMap(({ name, heat, details }) =>
    details.flatMap((editions, i) => editions.flatMap((one) => one.degrees.flatMap(({ bars }, k) =>
      bars.map(([birth, death]) => [name, heat.layers[i], one.step, k, birth, death === null ? "inf" : death]))))));
}

const FILES = [
  ["Timeline (CSV)", "topoopt-timeline.csv", "text/csv", timelineCsv], ["Layers (CSV)", "topoopt-layers.csv", "text/csv", layersCsv],
  ["Features (CSV)", "topoopt-features.csv", "text/csv", featuresCsv],
  ["Everything (JSON)", "topoopt.json", "application/json", () => JSON.stringify(data)],
];

function offerDownloads() {
  if (byId("course")) FILES.splice(3, 0, ["Course (CSV)", "topoopt-course.csv", "text/csv", courseCsv]);
  for (const [label, name, type, make] of FILES) {
    element(byId("downloads"), "button", label, { type: "button" }).addEventListener("click", () => {
      const address = URL.createObjectURL(new Blob([make()], { type })), link = element(document.body, "a", null, { href: address, download: name });
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(address), 10000);
    });
  }
}
