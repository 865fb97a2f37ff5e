// Starts the page: asks which models there are, and shows the view that the address names.

import { showCompare, startCompare } from "./compare.js";
import { byId, counted, element } from "./elements.js";
import { onImage, startImages } from "./images.js";
import { showInspect, startInspect } from "./inspect.js";
import { get, hasToken, showProblem } from "./service.js";
import { showTry, startTry } from "./try.js";

const VIEWS = ["try", "compare", "inspect"];

function named() {
  const name = location.hash.slice(1);
  return VIEWS.includes(name) ? name : VIEWS[0];
}

function show() {
  const name = named();
  for (const view of VIEWS) {
    const tab = byId(`tab-${view}`);
    tab.setAttribute("aria-selected", String(view === name));
    tab.tabIndex = view === name ? 0 : -1;
    byId(view).hidden = view !== name;
  }
  byId("picker").hidden = name === "inspect";
  showProblem(null);
  showTry(name === "try");
  showCompare(name === "compare");
  showInspect(name === "inspect");
}

function startTabs() {
  for (const view of VIEWS) byId(`tab-${view}`).addEventListener("click", () => (location.hash = view));
  byId("tab-try").parentElement.addEventListener("keydown", (event) => {
    const here = VIEWS.indexOf(named());
    const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: VIEWS.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const view = VIEWS[(next + VIEWS.length) % VIEWS.length];
    location.hash = view;
    byId(`tab-${view}`).focus();
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address names the view
    byId("main").focus();
  });
  addEventListener("hashchange", show);
}

function about({ name, task, classes, input_size: [, height, width], step }) {
  const words = `${name}: ${task}, ${counted(classes.length, "class", "classes")}, ${height} × ${width} pixels`;
  return step ? `${words}, in training: as after step ${step}` : words;
}

let state = "new"; // then "asked" or "known"

/** Asks which models there are, and starts the views; after an error, the next image asks again. */
async function load() {
  if (state !== "new") return;
  state = "asked";
  try {
    const { models } = await get("v1/model");
    state = "known";
    byId("about").replaceChildren(...models.map((model) => element("p", {}, about(model))));
    document.title = `${models[0].name} – vismoe`;
    byId("interface").hidden = hasToken(); // a link cannot carry the token
    startTry(models);
    startCompare(models);
    startInspect(models);
    startTabs();
    show();
  } catch (error) {
    if (state === "asked") state = "new";
    byId("about").replaceChildren();
    showProblem(error, load);
  }
}

onImage(load);
startImages(); // one may be chosen before the service has answered
load();
