// The view Try: one image, its answer, which expert takes which patch, and what another capacity changes.

import { answerList, asked, inWords, LEAST_SCORE, surely } from "./answers.js";
import { byId, counted, element, facts, less, median, milliseconds, options, percent } from "./elements.js";
import { current, onImage } from "./images.js";
import { colourOf, decoded, drawBoxes, drawExperts, drawImage, drawMap, patches } from "./overlay.js";
import { postImage, showProblem } from "./service.js";

const WAIT = 100; // milliseconds without a move of the slider before the service is asked
const SCORES = [0, 0.1, LEAST_SCORE, 0.5, 0.7];
const ROUNDS = 9; // one time says little, and the first of a model is often long

let models = [];
let answer = null; // of /v1/explain, for the capacity of the slider
let own = null; // of /v1/explain, for the model's own capacity; the same object as `answer` there
let image = null; // as the network sees it
let upload = null; // as it was chosen; only for boxes
let capacity = null;
let times = new Map(); // by capacity: milliseconds of each answer for this image
let only = null;
let cursor = null;
let call = null;
let timer = null;
let visible = false;
let stale = false; // whether the current image has no answer yet

/** Fills the view for the models of the service. */
export function startTry(list) {
  models = list;
  options(
    byId("try-model"),
    models.map(({ name }, number) => [number, name]),
  );
  byId("try-model-field").hidden = models.length < 2;
  byId("try-model").addEventListener("change", () => {
    byId("try-view").replaceChildren(); // another model has other views and layers
    byId("try-layer").replaceChildren();
    start();
  });
  options(
    byId("try-score"),
    SCORES.map((score) => [score, score ? `from ${percent(score)}` : "all"]),
  );
  byId("try-score").value = LEAST_SCORE;
  byId("try-score").addEventListener("change", showAgain);
  byId("try-view").addEventListener("change", showAgain);
  byId("try-layer").addEventListener("change", () => {
    only = null;
    cursor = null;
    showAgain();
  });
  byId("capacity").addEventListener("input", () => setCapacity(Number(byId("capacity").value)));
  byId("capacity-own").addEventListener("click", () => setCapacity(null));
  startCursor();
  onImage(start);
  start();
}

const model = () => models[Number(byId("try-model").value)];
const certain = (got) => surely(got.predictions, Number(byId("try-score").value));
const layer = () => answer?.layers[Number(byId("try-layer").value)];

/** Asks for an answer when the view is shown, and not before. */
export function showTry(shown) {
  visible = shown;
  if (visible && stale) ask();
}

/** Asks anew, for a new image or another model. */
function start() {
  if (!current) return;
  call?.abort();
  clearTimeout(timer);
  answer = own = image = upload = only = cursor = capacity = null;
  times = new Map();
  stale = true;
  showCapacity();
  if (visible) ask();
}

function setCapacity(value) {
  capacity = value;
  showCapacity();
  call?.abort();
  clearTimeout(timer);
  timer = setTimeout(ask, WAIT);
}

function showCapacity() {
  const unset = own?.kept === 1 ? "none set: nothing is dropped" : "none set: the model's own";
  const words = capacity === null ? unset : `${capacity.toFixed(2)}×`;
  byId("capacity-value").textContent = words;
  byId("capacity-value").parentElement.classList.toggle("unset", capacity === null);
  byId("capacity").setAttribute("aria-valuetext", words);
  byId("capacity-own").disabled = capacity === null;
  if (capacity === null) byId("capacity").value = 1;
}

async function ask() {
  clearTimeout(timer);
  call?.abort();
  call = new AbortController();
  const { signal } = call;
  byId("try-result").classList.add("waiting");
  try {
    const got = await explained(capacity, signal);
    const seen = await decoded(got.image);
    if (got.predictions[0]?.box) upload ??= await decoded(byId("thumbnail").src).catch(() => null);
    if (signal.aborted) return;
    [answer, image, stale] = [got, seen, false];
    if (capacity === null) own = got;
    showProblem(null);
    show();
    byId("try-result").classList.remove("waiting");
    await measure(signal);
  } catch (error) {
    if (signal.aborted) return;
    if (!answer) showNothing(); // what is shown is the answer for another image
    showProblem(error, ask);
  } finally {
    if (!signal.aborted) byId("try-result").classList.remove("waiting");
  }
}

