// What is chosen, what is on, and what that shows.

const $ = (name) => document.getElementById(name);
const PER_PAGE = 40, LISTED = 8, CLASSES = 10;

const state = {
  a: null, b: null, isComparing: false, // images, as {shelf, row}
  method: 0, size: 0, sort: "energy", look: "", isOwnScale: false,
  on: new Uint8Array(0), swapped: new Uint8Array(0), isExactAsked: false,
  head: -1, name: -1, // the fitted head, the class that evidence is of
  point: null, isPinned: false, box: null, token: -1,
  rows: [], first: 0, // of the gallery
};
let source, about, cells = [], loaded = null, shown = null, turn = 0, asking = null;

// ---------------------------------------------------------------- choosing an image

async function fillGallery(isKept = false) {
  const shelf = Number($("shelf").value), listing = await source.listing(shelf);
  const wanted = $("class").value, filter = $("filter").value, words = $("search").value.trim().toLowerCase();
  let rows = listing.labels.map((_, row) => row);
  const [kind, name] = filter.split("\n");
  if (kind === "psnr") {
    const { rows: measured, psnr: decibels } = await source.faithfulness(shelf);
    rows = measured.map((_, at) => at).sort((a, b) => decibels[a] - decibels[b]).map((at) => measured[at]);
  }
  if (wanted) rows = rows.filter((row) => listing.labels[row] === Number(wanted));
  if (kind === "wrong") rows = rows.filter((row) => listing.predicted[name][row] !== listing.labels[row]);
  if (words) rows = rows.filter((row) => String(row) === words || nameOf(listing, row).toLowerCase().includes(words));
  [state.rows, state.first] = [rows, isKept ? state.first : 0];
  await showGallery();
}

const nameOf = (listing, row) => listing.names[row] ?? about.classes[listing.labels[row]] ?? "";

async function showGallery() {
  const shelf = Number($("shelf").value), rows = state.rows.slice(state.first, state.first + PER_PAGE);
  const [listing, small] = await Promise.all([source.listing(shelf), rows.length ? source.thumbnails(shelf, rows) : null]);
  const said = listing.predicted[$("filter").value.split("\n")[1]];
  const thumbs = rows.map((row, at) => {
    const canvas = make("canvas"), shape = small.images.shape;
    paintPicture(canvas, small.images, at, 127.5, 127.5);
    const name = nameOf(listing, row), wrong = said && said[row] !== listing.labels[row] ? about.classes[said[row]] : "";
    const button = make("button", { type: "button", className: "thumb" }, canvas, make("span", {}, name || String(row)));
    if (wrong) button.append(make("span", { className: "wrong" }, `→ ${wrong}`));
    button.setAttribute("aria-label", `image ${row}${name ? `, ${name}` : ""}${wrong ? `, taken for ${wrong}` : ""}`);
    button.title = button.getAttribute("aria-label");
    Object.assign(button.dataset, { shelf, row });
    button.addEventListener("click", () => choose({ shelf, row }));
    return button;
  });
  $("strip").replaceChildren(...(thumbs.length ? thumbs : [make("p", { className: "empty" }, "No image is like that.")]));
  const last = Math.min(state.first + PER_PAGE, state.rows.length);
  $("range").textContent = state.rows.length ? `${state.first + 1} to ${last} of ${state.rows.length}` : "none";
  [$("before").disabled, $("after").disabled] = [!state.first, last >= state.rows.length];
  markChosen();
}

function markChosen() {
  for (const thumb of $("strip").querySelectorAll(".thumb")) {
    const is = (image) => image && image.shelf === Number(thumb.dataset.shelf) && image.row === Number(thumb.dataset.row);
    thumb.setAttribute("aria-pressed", String(Boolean(is(state.a) || is(state.b))));
  }
}

async function choose(image) {
  if (state.isComparing && state.a) state.b = image;
  else Object.assign(state, { a: image, name: -1 });
  state.swapped.fill(0);
  markChosen();
  await load();
}

async function drop(file) {
  if (!file) return;
  if (!source.isLive) return complain(new Error("a picture needs the field: start tdsm explore for that"));
  try {
    const image = await source.drop(file);
    await choose({ ...image, name: file.name });
  } catch (error) {
    complain(error);
  }
}

function complain(error) {
  if (error.name === "AbortError") return;
  $("problem").textContent = `This did not work: ${error.message}`;
  $("problem").hidden = false;
}

// ---------------------------------------------------------------- what is there of the chosen images

function isBusy(is) {
  document.body.classList.toggle("busy", is);
  $("stage").setAttribute("aria-busy", String(is));
}

