// r with its bracket on the phases' grounds, loss and rate below, on one axis of steps and under one cursor.
const SYMBOLS = [d3.symbolCircle, d3.symbolTriangle, d3.symbolSquare, d3.symbolDiamond, d3.symbolStar, d3.symbolCross];
const runClass = (k) => `run-${k % 6}`;
const dashClass = (k) => (k ? `dash-${((k - 1) % 3) + 1}` : "");
const steps = [...new Set(data.runs.flatMap((run) => run.timeline.step))].sort((a, b) => a - b);
const bisect = d3.bisector((step) => step).right;
let moveCursor = () => {};

const used = (t, g, k) => (t.lr[g] && t.lr[g][k] !== null && t.scale[k] !== null ? t.lr[g][k] * t.scale[k] : null);
const critical = (t, g, k) => (positive(t.r[k]) && !t.warming[k] && used(t, g, k) !== null ? used(t, g, k) / t.r[k] : null);
const rowAt = (t, step) => bisect(t.step, step) - 1;

function drawTimeline() {
  const parent = byId("timeline-chart");
  parent.replaceChildren();
  if (!steps.length) return void element(parent, "p", "The record holds no reading yet.", { class: "note" });
  const width = Math.max(parent.clientWidth, 280), small = width < 560;
  const margin = { left: 52, right: small ? 44 : 58, top: 20, gap: 34 };
  const heights = [small ? 220 : 290, 110, 130];
  const tops = [margin.top, margin.top + heights[0] + margin.gap, margin.top + heights[0] + heights[1] + 2 * margin.gap];
  const height = tops[2] + heights[2] + 40;
  const svg = picture(parent, width, height, "Timeline of r, loss and learning rate", describeTimeline());
  const x = d3.scaleLinear([steps[0], Math.max(steps[steps.length - 1], steps[0] + 1)], [margin.left, width - margin.right]);
  const box = { svg, x, width, small, left: margin.left, right: width - margin.right };
  const y = drawProximity(box, tops[0], heights[0]);
  drawLoss(box, tops[1], heights[1]);
  drawRate(box, tops[2], heights[2]);
  axis(svg, d3.axisBottom(x).ticks(small ? 4 : 8).tickFormat(whole), 0, tops[2] + heights[2],
    { x: box.right, y: height - 6, anchor: "end", text: "step" });
  drawCursor(box, y, tops[0], tops[2] + heights[2]);
}

function describeTimeline() {
  return data.runs.map(({ name, timeline: t }) => {
    const known = t.r.filter((r, k) => r !== null && !t.warming[k]);
    if (!known.length) return `${name}: no reading of r.`;
    return `${name}: r from ${show(d3.min(known))} to ${show(d3.max(known))}, last ${show(known[known.length - 1])}, ` +
      `over ${whole(t.step.length)} steps from ${show(t.step[0])} to ${show(t.step[t.step.length - 1])}.`;
  }).join(" ");
}

function panel({ svg, left, right }, top, height, scale, title) {
  svg.append("rect").attr("class", "frame").attr("x", left).attr("y", top).attr("width", right - left).attr("height", height);
  axis(svg, leftAxis(scale), left, top, null).select(".domain").remove();
  svg.append("text").attr("x", left).attr("y", top - 7).attr("font-weight", 600).text(title);
}

function path(box, t, value, y, top, classes, into = box.svg) {
  const line = d3.line().defined(([, v]) => v !== null && (!y.base || v > 0)).x(([k]) => box.x(t.step[k])).y(([, v]) => top + y(v));
  const points = t.step.map((_, k) => [k, value(k)]);
  into.append("path").attr("class", `line ${classes}`).attr("d", line(points));
  points.forEach(([k, v], i) => { // a value between two gaps is no line
    const alone = (j) => !points[j] || points[j][1] === null;
    if (v !== null && (!y.base || v > 0) && alone(i - 1) && alone(i + 1))
      into.append("circle").attr("class", `fill ${classes}`).attr("r", 2).attr("cx", box.x(t.step[k])).attr("cy", top + y(v));
  });
}

const settled = (t) => t.r.filter((r, k) => positive(r) && !t.warming[k]);

