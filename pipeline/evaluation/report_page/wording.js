// How the page words numbers, and how it makes elements. Whatever came from data becomes text, never markup.
const DASH = "–";

function formatNumber(value, digits) {
  if (typeof value !== "number" || !Number.isFinite(value)) return DASH;
  const text = digits == null ? String(Number(value.toPrecision(3))) : value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

function formatScore(name, value) {
  const score = page.scores[name] ?? {};
  const text = formatNumber(value, score.digits);
  return text === DASH || !score.unit ? text : `${text} ${score.unit}`;
}

// element("p", "note", "text", child, …): a class, then text and children.
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function svgElement(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
