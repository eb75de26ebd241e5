// The curves over the horizon: one line per variant, labelled at its end; the rollout's also has its 95 % band.
const CHART_HEIGHT = 420;
const CHART_MARGIN = { l: 44, r: 156, t: 34, b: 52 };
const LABEL_GAP = 19;  // px between the baselines of two labels
const TICK_GAP = 40;  // px between two ticks, at least
const DASHES = { recorded: "solid", ceiling: "8px,4px", other_actions: "2px,4px", zero_motion: "8px,3px,2px,3px", copy: "5px,4px" };

// The computed colour: Plotly knows neither variables nor light-dark().
function readColour(name) {
  const probe = element("i", "");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

function withAlpha(colour, alpha) {
  return colour.replace(/^rgb\(/, "rgba(").replace(")", `, ${alpha})`);
}

// [{variant, points: [{step, mean, low, high, episodes}]}] of one metric; what is null has no point.
function horizonLines(metric) {
  return Object.keys(page.variants)
    .map((variant) => ({
      variant,
      points: page.horizon
        .map((row) => ({ step: row.step, episodes: row.num_episodes, ...(row[variant] ?? {})[metric] }))
        .filter((point) => Number.isFinite(point.mean)),
    }))
    .filter((line) => line.points.length > 0);
}

function hoverText(metric, point) {
  const value = formatScore(metric, point.mean);
  const { digits } = page.scores[metric];
  const interval = point.low == null ? "" : `  (${formatNumber(point.low, digits)} to ${formatNumber(point.high, digits)})`;
  return value + interval;
}

function lineTrace(line, metric, colour) {
  const isRollout = line.variant === "recorded";
  return {
    type: "scatter",
    mode: line.points.length > 1 ? "lines" : "markers",
    name: page.variants[line.variant],
    x: line.points.map((point) => point.step),
    y: line.points.map((point) => point.mean),
    text: line.points.map((point) => hoverText(metric, point)),
    hovertemplate: "%{text}",
    zorder: isRollout ? 1 : 0,
    line: { color: colour, width: isRollout ? 3 : 1.8, dash: DASHES[line.variant] },
    marker: { color: colour, size: 8 },
  };
}

function bandTrace(points, colour) {
  const known = points.filter((point) => point.low != null && point.high != null);
  return {
    type: "scatter",
    mode: "lines",
    x: [...known, ...known.toReversed()].map((point) => point.step),
    y: [...known.map((point) => point.high), ...known.toReversed().map((point) => point.low)],
    fill: "toself",
    fillcolor: withAlpha(colour, 0.15),
    line: { width: 0 },
    hoverinfo: "skip",
  };
}

// Where the labels go, px from the plot's top: at the lines' ends, but never on top of each other.
function spreadLabels(ends, height) {
  const placed = ends.map((end) => ({ ...end })).sort((a, b) => a.top - b.top);
  placed.forEach((label, i) => { if (i) label.top = Math.max(label.top, placed[i - 1].top + LABEL_GAP); });
  let limit = height;
  for (const label of placed.toReversed()) {
    label.top = Math.min(label.top, limit);
    limit = label.top - LABEL_GAP;
  }
  return placed;
}

function labelAnnotations(lines, colours, [bottom, top]) {
  const height = CHART_HEIGHT - CHART_MARGIN.t - CHART_MARGIN.b;
  const ends = lines.map((line) => ({
    variant: line.variant,
    top: (height * (top - line.points.at(-1).mean)) / (top - bottom),
  }));
  return spreadLabels(ends, height).map((label) => ({
    xref: "paper", x: 1, xanchor: "left", xshift: 10,
    yref: "paper", y: 1 - label.top / height, yanchor: "middle",
    text: label.variant === "recorded" ? `<b>${page.variants.recorded}</b>` : page.variants[label.variant],
    font: { color: colours[label.variant], size: 14 },
    showarrow: false,
  }));
}

function valueRange(lines) {
  const values = lines.flatMap((line) => line.points.flatMap((point) =>
    line.variant === "recorded" ? [point.mean, point.low ?? point.mean, point.high ?? point.mean] : [point.mean]));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low) * 0.07 || Math.abs(high) * 0.05 || 1;
  return [low - room, high + room];
}

function stepRange(lines) {
  const steps = lines.flatMap((line) => line.points.map((point) => point.step));
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  return first === last ? [first - 1, last + 1] : [first, last];
}

// Every step where there is room, else every second, fourth, …
function stepTicks(lines, width) {
  const [first, last] = stepRange(lines);
  const room = Math.max((width - CHART_MARGIN.l - CHART_MARGIN.r) / TICK_GAP, 2);
  const dtick = 2 ** Math.max(Math.ceil(Math.log2((last - first + 1) / room)), 0);
  return { tickmode: "linear", dtick, tick0: dtick === 1 ? first : 0 };
}

function chartLayout(lines, metric, colours, width) {
  const range = valueRange(lines);
  const [ink, muted, hairline, surface] = ["ink", "muted", "hairline", "surface"].map(readColour);
  const score = page.scores[metric];
  const unit = score.unit ? `, ${score.unit}` : "";
  const axis = { zeroline: false, gridcolor: hairline, tickfont: { color: muted, size: 13 }, ticklabelstandoff: 5, linecolor: hairline };
  return {
    height: CHART_HEIGHT,
    margin: CHART_MARGIN,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: ink },
    showlegend: false,
    dragmode: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: surface, bordercolor: hairline, font: { color: ink, size: 13 } },
    xaxis: {
      ...axis, showgrid: false, ticks: "outside", tickcolor: hairline, range: stepRange(lines), fixedrange: true,
      ...stepTicks(lines, width), showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid",
      spikecolor: hairline, unifiedhovertitle: { text: "step %{x}" },
      title: { text: "Frames since the rollout began", font: { color: muted, size: 13 }, standoff: 12 },
    },
    yaxis: { ...axis, range, fixedrange: true, nticks: 7, showline: false },
    annotations: [
      { xref: "paper", yref: "paper", x: 0, y: 1, xanchor: "left", yanchor: "bottom", xshift: -CHART_MARGIN.l, yshift: 12,
        text: `${score.label}${unit}: ${score.higher_is_better ? "higher" : "lower"} is better`,
        font: { color: muted, size: 13 }, showarrow: false },
      ...labelAnnotations(lines, colours, range),
    ],
  };
}

