// The list of jobs: filtered, sorted and cut by the server, so that a thousand are no more work than a hundred.

import { quietly, repeat, request } from "./api.js";
import {
  ACTIVE, NONE, age, budgetText, counted, h, percent, reward, setAttribute, setText, stateBadge,
} from "./dom.js";

const PAGE = 100;
const GROUPS = {
  all: [],
  active: ACTIVE,
  succeeded: ["succeeded"],
  failed: ["failed"],
  stopped: ["cancelled", "interrupted"],
};
const COLUMNS = [
  ["name", "Job"], ["state", "State"], ["network", "Network"], ["budget", "Budget"], ["best", "Best so far"],
  [null, "Evaluations"], ["created", "Age"],
];
const FIRST_ORDER = { created: "desc", best: "desc" };
const MOST = 6; // jobs side by side

export async function listView({ query }, signal) {
  const list = new List(query, signal);
  await list.load();
  repeat(() => (list.limit > 2 * PAGE ? 10_000 : 3000), signal, () => list.load());
  return list.element;
}

class List {
  constructor(query, signal) {
    this.signal = signal;
    this.limit = PAGE;
    this.rows = new Map();
    this.chosen = new Set();
    this.filter = {
      q: query.get("q") ?? "",
      group: query.get("group") in GROUPS ? query.get("group") : "all",
      network: query.get("network") ?? "",
      sort: query.get("sort") ?? "created",
      order: query.get("order") ?? "desc",
    };
    this.build();
  }

  build() {
    const { filter } = this;
    this.search = h("input", {
      type: "search", id: "q", value: filter.q, placeholder: "Name or id", spellcheck: "false",
      oninput: () => this.type(),
    });
    this.counts = {};
    const groups = Object.keys(GROUPS).map((group) => {
      this.counts[group] = h("span", { class: "count" });
      const radio = h("input", {
        type: "radio", name: "group", value: group, checked: filter.group === group,
        onchange: () => this.choose({ group }),
      });
      return h("label", { class: "chip" }, radio, h("span", {}, group, " ", this.counts[group]));
    });
    this.networks = h("select", { id: "network", onchange: () => this.choose({ network: this.networks.value }) });
    const sorts = COLUMNS.filter(([key]) => key).map(([key, title]) => h("option", { value: key }, title));
    this.sorting = h("select", { id: "sort", onchange: () => this.sortBy(this.sorting.value) }, sorts);
    this.headings = COLUMNS.map(([key, title]) => {
      const sort = key ? h("button", { type: "button", onclick: () => this.sortBy(key) }, title) : title;
      return h("th", { scope: "col", class: `col-${key ?? "done"}`, role: "columnheader" }, sort);
    });
    this.body = h("tbody", { role: "rowgroup" });
    this.compare = h("button", { type: "button", "aria-describedby": "marking", onclick: () => this.openComparison() });
    this.total = h("p", { class: "facts", role: "status" });
    this.more = h("button", { type: "button", hidden: true, onclick: () => this.showMore() }, "Show more");
    this.table = h("div", { class: "scroll" }, h("table", { class: "jobs", role: "table" },
      h("caption", { class: "hidden" }, "Jobs; mark two to six to compare them"),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" },
        h("th", { class: "mark", role: "columnheader" }, h("span", { class: "hidden" }, "Compare")), this.headings)),
      this.body));
    this.empty = h("div", { class: "empty", hidden: true });
    const stay = (event) => event.preventDefault();
    this.tools = h("form", { class: "tools", role: "search", "aria-label": "Jobs", onsubmit: stay },
      h("div", { class: "field" }, h("label", { for: "q" }, "Search"), this.search),
      h("fieldset", { class: "chips" }, h("legend", {}, "State"), groups),
      h("div", { class: "field" }, h("label", { for: "network" }, "Network"), this.networks),
      h("div", { class: "field narrow-only" }, h("label", { for: "sort" }, "Sort by"), this.sorting));
    this.element = h("div", {},
      h("div", { class: "head" }, h("h1", {}, "Jobs"), h("p", { class: "buttons" },
        this.compare, h("a", { class: "button primary", href: "#/new" }, "New search"))),
      h("p", { class: "hidden", id: "marking" }, `Mark two to ${MOST} jobs to compare them.`),
      this.tools, h("section", { class: "flush", "aria-label": "Jobs" }, this.table, this.empty),
      h("div", { class: "foot" }, this.total, this.more));
    this.showChosen();
    this.showOrder();
  }

  /** Changes the filter; the address keeps it, so that going back and reloading show the same list. */
  choose(change) {
    Object.assign(this.filter, change);
    this.limit = PAGE;
    const query = new URLSearchParams(Object.entries(this.filter).filter(([key, value]) => value && value !== "all"
      && !(key === "sort" && value === "created") && !(key === "order" && value === "desc")));
    history.replaceState(null, "", `#/${query.size ? `?${query}` : ""}`);
    this.showOrder();
    this.load().catch(quietly);
  }

  /** Searches when the typing has paused. */
  type() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.choose({ q: this.search.value }), 200);
  }

  showMore() {
    this.limit += PAGE;
    this.load().catch(quietly);
  }

  sortBy(key) {
    const { sort, order } = this.filter;
    const first = FIRST_ORDER[key] ?? "asc";
    this.choose({ sort: key, order: sort !== key ? first : order === "asc" ? "desc" : "asc" });
  }

  showOrder() {
    const { sort, order } = this.filter;
    COLUMNS.forEach(([key], index) => {
      const direction = { asc: "ascending", desc: "descending" }[order];
      setAttribute(this.headings[index], "aria-sort", key === sort ? direction : null);
    });
    this.sorting.value = sort;
  }

  /** Asks for the list; only the answer to the latest question is shown. */
  async load() {
    const { q, group, network, sort, order } = this.filter;
    const query = new URLSearchParams({ sort, order, limit: this.limit });
    if (q) query.set("q", q);
    if (network) query.set("network", network);
    GROUPS[group].forEach((state) => query.append("state", state));
    const asked = (this.asked = Symbol("question"));
    const answer = await request(`/api/jobs?${query}`, { signal: this.signal });
    if (asked === this.asked) this.show(answer);
  }

  show({ jobs, total, networks, states }) {
    const all = Object.values(states).reduce((sum, count) => sum + count, 0);
    for (const [group, members] of Object.entries(GROUPS)) {
      const count = members.reduce((sum, state) => sum + (states[state] ?? 0), 0);
      setText(this.counts[group], `${group === "all" ? all : count}`);
    }
    this.showNetworks(networks);
    const shown = new Set(jobs.map(({ id }) => id));
    for (const [id, row] of this.rows) {
      if (shown.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
      this.chosen.delete(id);
    }
    jobs.forEach((job, index) => {
      if (!this.rows.has(job.id)) this.rows.set(job.id, new Row(job, (marked) => this.mark(job.id, marked)));
      const row = this.rows.get(job.id);
      row.update(job);
      const there = this.body.children[index] ?? null;
      if (there !== row.element) this.body.insertBefore(row.element, there);
    });
    this.showChosen();
    this.table.hidden = jobs.length === 0;
    this.tools.hidden = all === 0;
    this.empty.hidden = jobs.length > 0;
    if (jobs.length === 0) this.showEmpty(all);
    const part = jobs.length < total ? `${jobs.length} of ` : "";
    setText(this.total, jobs.length === 0 ? "" : part + counted(total, "job"));
    this.more.hidden = jobs.length >= total;
  }

  showNetworks(networks) {
    const known = [...this.networks.options].map(({ value }) => value).join("\n");
    if (known === ["", ...networks].join("\n")) return;
    this.networks.replaceChildren(...["", ...networks].map((name) => h("option", { value: name }, name || "all")));
    this.networks.value = this.filter.network;
  }

  showEmpty(all) {
    if (this.empty.dataset.all === String(all)) return;
    this.empty.dataset.all = all;
    const clear = () => {
      this.search.value = "";
      this.tools.querySelector("[value=all]").checked = true;
      this.networks.value = "";
      this.choose({ q: "", group: "all", network: "" });
      this.search.focus();
    };
    this.empty.replaceChildren(...(all
      ? [h("h2", {}, "No job is like that"),
        h("p", { class: "buttons" }, h("button", { type: "button", onclick: clear }, "Show all jobs"))]
      : [h("h2", {}, "No jobs yet"),
        h("p", {}, "A search takes a trained network and a budget, and finds how much to remove from each layer."),
        h("p", { class: "buttons" }, h("a", { class: "button primary", href: "#/new" }, "Set up a search")),
        h("p", {}, "Or from a shell, in the folder of the project:"),
        h("pre", {}, "amc submit examples/digits-latency.yaml --wait")]));
  }

  mark(id, marked) {
    if (marked) this.chosen.add(id);
    else this.chosen.delete(id);
    this.showChosen();
  }

  showChosen() {
    const count = this.chosen.size;
    setText(this.compare, `Compare ${count || ""}`.trim());
    this.compare.disabled = count < 2 || count > MOST;
    for (const [id, row] of this.rows) row.box.disabled = count >= MOST && !this.chosen.has(id);
  }

  openComparison() {
    location.hash = `#/compare?${new URLSearchParams([...this.chosen].map((id) => ["ids", id]))}`;
  }
}

