// Elements, and figures as people read them. Text is always set as text, so nothing that a user named becomes HTML.

/** An element: properties that begin with "on" are listeners, others attributes unless null, false or undefined. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Changes the text only if it is another one, so that nothing moves and no screen reader repeats it. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets an attribute, or removes it for null. */
export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Shows HTML that the server drew and escaped (search/service/fragments.py); the same HTML is left as it stands. */
export function setFragment(element, html) {
  if (element.dataset.drawn === undefined || element.drawn !== html) {
    element.drawn = html;
    element.dataset.drawn = "";
    element.innerHTML = html;
  }
}

/** The places of the sections that the server draws, by their names. */
export function places(names) {
  return Object.fromEntries(names.map((name) => [name, h("div", { class: `part-${name}` })]));
}

/** Fills them; `cost` has a drawing for each cost. */
export function showSections(shown, sections) {
  for (const [name, place] of Object.entries(shown)) {
    const drawn = sections[name] ?? "";
    setFragment(place, typeof drawn === "string" ? drawn : Object.values(drawn).join(""));
  }
}

/** A line of text to fill in. */
export function input(properties) {
  return h("input", { type: "text", ...properties });
}

/** A list to choose from; an empty value stands for the server's default. */
export function select(values) {
  const element = h("select");
  offer(element, values.map((value) => [value, value || "by default"]));
  return element;
}

/** The options of a list, keeping what is chosen where it is still there. */
export function offer(list, options) {
  const known = [...list.options].map(({ value, text }) => value + text).join("\n");
  if (known === options.map(([value, text]) => value + text).join("\n")) return;
  const { value: chosen } = list;
  list.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
  if (options.some(([value]) => value === chosen)) list.value = chosen;
}

/** Says something to screen readers, and to them alone. */
export function say(text) {
  setText(document.getElementById("said"), text);
}

export const NONE = "–";

export function percent(fraction, digits = 2) {
  return fraction === null || fraction === undefined ? NONE : `${(100 * fraction).toFixed(digits)}\u00a0%`;
}

/** A reward, with a true minus sign. */
export function reward(value) {
  return value === null || value === undefined ? NONE : value.toFixed(4).replace("-", "\u2212");
}

/** Three significant digits with an SI prefix, as search/figures.py writes them. */
export function human(value, unit = "") {
  const [factor, prefix] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]
    .find(([step]) => Math.abs(value) >= 0.9995 * step) ?? [1, ""];
  const scaled = value / factor;
  const before = Math.floor(Math.log10(Math.abs(scaled) || 1));
  const digits = Number.isInteger(scaled) && !prefix ? 0 : Math.max(0, 2 - before);
  const short = unit === "bytes" && prefix ? "B" : unit;
  return `${scaled.toFixed(digits)} ${prefix}${prefix && short !== "B" ? " " : ""}${short}`.trim();
}

/** "1 job", "1,000 jobs". */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

export function bytes(count) {
  return human(count, "bytes");
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** How long ago, in the largest unit. */
export function age(time) {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return "just now";
}

export function costLabel(cost) {
  return { macs: "MACs", latency_ms: "latency" }[cost] ?? cost;
}

/** "MACs ≤ 50 %", or the number where the share of the dense network is not known yet. */
export function budgetText(budgets) {
  return budgets.map(({ cost, limit, fraction, unit }) => {
    const most = fraction === null ? human(limit, unit) : percent(fraction, 1);
    return `${costLabel(cost)} ≤ ${most}`;
  }).join(", ") || "none";
}

export const ACTIVE = ["queued", "starting", "running", "cancelling"];

/** The state of a job or a trial, with a mark of its own; the outcome beside it where it matters. */
export function stateBadge(state, outcome = null) {
  const said = outcome === "infeasible" ? `${state}, nothing feasible` : state;
  return h("span", { class: `state ${state}` }, h("i", { "aria-hidden": "true" }), said);
}
