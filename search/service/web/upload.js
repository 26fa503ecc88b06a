// Weights from the visitor's disk: sent to the server, and described as a network that a spec can name.

import { Refused, quietly, request } from "./api.js";
import { bytes, h, input, offer, select, setText } from "./dom.js";

// kind -> what tells its networks apart, examples of it, and how many classes they usually have
const KINDS = {
  cifar_resnet: ["depth", ["20", "32", "44", "56", "110"], 10],
  lenet: ["name", ["lenet-300-100", "lenet-5"], 10],
  mobilenet_v1: ["width", ["1", "0.75", "0.5", "0.25"], 1000],
  torchvision: ["name", ["mobilenet_v2", "resnet18", "resnet50", "vgg16_bn"], 1000],
};

/** Calls `onModel` with each network whose weights have arrived. */
export class Upload {
  constructor(onModel, signal) {
    this.onModel = onModel;
    this.signal = signal;
    this.kind = select(Object.keys(KINDS));
    this.variants = h("datalist", { id: "u-variants" });
    this.variant = input({ list: "u-variants", spellcheck: "false" });
    this.classes = input({ inputmode: "numeric" });
    this.file = h("input", { type: "file", accept: ".pt,.pth,.safetensors" });
    this.said = h("p", { class: "caption", role: "status" });
    this.fault = h("p", { class: "error-line", role: "alert" });
    this.variantLabel = h("label", { for: "u-variant" });
    this.send = h("button", { type: "button", onclick: () => this.upload() }, "Upload");
    this.kind.addEventListener("change", () => this.showKind());
    const field = (id, label, control) => {
      control.id = id;
      return h("div", { class: "field" }, label.tagName ? label : h("label", { for: id }, label), control);
    };
    this.element = h("details", {}, h("summary", {}, "Weights of your own"),
      h("p", { class: "caption" }, "A state_dict of torch.save, or safetensors. Only tensors are read."),
      h("div", { class: "row" }, field("u-kind", "Architecture", this.kind),
        field("u-variant", this.variantLabel, this.variant), field("u-classes", "Classes", this.classes),
        field("u-file", "File", this.file)),
      this.variants, h("p", { class: "buttons" }, this.send), this.said, this.fault);
    this.showKind();
  }

  showKind() {
    const [property, examples, classes] = KINDS[this.kind.value];
    setText(this.variantLabel, property[0].toUpperCase() + property.slice(1));
    offer(this.variants, examples.map((example) => [example, example]));
    [this.variant.value, this.classes.value] = [examples[0], classes];
  }

  async upload() {
    const [file] = this.file.files;
    setText(this.said, "");
    setText(this.fault, file ? "" : "Choose a file first.");
    if (!file) return;
    this.send.disabled = true;
    setText(this.said, `Sending ${file.name}, ${bytes(file.size)}.`);
    try {
      const stem = file.name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9_-]+/g, "-").replace(/^[-_]+/, "").slice(0, 60);
      const { name } = await request(`/api/uploads?name=${encodeURIComponent(stem || "weights")}`, {
        method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" }, signal: this.signal,
      });
      const [property] = KINDS[this.kind.value];
      const value = this.variant.value.trim();
      const told = { [property]: property === "name" ? value : Number(value), classes: Number(this.classes.value) };
      this.onModel({ name, kind: this.kind.value, spec: { kind: this.kind.value, ...told, weights: name } });
      setText(this.said, `${name} is on the server, and chosen above.`);
    } catch (error) {
      setText(this.said, "");
      quietly(error);
      if (error instanceof Refused) setText(this.fault, error.message);
    } finally {
      this.send.disabled = false;
    }
  }
}
