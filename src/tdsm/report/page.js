// Headings of tables become buttons that sort by their column, and points of a chart show their image. The page reads
// the same without this.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const text = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const number = (row, column) => {
    const value = parseFloat(text(row, column).replace("−", "-").replaceAll("\u2009", ""));
    return Number.isNaN(value) ? -Infinity : value;
  };
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    const isNumber = head.classList.contains("number");
    button.addEventListener("click", () => {
      const first = isNumber ? "descending" : "ascending";
      const second = isNumber ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? second : first;
      const sign = order === "ascending" ? 1 : -1;
      const compare = isNumber
        ? (a, b) => Math.sign(number(a, column) - number(b, column)) || 0
        : (a, b) => text(a, column).localeCompare(text(b, column), undefined, { numeric: true });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
    });
  });
}

const REACH = 14; // pixels around a point
for (const figure of document.querySelectorAll("figure[data-words]")) {
  const svg = figure.querySelector("svg");
  const sprite = figure.querySelector("img.sprite");
  const words = JSON.parse(figure.dataset.words);
  const side = Number(figure.dataset.side);
  const columns = Number(figure.dataset.columns);
  const points = [...svg.querySelectorAll("g[id*='-points-'] use")];
  const tip = document.createElement("div");
  const canvas = document.createElement("canvas");
  const name = document.createElement("span");
  canvas.width = canvas.height = 2 * side;
  tip.className = "tip";
  tip.hidden = true;
  tip.append(canvas, name);
  figure.append(tip);
  const nearest = (event) => {
    let found = -1;
    let least = REACH * REACH;
    points.forEach((point, index) => {
      const box = point.getBoundingClientRect();
      const distance = (box.x + box.width / 2 - event.clientX) ** 2 + (box.y + box.height / 2 - event.clientY) ** 2;
      if (distance < least) [found, least] = [index, distance];
    });
    return found;
  };
  const show = (event) => {
    const index = nearest(event);
    tip.hidden = index < 0;
    if (index < 0) return;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    const [x, y] = [(index % columns) * side, Math.floor(index / columns) * side];
    context.drawImage(sprite, x, y, side, side, 0, 0, canvas.width, canvas.height);
    name.textContent = words[index];
    const frame = figure.getBoundingClientRect();
    tip.style.left = `${Math.max(0, Math.min(event.clientX - frame.x + 12, frame.width - tip.offsetWidth))}px`;
    tip.style.top = `${event.clientY - frame.y + 14}px`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
}