async function load() {
  const ours = ++turn, side = about.sizes[state.size], sumMethod = about.first_method;
  isBusy(true);
  try {
    const one = async (image) => {
      if (!image) return null;
      const { shelf, row } = image;
      const [input, view, sums, falls] = await Promise.all([
        source.image(shelf, row),
        source.view(shelf, row, state.method, side),
        source.view(shelf, row, sumMethod, side),
        state.head < 0 ? null : source.falls(shelf, row, state.head),
      ]);
      const truth = about.shelves[shelf] ? (await source.listing(shelf)).labels[row] : -1;
      const maps = planes(view.components), width = view.base.shape[1];
      const isAlone = about.methods[state.method].alone;
      return { input: input.image, view, sums, falls, truth, maps, width, shares: shares(maps, width, isAlone) };
    };
    const [a, b] = await Promise.all([one(state.a), one(state.isComparing ? state.b : null)]);
    if (ours !== turn) return;
    loaded = { a, b };
    $("problem").hidden = true;
    settle();
    draw();
    await update();
  } catch (error) {
    if (ours === turn) complain(error);
  } finally {
    if (ours === turn) isBusy(false);
  }
}

// ---------------------------------------------------------------- the components

function looks() {
  if (about.methods[state.method].alone) return [["picture", "decoded pictures"], ["signed", "difference from its own mean"]];
  return [["signed", about.channels > 1 ? "mean over colours" : "signed"], ...(about.channels === 3 ? [["colour", "colours, grey is none"]] : [])];
}

// The maps of an image as they are ranked and drawn: of tokens decoded alone, about their own mean.
function drawn(part) {
  if (!about.methods[state.method].alone) return part.maps;
  part.about ??= part.maps.map((map) => { const mean = sum(map) / map.length; return map.map((value) => value - mean); });
  return part.about;
}

function scale() {
  const maps = [loaded.a, loaded.b].filter(Boolean).flatMap(drawn);
  const step = Math.ceil((maps.length * maps[0].length) / 60_000);
  const sample = maps.flatMap((map) => Array.from(map.filter((_, at) => at % step === 0), Math.abs));
  const isAbove = maps.every((map) => map.every((value) => value >= 0));
  return { limit: quantile(sample, 0.995) || 1e-6, ramp: isAbove ? "above" : "signed" };
}

const largest = (map) => map.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1e-6;

function draw() {
  const { a, b } = loaded, { limit, ramp } = scale(), look = state.look;
  fillGrid(Boolean(b));
  document.body.classList.toggle("smooth", Math.max(...a.view.base.shape) > 64);
  loaded.ramp = ramp;
  cells.forEach(({ canvases }, token) => [a, b].filter(Boolean).forEach((part, at) => {
    const map = drawn(part)[token], reach = state.isOwnScale ? largest(map) : limit;
    if (look === "picture") paintPicture(canvases[at], part.view.components, token);
    else if (look === "colour") paintPicture(canvases[at], part.view.components, token, 0, reach);
    else paintPlane(canvases[at], map, part.width, ramp, reach);
  }));
  const words = {
    picture: "what the field paints, −1 to 1, clipped beyond",
    colour: `colours: grey is 0, black and white are ∓${number(limit)}; the picture runs from −1 to 1`,
    signed: `${ramp === "above" ? "weight" : "output"} of a token at a place, ${about.methods[state.method].alone ? "less its own mean; " : ""}the picture runs from −1 to 1`,
  }[look];
  const own = state.isOwnScale && look !== "picture" ? "; each tile reaches to its own largest value, which is written on it" : "";
  const end = state.isOwnScale ? 1 : limit;
  const kind = look === "picture" ? { ramp: "grey", low: -1, high: 1 } : look === "colour" ? {} : { ramp, low: ramp === "above" ? 0 : -end, high: end };
  const sides = b ? "; left A, right B" : "";
  paintLegend($("legend"), { ...kind, words: (own ? `share of each tile's largest value${own}` : words) + sides });
  label();
  order();
}

function fillGrid(isTwo) {
  if (cells.length === about.tokens && cells[0].canvases.length === 1 + isTwo) return;
  cells = Array.from({ length: about.tokens }, (_, token) => {
    const canvases = Array.from({ length: 1 + isTwo }, () => make("canvas"));
    const number = make("b", {}, String(token)), note = make("span");
    const tile = make("button", { type: "button", className: "tile", tabIndex: -1 },
      make("span", { className: "maps" }, ...canvases), make("span", { className: "words" }, number, note));
    tile.dataset.token = token;
    const cell = make("div", { className: "cell" }, tile);
    const swap = make("button", { type: "button", className: "swap", hidden: !isTwo || !source.isLive, tabIndex: -1 }, "⇄ swap");
    cell.append(swap);
    return { cell, tile, canvases, note, swap };
  });
  cells[0].tile.tabIndex = 0;
  $("grid").classList.toggle("two", isTwo);
  $("grid").classList.toggle("few", about.tokens <= 20 && !isTwo);
  $("grid").classList.toggle("many", about.tokens > 72 && !isTwo);
}