class Row {
  constructor(job, onMark) {
    const cell = (css, ...content) => h("td", { class: css, role: "cell" }, ...content);
    this.box = h("input", {
      type: "checkbox", "aria-label": `Compare ${job.name}, ${job.id}`, onchange: () => onMark(this.box.checked),
    });
    this.state = cell("state-cell");
    this.budget = cell("budget");
    [this.best, this.by] = [h("span", {}), h("small")];
    [this.done, this.bar] = [h("span", {}), h("progress", { "aria-hidden": "true" })];
    this.age = h("time", { datetime: job.created, title: new Date(job.created).toLocaleString() });
    this.element = h("tr", { role: "row" }, cell("mark", h("label", {}, this.box)),
      cell("name", h("a", { href: `#/jobs/${encodeURIComponent(job.id)}` }, job.name), h("small", {}, job.id)),
      this.state, cell("network", job.network ?? NONE), this.budget, cell("best", this.best, this.by),
      cell("done", this.done, this.bar), cell("created", this.age));
  }

  update({ state, outcome, budgets, best, evaluations, planned_evaluations: planned, created }) {
    const known = `${state} ${outcome}`;
    if (this.known !== known) this.state.replaceChildren(stateBadge(state, outcome));
    this.known = known;
    setText(this.budget, budgetText(budgets));
    const accuracy = best?.search_accuracy ?? null;
    setText(this.best, !best ? NONE : accuracy === null ? reward(best.reward) : percent(accuracy));
    setText(this.by, !best ? "" : accuracy === null ? `reward, ${best.agent}` : best.agent);
    const ended = state === "succeeded" || !planned;
    setText(this.done, evaluations.toLocaleString("en") + (ended ? "" : ` of ${planned.toLocaleString("en")}`));
    this.bar.classList.toggle("ended", ended);
    setAttribute(this.bar, "max", planned || 1);
    setAttribute(this.bar, "value", evaluations);
    setText(this.age, age(created));
  }
}
