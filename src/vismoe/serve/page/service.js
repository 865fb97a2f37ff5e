// Calls the service, with the token if it wants one, and puts its errors into words.

import { byId, element } from "./elements.js";

const KEY = "vismoe-token";
const READ = "Accepted are JPEG, PNG, WebP, GIF and BMP with one frame: save it as JPEG, and choose that file.";
const AGAIN = { no_token: "Enter the token", no_answer: "Try again", busy: "Try again" }; // what a person can do

/** What went wrong, in words for a person; `code` is the service's own, such as "too_large". */
export class Problem extends Error {
  constructor(message, code = "page") {
    super(message);
    this.code = code;
  }
}

/** Whether the service has wanted a token. */
export const hasToken = () => sessionStorage.getItem(KEY) !== null;

/** GET; null where the service has answered 202: not ready yet. */
export async function get(path, signal) {
  const response = await call(path, { signal });
  return response.status === 202 ? null : response.json();
}

/** POST of an image with further fields; those that are null are left out. */
export async function postImage(path, image, fields, signal) {
  const form = new FormData();
  form.append("image", image, image.name || "image");
  for (const [name, value] of Object.entries(fields)) {
    if (value !== null) form.append(name, value);
  }
  try {
    return await (await call(path, { method: "POST", body: form, signal })).json();
  } catch (error) {
    throw aboutImage(error, image.name || "image");
  }
}

/** An error of the service that is the image's fault begins with the name of its file, and says what to do. */
function aboutImage(error, name) {
  if (error.code === "not_an_image") {
    return new Problem(`${name}: this is not an image, or not of a format that the service reads. ${READ}`, error.code);
  }
  if (error.code === "bad_image") return new Problem(`${name}: ${error.message}. ${READ}`, error.code);
  if (error.code === "too_large") return new Problem(`${name}: ${error.message}`, error.code);
  return error;
}

async function call(path, request) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
    const response = await answered(path, { ...request, headers, cache: "no-store" });
    if (response.status === 401) {
      await newToken(token);
      continue;
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

async function answered(path, request) {
  try {
    return await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service does not answer. Is vismoe serve still running?", "no_answer");
  }
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error;
  } catch {
    // Not the service's own answer, but that of a proxy in front of it.
  }
  const wait = response.headers.get("Retry-After");
  const message = error?.message || `The service answered with status ${response.status}.`;
  return new Problem(wait ? `${message} Try again in ${wait} s.` : message, error?.code);
}

let asking = null;
let words = null; // of the dialog, when it asks for the first time

/** Asks for a token, once for all calls that wait for one; `refused` is the token that the service did not take. */
function newToken(refused) {
  if (sessionStorage.getItem(KEY) !== refused) return Promise.resolve(); // another call has asked meanwhile
  asking ??= ask(refused !== null).finally(() => (asking = null));
  return asking;
}

function ask(again) {
  const [dialog, note] = [byId("token-dialog"), byId("token-note")];
  words ??= note.textContent;
  note.textContent = again ? "The service did not accept this token. Please enter it again." : words;
  byId("token").value = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    byId("token-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, byId("token").value.trim());
      dialog.onclose = null;
      dialog.close();
      resolve();
    };
    byId("token-cancel").onclick = () => dialog.close();
    dialog.onclose = () => reject(new Problem("This service needs a token.", "no_token"));
  });
}

/**
 * Shows an error in words, or with null takes the last one away. Aborted calls are no errors.
 * `again`: does what has failed once more; a button calls it where that can help.
 */
export function showProblem(error, again) {
  if (error?.name === "AbortError") return;
  if (error && !(error instanceof Problem)) console.error(error);
  const place = byId("problem");
  place.hidden = !error;
  const button = again && AGAIN[error?.code];
  const retry = () => {
    showProblem(null);
    again();
  };
  place.replaceChildren(
    error ? element("span", {}, error.message) : "",
    button ? element("button", { type: "button", onclick: retry }, button) : "",
  );
}
