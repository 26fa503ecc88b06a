// One job: what it is doing, its curves while it runs, its trials, its log, and what can be done with it.

import { Refused, fileLink, follow, quietly, repeat, request, sleep } from "./api.js";
import {
  ACTIVE, NONE, age, budgetText, bytes, counted, duration, h, offer, places, reward, say, setAttribute, setText, showSections,
  stateBadge,
} from "./dom.js";
import { yaml } from "./yaml.js";

const SECTIONS = ["standing", "progress", "comparison", "intervals", "ratios", "cost", "layers"];
const REDRAW = 2500; // ms between two drawings of a running job
const SOON = 500; // ms that the page waits for the first drawings
const DRAWING = "The curves are being drawn.";
const NOT_YET = "The curves begin with the first evaluation. Until then, state and log tell what the job is doing.";
const ENDED_EARLY = "This job ended before its first evaluation.";
const ACTIONS = { cancel: "Cancel", resume: "Resume", delete: "Delete" };

export async function jobView({ parts: [id] }, signal) {
  const view = new JobView(`/api/jobs/${encodeURIComponent(id)}`, signal);
  await view.load();
  view.follow();
  document.addEventListener("visibilitychange", () => view.follow(), { signal });
  requestAnimationFrame(() => view.showEndOfLog());
  repeat(() => (view.quiet ? 4 * REDRAW : REDRAW), signal, () => view.look());
  return view.element;
}

class JobView {
  constructor(path, signal) {
    this.path = path;
    this.signal = signal;
    this.trials = new Map();
    this.stale = false;
    this.build();
  }

  build() {
    [this.title, this.id] = [h("h1"), h("span")];
    this.badge = h("span");
    this.facts = h("p", { class: "facts" });
    this.actions = h("p", { class: "buttons" });
    this.refusal = h("p", { class: "error-line", role: "alert" });
    this.error = h("pre", { class: "error", hidden: true, tabindex: "0", "aria-label": "Error" });
    this.done = h("span");
    this.bar = h("progress", { "aria-label": "Evaluations" });
    this.note = h("p", { class: "latest" });
    this.parts = places(SECTIONS);
    this.reason = h("p", { class: "caption" });
    this.blank = h("div", { class: "blank" });
    this.waiting = h("section", { class: "first" }, h("h2", {}, "Best reward against evaluations"),
      this.reason, this.blank);
    this.rows = h("tbody");
    const headings = ["Trial", "State", "Evaluations", "Distinct", "Best reward", "Time"];
    const head = headings.map((heading, index) => h("th", { scope: "col", class: index < 2 ? "text" : null }, heading));
    const trials = h("section", {}, h("h2", {}, "Trials"),
      h("div", { class: "scroll bounded", tabindex: "0", role: "region", "aria-label": "Trials" },
        h("table", { class: "trials" }, h("thead", {}, h("tr", {}, head)), this.rows)));
    this.log = h("pre", {
      class: "log", tabindex: "0", role: "log", "aria-live": "off", "aria-label": "Last lines of the log",
    });
    const log = h("section", {}, h("h2", {}, "Log"), this.log);
    this.files = h("ul", { class: "files" });
    this.exported = h("select", { "aria-label": "Whose best network" });
    this.exporting = h("button", { type: "button", onclick: () => this.export() }, "Export the best network");
    this.downloads = h("section", {}, h("h2", {}, "Files"),
      h("p", { class: "caption" }, "An export writes the pruned network, its policy and plan, ONNX, and a run card."),
      h("p", { class: "buttons" }, this.exported, this.exporting), this.files);
    this.spec = h("pre", { tabindex: "0", "aria-label": "Spec" });
    const spec = h("section", {}, h("details", {}, h("summary", {}, h("h2", {}, "Spec")), this.spec));
    const { standing, progress, comparison, intervals, ratios, cost, layers } = this.parts;
    this.element = h("div", { class: "job-page" },
      h("header", { class: "job-head" }, h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Jobs"), " / ", this.id),
        h("div", { class: "head" }, h("div", {}, this.title), this.actions), this.refusal,
        h("p", { class: "standing-line" }, this.badge, this.done, this.bar), this.facts, this.note, this.error),
      h("div", {}, standing, this.waiting, progress),
      h("div", { class: "trials-and-log" }, trials, log),
      h("div", { class: "found" }, comparison, intervals, ratios, cost, layers),
      h("div", { class: "files-and-spec" }, this.downloads, spec));
  }

