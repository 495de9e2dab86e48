// One layer at its first diagrams and at those of the chosen step: barcode, diagram, merge tree, Betti curves, merges.
const DEGREE_SYMBOLS = [d3.symbolCircle, d3.symbolTriangle, d3.symbolSquare];
const degreeClass = (k) => `degree-${Math.min(k, 2)}`;
const editionsOf = () => data.runs[chosen.run].details[chosen.layer] || [];

// Show the layer as it was at `step`, or at its last diagrams, and bring it into view.
function openLayer(layer, step) {
  chosen.layer = layer;
  const editions = editionsOf();
  chosen.edition = step === null ? editions.length - 1 : Math.max(0, bisect(editions.map((one) => one.step), step) - 1);
  layerControls();
  drawLayer();
  byId("layer").scrollIntoView({ block: "nearest" });
  byId("layer").focus({ preventScroll: true });
}

function layerControls() {
  const parent = byId("layer-controls"), editions = editionsOf(), slider = byId("edition");
  parent.replaceChildren();
  selector(parent, "layer-choice", "Layer", data.runs[chosen.run].heat.layers, chosen.layer, (k) => {
    chosen.layer = k;
    chosen.edition = editionsOf().length - 1;
    layerControls();
    drawLayer();
    byId("layer-choice").focus();
  });
  slider.max = Math.max(editions.length - 1, 0);
  slider.value = chosen.edition;
  slider.disabled = editions.length < 2;
}

function drawLayer() {
  const editions = editionsOf(), now = editions[chosen.edition], start = editions[0], parent = byId("layer-pictures");
  const name = data.runs[chosen.run].heat.layers[chosen.layer];
  byId("layer-title").textContent = name === undefined ? "One layer" : `Layer ${name}`;
  parent.replaceChildren();
  if (!now) return void (byId("layer-facts").textContent = "No diagrams of this layer were computed.");
  byId("edition").setAttribute("aria-valuetext", `step ${whole(now.step)}, ${chosen.edition + 1} of ${editions.length}`);
  byId("layer-facts").textContent = layerFacts(now, start);
  legend(byId("layer-legend"), now.degrees.map((_, k) => ({
    text: `H${k}, ${["clusters", "loops", "voids"][k] || "higher"}`,
    draw: (svg) => symbol(svg, DEGREE_SYMBOLS[Math.min(k, 2)], 14, 7, 50, `fill ${degreeClass(k)}`),
  })));
  const top = Math.max(start.top || 0, now.top || 0) || 1;
  const pair = start === now ? [[now, "step"]] : [[start, "start, step"], [now, "step"]];
  const figures = [
    ...pair.map(([one, when]) => [`Barcode, ${when} ${whole(one.step)}`, (box, title) => barcode(box, one, top, title, pair), drawnBars(one)]),
    ...pair.map(([one, when]) => [`Diagram, ${when} ${whole(one.step)}`, (box, title) => diagram(box, one, top, title), summary(one)]),
    ...(pair.every(([one]) => one.tree) ? pair.map(([one, when]) =>
      [`Merge tree, ${when} ${whole(one.step)}`, (box, title) => mergeTree(box, one, title, pair), branches(one.tree)]) : []),
    ["Betti curves", (box, title) => betti(box, start, now, top, title), against(start, now)],
    ["Merges: clusters left at each distance", (box, title) => merges(box, start, now, title), against(start, now)],
  ];
  const boxes = figures.map(() => element(parent, "figure", null)); // all of them first: they share the width
  figures.forEach(([title, draw, caption], k) => {
    element(boxes[k], "h3", title);
    draw(boxes[k], title);
    element(boxes[k], "figcaption", caption);
  });
}

const against = (start, now) => (start === now ? "" : `dashed: step ${whole(start.step)}; solid: step ${whole(now.step)}`);

function layerFacts(now, start) {
  const parts = [`Step ${whole(now.step)}: ${show(now.n)} neurons, each a point of ${show(now.d)} numbers. ${summary(now)}`];
  if (now.radius) parts.push(`Landmarks with covering radius ${show(now.radius)}: diagrams are right to within ${show(2 * now.radius)}`);
  if (now.degrees.length === 1) parts.push("Its loops were not computed, or were on their way when the run ended");
  else if (now.higher !== now.step) parts.push(`Loops are those of step ${whole(now.higher)}: ` + (now.resolution > 1.0005
    ? `all that die beyond ${show(now.resolution)} times their birth are certified to be there still` : "certified to be there still"));
  if (now !== start) parts.push(`At the start (step ${whole(start.step)}): ${summary(start)}`);
  return `${parts.join(". ")}.`;
}

const KINDS = [["cluster", "clusters"], ["loop", "loops"], ["void", "voids"]];

function summary(one) {
  return one.degrees.map(({ count, bars }, k) => {
    const lives = bars.filter((bar) => bar[1] !== null).map(([birth, death]) => death - birth), [single, many] = KINDS[k] || ["class", "classes"];
    return `H${k}: ${whole(count)} ${count === 1 ? single : many}${lives.length ? `, the longest life ${show(Number(d3.max(lives).toPrecision(3)))}` : ""}`;
  }).join("; ");
}

