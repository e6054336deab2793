// What is seen, to take away: as a picture, as arrays, as the call that gives it.

function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- arrays: a zip without compression of .npy files

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function checksum(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

const little = (...pairs) => Uint8Array.from(pairs.flatMap(([value, size]) =>
  Array.from({ length: size }, (_, at) => (value / 256 ** at) & 255)));

function npy({ shape, values }) {
  const kind = values instanceof Float32Array ? "<f4" : "<i4";
  const words = `{'descr': '${kind}', 'fortran_order': False, 'shape': (${shape.join(", ")}${shape.length === 1 ? "," : ""}), }`;
  const header = words.padEnd(Math.ceil((words.length + 11) / 64) * 64 - 11) + "\n";
  const start = new Uint8Array([0x93, ...new TextEncoder().encode("NUMPY"), 1, 0, header.length & 255, header.length >> 8]);
  return joined([start, new TextEncoder().encode(header), new Uint8Array(values.buffer, values.byteOffset, values.byteLength)]);
}

function joined(pieces) {
  const bytes = new Uint8Array(sum(pieces.map((piece) => piece.length)));
  pieces.reduce((at, piece) => { bytes.set(piece, at); return at + piece.length; }, 0);
  return bytes;
}

function npz(arrays) {
  const [bodies, directory] = [[], []];
  let offset = 0;
  for (const [key, array] of Object.entries(arrays)) {
    const [name, body] = [new TextEncoder().encode(`${key}.npy`), npy(array)];
    const facts = [[20, 2], [0, 2], [0, 2], [0, 2], [0x21, 2], [checksum(body), 4], [body.length, 4], [body.length, 4], [name.length, 2], [0, 2]];
    const local = joined([little([0x04034b50, 4], ...facts), name, body]);
    directory.push(joined([little([0x02014b50, 4], [20, 2], ...facts, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), name]));
    bodies.push(local);
    offset += local.length;
  }
  const [entries, count] = [joined(directory), directory.length];
  return joined([...bodies, entries, little([0x06054b50, 4], [0, 4], [count, 2], [count, 2], [entries.length, 4], [offset, 4], [0, 2])]);
}

// ---- a picture of pictures and tiles, with their numbers

function sheet(title, pictures, tiles, words) {
  const [side, gap, margin, columns] = [120, 12, 24, 8];
  const rows = Math.ceil(tiles.length / columns);
  const canvas = make("canvas", { width: 2 * margin + columns * (side + gap) - gap, height: 130 + 2 * side + rows * (side + gap + 18) });
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.body);
  const write = (text, x, y, font) => { context.font = font; context.fillText(text, x, y, canvas.width - x - margin); };
  const draw = (picture, x, y, size) => {
    const scale = size / Math.max(picture.width, picture.height);
    context.imageSmoothingEnabled = Math.max(picture.width, picture.height) > 64;
    context.drawImage(picture, x, y, picture.width * scale, picture.height * scale);
  };
  context.fillStyle = style.backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.color;
  write(title, margin, 36, "600 20px sans-serif");
  pictures.forEach(([picture, caption], at) => {
    draw(picture, margin + at * (2 * side + gap + 12), 56, 2 * side);
    write(caption, margin + at * (2 * side + gap + 12), 74 + 2 * side, "13px sans-serif");
  });
  write(words, margin, 104 + 2 * side, "13px sans-serif");
  tiles.forEach(({ picture, caption, isOn }, at) => {
    const [x, y] = [margin + (at % columns) * (side + gap), 118 + 2 * side + Math.floor(at / columns) * (side + gap + 18)];
    context.globalAlpha = isOn ? 1 : 0.25;
    draw(picture, x, y, side);
    write(caption, x, y + side + 15, "13px sans-serif");
    context.globalAlpha = 1;
  });
  return canvas;
}

// ---- the call

const quoted = (words) => JSON.stringify(words);
const listed = (numbers) => `[${numbers.join(", ")}]`;
// Tokens by name, or by those that are missing, whichever are fewer.
function chosen(kept, count) {
  if (kept.length === count) return `list(range(${count}))`;
  if (2 * kept.length <= count) return listed(kept);
  const missing = Array.from({ length: count }, (_, token) => token).filter((token) => !kept.includes(token));
  return `[k for k in range(${count}) if k not in ${listed(missing)}]`;
}
const places = (flags) => [...flags].flatMap((isSet, token) => (isSet ? [token] : []));

// The lines of Python that give `components`, `picture` and `scores`, as they are seen.
function pythonCall({ about, image, other, size, method, sumMethod, on, swapped, isExact, head, addsScores }) {
  const [kept, moved, grid] = [places(on), places(swapped), `size=(${size.join(", ")})`];
  const setUp = about.python.split("\n");
  if (!setUp.includes("import tdsm")) setUp.unshift("import tdsm");
  setUp.unshift("import torch");
  if ([image, other].some((line) => line?.includes("read_picture"))) {
    if (!setUp.includes("from pathlib import Path")) setUp.unshift("from pathlib import Path");
    setUp.splice(setUp.indexOf(""), 0, "from tdsm.explore.studio import read_picture");
  }
  if (head) setUp.splice(setUp.indexOf(""), 0, "from tdsm.explore.heads import fitted_heads");
  const lines = [...setUp, "", `image = ${image}`, "with torch.no_grad():", "    tokens = field.encode(image)"];
  lines.push(`    parts = tdsm.decompose(field, tokens, ${grid}, method=${quoted(method)})`);
  const summands = method === sumMethod ? "parts" : "summands";
  if (summands !== "parts" && !(isExact && kept.length)) {
    lines.push(`    summands = tdsm.decompose(field, tokens, ${grid}, method=${quoted(sumMethod)})`);
  }
  if (moved.length) lines.push(`    tokens[:, ${listed(moved)}] = field.encode(${other})[:, ${listed(moved)}]`);
  lines.push(`    kept = ${chosen(kept, on.length)}`);
  if (isExact && kept.length) lines.push(`    picture = field.decode(tokens[:, kept], ${grid})[0]`);
  else lines.push(`    picture = ${summands}.base[0]${isExact ? "" : ` + ${summands}.components[0, kept].sum(0)`}`);
  if (head) {
    lines.push(`    head = fitted_heads(run)[${quoted(head)}]`);
    if (addsScores) lines.push("    falls = head.falls(image, tokens)", "    scores = falls.blank + falls.by_token[kept].sum(0)");
    else lines.push("    scores = head.scores(image, tokens, kept)");
  }
  return [...lines, "components = parts.components[0]", ""].join("\n");
}
