// The course of a simplification: at each look the rate in units of e/K against what is left, a picture for each measure.
function drawCourse() {
  const parent = byId("course-pictures"), told = byId("course-told");
  if (!parent) return;
  const { name: run, course } = data.runs[chosen.course];
  parent.replaceChildren();
  told.replaceChildren();
  for (const end of course.ended) element(told, "p", `${data.runs.length > 1 ? `${run}: ${end}` : end}.`);
  const figures = [...Object.entries(course.measures).map(([name, values]) => [name, values, course.start[name] ?? null]),
    ["loss", course.loss, null]].filter(([, values]) => values.some(Boolean)); // what was never there has no picture
  courseTable(told, course, figures);
  if (course.step.length < 2) return; // one point is no course: the table says it
  const boxes = figures.map(() => element(parent, "figure", null));
  figures.forEach(([name, values, start], k) => {
    const last = values.findLastIndex((value) => value !== null);
    element(boxes[k], "h3", name === "loss" ? "Loss at each rate" : `${name[0].toUpperCase()}${name.slice(1)} at each rate`);
    response(boxes[k], course, name, values, start);
    element(boxes[k], "figcaption", `${start === null ? `first look ${show(values.find((v) => v !== null))}` : `start ${show(start)}, dotted`}; ` +
      `last look, ringed: ${show(values[last])} at step ${whole(course.step[last])}`);
  });
}

function courseTable(parent, course, figures) {
  const last = course.step.length - 1, box = element(parent, "div", null, { class: "scroll", tabindex: 0, role: "region", "aria-label": "Start and last look" });
  const table = element(box, "table", null, { class: "numeric" }), head = element(element(table, "thead", null), "tr", null);
  element(head, "td", "");
  ["at the start", "at the last look"].forEach((text) => element(head, "th", text, { scope: "col" }));
  const body = element(table, "tbody", null);
  for (const [name, values, start] of figures) {
    const row = element(body, "tr", null);
    element(row, "th", name, { scope: "row" });
    [start, values[last]].forEach((value) => element(row, "td", show(value)));
  }
  element(parent, "p", `The last look was before step ${whole(course.step[last])}, at ${show(course.dose[last])} e/K.`, { class: "note" });
}

function response(box, course, name, values, start) {
  const f = sized(box, 240), known = d3.range(values.length).filter((k) => values[k] !== null && positive(course.dose[k]));
  const svg = picture(box, f.width, f.height, `${name} against the rate in units of e/K`,
    known.map((k) => `step ${course.step[k]}: ${show(course.dose[k])} e/K, ${show(values[k])}`).slice(0, 60).join("; "));
  framed(svg, f);
  if (!known.length) return;
  const doses = known.map((k) => course.dose[k]), [low, high] = d3.extent(doses);
  const x = d3.scaleLog([low / 1.15, high * 1.15], [f.left, f.width - f.right]);
  const y = name === "loss" ? valueScale(known.map((k) => values[k]), [f.height - f.bottom, f.top])
    : d3.scaleLinear([0, (d3.max([...known.map((k) => values[k]), start ?? 0]) || 1) * 1.08], [f.height - f.bottom, f.top]);
  if (start !== null) svg.append("path").attr("class", "level thin dash-2").attr("d", `M${f.left} ${y(start)}H${f.width - f.right}`);
  const kind = runClass(chosen.course), at = (k) => [x(course.dose[k]), y(values[k])];
  svg.append("path").attr("class", `line thin ${kind}`).attr("d", d3.line()(known.map(at)));
  known.forEach((k, i) => {
    const [cx, cy] = at(k), mark = (r, classes) => svg.append("circle").attr("class", classes).attr("cx", cx).attr("cy", cy).attr("r", r);
    if (i === known.length - 1) mark(7, `ring ${kind}`);
    mark(3.2, `fill ${kind}`).append("title").text(`step ${whole(course.step[k])}: ${name} ${show(values[k])} at ${show(course.dose[k])} e/K`);
  });
  axis(svg, d3.axisBottom(x).tickValues(logTicks(x)).tickFormat(short), 0, f.height - f.bottom,
    { x: f.width - f.right, y: f.height - 4, anchor: "end", text: "rate in units of e/K" });
  axis(svg, leftAxis(y), f.left, 0, { x: 2, y: f.top - 7, text: name });
}

function courseCsv() {
  const names = [...new Set(data.runs.flatMap(({ course }) => Object.keys(course?.measures ?? {})))];
  return csv(["run", "step", "rate_in_e_over_K", "loss", ...names], data.runs.flatMap(({ name, course }) => (course?.step ?? []).map((step, k) =>
    [name, step, course.dose[k], course.loss[k], ...names.map((one) => course.measures[one]?.[k])])));
}
