// An answer of a model as elements: classes with their probabilities, or found objects.

import { counted, element, percent } from "./elements.js";

const MOST_OBJECTS = 20;

/** Objects with a lower score are not shown, unless a person wants them. */
export const LEAST_SCORE = 0.3;

/** How many classes, or objects, to ask for. */
export const asked = ({ task }) => (task.includes("detection") ? 100 : 5);

/** An answer without objects of a score below `least`; classes stay. */
export const surely = (answer, least) => answer.filter(({ box, probability }) => !box || probability >= least);

/** The list of an answer: the most probable classes, or the objects with the highest scores. */
export function answerList(answer) {
  if (answer.length === 0) return element("p", { class: "quiet" }, "Nothing found.");
  const shown = answer.slice(0, MOST_OBJECTS);
  const rows = shown.map(({ label, probability }) =>
    element(
      "li",
      { "--share": percent(probability, 1).replace(" ", "") },
      element("span", { class: "label" }, label),
      element("span", { class: "number" }, percent(probability, probability < 0.1 ? 1 : 0)),
      element("span", { class: "bar", "aria-hidden": "true" }),
    ),
  );
  const more = answer.length - shown.length;
  return element(
    "div",
    {},
    element("ol", { class: "answer" }, rows),
    more > 0 ? element("p", { class: "more quiet" }, `and ${counted(more, "more object", "more objects")}`) : null,
  );
}

/** An answer in words: the first class, or how many objects of each class there are. */
export function inWords(answer) {
  if (answer.length === 0) return "nothing found";
  if (!answer[0].box) return answer[0].label;
  const counts = new Map();
  for (const { label } of answer) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].map(([label, count]) => `${count} × ${label}`).join(", ");
}
