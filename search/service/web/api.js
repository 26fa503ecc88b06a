// Requests to the server: the token, errors as the server words them, and events that survive a lost connection.

import { h, setText } from "./dom.js";

const TOKEN = "amc-token";
const SILENCE = 40_000; // ms without a byte, not even a comment, after which a stream counts as lost

/** What the server refused, with the faults of a spec at their paths. */
export class Refused extends Error {
  constructor(status, detail, errors) {
    super(detail);
    this.status = status;
    this.errors = errors ?? [];
  }
}

/** The server does not answer; a line at the bottom of the page says so already. */
export class Away extends Error {}

/** For what is done in the background: what the page shows already is no fault of its own; all else is. */
export function quietly(error) {
  if (!(error instanceof Away || error instanceof Refused || error.name === "AbortError")) throw error;
}

/**
 * Asks the server; answers with parsed JSON or text. Sends `json`, or a `body` with its content type among the headers.
 * Throws Refused, or Away.
 */
export async function request(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const response = await send(path, {
    method,
    signal,
    headers: method === "GET" ? headers : { "Content-Type": "application/json", ...headers },
    body: json === undefined ? body : JSON.stringify(json),
  });
  const type = response.headers.get("Content-Type") ?? "";
  if (response.status === 204) return null;
  return type.startsWith("application/json") ? response.json() : response.text();
}

/** A link to a file; where a token is needed, which a link cannot carry, a button that fetches and saves it. */
export function fileLink(path, name, onFault) {
  const target = name.endsWith(".html") ? "_blank" : null;
  if (!sessionStorage.getItem(TOKEN)) return h("a", { href: path, target }, name);
  return h("button", { type: "button", class: "link", onclick: () => save(path, name).catch(onFault) }, name);
}

async function save(path, name) {
  const response = await send(path, {});
  const url = URL.createObjectURL(await response.blob());
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

async function send(path, options) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization() } });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      away(true);
      throw new Away(error.message);
    }
    away(false);
    if (response.status === 401) {
      await askForToken();
      continue;
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

async function refusal(response) {
  const answer = await response.json().catch(() => ({}));
  const detail = typeof answer.detail === "string" ? answer.detail : `the server answered ${response.status}`;
  return new Refused(response.status, detail, answer.errors);
}

function authorization() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

let asking = null;

/** Opens the dialog; all requests that wait for a token wait for the same one. */
function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("token");
    const input = document.getElementById("token-value");
    const refused = sessionStorage.getItem(TOKEN) !== null;
    setText(document.getElementById("token-error"), refused ? "The server did not accept this token." : "");
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, input.value);
      input.value = "";
      dialog.close();
    };
    dialog.onclose = () => { // closed without a token, it opens again at the next answer
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

/** One line at the bottom while the server does not answer. */
function away(lost) {
  const line = document.getElementById("away");
  setText(line, lost ? "The server does not answer. What you see may be old; this page keeps trying." : "");
}

/**
 * Follows the events of a job until its end, from event `after` on; a lost connection is taken up after the last one.
 * `onEvent` is given each event, `onLost` is called before each new attempt.
 */
export async function follow(path, { after, onEvent, onLost, signal }) {
  let last = after;
  let pause = 500;
  while (!signal.aborted) {
    try {
      for await (const { id, data } of stream(path, last, signal)) {
        pause = 500;
        if (id !== null) last = id;
        const event = JSON.parse(data);
        onEvent(event);
        if (event.kind === "end") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status < 500) throw error;
    }
    await sleep(pause, signal);
    pause = Math.min(2 * pause, 8000);
    if (!signal.aborted) onLost();
  }
}

async function* stream(path, last, signal) {
  const quiet = new AbortController();
  const both = AbortSignal.any([signal, quiet.signal]);
  const headers = { Accept: "text/event-stream", "Last-Event-ID": String(last) };
  const response = await send(path, { headers, signal: both });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const watchdog = setTimeout(() => quiet.abort(), SILENCE);
    const { done, value } = await reader.read().catch((error) => {
      if (!signal.aborted) away(true);
      throw error;
    }).finally(() => clearTimeout(watchdog));
    if (done) return;
    const blocks = (buffer + value.replaceAll("\r", "")).split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const event = parse(block);
      if (event.data) yield event;
    }
  }
}

function parse(block) {
  const fields = { id: null, data: "" };
  for (const line of block.split("\n")) {
    const [, name, value] = /^(\w+): ?(.*)$/.exec(line) ?? [];
    if (name === "data") fields.data += value;
    else if (name === "id") fields.id = Number(value);
  }
  return fields;
}

/** Waits; an aborted signal ends it at once. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

/** Repeats something while the page is looked at, until the signal; what fails is tried again. */
export async function repeat(milliseconds, signal, task) {
  while (!signal.aborted) {
    await sleep(milliseconds(), signal);
    if (signal.aborted || document.hidden) continue;
    await task().catch(quietly);
  }
}
