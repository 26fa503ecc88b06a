// A form that makes a spec; the server checks it while it is filled in, and faults stand at the fields they belong to.

import { Refused, quietly, request, sleep } from "./api.js";
import { counted, h, input, offer, select, setAttribute, setText } from "./dom.js";
import { Upload } from "./upload.js";
import { yaml } from "./yaml.js";

const SUGGESTED = ["ddpg", "random", "reconstruction", "surrogate", "uniform"];
const BUDGETS = {
  macs: ["MACs", "multiply-accumulates; one of them is two FLOPs"],
  size: ["Size", "bytes of all parameters"],
  latency_ms: ["Latency", "milliseconds on the server's machine, or of the table"],
};
const GRANULARITIES = ["channel", "fine_grained", "2:4", "4x1", "vector", "kernel", "filter"];
const BEGUN = ["succeeded", "running", "failed", "cancelled", "interrupted"].map((state) => `state=${state}`).join("&");
const RUNTIMES = ["onnxruntime", "torch", "torch.compile", "cuda"];

export async function submitView(_, signal) {
  const [known, { jobs }] = await Promise.all(
    ["/api/models", `/api/jobs?limit=100&${BEGUN}`].map((path) => request(path, { signal })));
  const form = new Form({ ...known, jobs }, signal);
  form.check().catch(quietly);
  return form.element;
}

