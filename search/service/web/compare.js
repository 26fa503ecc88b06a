// Two to six jobs side by side; in the same drawings if they searched the same problem.

import { repeat, request } from "./api.js";
import {
  ACTIVE, NONE, budgetText, duration, h, percent, places, reward, setFragment, setText, showSections, stateBadge,
} from "./dom.js";

const LOOK = 10_000; // ms between two looks at jobs that still run

export async function compareView({ query }, signal) {
  const comparison = new Comparison(query.getAll("ids"), signal);
  await comparison.load();
  repeat(() => LOOK, signal, async () => comparison.active && comparison.load());
  return comparison.element;
}

class Comparison {
  constructor(ids, signal) {
    this.ids = ids;
    this.signal = signal;
    this.rows = h("tbody");
    this.reason = h("p");
    this.note = h("div", { class: "caveats", role: "note" }, this.reason);
    this.parts = places(["standing", "comparison", "progress", "cost", "ratios"]);
    this.columns = h("div", { class: "columns" });
    const headings = ["Job", "State", "Network", "Budget", "Best", "Evaluations", "Time"];
    this.element = h("div", {},
      h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Jobs"), " / compare"),
      h("h1", {}, `${ids.length} jobs compared`),
      h("section", { "aria-label": "Jobs" }, h("div", { class: "scroll" }, h("table", { class: "compared" },
        h("thead", {}, h("tr", {}, headings.map((heading) => h("th", { scope: "col" }, heading)))), this.rows))),
      this.note, Object.values(this.parts), this.columns);
  }

  async load() {
    const query = new URLSearchParams(this.ids.map((id) => ["ids", id]));
    const { signal } = this;
    const [{ sections, reason }, ...jobs] = await Promise.all([
      request(`/api/compare?${query}`, { signal }),
      ...this.ids.map((id) => request(`/api/jobs/${encodeURIComponent(id)}`, { signal })),
    ]);
    this.active = jobs.some(({ state }) => ACTIVE.includes(state));
    this.rows.replaceChildren(...jobs.map(row));
    this.note.hidden = !reason;
    setText(this.reason, reason ? `${reason[0].toUpperCase()}${reason.slice(1)}.` : "");
    showSections(this.parts, reason ? { comparison: sections.comparison } : sections);
    this.showApart(sections.apart);
  }

  /** Jobs that are not comparable stand beside each other. */
  showApart(apart) {
    this.columns.hidden = !apart;
    if (!apart) return;
    const names = Object.keys(apart);
    if (!this.places) {
      this.places = names.map(() => h("div"));
      this.columns.replaceChildren(...names.map((name, index) =>
        h("div", { role: "group", "aria-label": name }, h("h2", { class: "job-name" }, name), this.places[index])));
    }
    Object.values(apart).forEach((html, index) => setFragment(this.places[index], html));
  }
}

function row({ id, name, state, outcome, network, budgets, best, evaluations, seconds }) {
  const accuracy = best?.search_accuracy ?? null;
  const found = !best ? NONE : accuracy === null ? reward(best.reward) : percent(accuracy);
  return h("tr", {},
    h("td", {}, h("a", { href: `#/jobs/${encodeURIComponent(id)}` }, name), h("small", {}, id)),
    h("td", {}, stateBadge(state, outcome)), h("td", {}, network), h("td", {}, budgetText(budgets)),
    h("td", {}, found, best && h("small", {}, accuracy === null ? `reward, ${best.agent}` : best.agent)),
    h("td", {}, evaluations.toLocaleString("en")), h("td", {}, duration(seconds)));
}