// Where r itself lies. r_pair is often a thousand times less, and would squeeze what matters into a sliver.
function ownRange() {
  const all = d3.sort(data.runs.flatMap(({ timeline: t }) => settled(t)));
  const bounds = data.runs[chosen.run].timeline.r_pair.filter(positive);
  const floor = d3.max(all) / 3000, low = d3.median(all) > floor ? Math.max(d3.quantile(all, 0.02), floor) : d3.quantile(all, 0.02);
  return all.length ? [all[0] > low / 5 ? all[0] : low, d3.max(all)] : bounds.length ? d3.extent(bounds) : [0.5, 1];
}
const boundIsFar = () => data.runs.some(({ timeline: t }) => d3.min(t.r_pair.filter(positive)) < ownRange()[0] / 2);

function drawProximity(box, top, height) {
  const shown = [...ownRange(), ...(chosen.bracket ? data.runs[chosen.run].timeline.r_pair.filter(positive) : [])];
  const edges = data.runs.flatMap((run) => run.timeline.edge).filter(positive);
  const y = valueScale(shown, [height, 0], [0.6, 1, ...edges, d3.max([1, ...edges]) * 1.5]);
  const { svg, x, left, right } = box;
  const level = (v) => top + Math.min(Math.max(y(v), 0), height);
  const [least, most] = d3.extent(edges), one = most / least < 1.25; // one edge: the grounds follow it
  const edge = one ? boundary(box, data.runs[chosen.run].timeline, level) : null;
  const grounds = [["constrained", y.domain()[0], 1], ["permissive", 1, least], ["simplification", most, y.domain()[1]]];
  for (const [name, low, high] of grounds) {
    if (low === undefined || high === undefined || high <= low) continue;
    const upper = one && name === "permissive" ? edge : [[left, level(high)], [right, level(high)]];
    const lower = one && name === "simplification" ? edge : [[left, level(low)], [right, level(low)]];
    const outline = `${d3.line()([...upper, ...lower.toReversed()])}Z`;
    svg.append("path").attr("class", `${name} tint`).attr("d", outline);
    svg.append("path").attr("class", `${name} band`).attr("d", outline).attr("fill", hatch(svg, name));
  }
  panel(box, top, height, y, box.small ? "r = η/η*" : "r = η/η*, how close a step comes to the critical rate");
  svg.append("path").attr("class", "level").attr("d", `M${left} ${level(1)}H${right}`);
  data.runs.forEach(({ timeline: t }, i) => {
    if (!one) path(box, t, (k) => t.edge[k], y, top, `dash-1 thin ${runClass(i)}`);
    else if (i === chosen.run) svg.append("path").attr("class", "level dashed").attr("d", d3.line()(edge));
  });
  drawReadings({ ...box, svg: clipped(svg, left, top - 5, right - left, height + 5) }, y, top);
  for (const [name, low, high] of grounds) {
    if (high === undefined || !(high > low) || level(low) - level(high) < 20) continue; // the legend names them all
    svg.append("text").attr("class", "halo band-label").attr("x", right - 6).attr("y", level(high) + 15).attr("text-anchor", "end").text(name);
  }
  const beside = (at, text) => svg.append("text").attr("class", "soft").attr("x", right + 5).attr("y", at).attr("dy", "0.35em").text(text);
  beside(level(1), "1");
  if (most !== undefined) beside(Math.min(level(most), level(1) - 13), `${box.small ? "e" : "edge"} ${show(Number(most.toPrecision(2)))}`);
  return { y, top };
}

// The edge of a run from the left to the right of the panel.
function boundary({ x, left, right }, t, level) {
  const points = t.step.flatMap((step, k) => (positive(t.edge[k]) ? [[x(step), level(t.edge[k])]] : []));
  return points.length ? [[left, points[0][1]], ...points, [right, points[points.length - 1][1]]] : [[left, level(1)], [right, level(1)]];
}

