// The view Compare: the same image through two models, side by side.

import { answerList, asked, inWords, LEAST_SCORE, surely } from "./answers.js";
import { amount, byId, counted, element, facts, less, median, milliseconds } from "./elements.js";
import { current, onImage } from "./images.js";
import { postImage, showProblem } from "./service.js";

const ROUNDS = 9; // a single time says little

let models = [];
let columns = [];
let call = null;
let visible = false;
let stale = true;

/** Fills the view for the models of the service. */
export function startCompare(list) {
  models = list;
  columns = models.map(column);
  byId("compare-models").replaceChildren(...columns.map(({ card }) => card));
  onImage(() => {
    stale = true;
    if (visible) ask();
  });
  note();
}

/** Asks the models when the view is shown, and not before. */
export function showCompare(shown) {
  visible = shown;
  if (visible && stale && current) ask();
}

function note() {
  const words =
    models.length < 2
      ? "This service has one model. Start it with vismoe serve MODEL --compare MODEL2 to see two side by side, " +
        "such as a sparse network and its dense twin."
      : "Choose an image to see both answers.";
  byId("compare-note").textContent = words;
  byId("compare-note").hidden = models.length > 1 && current !== null;
}

function column(model) {
  const answer = element("div", {}, element("p", { class: "quiet" }, "No image yet."));
  const cost = element("dl", { class: "facts" });
  const kind = model.sparse ? counted(model.layers.length, "layer", "layers") + " of experts" : "without experts";
  const card = element(
    "section",
    { class: "card", "aria-label": model.name },
    element("h2", {}, model.name),
    element("p", { class: "quiet" }, kind),
    answer,
    cost,
  );
  const made = { model, card, answer, cost, times: [] };
  showCost(made);
  return made;
}

function showNothing(one) {
  one.times = [];
  one.answer.replaceChildren(element("p", { class: "quiet" }, "No answer."));
  showCost(one);
}

function showCost({ model, cost, times }) {
  facts(cost, [
    [`Request, median of ${times.length || ROUNDS}`, times.length ? milliseconds(median(times)) : "–"],
    ["MACs per image", amount(model.macs)],
    ["Parameters", amount(model.parameters)],
    ["Active parameters", amount(model.active_parameters)],
  ]);
}

async function ask() {
  call?.abort();
  call = new AbortController();
  const { signal } = call;
  stale = false;
  note();
  for (const one of columns) one.times = [];
  byId("compare-models").classList.add("waiting");
  byId("compare-verdict").textContent = "";
  let round = 0;
  try {
    for (; round < ROUNDS; round++) {
      for (const [number, one] of columns.entries()) {
        const got = await postImage("v1/predict", current, { model: number, topk: asked(one.model) }, signal);
        one.times.push(got.milliseconds);
        if (round === 0) {
          const found = surely(got.predictions[0], LEAST_SCORE);
          one.words = inWords(found);
          one.answer.replaceChildren(answerList(found));
        }
        showCost(one);
      }
      byId("compare-models").classList.remove("waiting");
    }
    showProblem(null);
    showVerdict();
  } catch (error) {
    if (signal.aborted) return;
    stale = true;
    if (round === 0) columns.forEach(showNothing); // what is shown are the answers for another image
    showProblem(error, ask);
  } finally {
    if (!signal.aborted) byId("compare-models").classList.remove("waiting");
  }
}

function showVerdict() {
  const verdict = byId("compare-verdict");
  if (columns.length < 2) {
    verdict.textContent = `Answer: ${columns[0].words}.`;
    return;
  }
  const [one, other] = columns;
  const same = one.words === other.words;
  const difference = less(median(one.times), median(other.times));
  const time = difference ? `${difference} time than` : "about the same time as";
  const answers = same ? `Both answer ${one.words}.` : `They differ: ${one.words}, and ${other.words}.`;
  verdict.textContent = `${answers} ${one.model.name} takes ${time} ${other.model.name}.`;
  verdict.classList.toggle("differs", !same);
}
