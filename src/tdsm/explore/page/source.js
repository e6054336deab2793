"use strict";
// Where the page gets its answers: from its server, or from what was put inside it. Both are asked alike.

// Read an answer: the length of its header, the header, and the numbers of every array it names.
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const answer = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let offset = 4 + length;
  for (const [name, shape] of answer.arrays) {
    const size = shape.reduce((product, side) => product * side, 1);
    answer[name] = { shape, values: new Float32Array(buffer, offset, size) };
    offset += 4 * size;
  }
  return answer;
}

// Keep the answers asked for last.
class Remembered {
  constructor(most) {
    this.most = most;
    this.held = new Map();
  }
  get(key, make) {
    const answer = this.held.get(key) ?? make();
    this.held.delete(key);
    this.held.set(key, answer);
    if (answer instanceof Promise) answer.catch(() => this.held.delete(key));
    if (this.held.size > this.most) this.held.delete(this.held.keys().next().value);
    return answer;
  }
}

class ServerSource {
  constructor() {
    this.isLive = true;
    this.pending = 0; // questions that are not answered yet
    this.views = new Remembered(6);
    this.rest = new Remembered(200);
  }
  async ask(path, options) {
    this.pending += 1;
    try {
      return await this.answer(path, options);
    } finally {
      this.pending -= 1;
    }
  }
  async answer(path, options) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("the server does not answer; was tdsm explore stopped?");
    }
    const isNumbers = response.headers.get("content-type") === "application/octet-stream";
    if (response.ok) return isNumbers ? unpack(await response.arrayBuffer()) : response.json();
    const words = await response.text();
    throw new Error(words.startsWith("{") ? JSON.parse(words).error : words);
  }
  tell(path, question, signal) {
    return this.ask(path, { method: "POST", body: JSON.stringify(question), signal });
  }
  remembered(path) {
    return this.rest.get(path, () => this.ask(path));
  }
  about() { return this.ask("/about"); }
  listing(shelf) { return this.remembered(`/shelves/${shelf}`); }
  faithfulness(shelf) { return this.remembered(`/faithfulness/${shelf}`); }
  image(shelf, row) { return this.remembered(`/images/${shelf}/${row}`); }
  falls(shelf, row, head) { return this.remembered(`/falls/${shelf}/${row}/${head}`); }
  view(shelf, row, method, side) {
    const path = `/views/${shelf}/${row}/${method}/${side}`;
    return this.views.get(path, () => this.ask(path));
  }
  thumbnails(shelf, rows) { return this.tell("/thumbnails", { shelf, rows }); }
  compose(sources, slots, side, head, signal) {
    return this.tell("/compositions", { sources, slots: [...slots], side, head }, signal);
  }
  drop(file) { return this.ask("/pictures", { method: "POST", body: file }); }
}

// Answers that were put inside: components in whole steps, and the picture of all tokens, which they are taken from.
class EmbeddedSource {
  constructor(inside) {
    this.isLive = false;
    this.pending = 0;
    this.inside = inside;
    this.opened = new Remembered(8);
  }
  async about() { return this.inside.about; }
  async listing() { return this.inside.listing; }
  async faithfulness() { return this.inside.faithfulness; }
  opening(row) {
    return this.opened.get(row, async () => {
      const text = document.getElementById(`image-${row}`).textContent;
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      return new Uint8Array(await new Response(stream).arrayBuffer());
    });
  }
  async part(row, name) {
    const { start, shape, step, low, signed } = this.inside.images[row][name];
    const bytes = await this.opening(row);
    const size = shape.reduce((product, side) => product * side, 1);
    const whole = signed ? new Int8Array(bytes.buffer, start, size) : new Uint8Array(bytes.buffer, start, size);
    return { shape, values: Float32Array.from(whole, (value) => low + step * value) };
  }
  async image(shelf, row) { return { image: await this.part(row, "image") }; }
  async view(shelf, row, method) {
    const { methods, first_method } = this.inside.about, name = methods[method].name;
    const names = ["reconstruction", name, methods[first_method].name];
    const [reconstruction, components, summands] = await Promise.all(names.map((name) => this.part(row, name)));
    const base = { shape: reconstruction.shape, values: Float32Array.from(reconstruction.values) };
    summands.values.forEach((value, at) => { base.values[at % base.values.length] -= value; });
    const { completeness_error } = this.inside.images[row];
    return { method: name, completeness_error, reconstruction, components, base };
  }
  async falls(shelf, row, head) {
    const told = this.inside.images[row].falls[head];
    const numbers = (values) => ({ shape: [values.length], values: Float32Array.from(values) });
    const by_token = told.adds_up ? await this.part(row, `shares-${head}`) : undefined;
    return { adds_up: told.adds_up, scores: numbers(told.scores), blank: told.blank && numbers(told.blank), by_token };
  }
  async thumbnails(shelf, rows) {
    const images = await Promise.all(rows.map((row) => this.part(row, "image")));
    const values = Float32Array.from(images.flatMap(({ values }) => [...values]), (value) => 127.5 * (value + 1));
    return { images: { shape: [rows.length, ...images[0].shape], values } };
  }
}

function openSource() {
  const inside = document.getElementById("inside");
  return inside ? new EmbeddedSource(JSON.parse(inside.textContent)) : new ServerSource();
}
