// The page: which view belongs to the address, and where the focus goes when it changes.

import { Away, Refused } from "./api.js";
import { h } from "./dom.js";
import { compareView } from "./compare.js";
import { jobView } from "./job.js";
import { listView } from "./list.js";
import { submitView } from "./submit.js";

const VIEWS = [
  [/^\/$/, "list", listView],
  [/^\/new$/, "submit", submitView],
  [/^\/compare$/, "compare", compareView],
  [/^\/jobs\/([^/]+)$/, "job", jobView],
];

let leaving = new AbortController();

/** Shows the view of the address: an `async (parameters, signal) => element`; the signal ends what it follows. */
async function show(first = false) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const [pattern, page, view] = VIEWS.find(([known]) => known.test(path || "/")) ?? [null, "none", nowhere];
  for (const link of document.querySelectorAll("nav [data-page]")) {
    if (link.dataset.page === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const main = document.getElementById("main");
  main.setAttribute("aria-busy", "true");
  const named = pattern?.exec(path || "/").slice(1) ?? [];
  const open = async () => view({ parts: named.map(decodeURIComponent), query: new URLSearchParams(query) }, signal);
  const content = await open().catch(failure);
  if (signal.aborted) return;
  main.setAttribute("aria-busy", "false");
  main.dataset.page = page;
  main.replaceChildren(content);
  const title = main.querySelector("h1");
  document.title = `${title?.textContent ?? "Jobs"} · amc`;
  if (first) return;
  scrollTo(0, 0);
  title?.setAttribute("tabindex", "-1");
  title?.focus();
}

async function nowhere() {
  return message("There is no such page", "The address leads nowhere.");
}

function failure(error) {
  if (error instanceof Refused) return message("The server refused this", error.message);
  if (error instanceof URIError) return nowhere();
  if (error.name === "AbortError") return "";
  if (error instanceof Away) {
    return message("The server does not answer", "Start it with `amc serve`, or look at its log.", true);
  }
  throw error;
}

function message(title, text, again = false) {
  const retry = h("button", { type: "button", onclick: () => show() }, "Try again");
  return h("div", { class: "empty" }, h("h1", {}, title), h("p", {}, text),
    h("p", { class: "buttons" }, again && retry, h("a", { class: "button", href: "#/" }, "All jobs")));
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash is the address of a view
  document.getElementById("main").focus();
});
addEventListener("hashchange", () => show());
show(true);
