"use strict";
// The list of lines: only those near the window are elements of the page, in blocks that are filled
// as they come near and emptied as they go. Text becomes text nodes, never markup.
document.addEventListener("DOMContentLoaded", () => {
  const BLOCK = 10; // lines
  const NEAR = "900px"; // from the window
  const MAX_PRINTED = 500; // lines
  // The blanks of Python's `str.split`, which separates the words of an alignment.
  const WORD = /[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/g;

  const byId = (id) => document.getElementById(id);
  const [find, viewBox, orderBox, markBox] = ["find", "view", "order", "marking"].map(byId);
  const [found, list] = [byId("found"), byId("lines")];
  const columns = tfm.data("lines").columns;
  const names = tfm.data("systems").columns.name;
  const views = tfm.data("views").columns;
  const numLines = columns.length.length;
  const isPair = names.length > 1;
  const letters = isPair ? ["A", "B"] : ["Translation"];
  const labels = isPair
    ? names.map((name, system) => `${letters[system]}: ${name.split("/").pop()}`)
    : letters;
  const references = Object.keys(columns).filter((name) => name.startsWith("reference-"));
  const count = (number) => number.toLocaleString("en");
  const difference = (line) => columns["chrf-1"][line] - columns["chrf-0"][line];

  // Numbers: distances from each to the next.

  function numbers(text) {
    let last = 0;
    return text ? text.split(",").map((part) => (last += Number(part))) : [];
  }

  // Sets of lines, their order, and the search.

  const chrf = (system) => (line) => columns[`chrf-${system}`][line];
  const orders = isPair
    ? [
        ["difference of sentence chrF, largest first", (line) => -Math.abs(difference(line))],
        ["B better than A, most first", (line) => -difference(line)],
        ["A better than B, most first", difference],
        ["chrF of A, lowest first", chrf(0)],
        ["chrF of B, lowest first", chrf(1)],
      ]
    : [
        ["sentence chrF, lowest first", chrf(0)],
        ["sentence chrF, highest first", (line) => -chrf(0)(line)],
      ];
  orders.push(
    ["length, longest first", (line) => -columns.length[line]],
    ["occurrences of the rarest word, fewest first", (line) => columns.rarest[line] ?? Infinity],
    ["number of the line", (line) => line],
  );
  const sorted = new Map();

  function ordered(index) {
    if (!sorted.has(index)) {
      const keys = Float64Array.from({ length: numLines }, (_, line) => orders[index][1](line));
      const lines = Array.from({ length: numLines }, (_, line) => line);
      sorted.set(index, lines.sort((one, other) => keys[one] - keys[other] || one - other));
    }
    return sorted.get(index);
  }

  const plain = (text) => text.normalize("NFKC").toLowerCase();
  let searched = null; // the texts of each line as the search compares them

  function searchTexts() {
    const kept = Object.keys(columns).filter((name) => /^(source$|reference-|system-)/.test(name));
    searched ??= Array.from({ length: numLines }, (_, line) =>
      plain(kept.map((name) => columns[name][line]).join("\n")));
    return searched;
  }

  function chosenLines() {
    const wanted = plain(find.value.trim());
    const number = wanted.match(/^#(\d+)$/);
    if (number) return Number(number[1]) - 1 in columns.length ? [Number(number[1]) - 1] : [];
    let lines = ordered(Number(orderBox.value));
    if (viewBox.value) {
      const members = new Set(numbers(views.lines[views.name.indexOf(viewBox.value)]));
      lines = lines.filter((line) => members.has(line));
    }
    if (!wanted) return lines;
    const texts = searchTexts();
    return lines.filter((line) => texts[line].includes(wanted));
  }

  // Elements of a line.

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  // Append a text to an element, in pieces at the bounds of its runs.
  // `runs` are [begin, end, tag, class, title], in any order; they may overlap.
  function appendText(parent, text, runs) {
    const cuts = new Set([0, text.length]);
    for (const [begin, end] of runs) cuts.add(begin).add(end);
    const bounds = [...cuts].sort((one, other) => one - other);
    let word = null; // the element of the word that is being written
    for (let index = 0; index + 1 < bounds.length; index++) {
      const [begin, end] = [bounds[index], bounds[index + 1]];
      const around = runs.filter((run) => run[0] <= begin && end <= run[1]);
      const inWord = around.find((run) => run[2] === "span");
      if (!inWord) word = null;
      else if (word?.begin !== inWord[0]) {
        word = { begin: inWord[0], span: element("span", "word") };
        parent.append(word.span);
      }
      let piece = document.createTextNode(text.slice(begin, end));
      const marks = around.filter((run) => run[2] === "mark");
      if (marks.length) {
        piece = element("mark", marks.length > 1 ? "missing" : marks[0][3], piece);
        piece.title = marks.map((run) => run[4]).join(", ");
      }
      (word ? word.span : parent).append(piece);
    }
  }

  function pairs(text, className, title) {
    const bounds = numbers(text);
    return bounds.flatMap((bound, index) =>
      index % 2 ? [[bounds[index - 1], bound, "mark", className, title]] : []);
  }

  function words(text) {
    return [...text.matchAll(WORD)].map((match) =>
      [match.index, match.index + match[0].length, "span"]);
  }

  function cell(label, text, runs) {
    const shown = element("div", "text");
    shown.dir = "auto";
    shown.lang = "";
    if (text) appendText(shown, text, runs);
    else shown.append(element("span", "empty", "empty"));
    const above = element("span", "label", label);
    above.dir = "auto";
    return element("div", "cell", above, shown);
  }

  function referenceRuns(line, reference) {
    if (markBox.value !== "reference") return [];
    return names.flatMap((_, system) => {
      const nearest = columns[`nearest-${system}`]?.[line] ?? 0;
      if (nearest !== reference) return [];
      const className = isPair ? `missing-${system + 1}` : "missing";
      const title = isPair ? `not in ${letters[system]}` : "not in the translation";
      return pairs(columns[`missing-${system}`][line], className, title);
    });
  }

  function systemRuns(line, system) {
    if (!markBox.value) return [];
    const isBetween = markBox.value === "between";
    const column = columns[`${isBetween ? "between" : "marks"}-${system}`];
    const other = isBetween ? letters[1 - system] : "the reference";
    return pairs(column[line], "own", `not in ${other}`);
  }

  function facts(line) {
    const shown = element("div", "facts", element("b", "", `Line ${count(line + 1)}`));
    const add = (text) => shown.append(element("span", "", text));
    names.forEach((_, system) => {
      add(`chrF ${isPair ? `of ${letters[system]} ` : ""}${chrf(system)(line).toFixed(1)}`);
    });
    if (isPair) {
      const value = difference(line);
      add(`difference ${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(1)}`);
    }
    return shown;
  }

  function row(line, place, total) {
    const texts = element("div", "texts");
    const alignments = names.map((_, system) => columns[`alignment-${system}`]?.[line] ?? "");
    let source = null;
    if (columns.source) {
      const text = columns.source[line];
      source = cell("Source", text, alignments.some(Boolean) ? words(text) : []);
      texts.append(source);
    }
    references.forEach((name, index) => {
      const label = references.length > 1 ? `Reference ${index + 1}` : "Reference";
      texts.append(cell(label, columns[name][line], referenceRuns(line, index)));
    });
    const made = element("div", "line", facts(line), texts);
    names.forEach((_, system) => {
      const text = columns[`system-${system}`][line];
      const runs = systemRuns(line, system);
      const isAligned = source && alignments[system];
      const shown = cell(labels[system], text, isAligned ? [...runs, ...words(text)] : runs);
      if (system === 0 && isPair) shown.style.gridColumnStart = "1";
      texts.append(shown);
      if (isAligned) align(made, source, shown, alignments[system], letters[system]);
    });
    made.setAttribute("role", "listitem");
    made.setAttribute("aria-setsize", total);
    made.setAttribute("aria-posinset", place + 1);
    made.dataset.line = line + 1;
    return made;
  }

  // Word alignment, shown for the word under the pointer or the one that the arrow keys reach.

  function align(made, source, shown, alignment, letter) {
    const sources = [...source.querySelectorAll(".word")];
    const own = [...shown.querySelectorAll(".word")];
    const text = shown.querySelector(".text");
    const links = alignment.split(";").map((part) =>
      part ? part.split(",").map((pair) => pair.split(":").map(Number)) : []);
    let note = made.querySelector(".aligned");
    if (!note) {
      note = element("p", "aligned");
      note.setAttribute("aria-live", "polite");
      note.dir = "auto";
      made.append(note);
    }
    let current = -1;

    function show(index) {
      for (const each of made.querySelectorAll(".here, .there")) {
        each.classList.remove("here", "there");
      }
      current = index;
      note.replaceChildren();
      if (index < 0) return;
      own[index].classList.add("here");
      const parts = [isolated(own[index].textContent), " ← "];
      links[index].forEach(([word, percent], place) => {
        sources[word].classList.add("there");
        if (place) parts.push(", ");
        parts.push(isolated(sources[word].textContent), ` ${percent} %`);
      });
      if (!links[index].length) parts.push("no source word with at least 10 %");
      note.append(...parts);
    }

    text.tabIndex = 0;
    text.setAttribute("role", "group");
    text.setAttribute("aria-label",
      `${letter}: ${text.textContent}. Arrow keys show the source words of each word.`);
    text.addEventListener("pointerover", (event) => {
      const word = event.target.closest(".word");
      if (word) show(own.indexOf(word));
    });
    text.addEventListener("pointerleave", () => {
      if (document.activeElement !== text) show(-1);
    });
    text.addEventListener("focus", () => show(Math.max(current, 0)));
    text.addEventListener("blur", () => show(-1));
    text.addEventListener("keydown", (event) => {
      const isRight = getComputedStyle(text).direction === "ltr";
      const step = { ArrowRight: isRight ? 1 : -1, ArrowLeft: isRight ? -1 : 1 }[event.key];
      const ends = { Home: 0, End: own.length - 1 }[event.key];
      if (step === undefined && ends === undefined) return;
      event.preventDefault();
      show(ends ?? Math.min(Math.max(current + step, 0), own.length - 1));
    });
  }

  function isolated(text) {
    const made = element("bdi", "", text);
    made.dir = "auto";
    return made;
  }

  // Blocks of lines.

  let lines = []; // those that are shown, in order
  let height = 180; // of a line, as far as it is known
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) fill(entry.target);
      else empty(entry.target);
    }
  }, { rootMargin: NEAR });

  function fill(block) {
    if (block.firstChild) return;
    const first = Number(block.dataset.first);
    block.append(...lines.slice(first, first + BLOCK).map((line, index) =>
      row(line, first + index, lines.length)));
    block.style.height = "";
    highlightSoon();
  }

  function empty(block) {
    if (!block.firstChild || block.contains(document.activeElement)) return;
    block.style.height = `${block.offsetHeight}px`;
    block.replaceChildren();
  }

  function render() {
    lines = chosenLines();
    observer.disconnect();
    const first = list.querySelector(".block");
    if (first?.childElementCount) height = first.offsetHeight / first.childElementCount;
    const blocks = [];
    for (let start = 0; start < lines.length; start += BLOCK) {
      const block = element("div", "block");
      block.setAttribute("role", "presentation");
      block.dataset.first = start;
      block.style.height = `${Math.min(BLOCK, lines.length - start) * height}px`;
      blocks.push(block);
    }
    list.replaceChildren(...blocks);
    if (blocks.length) fill(blocks[0]);
    for (const block of blocks) observer.observe(block);
    found.textContent = `${count(lines.length)} of ${count(numLines)} lines`;
    document.documentElement.dataset.listed = lines.length;
  }

  let isHighlighting = false; // in the next frame

  function highlightSoon() {
    if (isHighlighting) return;
    isHighlighting = true;
    requestAnimationFrame(() => {
      isHighlighting = false;
      highlight();
    });
  }

  // What the search has found is highlighted in the text that is on the page.
  function highlight() {
    if (!CSS.highlights) return;
    const wanted = find.value.trim().toLowerCase();
    const ranges = [];
    if (wanted && !/^#\d+$/.test(wanted)) {
      for (const text of list.querySelectorAll(".text")) ranges.push(...rangesIn(text, wanted));
    }
    const shown = new Highlight();
    for (const range of ranges) shown.add(range);
    CSS.highlights.set("found", shown);
  }

  function rangesIn(text, wanted) {
    const whole = text.textContent.toLowerCase();
    const ranges = [];
    if (whole.length !== text.textContent.length || !whole.includes(wanted)) return ranges;
    const nodes = [];
    const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
    for (let start = 0; walker.nextNode(); start += walker.currentNode.length) {
      nodes.push([start, walker.currentNode]);
    }
    const place = (offset, isEnd) => nodes.findLast(([start]) => isEnd ? start < offset : start <= offset);
    for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + wanted.length)) {
      const range = new Range();
      const [first, last] = [place(at, false), place(at + wanted.length, true)];
      range.setStart(first[1], at - first[0]);
      range.setEnd(last[1], at + wanted.length - last[0]);
      ranges.push(range);
    }
    return ranges;
  }

  // Controls.

  function followHash() {
    const name = location.hash.slice(1);
    if (!views.name.includes(name)) return;
    viewBox.value = name;
    find.value = "";
    render();
    document.querySelector(".controls").scrollIntoView();
    viewBox.focus({ preventScroll: true });
  }

  orders.forEach(([label], index) => orderBox.add(new Option(label, index)));
  views.name.forEach((name, index) => {
    const size = numbers(views.lines[index]).length;
    viewBox.add(new Option(`${views.label[index]} (${count(size)})`, name));
  });
  if (!isPair) {
    markBox.querySelector("[value=between]").remove();
    for (const each of document.querySelectorAll(".of-two")) each.remove();
  }
  byId("alignment-help").hidden = !("alignment-0" in columns || "alignment-1" in columns);
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  find.addEventListener("input", render);
  for (const box of [viewBox, orderBox, markBox]) box.addEventListener("change", render);
  viewBox.addEventListener("change", () => history.replaceState(null, "", `#${viewBox.value}`));
  window.addEventListener("hashchange", followHash);
  for (const link of document.querySelectorAll("a[href^='#lines-']")) {
    link.addEventListener("click", () => {
      if (link.hash === location.hash) followHash();
    });
  }
  window.addEventListener("beforeprint", () => {
    for (const block of list.children) if (block.dataset.first < MAX_PRINTED) fill(block);
  });
  render();
  if (location.hash) followHash();
  (window.requestIdleCallback ?? setTimeout)(searchTexts);
});
