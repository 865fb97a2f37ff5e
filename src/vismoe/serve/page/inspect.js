// The view Inspect: what the experts of each layer took of a data set, and the curves and report of the run.

import { curves, loadBars, nested, perColumn, perRow, positionMap, scrolled, shares } from "./charts.js";
import { byId, counted, element, options, percent } from "./elements.js";
import { colourOf } from "./overlay.js";
import { get, showProblem } from "./service.js";

const SOON = 1000; // milliseconds until the next question while the service computes
const LATER = 2000; // and while a run goes on
const LAST = 15_000; // and after its end: it may be resumed

const TOP = /(?:^|_)top(\d+)$/;
const TITLES = [
  [/loss/, "Loss"],
  [/accuracy|(^|_)top\d+$/, "Accuracy"],
  [/^(map|mar)/, "Average precision and recall"],
];

let models = [];
let experts = null;
let visible = false;
let round = 0; // a newer one ends the questions of an older one

/** Fills the view for the models of the service. */
export function startInspect(list) {
  models = list;
  options(
    byId("inspect-model"),
    models.map(({ name }, number) => [number, name]),
  );
  byId("inspect-model-field").hidden = models.length < 2;
  byId("inspect-model").addEventListener("change", start);
  byId("inspect-layer").addEventListener("change", showLayer);
}

/** Asks while the view is shown, and not otherwise. */
export function showInspect(shown) {
  visible = shown;
  if (shown) start();
  else round += 1;
}

function start() {
  const mine = ++round;
  const number = byId("inspect-model").value;
  experts = null;
  byId("inspect-layer-field").hidden = true;
  byId("inspect-experts").replaceChildren();
  byId("inspect-run").replaceChildren();
  if (!models[number].run) {
    note(
      "This model is no run folder: there is no data set to look at its experts with, and there are no curves. " +
        "Serve the folder of a training run to see them.",
    );
    return;
  }
  note(models[number].sparse ? "The experts are being computed …" : "This model has no experts.");
  if (models[number].sparse) pollExperts(mine, number);
  pollRun(mine, number);
}

function note(words) {
  byId("inspect-note").textContent = words;
  byId("inspect-note").hidden = words === "";
}

const wait = (time) => new Promise((resolve) => setTimeout(resolve, time));

async function pollExperts(mine, model) {
  try {
    let got = null;
    while (!got) {
      got = await get(`v1/experts?model=${model}`);
      if (mine !== round) return;
      if (!got) await wait(SOON);
    }
    experts = got;
    note("");
    options(
      byId("inspect-layer"),
      experts.layers.map(({ name }, number) => [number, name]),
    );
    byId("inspect-layer-field").hidden = false;
    showLayer();
  } catch (error) {
    if (mine !== round) return;
    if (error.code === "no_data") note(error.message);
    else showProblem(error, start);
  }
}

function showLayer() {
  const number = Number(byId("inspect-layer").value);
  const layer = experts.layers[number];
  const next = experts.layers[number + 1];
  const names = layer.load.map((_, expert) => `Expert ${expert}`);
  byId("inspect-experts").replaceChildren(
    element(
      "div",
      { class: "columns" },
      card(
        "Load",
        `Share of the choices of ${counted(experts.images, "held-out image", "held-out images")} that each expert ` +
          `got. The lines mark an even share: ${percent(1 / layer.load.length, 1)}.`,
        loadBars(layer.load, layer.dead),
        deadInWords(layer.dead),
      ),
      card(
        "Class or position",
        `What a patch's expert tells of ${experts.by_patch ? "the class of its box" : "its image's class"}, and of its ` +
          "place: mutual information in bits. By chance: the same with shuffled labels.",
        information(number),
      ),
    ),
    card(
      "Classes",
      "To which expert the patches of each class go, in per cent: each column adds up to 100.",
      shares("expert \\ class", names, experts.classes, perColumn(layer.by_class)),
    ),
    card(
      "Experts",
      `Where an expert's patches are, from ${counted(experts.images, "image", "images")}: the stronger the colour of ` +
        "a place, the more of them. Beside it, the patches that it takes most surely.",
      gallery(layer),
    ),
    next
      ? card(
          "Across layers",
          `Of the patches that go to an expert of ${layer.name} (row), the share that goes to each expert of ` +
            `${next.name} (column), in per cent: each row adds up to 100.`,
          together(layer, next),
        )
      : "",
  );
}

