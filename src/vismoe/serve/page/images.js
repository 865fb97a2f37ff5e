// The image that all views look at: dropped, pasted, picked from the disk, or taken with the camera.

import { byId, element } from "./elements.js";
import { Problem, showProblem } from "./service.js";

const listeners = [];
let address = null;

/** The current image: a File, or null. */
export let current = null;

/** Calls `listener` with each new image. */
export const onImage = (listener) => listeners.push(listener);

function take(file, note = "") {
  if (!file) return;
  current = file;
  showProblem(null);
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  const thumbnail = byId("thumbnail");
  thumbnail.onerror = () => (thumbnail.hidden = true); // formats that the service can read and this browser cannot
  thumbnail.src = address;
  thumbnail.hidden = false;
  byId("picker").classList.add("filled");
  byId("picked").textContent = file.name || "image";
  byId("picked-note").textContent = `${note}Drop or paste another one at any time.`;
  for (const listener of listeners) listener(file);
}

/** Takes the first image of what was dropped or pasted. */
function takeFirst(transfer) {
  const files = [...(transfer?.files ?? [])];
  if (files.length === 0) return; // text
  const folders = [...transfer.items].map((one) => one.webkitGetAsEntry?.()).filter((one) => one?.isDirectory);
  const isFolder = (file) => folders.some(({ name }) => name === file.name);
  // A file without a type may be an image that this browser does not know: the service looks.
  const file = files.find((one) => !isFolder(one) && (one.type === "" || one.type.startsWith("image/")));
  if (file) {
    take(file, files.length > 1 ? `Only the first of ${files.length} files is used. ` : "");
    return;
  }
  const [{ name }] = files;
  const what = folders.length ? `${name} is a folder` : `${name} is not an image`;
  showProblem(new Problem(`${what}. Drop or choose a single image: JPEG, PNG, WebP, GIF or BMP.`));
}

/** Listens for images. */
export function startImages() {
  byId("file").addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => takeFirst(event.clipboardData));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    takeFirst(event.dataTransfer);
  });
  byId("camera").addEventListener("click", () => openCamera().catch(showProblem));
  take(byId("file").files[0]); // chosen before this module was there
}

async function openCamera() {
  const stream = await cameraStream();
  const [dialog, video] = [byId("camera-dialog"), byId("camera-video")];
  byId("camera-take").disabled = true;
  video.onloadeddata = () => (byId("camera-take").disabled = false);
  video.srcObject = stream;
  byId("camera-cancel").onclick = () => dialog.close();
  byId("camera-take").onclick = () => {
    const still = element("canvas", { width: video.videoWidth, height: video.videoHeight });
    still.getContext("2d").drawImage(video, 0, 0);
    still.toBlob((blob) => take(new File([blob], "photo.jpg", { type: "image/jpeg" })), "image/jpeg", 0.95);
    dialog.close();
  };
  dialog.onclose = () => {
    video.srcObject = null;
    for (const track of stream.getTracks()) track.stop();
  };
  dialog.showModal();
}

async function cameraStream() {
  if (!navigator.mediaDevices) {
    throw new Problem("Browsers give the camera only to pages from this machine or over HTTPS.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new Problem(
      error.name === "NotAllowedError"
        ? "This browser does not let the page use the camera. Allow it in the settings of the page."
        : "There is no camera that this browser can use.",
    );
  }
}
