// The view Try: one image, its answer, which expert takes which patch, and what another capacity changes.

import { answerList, inWords } from "./answers.js";
import { byId, element, facts, milliseconds, options, percent } from "./elements.js";
import { current, onImage } from "./images.js";
import { colourOf, decoded, drawBoxes, drawExperts, drawImage, drawMap, patches } from "./overlay.js";
import { postImage, showProblem } from "./service.js";

const WAIT = 100; // milliseconds without a move of the slider before the service is asked
const OBJECTS = 100;

let models = [];
let answer = null; // of /v1/explain, for the capacity of the slider
let own = null; // of /v1/explain, for the model's own capacity; the same object as `answer` there
let image = null; // as the network sees it
let upload = null; // as it was chosen; only for boxes
let capacity = null;
let only = null;
let cursor = null;
let call = null;
let timer = null;

/** Fills the view for the models of the service. */
export function startTry(list) {
  models = list;
  options(byId("try-model"), models.map(({ name }, number) => [number, name]));
  byId("try-model-field").hidden = models.length < 2;
  byId("try-model").addEventListener("change", start);
  byId("try-view").addEventListener("change", show);
  byId("try-layer").addEventListener("change", () => {
    only = null;
    cursor = null;
    show();
  });
  byId("capacity").addEventListener("input", () => setCapacity(Number(byId("capacity").value)));
  byId("capacity-own").addEventListener("click", () => setCapacity(null));
  startCursor();
  onImage(start);
}

const model = () => models[Number(byId("try-model").value)];
const layer = () => answer?.layers[Number(byId("try-layer").value)];

/** Asks anew, for a new image or another model. */
function start() {
  if (!current) return;
  answer = own = image = upload = only = cursor = null;
  capacity = null;
  showCapacity();
  ask();
}

function setCapacity(value) {
  capacity = value;
  showCapacity();
  clearTimeout(timer);
  timer = setTimeout(ask, WAIT);
}

function showCapacity() {
  const words = capacity === null ? "as the model has it" : `${capacity.toFixed(2)}×`;
  byId("capacity-value").textContent = words;
  byId("capacity").setAttribute("aria-valuetext", words);
  byId("capacity-own").disabled = capacity === null;
  if (capacity === null) byId("capacity").value = 1;
}

async function ask() {
  call?.abort();
  call = new AbortController();
  const { signal } = call;
  const asked = { model: byId("try-model").value, topk: model().task === "detection" ? OBJECTS : 5, capacity };
  byId("try-result").classList.add("waiting");
  try {
    const got = await postImage("v1/explain", current, asked, signal);
    const seen = await decoded(got.image);
    if (got.predictions[0]?.box) upload ??= await decoded(byId("thumbnail").src);
    if (signal.aborted) return;
    [answer, image] = [got, seen];
    if (capacity === null) own = got;
    showProblem(null);
    show();
  } catch (error) {
    if (!signal.aborted) showProblem(error);
  } finally {
    if (!signal.aborted) byId("try-result").classList.remove("waiting");
  }
}

function show() {
  byId("try-empty").hidden = true;
  byId("try-result").hidden = false;
  options(byId("try-view"), views());
  options(byId("try-layer"), answer.layers.map(({ name, experts }, number) => [number, `${name} (${experts} experts)`]));
  byId("capacity-card").hidden = !model().capacity;
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
  byId("try-answer").replaceChildren(answerList(answer.predictions));
  const rows = [["Time", milliseconds(answer.milliseconds)]];
  let verdict = "";
  if (answer.layers.length) rows.push(["Choices kept", percent(answer.kept, 1)]);
  if (capacity !== null && own) {
    const less = 1 - answer.milliseconds / own.milliseconds;
    rows.push(["Own capacity", milliseconds(own.milliseconds)]);
    rows.push(["Difference", `${percent(Math.abs(less))} ${less < 0 ? "slower" : "faster"}`]);
    const [now, before] = [inWords(answer.predictions), inWords(own.predictions)];
    verdict = now === before ? "The answer is the same." : `The answer changed: ${before} → ${now}`;
    byId("changed").classList.toggle("differs", now !== before);
  }
  facts(byId("cost"), rows);
  byId("changed").textContent = verdict;
  const words = rows.map(([term, value]) => `${term} ${value}`).join(", ");
  byId("try-status").textContent = `Answer: ${inWords(answer.predictions)}. ${words}. ${verdict}`;
}

function showStage() {
  const view = byId("try-view").value;
  const experts = view === "experts";
  byId("try-layer-field").hidden = !experts;
  byId("experts").hidden = !experts;
  byId("patch").hidden = !experts;
  const canvas = byId("overlay");
  canvas.tabIndex = experts ? 0 : -1;
  byId("legend").textContent = {
    experts: "Colour: expert. Strength: gate. Hatched: dropped, no expert had room.",
    attention: "Attention rollout: the brighter a patch, the more of it reaches the answer.",
    image: answer.layers.length ? "" : "This model has no experts: every patch goes through the same MLPs.",
    boxes: "",
  }[view];
  if (view === "boxes") drawBoxes(canvas, upload, answer.predictions);
  else if (view === "attention") drawMap(canvas, image, answer.rollout);
  else if (view === "image") drawImage(canvas, image);
  else {
    drawExperts(canvas, image, layer(), only, cursor);
    showChips();
    showPatch();
  }
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
  const unseen = (words) => element("span", { class: "unseen" }, words);
  const content =
    expert === null
      ? ["All", unseen(" experts")]
      : [element("span", { class: "swatch" }), unseen("Expert "), expert, unseen(": "), element("span", { class: "quiet" }, count), unseen(" patches")];
  const press = () => {
    only = only === expert ? null : expert;
    showStage();
  };
  const pressed = String(only === expert);
  return element("button", { type: "button", class: "chip", "aria-pressed": pressed, "--colour": expert === null ? null : colourOf(expert), onclick: press }, content);
}

function showPatch() {
  byId("patch").textContent = cursor ? patchInWords(...cursor) : "Point at a patch to see its expert.";
}

function patchInWords(row, column) {
  const { taken, lost } = patches(layer()).find((patch) => patch.row === row && patch.column === column);
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
  canvas.addEventListener("pointermove", (event) => {
    if (!layer()) return;
    const place = canvas.getBoundingClientRect();
    const [rows, columns] = layer().grid;
    move(
      Math.floor(((event.clientY - place.top) / place.height) * rows),
      Math.floor(((event.clientX - place.left) / place.width) * columns),
    );
  });
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
