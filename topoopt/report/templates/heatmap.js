// Layers by steps: one colour scale whose lightness rises with the value, so that grey print keeps it.
function drawHeatMap() {
  const parent = byId("heat-chart"), heat = data.runs[chosen.run].heat, metric = data.metrics.find((m) => m.key === chosen.metric);
  parent.replaceChildren();
  byId("heat-meaning").textContent = `${metric.label}: ${metric.meaning}.`;
  byId("layer").hidden = !heat.layers.length;
  if (!heat.layers.length) {
    legend(byId("heat-legend"), []);
    return void element(parent, "p", "No layer was measured in this run.", { class: "note" });
  }
  const width = Math.max(parent.clientWidth, 280), names = Math.min(width * 0.34, 16 + 7 * d3.max(heat.layers, (n) => n.length));
  const row = heat.layers.length > 40 ? 13 : heat.layers.length > 12 ? 18 : 26, top = 4, bottom = top + row * heat.layers.length;
  const svg = picture(parent, width, bottom + 40, `${metric.label} of each layer over the steps`, describeHeat(heat, metric));
  const x = d3.scaleBand(d3.range(heat.steps.length), [names, width - 8]), gap = x.bandwidth() > 5 ? 1 : 0;
  const colour = heatColour(heat.values[metric.key].flat(), metric), missing = hatch(svg, "missing");
  heat.layers.forEach((name, i) => {
    const most = Math.floor((names - 9) / 7), label = name.length > most ? `…${name.slice(1 - most)}` : name;
    svg.append("text").attr("class", "name").attr("x", names - 7).attr("y", top + row * (i + 0.5)).attr("dy", "0.35em")
      .attr("text-anchor", "end").text(label).on("click", () => openLayer(i, null)).append("title").text(name);
    heat.steps.forEach((_, j) => {
      const value = heat.values[metric.key][i][j];
      svg.append("rect").attr("class", "cell").attr("x", x(j)).attr("y", top + row * i).attr("width", Math.max(x.bandwidth() - gap, 0.5))
        .attr("height", row - 1).attr("fill", value === null ? missing : colour(value))
        .on("pointerenter", () => sayCell(i, j)).on("click", () => openLayer(i, heat.steps[j]));
      if (value !== null && x.bandwidth() > 46 && row > 20) svg.append("text").attr("class", `cell-value ${inkOn(colour(value))}`).attr("x", x(j) + (x.bandwidth() - gap) / 2)
        .attr("y", top + row * i + (row - 1) / 2).attr("dy", "0.35em").attr("text-anchor", "middle")
        .text(show(Number(value.toPrecision(2))));
    });
  });
  svg.append("rect").attr("class", "frame").attr("x", names - 1).attr("y", top - 1).attr("width", width - 7 - names).attr("height", bottom - top + 1);
  const ticks = x.domain().filter((j) => j % Math.ceil(heat.steps.length / Math.max(2, Math.floor((width - names) / 70))) === 0);
  axis(svg, d3.axisBottom(x).tickValues(ticks).tickFormat((j) => whole(heat.steps[j])).tickSizeOuter(0), 0, bottom,
    { x: width - 8, y: bottom + 36, anchor: "end", text: "step" });
  heatLegend(colour, metric, heat.values[metric.key].flat().some((v) => v === null));
  heatKeys(svg, heat, (i, j) => ({ x: x(j), y: top + row * i, width: x.bandwidth(), height: row - 1 }));
}

// Black or white, whichever stands out more: at least 4.5 to 1 on any ground.
function inkOn(ground) {
  const { r, g, b } = d3.rgb(ground), linear = (v) => (v <= 10.31 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) > 0.179 ? "on-light" : "on-dark";
}

function describeHeat(heat, metric) {
  return `${heat.layers.length} layers, ${heat.steps.length} measurements. ` + heat.layers.slice(0, 40).map((name, i) => {
    const known = heat.values[metric.key][i].filter((v) => v !== null);
    return known.length ? `${name}: from ${show(known[0])} to ${show(known[known.length - 1])}.` : `${name}: not measured.`;
  }).join(" ");
}

function heatColour(values, metric) {
  const known = values.filter((v) => v !== null && (!metric.log || v > 0));
  let [low, high] = d3.extent(known);
  if (low === undefined) [low, high] = [metric.log ? 0.1 : 0, 1];
  if (low === high) [low, high] = metric.log ? [low / 2, high * 2] : [Math.min(0, low), high || 1];
  const scale = (metric.log ? d3.scaleLog : d3.scaleLinear)([low, high], [0, 1]).clamp(true);
  const colour = (value) => d3.interpolateViridis(metric.log && value <= 0 ? 0 : scale(value));
  return Object.assign(colour, { at: (share) => scale.invert(share) });
}

function heatLegend(colour, metric, holes) {
  const entries = [0, 0.25, 0.5, 0.75, 1].map((share) => ({
    text: show(Number(colour.at(share).toPrecision(2))),
    draw: (svg) => svg.append("rect").attr("width", 28).attr("height", 14).attr("fill", d3.interpolateViridis(share)),
  }));
  if (holes) entries.push({ text: "not measured", draw: (svg) => svg.append("rect").attr("width", 28).attr("height", 14).attr("fill", hatch(svg, "missing")) });
  legend(byId("heat-legend"), entries);
}

function sayCell(i, j) {
  const heat = data.runs[chosen.run].heat, metric = data.metrics.find((m) => m.key === chosen.metric);
  byId("heat-readout").textContent = `${heat.layers[i]}, step ${whole(heat.steps[j])}: ${metric.label} ${show(heat.values[metric.key][i][j])}`;
}

// Arrow keys move a frame over the cells, Enter opens the layer.
function heatKeys(svg, heat, place) {
  const at = { i: Math.min(chosen.layer, heat.layers.length - 1), j: heat.steps.length - 1 };
  const frames = ["chosen-halo", "chosen"].map((name) => svg.append("rect").attr("class", name).attr("visibility", "hidden").attr("pointer-events", "none"));
  const move = () => frames.forEach((frame) => {
    frame.attr("visibility", "visible");
    Object.entries(place(at.i, at.j)).forEach(([key, value]) => frame.attr(key, value));
  });
  const keys = { ArrowUp: ["i", -1], ArrowDown: ["i", 1], ArrowLeft: ["j", -1], ArrowRight: ["j", 1] };
  svg.classed("heat", true).attr("tabindex", 0).attr("role", "application").on("focus", move).on("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") openLayer(at.i, heat.steps[at.j]);
    else if (keys[event.key]) {
      const [axis, by] = keys[event.key], most = axis === "i" ? heat.layers.length : heat.steps.length;
      at[axis] = Math.max(0, Math.min(most - 1, at[axis] + by));
      move();
      sayCell(at.i, at.j);
    } else return;
    event.preventDefault();
  });
}