function drawHorizon(metric) {
  const chart = document.getElementById("horizon-chart");
  const lines = horizonLines(metric);
  const colours = Object.fromEntries(lines.map(({ variant }) => [variant, readColour(variant)]));
  const band = lines.filter((line) => line.variant === "recorded").map((line) => bandTrace(line.points, colours.recorded));
  const traces = lines.map((line) => lineTrace(line, metric, colours[line.variant]));
  document.getElementById("horizon-caption").textContent = horizonCaption(lines);
  return Plotly.react(chart, [...band, ...traces], chartLayout(lines, metric, colours, chart.clientWidth), { displayModeBar: false, responsive: true });
}

function horizonCaption(lines) {
  const points = (lines.find((line) => line.variant === "recorded") ?? lines[0]).points;
  const counts = points.map((point) => point.episodes).filter(Number.isFinite);
  const [first, last] = [counts[0], counts.at(-1)];
  const words = "Means over episodes; the band is the rollout’s 95 % interval over episodes.";
  if (!counts.length) return words;
  return first === last ? `${words} ${first} episodes.` : `${words} ${first} episodes at the first step, ${last} at the last.`;
}

// The switcher, and the first chart. Returns a promise: it is drawn.
async function setUpHorizon() {
  const switcher = document.getElementById("horizon-metrics");
  if (!switcher) return;
  const names = Object.keys(page.metrics);
  const known = names.filter((name) => horizonLines(name).length > 0);
  let current = known[0];
  const choose = (name) => {
    current = name;
    for (const button of switcher.children) button.setAttribute("aria-pressed", String(button.value === name));
    return drawHorizon(name);
  };
  switcher.append(...names.map((name) => {
    const button = element("button", "", page.metrics[name]);
    Object.assign(button, { type: "button", value: name, disabled: !known.includes(name) });
    button.title = known.includes(name) ? "" : (name === "lpips" && page.lpips_status) || "not measured";
    button.addEventListener("click", () => choose(name));
    return button;
  }));
  document.addEventListener("themechange", () => choose(current));
  if (current) await choose(current);
}
