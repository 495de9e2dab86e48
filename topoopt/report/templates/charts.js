// What all pictures share: a frame with title and description, axes, hatched grounds.
let patterns = 0;

function picture(parent, width, height, title, description) {
  const id = `picture-${(patterns += 1)}`;
  const svg = d3.select(parent).append("svg").attr("viewBox", `0 0 ${width} ${height}`)
    .attr("role", "img").attr("aria-labelledby", `${id}-title ${id}-description`);
  svg.append("title").attr("id", `${id}-title`).text(title);
  svg.append("desc").attr("id", `${id}-description`).text(description);
  return svg;
}

const HATCHES = {
  constrained: "M5.6 6h.8", permissive: "M-3 3l6 -6M0 12L12 0M9 15l6 -6", simplification: "M0 0L12 12M0 12L12 0",
  missing: "M0 8L8 0",
};

// A ground that is told from the others by its lines as well as by its colour.
function hatch(svg, kind) {
  const id = `hatch-${(patterns += 1)}`, size = kind === "missing" ? 8 : 12;
  svg.append("pattern").attr("id", id).attr("class", kind).attr("width", size).attr("height", size)
    .attr("patternUnits", "userSpaceOnUse").append("path").attr("d", HATCHES[kind]).attr("class", "hatch stroke");
  return `url(#${id})`;
}

// A group in which nothing is drawn outside of a box.
function clipped(svg, x, y, width, height) {
  const id = `clip-${(patterns += 1)}`;
  svg.append("clipPath").attr("id", id).append("rect").attr("x", x).attr("y", y).attr("width", width).attr("height", height);
  return svg.append("g").attr("clip-path", `url(#${id})`);
}

function axis(svg, make, x, y, label) {
  const group = svg.append("g").attr("class", "axis").attr("transform", `translate(${x},${y})`).call(make.tickSizeOuter(0));
  if (label) svg.append("text").attr("class", "soft").attr("x", label.x).attr("y", label.y)
    .attr("text-anchor", label.anchor || "start").text(label.text);
  return group;
}

// Ticks of a logarithmic axis: powers of ten, with some between where there are few; labels stay `apart` pixels from each other.
function logTicks(scale, apart = 36) {
  const [low, high] = scale.domain(), decades = Math.log10(high / low);
  const most = Math.max(2, Math.abs(scale.range()[1] - scale.range()[0]) / apart);
  if (decades < 0.5) return d3.ticks(low, high, Math.min(5, most));
  const heads = [[1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]].find((some) => decades * some.length <= most) ?? [1];
  const every = Math.max(1, Math.ceil(decades / most)), ticks = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p += 1)
    if (p % every === 0) for (const head of heads) ticks.push(Number(`${head}e${p}`));
  return ticks.filter((tick) => tick >= low * 0.9999 && tick <= high * 1.0001);
}

// The axis of values that are all positive is logarithmic, any other linear.
function valueScale(values, range, extra = []) {
  const known = values.filter((v) => v !== null && v !== undefined);
  const logs = known.length > 0 && known.every((v) => v > 0);
  let [low, high] = d3.extent([...known, ...extra]);
  if (low === undefined) [low, high] = [0.1, 1];
  if (logs) return d3.scaleLog([low / 1.25, high * 1.25], range);
  const room = (high - low) * 0.06 || 1;
  return d3.scaleLinear([low - room, high + room], range);
}

const leftAxis = (scale) => {
  const made = d3.axisLeft(scale).tickFormat(short);
  return scale.base ? made.tickValues(logTicks(scale, 22)) : made.ticks(4);
};

// A sample of a line or mark with its name.
function legend(parent, entries) {
  parent.replaceChildren();
  for (const { text, draw } of entries) {
    const one = element(parent, "span", null);
    draw(d3.select(one).append("svg").attr("width", 28).attr("height", 14).attr("aria-hidden", "true"));
    element(one, "span", text);
  }
}
const lineSample = (classes) => (svg) => svg.append("path").attr("d", "M1 7H27").attr("class", classes);

function symbol(svg, kind, x, y, size, classes) {
  return svg.append("path").attr("d", d3.symbol(kind, size)()).attr("transform", `translate(${x},${y})`).attr("class", classes);
}
