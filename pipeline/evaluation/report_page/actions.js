// Small plots that share the card's time line: actions given and recovered, and the score of each frame.
const PLOT_WIDTH = 1000;
const PLOT_HEIGHT = 100;

// Groups by the columns' names, as `embodiments` has them: dx…dz, six numbers or Euler angles of rotation, grippers.
const GROUPS = [
  ["Translation", /(^|_)d?[xyz](_m)?$/],
  ["Rotation", /(^|_)(r[0-2][0-2]|d?(roll|pitch|yaw))(_rad)?$/],
  ["Gripper", /gripper/],
];

function groupDimensions(names) {
  const groups = new Map([...GROUPS.map(([title]) => [title, []]), ["Actions", []]]);
  names.forEach((name, dimension) => {
    const [title] = GROUPS.find(([, pattern]) => pattern.test(name)) ?? ["Actions"];
    groups.get(title).push(dimension);
  });
  return [...groups].filter(([, dimensions]) => dimensions.length > 0);
}

function extent(values) {
  const known = values.filter(Number.isFinite);
  return known.length ? [Math.min(...known), Math.max(...known)] : [0, 0];
}

// An SVG path of values at frames first, first + 1, …; what is null leaves a gap, a value between two gaps a dot.
function linePath(values, first, numFrames, [bottom, top]) {
  let pen = "M";
  return values.map((value, i) => {
    if (!Number.isFinite(value)) { pen = "M"; return ""; }
    const x = (PLOT_WIDTH * (first + i)) / Math.max(numFrames - 1, 1);
    const y = (PLOT_HEIGHT * (top - value)) / (top - bottom);
    const lonely = pen === "M" && !Number.isFinite(values[i + 1]);
    const piece = `${pen}${x.toFixed(1)} ${y.toFixed(1)}${lonely ? "h0.01" : ""}`;
    pen = "L";
    return piece;
  }).join("");
}

function plot(lines, { first, numFrames, range }) {
  const paths = lines.map(([className, values]) =>
    svgElement("path", { class: className, d: linePath(values, first, numFrames, range) }));
  if (range[0] < 0 && range[1] > 0) {
    const y = (PLOT_HEIGHT * range[1]) / (range[1] - range[0]);
    paths.unshift(svgElement("path", { class: "zero", d: `M0 ${y.toFixed(1)}H${PLOT_WIDTH}` }));
  }
  const viewBox = `0 0 ${PLOT_WIDTH} ${PLOT_HEIGHT}`;
  return svgElement("svg", { class: "plot", viewBox, preserveAspectRatio: "none", "aria-hidden": "true" }, ...paths);
}

function scoreStrip(item) {
  const [low, high] = extent(item.psnr);
  const room = (high - low) * 0.06 || 1;
  return plot([["score", item.psnr]], { first: 0, numFrames: item.num_frames, range: [low - room, high + room] });
}

// Every plot of a group spans as much, around its own middle: a dimension that hardly moves looks that way.
function groupSpan(given, recovered, dimensions) {
  const spans = dimensions.map((dimension) => {
    const [low, high] = extent([...given, ...recovered].map((row) => row[dimension]));
    return high - low;
  });
  return Math.max(...spans) * 1.08 || 1;
}

// As many digits as tell a hundredth of the plot's height apart; what is less than that is zero.
function digitsFor(span) {
  return Math.min(Math.max(2 - Math.floor(Math.log10(span)), 0), 8);
}

function dimensionPlot(item, dimension, span) {
  const recovered = item.actions_recovered ?? [];
  const column = (rows) => rows.map((row) => row?.[dimension] ?? null);
  const lines = [["given", column(item.actions_given)], ["recovered", column(recovered)]];
  const [low, high] = extent(lines.flatMap(([, values]) => values));
  const middle = (low + high) / 2;
  const value = element("span", "");
  const track = element("div", "track",
    // The action on the way to a frame stands at that frame.
    plot(lines, { first: 1, numFrames: item.num_frames, range: [middle - span / 2, middle + span / 2] }),
    element("i", "cursor"));
  const box = element("div", "dimension", element("p", "", element("span", "", item.action_names[dimension]), value), track);
  const update = (frame) => {
    const shown = frame ? lines.filter(([, values]) => values.length).map(([, values]) => values[frame - 1]) : [];
    value.textContent = shown.map((number) => formatNumber(number, digitsFor(span))).join(" · ");
  };
  return { box, update };
}

function groupUnit(item, dimensions) {
  const units = new Set(dimensions.map((dimension) => item.action_units[dimension] ?? ""));
  return units.size === 1 ? [...units][0] : "";
}

function keyRow(className, text) {
  const sample = svgElement("svg", { class: "plot", viewBox: "0 0 24 6" }, svgElement("path", { class: className, d: "M1 3H23" }));
  return element("span", "", sample, text);
}

// Fills the card's action panel; returns what is to be called with every frame.
function drawActions(panel, item) {
  const rows = item.actions_given.concat(item.actions_recovered ?? []).filter(Boolean);
  if (!rows.length) return () => {};
  const updates = [];
  let last = null;
  for (const [title, dimensions] of groupDimensions(item.action_names)) {
    const span = groupSpan(item.actions_given, (item.actions_recovered ?? []).filter(Boolean), dimensions);
    const plots = dimensions.map((dimension) => dimensionPlot(item, dimension, span));
    updates.push(...plots.map((made) => made.update));
    const unit = groupUnit(item, dimensions);
    const note = `plot height ${formatNumber(Number(span.toPrecision(2)))}${unit ? ` ${unit}` : ""}`;
    const columns = dimensions.length > 3 ? "dimensions two" : "dimensions";
    last = element("div", dimensions.length > 8 ? "action-group wide" : "action-group",
      element("h4", "", title, element("span", "", note)), element("div", columns, ...plots.map((made) => made.box)));
    panel.append(last);
  }
  last.append(actionKey(item));
  return (frame) => updates.forEach((update) => update(frame));
}

function actionKey(item) {
  const key = element("div", "key", keyRow("given", "given to the model"));
  if (item.actions_recovered) key.append(keyRow("recovered", "recovered from the rollout by inverse dynamics"));
  return key;
}