  /** All there is. State, trials and log are shown even if they cannot be drawn, or not soon. */
  async load() {
    await this.loadJob();
    if (this.job.progress.evaluations) this.showReason(DRAWING, true);
    else this.showNotBegun();
    const [view, ...rest] = this.loadParts().map((part) => part.catch(quietly));
    await Promise.all([...rest, Promise.race([view, sleep(SOON, this.signal)])]);
  }

  loadParts() {
    return [this.loadView(), this.loadTrials(), this.loadLog(), this.loadFiles()];
  }

  async loadJob() {
    this.show(await request(this.path, { signal: this.signal }));
  }

  show(job) {
    const before = this.job;
    this.job = job;
    setText(this.title, job.name);
    setText(this.id, job.id);
    if (before?.state !== job.state || before?.outcome !== job.outcome) {
      this.badge.replaceChildren(stateBadge(job.state, job.outcome));
      if (before) say(`${job.name}: ${job.state}`);
    }
    const { evaluations, of } = job.progress;
    const ended = job.state === "succeeded";
    const part = ended ? "" : `${evaluations.toLocaleString("en")} of `;
    const made = part + counted(ended ? evaluations : of, "evaluation");
    setText(this.done, `${made}, ${job.progress.trials_finished} of ${counted(job.progress.trials, "trial")} finished`);
    setAttribute(this.bar, "max", of || 1);
    setAttribute(this.bar, "value", evaluations);
    this.bar.classList.toggle("ended", ended);
    setText(this.facts, [`budget ${budgetText(job.budgets)}`, job.network, job.agents.join(", "),
      job.seconds && duration(job.seconds), `${age(job.created)} old`].filter(Boolean).join(" · "));
    setText(this.error, job.error ?? "");
    this.error.hidden = !job.error;
    this.note.hidden = !ACTIVE.includes(job.state) && !this.exportSeen;
    this.showActions(job.actions);
    offer(this.exported, [["", "of all agents"], ...job.agents.map((agent) => [agent, `of ${agent}`])]);
    setText(this.spec, yaml(job.spec));
  }

  showActions(actions) {
    const known = actions.join(" ");
    if (this.known === known) return;
    this.known = known;
    const focused = this.actions.contains(document.activeElement);
    this.actions.replaceChildren(...Object.entries(ACTIONS).filter(([action]) => actions.includes(action))
      .map(([action, said]) => h("button", { type: "button", onclick: () => this.act(action) }, said)));
    if (focused) (this.actions.querySelector("button") ?? this.title).focus();
    this.exported.disabled = this.exporting.disabled = !actions.includes("export");
  }

  export() {
    this.exports = this.exportSeen = true; // also if somebody else has begun one
    const agent = this.exported.value;
    this.act(agent ? `export?agent=${encodeURIComponent(agent)}` : "export");
  }

  async act(action) {
    if (action === "delete" && !confirm(`Delete ${this.job.name} and all its files?`)) return;
    setText(this.refusal, "");
    try {
      if (action === "delete") {
        await request(this.path, { method: "DELETE", signal: this.signal });
        location.hash = "#/";
        return;
      }
      const answer = await request(`${this.path}/${action}`, { method: "POST", signal: this.signal });
      this.show(answer);
      this.follow();
    } catch (error) {
      quietly(error);
      if (!(error instanceof Refused)) return;
      setText(this.refusal, error.message);
      await this.loadJob().catch(quietly);
    }
  }

  /** Whether nothing happens, unless somebody resumes the job elsewhere. */
  get quiet() {
    return !ACTIVE.includes(this.job.state) && !this.exports;
  }

  /** What is done again and again: draw what has changed; after the end, see whether the job goes on again. */
  async look() {
    if (this.exports) this.follow();
    if (this.quiet) {
      await this.loadJob();
      if (!this.quiet) this.follow();
    }
    await this.refresh();
  }

  /**
   * Listens to the job's events until it has ended; a drawing is made of what they changed, not of each of them.
   * A hidden page does not listen: browsers open only six connections to a server, over all tabs.
   */
  async follow() {
    this.following?.abort();
    if (document.hidden) return;
    this.following = new AbortController();
    const signal = AbortSignal.any([this.signal, this.following.signal]);
    await follow(`${this.path}/events`, {
      after: this.last ?? this.job.last_event ?? 0,
      signal,
      onEvent: (event) => this.take(event),
      onLost: () => { this.stale = true; },
    }).catch(quietly);
  }

