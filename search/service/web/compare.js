// Two to six jobs side by side; in the same drawings if they searched the same problem.

import { request } from "./api.js";
import { h, setFragment } from "./dom.js";

export async function compareView({ query }, signal) {
  const ids = query.getAll("ids");
  const parameters = new URLSearchParams(ids.map((id) => ["ids", id]));
  const { sections, comparable, reason } = await request(`/api/compare?${parameters}`, { signal });
  const links = ids.map((id) => h("li", {}, h("a", { href: `#/jobs/${encodeURIComponent(id)}` }, id)));
  return h("div", {},
    h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Jobs"), " / compare"),
    h("h1", {}, `${ids.length} jobs compared`), h("ul", { class: "compared" }, links),
    comparable === false && h("div", { class: "caveats", role: "note" }, h("p", {}, reason)),
    comparable !== false && drawn(sections.standing),
    drawn(sections.comparison),
    sections.apart ? sideBySide(sections.apart) : plots(sections));
}

function plots({ progress, ratios, cost }) {
  return h("div", {}, [progress, ...Object.values(cost ?? {}), ratios].map(drawn));
}

function sideBySide(jobs) {
  return h("div", { class: "columns" }, Object.entries(jobs).map(([name, html]) =>
    h("div", { role: "group", "aria-label": name }, h("h2", { class: "job-name" }, name), drawn(html))));
}

function drawn(html) {
  const place = h("div");
  setFragment(place, html ?? "");
  return place;
}