const drawnBars = (one) => one.degrees.map(({ count, bars }, k) =>
  bars.length < count ? `H${k}: ${whole(bars.length)} of ${whole(count)} bars drawn` : "").filter(Boolean).join("; ");

// The room of a picture, with a frame around what is drawn in it.
const sized = (box, height) => ({ width: Math.max(box.clientWidth, 260), height, left: 46, right: 14, top: 20, bottom: 34 });

function framed(svg, f) {
  svg.append("rect").attr("class", "frame").attr("x", f.left).attr("y", f.top)
    .attr("width", f.width - f.right - f.left).attr("height", f.height - f.bottom - f.top);
}

function barcode(box, one, top, title, pair) {
  const bars = one.degrees.flatMap(({ bars: some }, k) => d3.sort(some, (bar) => bar[0], (bar) => bar[1] ?? Infinity).map((bar) => [k, ...bar]));
  const most = d3.max(pair, ([some]) => d3.sum(some.degrees, (degree) => degree.bars.length)); // one height for both
  const f = sized(box, Math.max(150, Math.min(onPaper() ? 240 : 340, 60 + 3 * most)));
  const svg = picture(box, f.width, f.height, title, summary(one));
  const x = d3.scaleLinear([0, top * 1.06], [f.left, f.width - f.right]), y = d3.scaleBand(d3.range(bars.length), [f.top, f.height - f.bottom]);
  framed(svg, f);
  bars.forEach(([k, birth, death], i) => {
    const at = y(i) + y.bandwidth() / 2, end = death === null ? x.range()[1] : x(death);
    svg.append("path").attr("class", `stroke ${degreeClass(k)}`).attr("stroke-width", Math.max(0.7, Math.min(4, y.bandwidth() * 0.7)))
      .attr("d", `M${x(birth)} ${at}H${Math.max(end, x(birth) + 0.6)}`);
    if (death === null) svg.append("path").attr("class", `fill ${degreeClass(k)}`).attr("d", `M${end + 8} ${at}l-8 -5v10z`);
  });
  one.degrees.forEach((_, k) => {
    const rows = bars.flatMap((bar, i) => (bar[0] === k ? [i] : []));
    if (rows.length) svg.append("text").attr("class", "soft").attr("x", f.left - 8).attr("text-anchor", "end")
      .attr("y", (y(rows[0]) + y(rows[rows.length - 1]) + y.bandwidth()) / 2).attr("dy", "0.35em").text(`H${k}`);
  });
  axis(svg, d3.axisBottom(x).ticks(5), 0, f.height - f.bottom, { x: f.width - f.right, y: f.height - 4, anchor: "end", text: "scale (distance)" });
}

function diagram(box, one, top, title) {
  const f = sized(box, onPaper() ? 240 : 300), svg = picture(box, f.width, f.height, title, summary(one));
  const x = d3.scaleLinear([-0.02 * top, top * 1.02], [f.left, f.width - f.right]);
  const y = d3.scaleLinear([0, top * 1.12], [f.height - f.bottom, f.top]), never = y(top * 1.08);
  framed(svg, f);
  svg.append("path").attr("class", "level thin").attr("d", `M${x(0)} ${y(0)}L${x(top)} ${y(top)}`);
  svg.append("path").attr("class", "event-line").attr("d", `M${f.left} ${never}H${f.width - f.right}`);
  svg.append("text").attr("class", "soft").attr("x", f.width - f.right).attr("y", f.top - 7).attr("text-anchor", "end").text("dotted: never dies");
  one.degrees.forEach(({ bars }, k) => bars.forEach(([birth, death]) =>
    symbol(svg, DEGREE_SYMBOLS[Math.min(k, 2)], x(birth), death === null ? never : y(death), 26, `fill ${degreeClass(k)}`)
      .append("title").text(`H${k}: birth ${show(birth)}, death ${death === null ? "never" : show(death)}`)));
  axis(svg, d3.axisBottom(x).ticks(5), 0, f.height - f.bottom, { x: f.width - f.right, y: f.height - 4, anchor: "end", text: "birth" });
  axis(svg, d3.axisLeft(y).ticks(5), f.left, 0, { x: 2, y: f.top - 7, text: "death" });
}

function branches({ sizes, merges }) {
  const most = d3.max(sizes), leaves = most === 1 ? "a leaf is a neuron" : `a leaf is a cluster: the largest dot is ${whole(most)} neurons`;
  return `${whole(merges.length)} merges nearest the root, where all are one cluster; ${leaves}`;
}

