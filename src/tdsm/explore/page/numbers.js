// What is computed in the page, of arrays as the server gives them: components (tokens, height, width, channels).

const sum = (values) => values.reduce((total, value) => total + value, 0);

// Base and the components of tokens that are on, added up.
function addUp(view, on) {
  const total = Float32Array.from(view.base.values);
  const size = total.length;
  on.forEach((isOn, token) => {
    if (!isOn) return;
    const part = view.components.values.subarray(token * size, (token + 1) * size);
    for (let at = 0; at < size; at++) total[at] += part[at];
  });
  return { shape: view.base.shape, values: total };
}

// The mean over channels of an image or of a token's component, one number a place.
function plane(array, token = 0) {
  const [height, width, channels] = array.shape.slice(-3);
  const start = token * height * width * channels;
  const values = new Float32Array(height * width);
  for (let place = 0; place < values.length; place++) {
    let total = 0;
    for (let channel = 0; channel < channels; channel++) total += array.values[start + place * channels + channel];
    values[place] = total / channels;
  }
  return values;
}

const planes = (array) => Array.from({ length: array.shape[0] }, (_, token) => plane(array, token));

// Each token's share of the energy Σ I², in a box of rows and columns or all over, and the centre of |I|.
// Of tokens decoded alone it is the energy about their own mean: how much they vary.
function shares(maps, width, isAlone, box) {
  const height = maps[0].length / width;
  const [top, left, bottom, right] = box ?? [0, 0, height - 1, width - 1];
  const energies = maps.map((map) => {
    const level = isAlone ? sum(map) / map.length : 0;
    let energy = 0, weight = 0, down = 0, across = 0;
    for (let row = top; row <= bottom; row++) {
      for (let column = left; column <= right; column++) {
        const value = map[row * width + column] - level;
        energy += value * value;
        weight += Math.abs(value);
        down += row * Math.abs(value);
        across += column * Math.abs(value);
      }
    }
    return { energy, row: weight ? down / weight : 0, column: weight ? across / weight : 0 };
  });
  const total = sum(energies.map(({ energy }) => energy)) || 1;
  return energies.map((entry) => ({ ...entry, share: entry.energy / total }));
}

// The fewest tokens that hold half of the energy of a box.
function speakers(entries) {
  const order = entries.map((_, token) => token).sort((a, b) => entries[b].share - entries[a].share);
  const chosen = [];
  let held = 0;
  while (held < 0.5 && chosen.length < order.length) {
    chosen.push(order[chosen.length]);
    held += entries[chosen.at(-1)].share;
  }
  return { chosen, held };
}

function softmax(scores) {
  const largest = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(score - largest));
  const total = sum(powers);
  return powers.map((power) => power / total);
}

// Class scores of the tokens that are on, where each token has its own share: blank + Σ shares.
function addScores(falls, on) {
  const classes = falls.scores.values.length;
  return Array.from(falls.blank.values, (blank, name) =>
    blank + sum([...on].map((isOn, token) => (isOn ? falls.by_token.values[token * classes + name] : 0))));
}

function quantile(values, share) {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

// Peak signal-to-noise ratio in decibels of pictures of the same shape, clipped to [-1, 1]; at most 100.
function psnr(one, other) {
  const clip = (value) => Math.max(-1, Math.min(1, value));
  let error = 0;
  one.values.forEach((value, at) => { error += (clip(value) - clip(other.values[at])) ** 2; });
  return Math.min(100, 10 * Math.log10(4 / (error / one.values.length)));
}

const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const plain = (value, digits = 2) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