function card(title, words, ...children) {
  return element(
    "section",
    { class: "card", "aria-label": title },
    element("h2", {}, title),
    element("p", { class: "quiet small" }, words),
    ...children,
  );
}

function deadInWords(dead) {
  if (dead.length === 0) return element("p", { class: "small" }, "No expert is dead.");
  const names = dead.join(", ");
  return element(
    "p",
    { class: "verdict differs" },
    dead.length > 1
      ? `Experts ${names} are dead: no patch goes there.`
      : `Expert ${names} is dead: no patch goes there.`,
  );
}

/** Mutual information of all layers; the chosen one stands out. */
function information(chosen) {
  const head = ["layer", "class", "by chance", "position", "by chance"].map((name) =>
    element("th", { scope: "col" }, name),
  );
  const rows = experts.layers.map(({ name, mutual_information: bits }, number) => {
    const cell = (what, look) => element("td", { class: look }, bits[what].toFixed(3));
    return element(
      "tr",
      { class: number === chosen ? "current" : null },
      element("th", { scope: "row" }, name),
      cell("class"),
      cell("class_shuffled", "chance"),
      cell("position"),
      cell("position_shuffled", "chance"),
    );
  });
  const table = element(
    "table",
    { class: "plain" },
    element("thead", {}, element("tr", {}, head)),
    element("tbody", {}, rows),
  );
  return scrolled("mutual information by layer", table);
}

function gallery(layer) {
  return element(
    "div",
    { class: "gallery" },
    layer.load.map((_, expert) => {
      const images = layer.gallery[expert] ?? [];
      const patches = images.map((source, place) =>
        element("img", { src: source, alt: `Patch ${place + 1} of expert ${expert}`, loading: "lazy" }),
      );
      return element(
        "article",
        { class: "expert", "--colour": colourOf(expert) },
        element("h3", {}, element("span", { class: "swatch" }), `Expert ${expert}`),
        positionMap(layer.by_position[expert], `Where the patches of expert ${expert} are`),
        patches.length
          ? element("div", { class: "patches" }, patches)
          : element("p", { class: "quiet small" }, "It takes no patch."),
      );
    }),
  );
}

function together(layer, next) {
  const columns = next.load.map((_, expert) => String(expert));
  return shares(
    `${layer.name} \\ ${next.name}`,
    layer.load.map((_, expert) => String(expert)),
    columns,
    perRow(layer.together),
  );
}

async function pollRun(mine, model) {
  let before = null;
  for (;;) {
    let pause = LATER;
    try {
      const run = await get(`v1/run?model=${model}`);
      if (mine !== round) return;
      if (run.finished) pause = LAST;
      const now = JSON.stringify(run);
      if (now !== before) showRun(run, models[model].classes.length);
      before = now;
    } catch (error) {
      if (mine === round) showProblem(error, start);
      return;
    }
    await wait(pause);
    if (mine !== round || !visible) return;
  }
}

function showRun(run, classes) {
  const place = byId("inspect-run");
  const done = Math.max(0, ...run.metrics.map(({ step }) => step));
  const state = run.finished ? `Finished after ${done} steps.` : `Not finished: step ${done} of ${run.steps}.`;
  const charts = grouped(run.metrics, classes).map(([title, series]) => curves(title, series));
  const open = place.querySelector("details")?.open;
  place.replaceChildren(
    card(
      "Run",
      state,
      charts.length ? element("div", { class: "columns" }, charts) : element("p", {}, "No metrics are logged yet."),
    ),
    run.report
      ? element("details", { class: "card report", open }, element("summary", {}, "Report"), nested(run.report))
      : "",
  );
}

const inWords = (name) => name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");

/**
 * The curves of metrics.jsonl: losses together, accuracies together, average precisions and recalls together, and each
 * other number alone. Without the top five of five classes or fewer: all answers are right.
 */
function grouped(metrics, classes) {
  const series = new Map();
  for (const { step, ...values } of metrics) {
    for (const [name, value] of Object.entries(values)) {
      if (typeof value !== "number" || Number(TOP.exec(name)?.[1]) >= Math.max(2, classes)) continue;
      if (!series.has(name)) series.set(name, { name, points: [] });
      series.get(name).points.push([step, value]);
    }
  }
  const groups = new Map();
  for (const one of series.values()) {
    const [, title] = TITLES.find(([pattern]) => pattern.test(one.name)) ?? [null, inWords(one.name)];
    groups.set(title, [...(groups.get(title) ?? []), one]);
  }
  return [...groups];
}