  take(event) {
    this.last = event.seq ?? this.last;
    this.stale = true;
    if (event.kind === "trial") this.trials.get(event.trial)?.update(event);
    if (event.kind === "note") {
      setText(this.note, event.text);
      if (/^export: (done|failed)/.test(event.text)) this.exports = false;
    }
    if (event.kind === "state") this.loadJob().catch(quietly); // at once, however long a drawing takes
    if (event.kind === "end") this.refresh().catch(quietly);
  }

  /** Reads again what the events have changed since the last time. */
  async refresh() {
    if (!this.stale || this.refreshing) return;
    this.stale = false;
    this.refreshing = true;
    try {
      await this.loadJob();
      await Promise.all(this.loadParts());
    } catch (error) {
      this.stale = true;
      throw error;
    } finally {
      this.refreshing = false;
    }
  }

  async loadTrials() {
    const trials = await request(`${this.path}/trials`, { signal: this.signal });
    for (const trial of trials) {
      if (!this.trials.has(trial.trial)) {
        const row = new TrialRow(trial);
        this.trials.set(trial.trial, row);
        this.rows.append(row.element);
      }
      this.trials.get(trial.trial).update(trial);
    }
  }

  async loadLog() {
    const text = await request(`${this.path}/log?tail=200`, { signal: this.signal });
    const atEnd = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 4;
    setText(this.log, text.trimEnd() || (this.quiet ? "This job has no log." : "Nothing is logged yet."));
    this.log.classList.toggle("none", this.quiet && !text);
    if (atEnd) this.showEndOfLog();
  }

  showEndOfLog() {
    this.log.scrollTop = this.log.scrollHeight;
  }

  async loadView() {
    const { version, sections } = await request(`${this.path}/view`, { signal: this.signal }).catch((error) => {
      if (error instanceof Refused) this.showReason(error.message, false);
      throw error;
    });
    if (version === this.version) return;
    this.version = version;
    showSections(this.parts, sections);
    this.waiting.hidden = Boolean(sections.progress);
    this.showNotBegun();
  }

  showNotBegun() {
    this.showReason(this.quiet ? ENDED_EARLY : NOT_YET, !this.quiet);
  }

  /** Why there are no drawings, perhaps with room for those that will come. */
  showReason(text, room) {
    this.blank.hidden = !room;
    setText(this.reason, text);
  }

  async loadFiles() {
    const files = await request(`${this.path}/artifacts`, { signal: this.signal });
    const known = JSON.stringify(files);
    if (this.listed === known) return;
    this.listed = known;
    const fault = (error) => setText(this.refusal, error.message);
    this.files.replaceChildren(...files.map(({ name, bytes: size }) => h("li", {},
      fileLink(`${this.path}/artifacts/${encodeURIComponent(name)}`, name, fault), h("small", {}, bytes(size)))));
  }
}

class TrialRow {
  constructor(trial) {
    this.state = h("td", { class: "text" });
    [this.done, this.distinct, this.best, this.time] = [h("td"), h("td"), h("td"), h("td")];
    this.error = h("pre", { class: "error", tabindex: "0" });
    this.fault = h("details", { hidden: true }, h("summary", {}, "Error"), this.error);
    this.element = h("tr", {}, h("th", { scope: "row", class: "text" }, trial.trial, this.fault),
      this.state, this.done, this.distinct, this.best, this.time);
    this.trial = {};
  }

  /** With all of a trial, or with what an event tells of it. */
  update(change) {
    const before = this.trial.state;
    Object.assign(this.trial, change);
    const { state, evaluations, planned, distinct, best_reward: best, seconds, error } = this.trial;
    if (before !== state) this.state.replaceChildren(stateBadge(state));
    setText(this.done, state === "finished" || !planned ? `${evaluations}` : `${evaluations} of ${planned}`);
    setText(this.distinct, distinct === null || distinct === undefined ? NONE : `${distinct}`);
    setText(this.best, reward(best));
    setText(this.time, evaluations ? duration(seconds) : NONE);
    setText(this.error, error ?? "");
    this.fault.hidden = !error;
  }
}