// Write on every tile what it is: for the eye and for the ear.
function label() {
  const { a } = loaded, says = evidenceOf();
  cells.forEach(({ tile, note, swap }, token) => {
    const { share, row, column } = a.shares[token], isOn = Boolean(state.on[token]);
    const isOwn = state.isOwnScale && state.look !== "picture";
    const said = state.sort === "evidence" && says ? signed(says[token]) : isOwn ? `±${number(largest(drawn(a)[token]))}` : percent(share);
    note.textContent = said;
    const where = `centre row ${Math.round(row)}, column ${Math.round(column)}`;
    const evidence = says ? `, ${signed(says[token])} for ${about.classes[state.name]}` : "";
    tile.setAttribute("aria-label", `token ${token}, ${percent(share)} of the energy, ${where}${evidence}${state.swapped[token] ? ", swapped" : ""}`);
    tile.title = `token ${token}: ${percent(share)} of the energy, ${where}${evidence}`;
    tile.setAttribute("aria-pressed", String(isOn));
    swap.setAttribute("aria-pressed", String(Boolean(state.swapped[token])));
    swap.setAttribute("aria-label", `swap token ${token} between the two images`);
  });
}

// How much more the score of the class looked at falls without a token than the scores of all do, if that is known.
// Where shares add up this is the class evidence of the token.
function evidenceOf() {
  const { falls } = loaded.a;
  if (!falls?.by_token) return null;
  const classes = falls.scores.values.length;
  return Float32Array.from({ length: about.tokens }, (_, token) => {
    const shares = falls.by_token.values.subarray(token * classes, (token + 1) * classes);
    return shares[state.name] - sum(shares) / classes;
  });
}

function order() {
  const { a } = loaded, says = evidenceOf(), at = state.point;
  const here = at && drawn(a).map((map) => map[at[0] * a.width + at[1]]);
  const keys = {
    number: (token) => token,
    energy: (token) => -a.shares[token].share,
    down: (token) => a.shares[token].row,
    across: (token) => a.shares[token].column,
    evidence: (token) => (says ? -says[token] : token),
    here: (token) => (here ? -Math.abs(here[token]) : token),
  };
  const key = keys[state.sort];
  const sorted = cells.map((_, token) => token).sort((x, y) => key(x) - key(y) || x - y);
  const focused = document.activeElement;
  const current = [...$("grid").children];
  if (sorted.some((token, at) => current[at] !== cells[token].cell)) $("grid").replaceChildren(...sorted.map((token) => cells[token].cell));
  if (focused !== document.activeElement && $("grid").contains(focused)) focused.focus({ preventScroll: true });
}

// ---------------------------------------------------------------- what is on, and what that shows

const isExact = () => state.isExactAsked || state.swapped.some(Boolean);

function slotsOf(isSecond) {
  return state.on.map((isOn, token) => (isOn ? Number(Boolean(state.swapped[token]) !== isSecond) : 255));
}

const asSlots = (slots) => Array.from(slots, (slot) => (slot === 255 ? -1 : slot));

async function update() {
  const began = performance.now(), { a, b } = loaded, isAll = state.on.every(Boolean) && !state.swapped.some(Boolean);
  const falls = a.falls, addsScores = falls?.adds_up && !isExact();
  asking?.abort();
  label();
  const still = () => ({ a: a.sums.reconstruction, b: b?.sums.reconstruction, scores: falls?.scores.values });
  if (isAll) return present(still(), began);
  const scores = addsScores ? addScores(falls, state.on) : null;
  const summed = { a: addUp(a.sums, state.on), b: b && addUp(b.sums, state.on), scores };
  const needsServer = isExact() || (falls && !addsScores);
  if (!needsServer || !source.isLive) return present(summed, began);
  if (!isExact()) present({ ...summed, isWaiting: true }, began);
  asking = new AbortController();
  try {
    const { signal } = asking, side = about.sizes[state.size], first = [state.a.shelf, state.a.row];
    const second = b ? [state.b.shelf, state.b.row] : null, sources = second ? [first, second] : [first];
    const answers = await Promise.all([
      source.compose(sources, asSlots(slotsOf(false)), side, falls ? state.head : -1, signal),
      b && isExact() ? source.compose(sources, asSlots(slotsOf(true)), side, -1, signal) : null,
    ]);
    const exact = isExact() ? { a: answers[0].picture, b: answers[1]?.picture } : summed;
    present({ ...exact, scores: answers[0].scores?.values ?? null }, began);
  } catch (error) {
    complain(error);
  }
}