class Form {
  constructor(known, signal) {
    this.known = known;
    this.signal = signal;
    this.fields = new Map(); // by path in the spec: the element with its fault, and the control that gets the focus
    this.key = Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(36)).join("-");
    this.build();
  }

  build() {
    const { models, agents, jobs } = this.known;
    this.name = input({ value: "search", spellcheck: "false", autocomplete: "off" });
    this.model = select(models.map(({ name }) => name));
    this.data = select([]);
    const limit = { placeholder: "no limit", spellcheck: "false", autocomplete: "off" };
    this.limits = { macs: input({ ...limit, value: "50%" }), size: input(limit), latency_ms: input(limit) };
    this.table = select([]);
    this.table.addEventListener("change", () => this.takeConditions());
    this.runtime = select(RUNTIMES);
    [this.threads, this.batch] = ["1", "1"].map((value) => input({ value, inputmode: "numeric" }));
    const named = agents.filter(({ kind }) => kind !== "plan"); // that is a file of the user's
    this.agents = named.map(({ kind, summary }) => {
      const [name, hint] = [`a-${kind}`, `a-${kind}-hint`];
      const box = h("input", {
        type: "checkbox", value: kind, checked: SUGGESTED.includes(kind),
        "aria-labelledby": name, "aria-describedby": hint,
      });
      return { kind, box, element: h("label", { class: "option" }, box,
        h("span", {}, h("b", { id: name }, kind), h("small", { id: hint }, summary.replaceAll("`", "")))) };
    });
    this.seeds = input({ value: "0 1 2", spellcheck: "false" });
    this.evaluations = input({ value: "70", inputmode: "numeric" });
    this.granularity = input({ placeholder: "channel", list: "f-granularities", spellcheck: "false" });
    this.granularities = h("datalist", { id: "f-granularities" });
    offer(this.granularities, GRANULARITIES.map((name) => [name, name]));
    [this.roundTo, this.maxRatio] = [input({ placeholder: "8" }), input({ placeholder: "0.8" })];
    this.fidelity = select(["", "sequential", "prefix", "magnitude"]);
    this.objective = select(["", "top1", "top5", "cross_entropy", "agreement", "jensen_shannon"]);

    this.earlier = select([]);
    offer(this.earlier, [["", "none"], ...jobs.map(({ id, name }) => [id, `${name}, ${id}`])]);

    this.latency = h("div", { class: "row" },
      this.field("budget.table", "Table", this.table, "one that is here, or measured by the job first"),
      this.field("latency.runtime", "Runtime", this.runtime),
      this.field("latency.threads", "Threads", this.threads),
      this.field("latency.batch", "Images at once", this.batch, "64 for networks as small as digits"));
    this.upload = new Upload((model) => this.take(model), this.signal);
    this.preview = h("pre", { class: "spec", tabindex: "0", "aria-label": "The spec as it is built" });
    this.text = h("textarea", {
      class: "spec", hidden: true, spellcheck: "false", "aria-label": "The spec as text", oninput: () => this.change(),
    });
    this.editing = h("button", { type: "button", onclick: () => this.edit() }, "Edit as text");
    this.verdict = h("p", { class: "facts" }, "Not checked yet.");
    this.faults = h("div", { class: "error-line", role: "alert" });
    this.button = h("button", { class: "primary", form: "search" }, "Start the search");
    const send = (event) => {
      event.preventDefault();
      this.submit();
    };
    const limits = Object.entries(BUDGETS).map(([cost, [label, hint]]) =>
      this.field(`budget.${cost}`, label, this.limits[cost], hint));
    this.form = h("form", { id: "search", novalidate: true, oninput: () => this.change(), onsubmit: send },
      group("What is pruned", h("div", { class: "row" },
        this.field("name", "Name of the job", this.name, "letters, digits, dot, dash and underscore"),
        this.field("network", "Network", this.model), this.field("data", "Images", this.data)), this.upload.element),
      this.fieldset("budget", "Budget",
        "Upper limits: a share of the dense network's such as 50%, or a number. Several may hold at once.",
        h("div", { class: "row" }, limits), this.latency),
      this.fieldset("agents", "Agents", "Each runs once for each seed; what needs no seed runs once.",
        h("div", { class: "options" }, this.agents.map(({ element }) => element))),
      group("Effort", h("div", { class: "row" },
        this.field("seeds", "Seeds", this.seeds, "five or more tell agents apart"),
        this.field("evaluations", "Evaluations of each trial", this.evaluations))),
      h("section", {}, h("details", {}, h("summary", {}, h("h2", {}, "More")), h("div", { class: "row" },
        this.field("pruning.granularity", "Granularity", this.granularity, "channels go for good, weights become zero"),
        this.granularities,
        this.field("pruning.round_to", "Channels in multiples of", this.roundTo),
        this.field("pruning.max_ratio", "Most that a layer loses", this.maxRatio, "a fraction"),
        this.field("evaluation.fidelity", "Fidelity", this.fidelity),
        this.field("evaluation.objective", "Objective", this.objective)))));
    this.element = h("div", { class: "submit-page" },
      h("header", { class: "head" }, h("h1", {}, "New search")), this.form,
      h("aside", { "aria-label": "Spec" }, h("section", {}, h("h2", {}, "The spec"), this.verdict, this.preview,
        this.text, jobs.length > 0
          && this.field("known", "Take over the evaluations of", this.earlier, "a job of the same problem"),
        this.faults, h("p", { class: "buttons" }, this.button, this.editing),
        h("p", { class: "caption" },
          "The same as a file runs with ", h("code", {}, "amc run"), " or ", h("code", {}, "amc submit"), "."))));
    this.showChoices();
  }

  field(path, label, control, hint) {
    const id = `f-${path.replaceAll(".", "-")}`;
    control.id = id;
    const fault = h("p", { class: "error-line", id: `${id}-fault` });
    const said = hint && h("small", { id: `${id}-hint` }, hint);
    setAttribute(control, "aria-describedby", [said && `${id}-hint`, `${id}-fault`].filter(Boolean).join(" "));
    this.fields.set(path, { fault, control });
    return h("div", { class: "field" }, h("label", { for: id }, label), control, said, fault);
  }

  fieldset(path, title, caption, ...content) {
    const id = `g-${path}`;
    const fault = h("p", { class: "error-line", id: `${id}-fault` });
    const element = group(title, h("p", { class: "caption", id: `${id}-hint` }, caption), ...content, fault);
    setAttribute(element, "aria-describedby", `${id}-hint ${id}-fault`);
    this.fields.set(path, { fault, control: content[0].querySelector("input") });
    return element;
  }

  get chosenModel() {
    return this.known.models.find(({ name }) => name === this.model.value);
  }

  /** Offers what fits the network: its images, its latency tables. */
  showChoices() {
    const model = this.chosenModel;
    const fits = this.known.data.filter(({ name }) => model?.data?.includes(name) ?? true).map(({ name }) => name);
    const none = model?.kind === "toy";
    offer(this.data, none ? [["", "needs none"]] : fits.map((name) => [name, name]));
    this.data.disabled = none;
    offer(this.table, [["", "measured by the job"], ...this.known.tables.map(({ name }) => [name, name])]);
    this.latency.hidden = !this.limits.latency_ms.value.trim();
  }

  /** A table says under which conditions it was measured. */
  takeConditions() {
    const table = this.known.tables.find(({ name }) => name === this.table.value);
    if (!table) return;
    [this.runtime.value, this.threads.value, this.batch.value] = [table.runtime, table.threads, table.batch];
  }

  get spec() {
    const budget = Object.fromEntries(Object.entries(this.limits).map(([cost, { value }]) => [cost, value.trim()])
      .filter(([, limit]) => limit).map(([cost, limit]) => [cost, numberOr(limit)]));
    const latency = "latency_ms" in budget;
    if (latency && this.table.value) budget.table = this.table.value;
    const conditions = {
      runtime: this.runtime.value, threads: numberOr(this.threads.value), batch: numberOr(this.batch.value),
    };
    const model = this.chosenModel;
    return given({
      version: 1,
      name: this.name.value.trim(),
      network: model?.spec,
      data: this.known.data.find(({ name }) => name === this.data.value)?.spec,
      budget,
      latency: given(latency ? conditions : {}),
      pruning: given({
        granularity: this.granularity.value.trim(), round_to: numberOr(this.roundTo.value),
        max_ratio: numberOr(this.maxRatio.value),
      }),
      evaluation: given({ fidelity: this.fidelity.value, objective: this.objective.value }),
      agents: this.agents.filter(({ box }) => box.checked).map(({ kind }) => ({ kind })),
      seeds: this.seeds.value.split(/[\s,]+/).filter(Boolean).map(numberOr),
      evaluations: numberOr(this.evaluations.value),
    });
  }

  /** Weights that were uploaded: one more network to choose, and it is chosen. */
  take(model) {
    this.known.models.push(model);
    offer(this.model, this.known.models.map(({ name }) => [name, name]));
    this.model.value = model.name;
    this.change();
  }

  /** From the form to its spec as text, and back to the form. */
  edit() {
    if (!this.text.hidden && this.text.value !== yaml(this.spec)
      && !confirm("Go back to the form, without what was changed in the text?")) return;
    this.text.hidden = !this.text.hidden;
    this.preview.hidden = this.form.inert = !this.text.hidden;
    this.text.value = yaml(this.spec);
    setText(this.editing, this.text.hidden ? "Edit as text" : "Back to the form");
    (this.text.hidden ? this.editing : this.text).focus();
    this.check().catch(quietly);
  }

  /** What is sent: the form's values, or the text. */
  get sent() {
    if (this.text.hidden) return { method: "POST", json: this.spec, signal: this.signal };
    return { method: "POST", body: this.text.value, headers: { "Content-Type": "application/yaml" }, signal: this.signal };
  }

  async change() {
    this.showChoices();
    setText(this.preview, yaml(this.spec));
    this.waiting?.abort();
    this.waiting = new AbortController();
    const { signal } = this.waiting;
    await sleep(250, signal);
    if (!signal.aborted && !this.signal.aborted) await this.check().catch(quietly);
  }

  /** Has the server check the spec; whether it is valid. */
  async check() {
    setText(this.preview, yaml(this.spec));
    const asked = (this.asked = Symbol("question"));
    const { valid, errors, trials, evaluations } = await request("/api/specs/check", this.sent);
    if (asked !== this.asked) return false;
    this.showFaults(errors ?? []);
    const count = trials?.length ?? 0;
    const most = counted(count * evaluations, "evaluation");
    setText(this.verdict, valid ? `Valid: ${counted(count, "trial")}, at most ${most}.` : "Not valid yet.");
    return valid;
  }

  /**
   * Puts each fault at its field, or at the nearest one above it; what has none stands beside the button.
   * Faults of the whole spec begin with the key that they are about.
   */
  showFaults(errors) {
    const faults = new Map([...this.fields.keys()].map((path) => [path, []]));
    const rest = [];
    for (const { path, message } of errors) {
      const [, named, said] = path ? [null, path, message] : /^([a-z_.]+): (.*)$/.exec(message) ?? [null, "", message];
      const parts = named.split(".");
      while (parts.length && !faults.has(parts.join("."))) parts.pop();
      if (parts.length && this.text.hidden) faults.get(parts.join(".")).push(said);
      else rest.push(path ? `${path}: ${message}` : message);
    }
    for (const [path, messages] of faults) {
      const { fault, control } = this.fields.get(path);
      setText(fault, messages.join(" "));
      setAttribute(control, "aria-invalid", messages.length ? "true" : null);
    }
    setText(this.faults, rest.join(" "));
  }

  async submit() {
    this.waiting?.abort();
    this.button.disabled = true;
    try {
      if (!(await this.check())) return this.focusFault();
      const { sent } = this;
      const headers = { ...sent.headers, "Idempotency-Key": this.key };
      const earlier = this.earlier.value && `?${new URLSearchParams({ known: this.earlier.value })}`;
      const job = await request(`/api/jobs${earlier}`, { ...sent, headers });
      location.hash = `#/jobs/${encodeURIComponent(job.id)}`;
    } catch (error) {
      quietly(error);
      if (!(error instanceof Refused)) return;
      this.showFaults(error.errors.length ? error.errors : [{ path: "", message: error.message }]);
      this.focusFault();
    } finally {
      this.button.disabled = false;
    }
  }

  focusFault() {
    const wrong = [...this.fields.values()].find(({ fault }) => fault.textContent);
    wrong?.control.closest("details")?.setAttribute("open", "");
    (wrong?.control ?? (this.text.hidden ? this.button : this.text)).focus();
  }
}

function group(title, ...content) {
  return h("section", { role: "group", "aria-label": title }, h("h2", {}, title), content);
}

function numberOr(text) {
  return /^\d+(\.\d+)?$/.test(text.trim()) ? Number(text) : text.trim();
}

/** Without what is not given, so that the server's defaults hold. */
function given(values) {
  const kept = Object.entries(values).filter(([, value]) => value !== undefined && value !== ""
    && !(typeof value === "object" && !Array.isArray(value) && Object.keys(value).length === 0));
  return Object.fromEntries(kept);
}
