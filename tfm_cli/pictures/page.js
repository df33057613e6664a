"use strict";
// The page's own script: it reads the numbers, draws the charts, and lists the numbers behind them.
// The pictures with a script of their own use `tfm`'s functions.
const tfm = (() => {
  const MAX_ROWS = 2000;
  const contents = new Map();

  // Return the content of the data with a name, as its Python class wrote it.
  function data(name) {
    if (!contents.has(name)) {
      const element = document.getElementById(`data-${name}`);
      contents.set(name, JSON.parse(element.textContent));
    }
    return contents.get(name);
  }

  // Return the data with a name as an array of rows.
  function rows(name) {
    const content = data(name);
    if (content.of) return rowsOfArray(content.of, content.place);
    if (content.float32) return rowsOfArray(name, []);
    return content.columns ? rowsOfColumns(content.columns) : rowsOfGrid(content);
  }

  // Return all numbers of the array with a name, in the order of its axes.
  function numbers(name) {
    const content = data(name);
    if (!content.numbers) {
      const bytes = Uint8Array.from(atob(content.float32), (byte) => byte.charCodeAt(0));
      const view = new DataView(bytes.buffer);
      content.numbers = Float32Array.from(
        { length: bytes.length / 4 }, (_, place) => view.getFloat32(4 * place, true));
    }
    return content.numbers;
  }

  // Return the rows of a part of an array, by the indices of its first axes.
  function rowsOfArray(name, place) {
    const { axes, shape, texts } = data(name);
    const names = Object.keys(axes).slice(place.length);
    const lengths = shape.slice(place.length);
    const size = lengths.reduce((product, length) => product * length, 1);
    const start = place.reduce((sum, index, axis) => sum * shape[axis] + index, 0) * size;
    return Array.from(numbers(name).subarray(start, start + size), (value, rest) => {
      const row = {};
      let block = size;
      names.forEach((each, axis) => {
        block /= lengths[axis];
        const index = Math.floor(rest / block);
        rest %= block;
        row[each] = index + axes[each];
        if (texts[each]) row[`${each}_text`] = texts[each][index];
      });
      row.value = Number.isFinite(value) ? value : null;
      return row;
    });
  }

  // Show another part of the arrays of a group, in all charts that show the group.
  async function pick(group, place) {
    for (const figure of document.querySelectorAll("figure[data-names]")) {
      const names = figure.dataset.names.split(" ").filter((name) => data(name).group === group);
      for (const name of names) data(name).place = place;
      if (!names.length || !figure.view) continue;
      for (const name of names) figure.view.data(name, rows(name));
      await figure.view.runAsync();
      for (const table of figure.querySelectorAll("details > table")) table.remove();
      for (const details of figure.querySelectorAll("details[open]")) list(details);
    }
  }

  function rowsOfColumns(columns) {
    const names = Object.keys(columns);
    const length = names.length ? columns[names[0]].length : 0;
    return Array.from({ length }, (_, row) =>
      Object.fromEntries(names.map((name) => [name, columns[name][row]])));
  }

  function rowsOfGrid({ axes, value, values }) {
    const names = Object.keys(axes);
    return values.map((number, place) => {
      const row = {};
      for (let axis = names.length - 1; axis >= 0; axis--) {
        const labels = axes[names[axis]];
        row[names[axis]] = labels[place % labels.length];
        place = Math.floor(place / labels.length);
      }
      row[value] = number;
      return row;
    });
  }

  const loader = { load: () => Promise.reject(new Error("a page requests nothing")) };

  async function draw(figure) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const names = figure.dataset.names ? figure.dataset.names.split(" ") : [];
    spec.datasets = { ...spec.datasets };
    for (const name of names) spec.datasets[name] = rows(name);
    const chart = figure.querySelector(".chart");
    try {
      const drawn = await window.vegaEmbed(chart, spec, {
        mode: "vega-lite",
        renderer: "svg",
        actions: false,
        ast: true, // expressions are interpreted, so that the policy can forbid `eval`
        defaultStyle: false,
        tooltip: { disableDefaultStyle: true },
        bind: figure.querySelector(".bindings"),
        loader,
      });
      figure.view = drawn.view;
    } catch (error) {
      chart.textContent = `This chart cannot be drawn: ${error.message}`;
      chart.classList.add("error");
    }
  }

  // Fill the table of numbers when it is opened first.
  function list(details) {
    if (details.querySelector("table")) return;
    for (const name of details.dataset.names.split(" ")) {
      const all = rows(name);
      const names = all.length ? Object.keys(all[0]) : [];
      const table = document.createElement("table");
      const head = table.createTHead().insertRow();
      for (const text of names) {
        const cell = document.createElement("th");
        cell.scope = "col";
        cell.textContent = text;
        head.append(cell);
      }
      const body = table.createTBody();
      for (const row of all.slice(0, MAX_ROWS)) {
        const line = body.insertRow();
        for (const each of names) {
          const cell = line.insertCell();
          cell.dir = "auto";
          cell.textContent = row[each] === null ? "–" : row[each];
          if (typeof row[each] === "number") cell.className = "number";
        }
      }
      if (all.length > MAX_ROWS) table.createCaption().textContent =
        `the first ${MAX_ROWS} of ${all.length} rows`;
      details.append(table);
    }
  }

  // The cells of a picture are reached by the arrow keys; a cell's numbers are shown beside it, as
  // they are when the pointer is over it.

  const CELLS = [".mark-rect path", ".mark-symbol path", ".mark-arc path"].join(", ");
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  let current = null;

  function cells(picture) {
    const own = picture.querySelectorAll("[data-tip]");
    if (own.length) return [...own];
    return [...picture.querySelectorAll(CELLS)].filter((cell) => numbersOf(cell));
  }

  function numbersOf(cell) {
    if (cell.dataset.tip) return cell.dataset.tip;
    const numbers = cell.__data__?.tooltip;
    if (!numbers || typeof numbers !== "object") return numbers ?? "";
    return Object.entries(numbers).map(([name, value]) => `${name}: ${value}`).join("\n");
  }

  function show(cell) {
    current?.classList.remove("current");
    current = cell;
    tip.hidden = !cell;
    if (!cell) return;
    tip.textContent = numbersOf(cell);
    const box = cell.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = tip;
    const below = box.bottom + 8 + height < window.innerHeight;
    tip.style.left = `${Math.max(4, Math.min(box.right, window.innerWidth - width - 4))}px`;
    tip.style.top = `${below ? box.bottom + 8 : Math.max(4, box.top - height - 8)}px`;
  }

  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  // Return the cell that is nearest to a cell in a direction, or nothing.
  function neighbor(all, cell, [x, y]) {
    const middle = (box) => [box.left + box.width / 2, box.top + box.height / 2];
    const [left, top] = middle(cell.getBoundingClientRect());
    let [nearest, least] = [null, Infinity];
    for (const each of all) {
      const [to, down] = middle(each.getBoundingClientRect());
      const along = (to - left) * x + (down - top) * y;
      const across = Math.abs((to - left) * y) + Math.abs((down - top) * x);
      if (along > 0.5 && along + 3 * across < least) {
        [nearest, least] = [each, along + 3 * across];
      }
    }
    return nearest;
  }

  function reach(picture, cell) {
    if (!cell) return;
    cell.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
    show(cell);
    cell.classList.add("current");
  }

  function onKey(event) {
    const picture = event.target;
    if (!picture.matches?.(".chart, .drawing")) return;
    if (event.key === "Escape") show(null);
    const step = STEPS[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = cells(picture);
    if (!all.length) return;
    event.preventDefault();
    reach(picture, picture.contains(current) ? neighbor(all, current, step) : all[0]);
  }

  function makeReachable() {
    document.body.append(tip);
    document.addEventListener("keydown", onKey);
    document.addEventListener("focusin", ({ target }) => {
      if (target.matches(".chart:focus-visible, .drawing:focus-visible")) {
        reach(target, cells(target)[0]);
      }
    });
    document.addEventListener("focusout", () => show(null));
    document.addEventListener("pointerover", ({ target }) => {
      const cell = target.closest("[data-tip]");
      if (cell || (current && current.dataset.tip)) show(cell);
    });
  }

  async function start() {
    makeReachable();
    for (const details of document.querySelectorAll("details[data-names]")) {
      details.addEventListener("toggle", () => details.open && list(details));
    }
    for (const figure of document.querySelectorAll("figure[data-names]")) {
      await draw(figure);
      await new Promise((resolve) => setTimeout(resolve)); // lets the browser show it
    }
    document.documentElement.dataset.drawn = "true";
  }

  document.addEventListener("DOMContentLoaded", start);
  return { data, rows, numbers, pick };
})();
window.tfm = tfm;