function present(picture, began) {
  shown = picture;
  const { a, b } = loaded, count = sum([...state.on]), exact = isExact();
  paintPicture($("input"), a.input);
  paintPicture($("shown"), picture.a);
  const moves = [difference(picture.a, a.sums.reconstruction), b && difference(picture.b, b.sums.reconstruction)];
  const moved = Math.max(0.05, ...moves.filter(Boolean).map(largest));
  paintPlane($("moved"), moves[0], a.width, "signed", moved);
  $("second").hidden = !b;
  document.body.classList.toggle("comparing", Boolean(b));
  if (b) {
    paintPicture($("input-b"), b.input);
    paintPicture($("shown-b"), picture.b);
    paintPlane($("moved-b"), moves[1], a.width, "signed", moved);
  }
  paintLegend($("moved-legend"), { ramp: "signed", low: -moved, high: moved, words: `${b ? "A, " : ""}what moved: shown less all tokens on` });
  const isNative = about.sizes[state.size] === about.size[0];
  const [height, width] = about.size, from = psnr(picture.a, a.sums.reconstruction);
  $("input-caption").textContent = `${b ? "A, input" : "input"}, ${height}×${width}`;
  const faith = isNative ? ` · ${psnr(picture.a, a.input).toFixed(1)} dB to the input` : "";
  const away = from < 100 ? ` · ${from.toFixed(1)} dB to all tokens` : "";
  $("shown-caption").textContent = `${b ? "A, " : ""}shown, ${picture.a.shape[0]}×${picture.a.shape[1]}${faith}${away}`;
  $("count").textContent = `${count} of ${about.tokens} tokens on${state.swapped.some(Boolean) ? `, ${sum([...state.swapped])} swapped` : ""}`;
  const why = state.swapped.some(Boolean) && !state.isExactAsked ? "exact, for what is swapped: the field decodes again" : "exact: the field decodes again";
  $("how").textContent = exact ? why : "sum of components, in this page";
  $("how").classList.toggle("exact", exact);
  $("time").textContent = began ? `${Math.max(1, Math.round(performance.now() - began))} ms` : "";
  showClasses();
  showHere();
  write();
}

function difference(after, before) {
  const [to, from] = [plane(after), plane(before)];
  return to.map((value, at) => value - from[at]);
}

// ---------------------------------------------------------------- what a classifier says

function showClasses() {
  const falls = loaded.a.falls;
  $("classes").replaceChildren();
  if (!falls) return;
  const before = softmax(falls.scores.values), now = shown.scores && softmax(shown.scores);
  const truth = loaded.a.truth;
  const ranked = before.map((_, name) => name).sort((x, y) => (now ?? before)[y] - (now ?? before)[x] || x - y);
  const few = ranked.length <= CLASSES ? before.map((_, name) => name) : ranked.slice(0, CLASSES);
  for (const name of few) {
    const share = now ? now[name] : NaN, word = about.classes[name] ?? String(name);
    const button = make("button", { type: "button", className: "name", title: `${word}: show the evidence for it` }, name === truth ? `${word} ✓` : word);
    button.setAttribute("aria-pressed", String(name === state.name));
    button.setAttribute("aria-label", `${word}${name === truth ? ", the true class" : ""}, ${now ? percent(share) : "unknown"}, ${percent(before[name])} with all tokens. Show the evidence for it.`);
    button.addEventListener("click", () => { state.name = name; label(); order(); showClasses(); });
    const track = make("div", { className: "track" }), bar = make("i", { className: "plain" }), mark = make("b", { className: "mark" });
    [bar.style.left, bar.style.width, mark.style.left] = ["0", `${100 * (share || 0)}%`, `calc(${100 * before[name]}% - 1px)`];
    track.append(bar, mark);
    $("classes").append(make("li", {}, button, track, make("span", { className: "value" }, now ? percent(share) : "–")));
  }
}

function tellHead() {
  const head = about.heads[state.head], falls = loaded?.a?.falls;
  if (!head || !falls) return;
  const how = !head.reads_tokens ? (source.isLive ? "It reads no single tokens: it is asked anew each time." : "What it says without tokens needs the server.")
    : falls.adds_up ? "Its score is a sum over tokens: added up in this page."
    : source.isLive ? "Its score is no sum over tokens: the server answers." : "Its score is no sum over tokens: what it says without some needs the server.";
  $("head-words").textContent = `${head.meaning}; reads ${head.reads}. ${how} Bars: tokens that are on; strokes: all tokens. ✓ is the true class.`;
}

// ---------------------------------------------------------------- who speaks at a place, where a token speaks

