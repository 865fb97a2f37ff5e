// Draws what the experts took: an image, and over each patch the colour of its expert, as strong as the gate.

// Okabe and Ito's colours, which people with colour-blindness tell apart, with Tol's wine for their black; numbers say
// what colours cannot.
const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#882255"];
const SHADES = [0, 35, -30, 60]; // per cent of white, or of black, for experts 8–15, 16–23, 24–31
const LONGEST = 1120;

/** The colour of an expert. */
export function colourOf(expert) {
  const colour = COLOURS[expert % COLOURS.length];
  const shade = SHADES[Math.floor(expert / COLOURS.length) % SHADES.length];
  const target = shade > 0 ? 255 : 0;
  const channels = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const mixed = channels.map((value) => Math.round(value + ((target - value) * Math.abs(shade)) / 100));
  return `rgb(${mixed.join(" ")})`;
}

/** An image of an address, decoded. */
export async function decoded(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

function paint(canvas, image) {
  const scale = LONGEST / Math.max(image.naturalWidth, image.naturalHeight);
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 16; // the pixels of a very small image are shown as they are
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return context;
}

/** The rectangle of a patch: left, top, width, height. */
function cell(canvas, [rows, columns], row, column) {
  const [width, height] = [canvas.width / columns, canvas.height / rows];
  return [column * width, row * height, width, height];
}

function hatch(context, [left, top, width, height]) {
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  context.fillStyle = "rgb(20 20 20 / 0.55)";
  context.fillRect(left, top, width, height);
  context.beginPath();
  const step = Math.max(8, width / 5);
  for (let offset = -height; offset < width; offset += step) {
    context.moveTo(left + offset, top + height);
    context.lineTo(left + offset + height, top);
  }
  context.lineWidth = Math.max(1.5, step / 6);
  context.strokeStyle = "rgb(255 255 255 / 0.8)";
  context.stroke();
  context.restore();
}

/**
 * Draws one layer over the image. Of a patch with several experts each has a part as wide as its gate.
 * `only`: the number of an expert whose patches alone are shown, or null; `cursor`: [row, column] or null.
 */
export function drawExperts(canvas, image, layer, only, cursor) {
  const context = paint(canvas, image);
  fade(context);
  for (const { row, column, taken, padding } of patches(layer)) {
    const [left, top, width, height] = cell(canvas, layer.grid, row, column);
    if (padding) {
      context.fillStyle = "rgb(20 20 20)";
      context.fillRect(left, top, width, height);
      continue;
    }
    if (only !== null) {
      const one = taken.find(({ expert }) => expert === only);
      context.fillStyle = one ? colourOf(only) : "rgb(20 20 20)";
      context.globalAlpha = one ? strength(one.weight) : 0.72;
      context.fillRect(left, top, width, height);
      context.globalAlpha = 1;
      if (one) number(context, only, left, top, width, height);
      continue;
    }
    if (taken.length === 0) {
      hatch(context, [left, top, width, height]);
      continue;
    }
    const sum = taken.reduce((total, { weight }) => total + weight, 0) || 1;
    let start = left;
    for (const { expert, weight } of taken) {
      const part = (width * weight) / sum;
      context.globalAlpha = strength(weight);
      context.fillStyle = colourOf(expert);
      context.fillRect(start, top, part, height);
      start += part;
    }
    context.globalAlpha = 1;
  }
  lines(context, canvas, layer.grid);
  if (cursor) outline(context, cell(canvas, layer.grid, ...cursor));
}

/** Takes the image's own colours and darkest parts away, so that the experts' colours stand out. */
function fade(context) {
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "gray";
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.globalCompositeOperation = "source-over";
  context.fillStyle = "rgb(255 255 255 / 0.28)";
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
}

const strength = (weight) => 0.22 + 0.6 * Math.min(1, Math.max(0, weight));

function number(context, expert, left, top, width, height) {
  const size = Math.min(width, height) * 0.42;
  if (size < 12) return;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = size / 7;
  context.strokeStyle = "rgb(0 0 0 / 0.65)";
  context.strokeText(expert, left + width / 2, top + height / 2);
  context.fillStyle = "white";
  context.fillText(expert, left + width / 2, top + height / 2);
}

function lines(context, canvas, [rows, columns]) {
  context.beginPath();
  for (let row = 1; row < rows; row++) {
    context.moveTo(0, (row * canvas.height) / rows);
    context.lineTo(canvas.width, (row * canvas.height) / rows);
  }
  for (let column = 1; column < columns; column++) {
    context.moveTo((column * canvas.width) / columns, 0);
    context.lineTo((column * canvas.width) / columns, canvas.height);
  }
  context.lineWidth = 1;
  context.strokeStyle = "rgb(255 255 255 / 0.35)";
  context.stroke();
}

function outline(context, [left, top, width, height]) {
  context.lineWidth = 8;
  context.strokeStyle = "black";
  context.strokeRect(left, top, width, height);
  context.lineWidth = 4;
  context.strokeStyle = "white";
  context.strokeRect(left, top, width, height);
}

/**
 * The patches of a layer: row, column, `taken` (the choices that were kept, each an expert and its gate), and `lost`,
 * how many were dropped. Where experts choose patches, and not the other way, only a patch that none has chosen is lost.
 * `padding`: whether the patch is a margin around the image, which no expert gets.
 */
export function patches(layer) {
  const expertsChoose = layer.k === layer.experts;
  return layer.expert.flatMap((experts, row) =>
    experts.map((chosen, column) => {
      const weights = layer.weight[row][column];
      const taken = chosen
        .map((expert, choice) => ({ expert, weight: weights[choice] }))
        .filter(({ expert }) => expert >= 0);
      const padding = layer.padding[row][column];
      if (padding) return { row, column, taken: [], lost: 0, padding };
      const lost = expertsChoose ? Number(taken.length === 0) : chosen.length - taken.length;
      return { row, column, taken, lost, padding };
    }),
  );
}

/** Draws attention (or any map over the image): what has little of it is darkened. */
export function drawMap(canvas, image, values) {
  const context = paint(canvas, image);
  const most = Math.max(...values.flat()) || 1;
  values.forEach((line, row) =>
    line.forEach((value, column) => {
      context.fillStyle = `rgb(10 10 20 / ${0.85 * (1 - value / most)})`;
      context.fillRect(...cell(canvas, [values.length, line.length], row, column));
    }),
  );
}

/**
 * Draws found objects over the image that was uploaded, those with the highest scores on top. Returns how many labels
 * had no room, and are not drawn.
 */
export function drawBoxes(canvas, image, objects, classes) {
  const context = paint(canvas, image);
  const scale = canvas.width / image.naturalWidth;
  const dot = canvas.width / (canvas.clientWidth || canvas.width / 2); // of the canvas for one of the screen
  context.font = `600 ${13 * dot}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const labels = [];
  const drawings = objects.map(({ label, probability, box }) => {
    const [left, top, right, bottom] = box.map((value) => value * scale);
    const text = `${label} ${Math.round(100 * probability)} %`;
    const size = [context.measureText(text).width + 8 * dot, 19 * dot];
    const place = freePlace(canvas, [left, top, right, bottom], size, labels);
    if (place) labels.push(place);
    return { sides: [left, top, right - left, bottom - top], text, place, colour: colourOf(classes.indexOf(label)) };
  });
  for (const { sides, colour } of [...drawings].reverse()) {
    context.lineWidth = 4.5 * dot;
    context.strokeStyle = "rgb(0 0 0 / 0.6)";
    context.strokeRect(...sides);
    context.lineWidth = 2.5 * dot;
    context.strokeStyle = colour;
    context.strokeRect(...sides);
  }
  for (const { text, place } of drawings.filter((one) => one.place)) {
    context.fillStyle = "rgb(0 0 0 / 0.8)";
    context.fillRect(...place);
    context.fillStyle = "white";
    context.fillText(text, place[0] + 4 * dot, place[1] + place[3] / 2);
  }
  return objects.length - labels.length;
}

/** Where a label covers no other one: over or under its box, else in it; null if there is no such place. */
function freePlace(canvas, [left, top, right, bottom], [width, height], taken) {
  const lines = [top - height, bottom];
  for (let line = top; line + height <= bottom; line += height) lines.push(line);
  const inside = (value, size, length) => Math.max(0, Math.min(value, length - size));
  const places = lines.flatMap((line) =>
    [left, right - width].map((start) => [
      inside(start, width, canvas.width),
      inside(line, height, canvas.height),
      width,
      height,
    ]),
  );
  return places.find((place) => !taken.some((other) => overlap(place, other))) ?? null;
}

const overlap = ([left, top, width, height], [left2, top2, width2, height2]) =>
  left < left2 + width2 && left2 < left + width && top < top2 + height2 && top2 < top + height;

/** Draws the image alone. */
export const drawImage = paint;
