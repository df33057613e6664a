"use strict";
// The picker of layer and head, and the lines from a picked word to those that it attends to.
(() => {
  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const GAMMA = 0.6; // as in the large maps, so that small weights are seen
  const place = new Map(); // of a group: the picked layer and head

  // Return the weights (Q, K) of one head.
  function weightsOf(name, layer, head) {
    const [, heads, queries, keys] = tfm.data(name).shape;
    const start = (layer * heads + head) * queries * keys;
    return tfm.numbers(name).subarray(start, start + queries * keys);
  }

  function paint(canvas, weights) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    const ink = getComputedStyle(canvas).getPropertyValue("--series-1").trim();
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(ink.slice(at, at + 2), 16));
    weights.forEach((weight, cell) => {
      image.data.set([red, green, blue, Math.round(255 * weight ** GAMMA)], 4 * cell);
    });
    context.putImageData(image, 0, 0);
  }

  function startPicker(heads) {
    const { name, group } = heads.dataset;
    const buttons = [...heads.querySelectorAll("button")];
    const at = (button) => [Number(button.dataset.layer), Number(button.dataset.head)];
    const paintAll = () => {
      for (const button of buttons) {
        paint(button.querySelector("canvas"), weightsOf(name, ...at(button)));
      }
    };

    function pick(button) {
      for (const each of buttons) {
        each.setAttribute("aria-checked", each === button);
        each.tabIndex = each === button ? 0 : -1;
      }
      place.set(group, at(button));
      for (const words of document.querySelectorAll(`.words[data-group="${group}"]`)) {
        words.dispatchEvent(new Event("pick"));
      }
      return tfm.pick(group, at(button));
    }

    heads.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (button) pick(button);
    });
    heads.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      const from = event.target.closest("button");
      if (!step || !from) return;
      event.preventDefault();
      const [layer, head] = at(from).map((index, axis) => index + step[axis]);
      const to = buttons.find((each) => at(each).join() === [layer, head].join());
      if (!to) return;
      to.focus();
      pick(to);
    });
    place.set(group, at(heads.querySelector('[aria-checked="true"]')));
    paintAll();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintAll);
  }

  function startWords(words) {
    const { name, group } = words.dataset;
    const queries = [...words.querySelectorAll(".word")];
    const paths = [...words.querySelectorAll(".lines path")];
    const numbers = [...words.querySelectorAll(".numbers text")];
    const [from, to] = [148, 282];
    const middle = (row) => 4 + 24 * (row + 0.5);
    let picked = queries.findIndex((each) => each.getAttribute("aria-pressed") === "true");

    function draw() {
      const weights = weightsOf(name, ...place.get(group));
      const bend = (to - from) / 2;
      paths.forEach((path, key) => {
        const weight = weights[picked * paths.length + key];
        const [start, end] = [middle(picked), middle(key)];
        path.setAttribute("d", `M${from} ${start}C${from + bend} ${start} ${to - bend} ${end} ` +
          `${to} ${end}`);
        path.setAttribute("stroke-width", 8 * weight);
        path.setAttribute("stroke-opacity", 0.25 + 0.75 * weight);
        numbers[key].textContent = weight >= 0.0005 ? weight.toFixed(3) : "";
      });
      queries.forEach((query, row) => {
        query.setAttribute("aria-pressed", row === picked);
        query.setAttribute("tabindex", row === picked ? 0 : -1);
        query.querySelector("rect").setAttribute(
          "fill", row === picked ? "var(--mark)" : "transparent");
      });
      const { texts } = tfm.data(name);
      const row = Array.from(paths, (_, key) => [weights[picked * paths.length + key], key]);
      const most = row.sort(([one], [two]) => two - one).slice(0, 3);
      const [layer, head] = place.get(group);
      words.querySelector("p").textContent = `Layer ${layer + 1}, head ${head + 1}: ` +
        `\u2068${texts.query[picked]}\u2069 attends to ` +
        most.map(([weight, key]) => `\u2068${texts.key[key]}\u2069 ${weight.toFixed(3)}`).join(", ");
    }

    function pick(row) {
      if (row < 0 || row >= queries.length) return;
      picked = row;
      draw();
    }

    words.addEventListener("pick", draw);
    words.addEventListener("click", ({ target }) => {
      const query = target.closest(".word");
      if (query) pick(Number(query.dataset.place));
    });
    words.addEventListener("keydown", (event) => {
      const query = event.target.closest(".word");
      if (!query) return;
      const step = { ArrowUp: -1, ArrowDown: 1, Enter: 0, " ": 0 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      pick(Number(query.dataset.place) + step);
      queries[picked].focus();
    });
    draw();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".heads").forEach(startPicker);
    document.querySelectorAll(".words").forEach(startWords);
  });
})();