function showHere() {
  const { a } = loaded, [height, width] = a.view.base.shape, maps = drawn(a), list = $("here");
  const at = state.point, box = state.box;
  list.replaceChildren();
  $("box-tools").hidden = !box;
  $("box").hidden = !box;
  $("point").hidden = !at || Boolean(box);
  let entries = [], words = "Point at the picture, or drag a box on it.";
  if (box) {
    const parts = shares(a.maps, width, about.methods[state.method].alone, box), { chosen, held } = speakers(parts);
    loaded.chosen = chosen;
    entries = parts.map(({ share }, token) => ({ token, value: share, words: percent(share) }));
    words = `Rows ${box[0]} to ${box[2]}, columns ${box[1]} to ${box[3]}: ${percent(held)} of what is said here comes from ${chosen.length === 1 ? "token" : "tokens"} ${chosen.join(", ")}.`;
    const style = $("box").style;
    [style.top, style.left] = [`${(100 * box[0]) / height}%`, `${(100 * box[1]) / width}%`];
    [style.height, style.width] = [`${(100 * (box[2] - box[0] + 1)) / height}%`, `${(100 * (box[3] - box[1] + 1)) / width}%`];
  } else if (at) {
    entries = maps.map((map, token) => ({ token, value: map[at[0] * width + at[1]], words: signed(map[at[0] * width + at[1]], 3) }));
    words = `Row ${at[0]}, column ${at[1]}: ${about.methods[state.method].name.replaceAll("_", " ")}${about.channels > 1 ? ", mean over colours" : ""}${about.methods[state.method].alone ? ", less each token's mean" : ""}.`;
    [$("point").style.top, $("point").style.left] = [`${(100 * (at[0] + 0.5)) / height}%`, `${(100 * (at[1] + 0.5)) / width}%`];
  }
  $("here-words").textContent = words;
  const ranked = entries.sort((x, y) => Math.abs(y.value) - Math.abs(x.value)).slice(0, LISTED);
  const most = Math.abs(ranked[0]?.value) || 1;
  for (const { token, value, words: amount } of ranked) {
    const isOn = Boolean(state.on[token]);
    const button = make("button", { type: "button", className: isOn ? "name" : "name off" }, `token ${token}`);
    button.setAttribute("aria-pressed", String(isOn));
    button.setAttribute("aria-label", `token ${token}, ${amount}`);
    button.addEventListener("click", () => toggle(token));
    button.addEventListener("pointerenter", () => speak(token));
    button.addEventListener("pointerleave", () => speak(-1));
    const track = make("div", { className: "track" }), bar = make("i", { className: box ? "plain" : value < 0 ? "down" : "up" });
    const share = (box ? 100 : 50) * (Math.abs(value) / most);
    [bar.style.left, bar.style.width] = [box ? "0" : value < 0 ? `${50 - share}%` : "50%", `${share}%`];
    if (!box) track.append(make("b", { className: "middle" }));
    track.append(bar);
    list.append(make("li", {}, button, track, make("span", { className: "value" }, amount)));
  }
  const first = new Set(box ? loaded.chosen : at ? ranked.slice(0, 3).map(({ token }) => token) : []);
  cells.forEach(({ tile }, token) => tile.classList.toggle("speaks", first.has(token)));
  if (state.sort === "here") order();
  return ranked;
}

// Lay what a token says over the picture.
function speak(token) {
  state.token = token;
  const canvas = $("overlay");
  canvas.hidden = token < 0;
  if (token < 0 || !loaded) return;
  const map = drawn(loaded.a)[token];
  paintPlane(canvas, map, loaded.a.width, loaded.ramp, largest(map), true);
}

function announce(words) { $("live").textContent = words; }

function announceHere(ranked) {
  if (state.box) return announce($("here-words").textContent);
  const said = ranked.slice(0, 4).map(({ token, words }) => `token ${token} ${words.replace("−", "minus ").replace("+", "plus ")}`);
  announce(`Row ${state.point[0]}, column ${state.point[1]}. ${said.join(", ")}`);
}

// ---------------------------------------------------------------- switching

function toggle(token) {
  state.on[token] = 1 - state.on[token];
  announce(`token ${token} ${state.on[token] ? "on" : "off"}, ${sum([...state.on])} of ${about.tokens} on`);
  return update();
}

function set(choose, words) {
  state.on = state.on.map((isOn, token) => Number(Boolean(choose(isOn, token))));
  announce(`${words}: ${sum([...state.on])} of ${about.tokens} on`);
  return update();
}

function swap(token) {
  if (!loaded.b || !source.isLive) return;
  state.swapped[token] = 1 - state.swapped[token];
  announce(`token ${token} ${state.swapped[token] ? "swapped" : "back in its place"}`);
  return update();
}