async function explained(factor, signal) {
  const fields = { model: byId("try-model").value, topk: asked(model()), capacity: factor };
  const got = await postImage("v1/explain", current, fields, signal);
  if (!signal.aborted) times.set(factor, [...(times.get(factor) ?? []), got.milliseconds]);
  return got;
}

/**
 * Asks for the same again, in turn at the model's own capacity and at that of the slider: times are compared with those
 * of the same seconds, because other programs slow a machine down, too.
 */
async function measure(signal) {
  const wanted = capacity === null ? [null] : [null, capacity];
  for (const one of wanted) times.set(one, times.get(one)?.slice(-1) ?? []);
  for (let round = 1; round <= ROUNDS; round++) {
    for (const one of wanted) {
      if (times.get(one).length >= round) continue;
      const got = await explained(one, signal);
      if (signal.aborted) return;
      if (one === null) own ??= got;
      showCost();
    }
  }
  byId("cost-status").textContent = showCost(); // once, and not after each round
}

function showNothing() {
  byId("try-empty").hidden = false;
  byId("try-result").hidden = true;
}

function showAgain() {
  if (answer) show();
}

function show() {
  byId("try-empty").hidden = true;
  byId("try-result").hidden = false;
  options(byId("try-view"), views());
  options(
    byId("try-layer"),
    answer.layers.map(({ name, experts }, number) => [number, `${name} (${experts} experts)`]),
  );
  byId("capacity-card").hidden = !model().capacity;
  showCapacity();
  showAnswer();
  showStage();
}

function views() {
  const found = [];
  if (upload) found.push(["boxes", "found objects"]);
  if (answer.layers.length) found.push(["experts", "experts"]);
  if (answer.rollout) found.push(["attention", "attention"]);
  return [...found, ["image", "the image alone"]];
}

function showAnswer() {
  byId("try-answer").replaceChildren(answerList(certain(answer)));
  showCost();
  byId("cost-status").textContent = "";
  byId("try-status").textContent = `Answer: ${inWords(certain(answer))}. ${byId("changed").textContent}`;
}

/** Shows what the answer costs, beside the model's own capacity; returns it in words. */
function showCost() {
  const time = median(times.get(capacity));
  const rows = [[`Forward pass, median of ${times.get(capacity).length}`, milliseconds(time)]];
  let verdict = "";
  if (answer.layers.length) rows.push(["Choices kept", percent(answer.kept, 1)]);
  if (capacity !== null && own) {
    const before = median(times.get(null));
    rows.push(["At the model's own capacity", milliseconds(before)]);
    rows.push(["Difference", less(time, before) ?? "about the same"]);
    const [now, first] = [inWords(certain(answer)), inWords(certain(own))];
    verdict = now === first ? "The answer is the same." : `The answer changed: ${first} → ${now}`;
    byId("changed").classList.toggle("differs", now !== first);
  }
  facts(byId("cost"), rows);
  byId("changed").textContent = verdict;
  return `${rows.map(([term, value]) => `${term}: ${value}`).join(", ")}. ${verdict}`.trim();
}

function showStage() {
  const view = byId("try-view").value;
  const experts = view === "experts";
  byId("try-layer-field").hidden = !experts;
  byId("try-score-field").hidden = !upload;
  byId("experts").hidden = !experts;
  byId("patch").hidden = !experts;
  const canvas = byId("overlay");
  canvas.tabIndex = experts ? 0 : -1;
  byId("legend").textContent = legend(view);
  if (view === "boxes") {
    const hidden = drawBoxes(canvas, upload, certain(answer), model().classes);
    const words = `${counted(hidden, "box has", "boxes have")} no label: there is no room.`;
    if (hidden) byId("legend").append(element("span", {}, ` ${words}`));
  }
  if (view === "attention") drawMap(canvas, image, answer.rollout);
  if (view === "image") drawImage(canvas, image);
  if (view === "experts") {
    drawExperts(canvas, image, layer(), only, cursor);
    showChips();
    showPatch();
  }
}

