// A spec as people write it: one line for each key, short mappings in braces, no defaults.

const PLAIN = /^[A-Za-z][\w.-]*$/;
const RESERVED = /^(true|false|null|yes|no|on|off|y|n)$/i;

export function yaml(spec) {
  return Object.entries(spec).map(([key, value]) => `${key}: ${inline(value)}`)
    .map((line) => (line.length <= 88 ? line : broken(line, spec))).join("\n");
}

function broken(line, spec) {
  const key = line.slice(0, line.indexOf(":"));
  const value = spec[key];
  if (Array.isArray(value)) return `${key}:\n${value.map((entry) => `  - ${inline(entry)}`).join("\n")}`;
  if (typeof value === "object") {
    return `${key}:\n${Object.entries(value).map(([name, entry]) => `  ${scalar(name)}: ${inline(entry)}`).join("\n")}`;
  }
  return line;
}

function inline(value) {
  if (Array.isArray(value)) return `[${value.map(inline).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([key, entry]) => `${scalar(key)}: ${inline(entry)}`).join(", ")}}`;
  }
  return scalar(value);
}

function scalar(value) {
  if (typeof value !== "string") return JSON.stringify(value);
  return /^\d+(\.\d+)?%$/.test(value) || (PLAIN.test(value) && !RESERVED.test(value)) ? value : JSON.stringify(value);
}