const everyToken = () => set(() => true, "all on");
const noToken = () => set(() => false, "all off");
const inverted = () => set((isOn) => !isOn, "inverted");
const inBox = { off: (isOn, token) => isOn && !loaded.chosen.includes(token), on: (isOn, token) => isOn || loaded.chosen.includes(token), only: (_, token) => loaded.chosen.includes(token) };

function clearPlace() {
  Object.assign(state, { box: null, point: null, isPinned: false });
  showHere();
}

// ---------------------------------------------------------------- taking away

function lineOf(image, listing) {
  const line = image.name === undefined ? listing.python : `read_picture(Path(${quoted(image.name)}), ${about.channels}, ${about.size[0]}).float()[None] / 127.5 - 1`;
  return (Array.isArray(line) ? line[image.row] : line).replace("{row}", String(image.row));
}

async function write() {
  const isDropped = (image) => image.name !== undefined;
  const line = async (image) => image && lineOf(image, isDropped(image) ? {} : await source.listing(image.shelf));
  const [image, other] = await Promise.all([line(state.a), loaded.b && line(state.b)]);
  const method = about.methods[state.method].name, sumMethod = about.methods[about.first_method].name;
  const head = about.heads[state.head]?.name, addsScores = loaded.a.falls?.adds_up && !isExact();
  const size = loaded.a.view.base.shape.slice(0, 2);
  $("python").textContent = pythonCall({ about, image, other, size, method, sumMethod, on: state.on, swapped: state.swapped, isExact: isExact(), head, addsScores });
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("python").textContent);
    $("copied").textContent = "copied";
  } catch {
    getSelection().selectAllChildren($("python"));
    $("copied").textContent = "selected: copy it with the keyboard";
  }
}

function savePicture() {
  const tiles = [...$("grid").children].map((cell) => Number(cell.firstChild.dataset.token)).map((token) => (
    { picture: cells[token].canvases[0], caption: `${token} · ${cells[token].note.textContent}`, isOn: Boolean(state.on[token]) }));
  const pictures = [[$("input"), $("input-caption").textContent], [$("shown"), `${$("count").textContent}, ${$("how").textContent}`]];
  const method = about.methods[state.method];
  const canvas = sheet(about.title, pictures, tiles, `${method.name.replaceAll("_", " ")}: ${method.question} ${$("legend").textContent}`);
  canvas.toBlob((blob) => download(blob, "tdsm.png"));
}

function saveArrays() {
  const flags = (values) => ({ shape: [values.length], values: Int32Array.from(values) });
  const { view, input } = loaded.a, kept = places(state.on);
  const arrays = { image: input, picture: shown.a, base: view.base, reconstruction: view.reconstruction, components: view.components };
  const scores = shown.scores && { scores: { shape: [shown.scores.length], values: Float32Array.from(shown.scores) } };
  download(new Blob([npz({ ...arrays, ...scores, kept: flags(kept), swapped: flags(places(state.swapped)) })]), "tdsm.npz");
}

// ---------------------------------------------------------------- controls

function offer(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, words]) => make("option", { value, selected: value === chosen }, words)));
}

function offerSorts() {
  const head = about.heads[state.head];
  const choices = [["energy", "energy"], ["number", "token number"], ["down", "position, top to bottom"], ["across", "position, left to right"], ["here", "what it says at the point"]];
  if (head && loaded?.a?.falls?.by_token) choices.push(["evidence", loaded.a.falls.adds_up ? "class evidence" : "fall of the class score"]);
  if (!choices.some(([value]) => value === state.sort)) state.sort = "energy";
  offer($("sort"), choices, state.sort);
}

function offerLooks() {
  const choices = looks();
  const isNew = about.methods[state.method].alone !== offerLooks.wasAlone;
  offerLooks.wasAlone = about.methods[state.method].alone;
  if (isNew || !choices.some(([value]) => value === state.look)) state.look = choices[0][0];
  offer($("look"), choices, state.look);
  const method = about.methods[state.method];
  $("question").textContent = `${method.question.charAt(0).toUpperCase()}${method.question.slice(1)} ${method.adds_up ? "These add up to the picture." : "These do not add up to the picture."}`;
  for (const button of $("methods").children) {
    const isChosen = Number(button.dataset.method) === state.method;
    button.setAttribute("aria-checked", String(isChosen));
    button.tabIndex = isChosen ? 0 : -1;
  }
}

async function offerFilters() {
  const shelf = Number($("shelf").value);
  const listing = about.shelves[shelf] ? await source.listing(shelf) : { predicted: {}, labels: [] };
  const heads = Object.keys(listing.predicted).map((name) => [`wrong\n${name}`, `mistakes of ${name}`]);
  offer($("filter"), [["", "all"], ["psnr", source.isLive ? "worst reconstructed of a draw" : "worst reconstructed first"], ...heads], "");
  const present = [...new Set(listing.labels)].filter((label) => label >= 0).sort((a, b) => a - b);
  offer($("class"), [["", "all"], ...present.map((label) => [String(label), about.classes[label]])], "");
}