function drawReadings(box, y, top) {
  const picked = data.runs[chosen.run].timeline, { svg, x } = box;
  const bracketed = d3.range(picked.step.length).filter((k) => positive(picked.r_pair[k]));
  const exponents = d3.scaleLinear(bracketed.map((k) => picked.step[k]), bracketed.map((k) => Math.log(picked.r_pair[k])));
  const bound = (step) => Math.exp(exponents(step)); // a straight line between two measurements, as it is drawn
  const within = (k) => bracketed.length > 1 && k >= bracketed[0] && k <= bracketed[bracketed.length - 1];
  const area = d3.area().defined((k) => within(k) && positive(picked.r[k]) && !picked.warming[k]).x((k) => x(picked.step[k]))
    .y0((k) => top + y(Math.min(bound(picked.step[k]), picked.r[k]))).y1((k) => top + y(picked.r[k]));
  if (chosen.bracket || !boundIsFar()) svg.append("path").attr("class", `bracket ${runClass(chosen.run)}`).attr("d", area(d3.range(picked.step.length)));
  const lower = { step: bracketed.map((k) => picked.step[k]) };
  path(box, lower, (i) => picked.r_pair[bracketed[i]], y, top, `thin dash-2 ${runClass(chosen.run)}`);
  data.runs.forEach(({ timeline: t }, i) => {
    path(box, t, (k) => (positive(t.r[k]) && !t.warming[k] ? t.r[k] : null), y, top, `${runClass(i)} ${dashClass(i)}`);
    const sparse = Math.ceil(t.step.length / (box.small ? 12 : 24));
    t.step.forEach((step, k) => {
      if (!positive(t.r[k])) return;
      const mark = (classes) => symbol(svg, SYMBOLS[i % SYMBOLS.length], x(step), top + y(t.r[k]), 36, classes);
      if (t.warming[k]) mark(`hollow ${runClass(i)}`);
      else if (data.runs.length > 1 && k % sparse === 0) mark(`fill ${runClass(i)}`);
    });
  });
}

function absent(box, top, height, isAbsent, text) {
  if (isAbsent) box.svg.append("text").attr("class", "soft").attr("x", (box.left + box.right) / 2).attr("y", top + height / 2)
    .attr("dy", "0.35em").attr("text-anchor", "middle").text(text);
}

function drawLoss(box, top, height) {
  const y = valueScale(data.runs.flatMap((run) => run.timeline.loss), [height, 0]);
  panel(box, top, height, y, "loss of the step's batch");
  absent(box, top, height, data.runs.every(({ timeline: t }) => t.loss.every((v) => v === null)), "no loss was recorded");
  data.runs.forEach(({ timeline: t }, i) => path(box, t, (k) => t.loss[k], y, top, `${runClass(i)} ${dashClass(i)}`));
}

function drawRate(box, top, height) {
  const g = chosen.rate, picked = data.runs[chosen.run].timeline, { svg, x } = box;
  const nominal = (k) => (picked.lr[g] ? picked.lr[g][k] : null);
  const values = data.runs.flatMap(({ timeline: t }) => t.step.map((_, k) => used(t, g, k)));
  picked.step.forEach((_, k) => values.push(nominal(k), critical(picked, g, k)));
  const y = valueScale(values.filter(positive), [height, 0]);
  const same = picked.step.every((_, k) => nominal(k) === used(picked, g, k)), of = same ? "as set" : "used; dashed: as set";
  panel(box, top, height, y, box.small ? "learning rate; dotted: η*" : `learning rate: ${of}; dotted: η*, where r would be 1`);
  for (const one of picked.marks) {
    const at = x(one.step);
    svg.append("path").attr("class", "event-line").attr("d", `M${at} ${top}V${top + height}`);
    const up = one.to > one.from, mark = svg.append("path").attr("class", "event");
    mark.attr("d", up ? `M${at} ${top + 1}l4 7h-8z` : `M${at} ${top + 8}l4 -7h-8z`);
    mark.append("title").text(`step ${whole(one.step)}: factor from ${show(one.from)} to ${show(one.to)}; ${one.why}`);
  }
  path(box, picked, (k) => critical(picked, g, k), y, top, `thin dash-2 ${runClass(chosen.run)}`);
  if (!same) path(box, picked, nominal, y, top, `thin dash-1 ${runClass(chosen.run)}`);
  data.runs.forEach(({ timeline: t }, i) => path(box, t, (k) => used(t, g, k), y, top, `${runClass(i)} ${dashClass(i)}`));
}