// Both trees have one scale of ratios, their roots at the right: equal shapes look equal, whatever their size.
function mergeTree(box, one, title, pair) {
  const { sizes, merges, order } = one.tree, f = sized(box, Math.max(180, Math.min(onPaper() ? 300 : 420, 70 + 6 * order.length)));
  const svg = picture(box, f.width, f.height, title, branches(one.tree)), known = (tree) => tree.merges.map(([, , d]) => d).filter(positive);
  const ratio = d3.max(pair, ([some]) => (known(some.tree).length ? d3.max(known(some.tree)) / d3.min(known(some.tree)) : 1)) * 1.12;
  framed(svg, f);
  if (!known(one.tree).length) return;
  const far = d3.max(known(one.tree)) * 1.05, near = far / ratio / 1.05, x = d3.scaleLog([near, far], [f.left + 8, f.width - f.right]);
  const y = d3.scalePoint(d3.range(order.length), [f.top, f.height - f.bottom]).padding(0.7), leaf = x(d3.max([near, d3.min(known(one.tree)) / 1.03]));
  const at = new Map(order.map((cluster, row) => [cluster, [leaf, y(row)]]));
  merges.forEach(([a, b, distance], k) => {
    const end = Math.max(leaf, positive(distance) ? x(distance) : leaf), [from, to] = [at.get(a), at.get(b)];
    svg.append("path").attr("class", "line branch degree-0").attr("d", `M${from[0]} ${from[1]}H${end}V${to[1]}H${to[0]}`)
      .append("title").text(`joined at distance ${show(distance)}`);
    at.set(sizes.length + k, [end, (from[1] + to[1]) / 2]);
  });
  order.forEach((cluster, row) => svg.append("circle").attr("class", "fill degree-0").attr("cx", leaf).attr("cy", y(row))
    .attr("r", Math.min(7, 1.6 + 0.5 * Math.sqrt(sizes[cluster] - 1))).append("title").text(`${whole(sizes[cluster])} ${sizes[cluster] === 1 ? "neuron" : "neurons"}`));
  axis(svg, d3.axisBottom(x).tickValues(logTicks(x)).tickFormat(short), 0, f.height - f.bottom, { x: f.width - f.right, y: f.height - 4, anchor: "end", text: "distance" });
}

const both = (start, now) => (start === now ? [[now, ""]] : [[start, "thin dash-1"], [now, ""]]);

function betti(box, start, now, top, title) {
  const f = sized(box, 260), svg = picture(box, f.width, f.height, title, `${summary(start)} at the start; ${summary(now)} now`);
  framed(svg, f);
  const most = d3.max([start, now].flatMap((one) => one.betti.flat())) || 1;
  const x = d3.scaleLinear([0, top], [f.left, f.width - f.right]), y = d3.scaleSymlog([0, most * 1.1], [f.height - f.bottom, f.top]);
  for (const [one, classes] of both(start, now)) one.betti.forEach((counts, k) => {
    const line = d3.line().curve(d3.curveStepAfter).x((_, i) => x((one.top * i) / Math.max(counts.length - 1, 1))).y((count) => y(count));
    svg.append("path").attr("class", `line ${degreeClass(k)} ${classes}`).attr("d", line(counts));
  });
  const ticks = [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000].filter((tick) => tick <= most * 1.1);
  axis(svg, d3.axisBottom(x).ticks(5), 0, f.height - f.bottom, { x: f.width - f.right, y: f.height - 4, anchor: "end", text: "scale (distance)" });
  axis(svg, d3.axisLeft(y).tickValues(ticks).tickFormat(whole), f.left, 0, { x: 2, y: f.top - 7, text: "features alive" });
}

function merges(box, start, now, title) {
  const of = (one) => d3.sort(one.degrees[0].bars.map((bar) => bar[1]).filter(positive));
  const deaths = [start, now].flatMap(of), f = sized(box, 260);
  const svg = picture(box, f.width, f.height, title, `${deaths.length ? `distances from ${show(d3.min(deaths))} to ${show(d3.max(deaths))}` : "no merges"}`);
  framed(svg, f);
  if (!deaths.length) return;
  const x = d3.scaleLog([d3.min(deaths) / 1.1, d3.max(deaths) * 1.1], [f.left, f.width - f.right]);
  const most = Math.max(start.degrees[0].count, now.degrees[0].count, 2), y = d3.scaleLog([1, most * 1.1], [f.height - f.bottom, f.top]);
  for (const [one, classes] of both(start, now)) {
    const found = of(one), n = one.degrees[0].count, each = (n - 1) / Math.max(found.length, 1);
    const points = [[x.domain()[0], n], ...found.map((death, i) => [death, Math.max(1, n - (i + 1) * each)])];
    svg.append("path").attr("class", `line degree-0 ${classes}`).attr("d", d3.line().curve(d3.curveStepAfter).x(([d]) => x(d)).y(([, c]) => y(c))(points));
  }
  axis(svg, d3.axisBottom(x).tickValues(logTicks(x)).tickFormat(short), 0, f.height - f.bottom, { x: f.width - f.right, y: f.height - 4, anchor: "end", text: "distance" });
  axis(svg, d3.axisLeft(y).tickValues(logTicks(y, 30)).tickFormat(whole), f.left, 0, { x: 2, y: f.top - 7, text: "clusters left" });
}