async function afterLoad(change) {
  Object.assign(state, change);
  offerLooks();
  await load();
}

// What depends on the answers of a load.
function settle() {
  const falls = loaded?.a?.falls;
  if (falls && state.name < 0) {
    const scores = [...falls.scores.values];
    state.name = scores.indexOf(Math.max(...scores));
  }
  offerSorts();
  tellHead();
}

async function chooseMethod(method) {
  await afterLoad({ method });
  announce(`${about.methods[method].name.replaceAll("_", " ")}. ${$("question").textContent}`);
}

function sizeWords() {
  const side = about.sizes[state.size], across = Math.round((side * about.size[1]) / about.size[0]);
  $("size-words").textContent = `${side} × ${across}`;
  $("size").setAttribute("aria-valuetext", `${side} by ${across} points`);
}

function placeOf(event) {
  const { left, top, width, height } = $("shown").getBoundingClientRect(), [rows, columns] = loaded.a.view.base.shape;
  const within = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value * count)));
  return [within((event.clientY - top) / height, rows), within((event.clientX - left) / width, columns)];
}

const spanned = ([a, b], [c, d]) => [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];

function listenToPicture() {
  const canvas = $("shown");
  let start = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (!loaded) return;
    start = placeOf(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!loaded) return;
    const at = placeOf(event);
    if (start && (at[0] !== start[0] || at[1] !== start[1])) state.box = spanned(start, at);
    else if (!state.box && !state.isPinned) state.point = at;
    showHere();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (start && !state.box) Object.assign(state, { point: placeOf(event), isPinned: true });
    else if (start) announce($("here-words").textContent);
    start = null;
    showHere();
  });
  canvas.addEventListener("pointerleave", () => {
    if (!start && !state.box && !state.isPinned) { state.point = null; showHere(); }
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      const [rows, columns] = loaded.a.view.base.shape, from = state.point ?? [Math.floor(rows / 2), Math.floor(columns / 2)];
      if (event.shiftKey) state.corner ??= from;
      else Object.assign(state, { corner: null, box: null });
      const to = [Math.max(0, Math.min(rows - 1, from[0] + step[0])), Math.max(0, Math.min(columns - 1, from[1] + step[1]))];
      Object.assign(state, { point: to, isPinned: true, ...(event.shiftKey ? { box: spanned(state.corner, to) } : {}) });
      announceHere(showHere());
    } else if (event.key === "Escape") clearPlace();
    else if (event.key === "Delete" && state.box) set(inBox.off, "off");
    else if (event.key === "Enter" && state.box) set(inBox.only, "only these");
    else return;
    event.preventDefault();
  });
}

function listenToGrid() {
  const grid = $("grid"), tileOf = (event) => event.target.closest(".tile");
  grid.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    const token = Number(cell.firstChild.dataset.token);
    if (event.target.closest(".swap")) swap(token);
    else toggle(token);
  });
  for (const [name, token] of [["pointerover", (tile) => Number(tile.dataset.token)], ["focusin", (tile) => Number(tile.dataset.token)], ["pointerout", () => -1], ["focusout", () => -1]]) {
    grid.addEventListener(name, (event) => { if (tileOf(event)) speak(token(tileOf(event))); });
  }
  grid.addEventListener("focusin", (event) => {
    if (!tileOf(event)) return;
    cells.forEach(({ tile }) => { tile.tabIndex = tile === tileOf(event) ? 0 : -1; });
  });
  grid.addEventListener("keydown", (event) => {
    const tile = tileOf(event);
    if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
    const tiles = [...grid.children].map((cell) => cell.firstChild), at = tiles.indexOf(tile), token = Number(tile.dataset.token);
    const columns = tiles.filter((other) => other.offsetTop === tiles[0].offsetTop && other.parentElement.offsetTop === tiles[0].parentElement.offsetTop).length;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + columns, ArrowUp: at - columns, Home: 0, End: tiles.length - 1 }[event.key];
    const does = { a: everyToken, n: noToken, i: inverted, o: () => set((_, other) => other === token, "only this one"), s: () => swap(token) }[event.key.toLowerCase()];
    if (to !== undefined) tiles[to]?.focus();
    else if (does) does();
    else return;
    event.preventDefault();
  });
}