function legend(view) {
  const words = answer.layers.length ? [] : ["This model has no experts: every patch goes through the same MLPs."];
  if (view === "experts") words.push("Colour: expert. Strength: gate. Hatched: dropped, no expert had room.");
  if (view === "attention") words.push("Attention rollout: the brighter a patch, the more of it reaches the answer.");
  return words.join(" ");
}

function showChips() {
  const counts = new Array(layer().experts).fill(0);
  let dropped = 0;
  for (const { taken, lost } of patches(layer())) {
    for (const { expert } of taken) counts[expert] += 1;
    dropped += lost;
  }
  const chips = byId("experts");
  const focused = [...chips.children].indexOf(document.activeElement);
  chips.replaceChildren(
    chip(null),
    ...counts.map((count, expert) => chip(expert, count)),
    element("span", { class: "chip still" }, element("span", { class: "swatch hatched" }), `dropped ${dropped}`),
  );
  if (focused >= 0) chips.children[focused]?.focus();
}

function chip(expert, count) {
  const words = expert === null ? "All experts" : `Expert ${expert}: ${counted(count, "patch", "patches")}`;
  const content = [element("span", { class: "unseen" }, words)];
  if (expert === null) content.push(element("span", { "aria-hidden": "true" }, "All"));
  else {
    content.push(
      element("span", { class: "swatch" }),
      element("span", { "aria-hidden": "true" }, expert),
      element("span", { class: "quiet", "aria-hidden": "true" }, count),
    );
  }
  const press = () => {
    only = only === expert ? null : expert;
    if (answer) showStage();
  };
  const pressed = String(only === expert);
  return element(
    "button",
    {
      type: "button",
      class: "chip",
      "aria-pressed": pressed,
      "--colour": expert === null ? null : colourOf(expert),
      onclick: press,
    },
    content,
  );
}

function showPatch() {
  byId("patch").textContent = cursor ? patchInWords(...cursor) : "Point at or tap a patch to see its expert.";
}

function patchInWords(row, column) {
  const { taken, lost, padding } = patches(layer()).find((patch) => patch.row === row && patch.column === column);
  if (padding) return `Row ${row + 1}, column ${column + 1}: margin around the image, which no expert gets`;
  const words = taken.map(({ expert, weight }) => `expert ${expert} (gate ${weight.toFixed(2)})`);
  if (lost) words.push(taken.length ? `${lost} dropped` : "dropped: no expert had room");
  return `Row ${row + 1}, column ${column + 1}: ${words.join(", ")}`;
}

/** The patch under the pointer, or the one to which the arrow keys went. */
function startCursor() {
  const canvas = byId("overlay");
  const move = (row, column) => {
    if (!layer() || byId("try-view").value !== "experts") return;
    const [rows, columns] = layer().grid;
    const next = [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1)];
    if (cursor && next[0] === cursor[0] && next[1] === cursor[1]) return;
    cursor = next;
    showStageLightly();
  };
  const point = (event) => {
    if (!layer()) return;
    const place = canvas.getBoundingClientRect();
    const [rows, columns] = layer().grid;
    move(
      Math.floor(((event.clientY - place.top) / place.height) * rows),
      Math.floor(((event.clientX - place.left) / place.width) * columns),
    );
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point); // a tap moves nothing
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    if (cursor) move(cursor[0] + step[0], cursor[1] + step[1]);
    else move(0, 0);
  });
}

function showStageLightly() {
  drawExperts(byId("overlay"), image, layer(), only, cursor);
  showPatch();
}