function drawCursor(box, { y, top }, from, to) {
  const { svg, x } = box, line = svg.append("path").attr("class", "cursor");
  const dots = data.runs.map((_, i) => svg.append("circle").attr("r", 4.5).attr("class", `dot ${runClass(i)}`));
  const hit = svg.append("rect").attr("x", box.left).attr("y", from).attr("width", box.right - box.left).attr("height", to - from)
    .attr("fill", "transparent");
  moveCursor = () => {
    line.attr("d", `M${x(chosen.step)} ${from}V${to}`);
    data.runs.forEach(({ timeline: t }, i) => {
      const k = rowAt(t, chosen.step), r = k < 0 ? null : t.r[k];
      dots[i].attr("visibility", positive(r) ? "visible" : "hidden");
      if (positive(r)) dots[i].attr("cx", x(t.step[k])).attr("cy", top + Math.max(0, Math.min(y(r), y.range()[0])));
    });
  };
  hit.on("pointermove pointerdown", (event) => {
    const step = x.invert(d3.pointer(event, svg.node())[0]);
    setCursor(Math.max(0, Math.min(steps.length - 1, d3.bisectCenter(steps, step))));
  });
  moveCursor();
}

// One place moves the cursor: the slider, the pointer and the picture follow the same step.
function setCursor(index) {
  chosen.step = steps[index];
  const slider = byId("cursor");
  slider.value = index;
  const said = data.runs.map(({ name, timeline: t }) => {
    const k = rowAt(t, chosen.step);
    return k < 0 ? "" : `${data.runs.length > 1 ? `${name} ` : ""}r ${show(t.r[k])}, ${phaseOf(t.r[k], t.edge[k])}`;
  });
  slider.setAttribute("aria-valuetext", `step ${whole(chosen.step)}: ${said.filter(Boolean).join("; ")}`);
  moveCursor();
  readout();
}

function readout() {
  const parent = byId("readout"), g = chosen.rate;
  parent.replaceChildren();
  const table = element(parent, "table", null, { class: "numeric" });
  const head = element(element(table, "thead", null), "tr", null);
  const body = element(table, "tbody", null);
  ["run", "step", "r", "at least (r_pair)", "edge", "phase", "loss", "rate", "factor", "rate used", "η*"]
    .forEach((text) => element(head, "th", text, { scope: "col" }));
  for (const { name, timeline: t } of data.runs) {
    const k = rowAt(t, chosen.step), row = element(body, "tr", null);
    element(row, "th", name, { scope: "row" });
    const warming = k >= 0 && t.warming[k];
    const cells = k < 0 ? [] : [show(t.step[k]), show(t.r[k]) + (warming ? " (warming up)" : ""), show(t.r_pair[k]), show(t.edge[k]),
      warming ? "unknown" : phaseOf(t.r[k], t.edge[k]), show(t.loss[k]), show(t.lr[g] ? t.lr[g][k] : null), show(t.scale[k]),
      show(used(t, g, k)), show(critical(t, g, k))];
    cells.forEach((text) => element(row, "td", text));
  }
}

function timelineLegend() {
  const k = chosen.run, several = data.runs.length > 1;
  const ground = (name, text) => ({ text, draw: (svg) => {
    svg.append("rect").attr("width", 28).attr("height", 14).attr("class", `${name} tint`);
    svg.append("rect").attr("width", 28).attr("height", 14).attr("fill", hatch(svg, name));
  } });
  const entries = data.runs.map(({ name }, i) => ({
    text: several ? name : "r (below: loss, rate)",
    draw: (svg) => { lineSample(`line ${runClass(i)} ${dashClass(i)}`)(svg); if (several) symbol(svg, SYMBOLS[i % SYMBOLS.length], 14, 7, 36, `fill ${runClass(i)}`); },
  }));
  const of = several ? ` of ${data.runs[k].name}` : "", t = data.runs[k].timeline;
  const bracketed = chosen.bracket || !boundIsFar();
  if (t.r_pair.some((v) => positive(v) && (bracketed || v > ownRange()[0]))) entries.push({ text: `${bracketed ? "down to " : ""}r_pair, a lower bound of r${of}`, draw: (svg) => {
    if (bracketed) svg.append("rect").attr("class", `bracket ${runClass(k)}`).attr("width", 28).attr("height", 7);
    lineSample(`line thin dash-2 ${runClass(k)}`)(svg);
  } });
  if (t.warming.some(Boolean)) entries.push({ text: "warming up", draw: (svg) => symbol(svg, d3.symbolCircle, 14, 7, 36, `hollow ${runClass(k)}`) });
  if (t.marks.length) entries.push({ text: "factor changed", draw: (svg) => svg.append("path").attr("class", "event").attr("d", "M14 3l4 7h-8z") });
  entries.push(ground("constrained", "constrained: r below 1"), ground("permissive", "permissive: to the edge"),
    ground("simplification", "simplification: past it"));
  legend(byId("timeline-legend"), entries);
}