function listen() {
  const on = (name, kind, work) => $(name).addEventListener(kind, (event) => Promise.resolve(work(event)).catch(complain));
  on("shelf", "change", async () => { await offerFilters(); await fillGallery(); });
  on("class", "change", () => fillGallery());
  on("filter", "change", () => fillGallery());
  on("search", "input", () => fillGallery());
  on("before", "click", () => { state.first -= PER_PAGE; return showGallery(); });
  on("after", "click", () => { state.first += PER_PAGE; return showGallery(); });
  on("file", "change", (event) => drop(event.target.files[0]));
  on("all", "click", everyToken);
  on("none", "click", noToken);
  on("invert", "click", inverted);
  on("box-off", "click", () => set(inBox.off, "off"));
  on("box-on", "click", () => set(inBox.on, "on"));
  on("box-only", "click", () => set(inBox.only, "only these"));
  on("box-clear", "click", clearPlace);
  on("compare", "click", () => {
    state.isComparing = !state.isComparing;
    if (!state.isComparing) { state.b = null; state.swapped.fill(0); }
    $("compare").setAttribute("aria-pressed", String(state.isComparing));
    announce(state.isComparing ? "Choose a second image to compare with." : "One image.");
    markChosen();
    return load();
  });
  on("modes", "change", (event) => { state.isExactAsked = event.target.value === "exact"; return update(); });
  on("size", "input", () => { state.size = Number($("size").value); state.point = state.box = null; sizeWords(); return load(); });
  on("sort", "change", () => { state.sort = $("sort").value; label(); order(); });
  on("look", "change", () => { state.look = $("look").value; draw(); });
  on("own", "change", () => { state.isOwnScale = $("own").checked; draw(); });
  on("head", "change", () => afterLoad({ head: Number($("head").value), name: -1 }));
  on("copy", "click", copy);
  on("png", "click", savePicture);
  on("npz", "click", saveArrays);
  $("methods").addEventListener("click", (event) => event.target.dataset.method && chooseMethod(Number(event.target.dataset.method)).catch(complain));
  $("methods").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const method = (state.method + step + about.methods.length) % about.methods.length;
    $("methods").children[method].focus();
    chooseMethod(method).catch(complain);
    event.preventDefault();
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("over"); drop(event.dataTransfer.files[0]); });
  isDark.addEventListener("change", () => { if (loaded?.a) { draw(); present(shown); } });
  listenToPicture();
  listenToGrid();
}

async function start() {
  source = openSource();
  about = await source.about();
  Object.assign(state, { on: new Uint8Array(about.tokens).fill(1), swapped: new Uint8Array(about.tokens), method: about.first_method });
  state.size = about.sizes.indexOf(about.first_size);
  state.head = about.heads.length ? 0 : -1;
  document.title = `${about.title} – tdsm explore`;
  $("title").textContent = about.title;
  $("lead").textContent = `The field turns a picture into ${about.tokens} tokens and paints it from them again, at any resolution. A tile is what one token has to say. Switch tiles off and see what goes missing; point at the picture and see who speaks there.`;
  if (about.note) Object.assign($("note"), { hidden: false, textContent: about.note });
  $("methods").replaceChildren(...about.methods.map(({ name }, method) => {
    const button = make("button", { type: "button" }, name.replaceAll("_", " "));
    button.setAttribute("role", "radio");
    button.dataset.method = method;
    return button;
  }));
  $("size").max = about.sizes.length - 1;
  $("size").value = state.size;
  $("size").disabled = about.sizes.length < 2;
  $("head-panel").hidden = !about.heads.length;
  offer($("head"), about.heads.map(({ name, meaning }, head) => [String(head), name]), String(state.head));
  offer($("shelf"), about.shelves.map(({ name, count }, shelf) => [String(shelf), `${name} (${count})`]), "0");
  if (!source.isLive) {
    $("drop").hidden = true;
    $("modes").querySelector('[value="exact"]').disabled = true;
    $("exact-note").textContent = "Needs the field: tdsm explore.";
    $("size").parentElement.title = "More resolutions need the field: tdsm explore.";
  } else if (!about.takes_pictures) $("drop").hidden = true;
  $("footnote").textContent = about.footnote ?? "";
  sizeWords();
  offerLooks();
  offerSorts();
  listen();
  if (!about.shelves.length) {
    for (const name of ["shelf", "class", "filter", "search"]) $(name).closest("label").hidden = true;
    $("strip").replaceChildren(make("p", { className: "empty" }, "There are no images here yet: drop one."));
    document.querySelector(".pager").hidden = true;
    return;
  }
  await offerFilters();
  await Promise.all([fillGallery(), choose({ shelf: 0, row: 0 })]);
  markChosen();
}

globalThis.explorer = {
  state, choose, load,
  get about() { return about; },
  get loaded() { return loaded; },
  get shown() { return shown; },
  get isQuiet() { return !source.pending && !document.body.classList.contains("busy"); },
};
globalThis.explorer.ready = start().catch((error) => { complain(error); $("title").textContent = "This page could not start"; });
