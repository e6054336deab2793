// Numbers to pixels. Every scale that is used can be drawn as a legend.

const isDark = matchMedia("(prefers-color-scheme: dark)");
const RAMPS = {
  light: { signed: ["#123f73", "#3f7fbd", "#a9cbe4", "#f7f7f5", "#f2b8a2", "#cf4a4a", "#7d0f26"], above: ["#f7f7f5", "#9cc4e0", "#2f74b5", "#0b2f5c"] },
  dark: { signed: ["#b5dcff", "#5aa3ea", "#29517c", "#20252a", "#7c3a2c", "#f0775a", "#ffd2c2"], above: ["#20252a", "#2a5a8c", "#64aef0", "#d8ecff"] },
};
const LEVELS = 512;

const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

// A table of LEVELS colours along a ramp.
function table(name) {
  const colours = RAMPS[isDark.matches ? "dark" : "light"][name].map(parts);
  return Uint8ClampedArray.from({ length: 3 * LEVELS }, (_, at) => {
    const place = (Math.floor(at / 3) / (LEVELS - 1)) * (colours.length - 1);
    const before = Math.min(colours.length - 2, Math.floor(place));
    const [from, to] = [colours[before][at % 3], colours[before + 1][at % 3]];
    return from + (to - from) * (place - before);
  });
}

function fill(canvas, height, width, colour) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let place = 0; place < height * width; place++) colour(pixels.data, 4 * place, place);
  context.putImageData(pixels, 0, 0);
}

// A picture of one or three channels, [-1, 1] to black and white.
function paintPicture(canvas, array, token = 0, middle = 0, reach = 1) {
  const [height, width, channels] = array.shape.slice(-3);
  const start = token * height * width * channels;
  const at = channels === 3 ? [0, 1, 2] : [0, 0, 0];
  fill(canvas, height, width, (data, to, place) => {
    const from = start + place * channels;
    for (let part = 0; part < 3; part++) data[to + part] = 127.5 * ((array.values[from + at[part]] - middle) / reach + 1);
    data[to + 3] = 255;
  });
}

// One number a place by a ramp: "signed" from −limit to limit, "above" from 0 to limit. Faded: clear where it is 0.
function paintPlane(canvas, values, width, ramp, limit, isFaded = false) {
  const colours = table(ramp);
  fill(canvas, values.length / width, width, (data, to, place) => {
    const share = Math.max(-1, Math.min(1, values[place] / (limit || 1)));
    const level = Math.round((LEVELS - 1) * (ramp === "signed" ? (share + 1) / 2 : Math.max(0, share)));
    for (let part = 0; part < 3; part++) data[to + part] = colours[3 * level + part];
    data[to + 3] = isFaded ? 235 * Math.min(1, 1.5 * Math.abs(share)) : 255;
  });
}

// A ramp with the numbers of its ends and its middle, and what they are.
function paintLegend(place, { ramp, low, high, words }) {
  place.replaceChildren();
  if (ramp) {
    const canvas = place.appendChild(document.createElement("canvas"));
    const ends = place.appendChild(make("div", { className: "ends" }));
    const span = ramp === "signed" ? 2 : 1;
    const values = Float32Array.from({ length: 256 }, (_, at) => (at / 255) * span - (span - 1));
    if (ramp === "grey") fill(canvas, 1, 256, (data, to, at) => data.set([at, at, at, 255], to));
    else paintPlane(canvas, values, 256, ramp, 1);
    for (const value of [low, (low + high) / 2, high]) ends.append(make("span", {}, number(value)));
  }
  place.append(make("span", {}, words));
}

function number(value) {
  if (value === 0) return "0";
  return plain(value, Math.max(0, Math.min(4, 1 - Math.floor(Math.log10(Math.abs(value))))));
}

// Make an element; text is text, never markup.
function make(kind, properties = {}, ...content) {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...content);
  return element;
}
