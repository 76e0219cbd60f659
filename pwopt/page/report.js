"use strict";
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  if (!content.graphs.before) return;

  const UNIT = 186, ROW = 66, WIDTH = 164, HEIGHT = 42, FAR = 0.42, CLOSEST = 2.5;
  const byId = (id) => document.getElementById(id);
  const passes = content.passes;
  const sides = ["before", "after"];

  function svg(name, attributes, parent) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  }

  function html(name, text, parent, className) {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (className) made.className = className;
    if (parent) parent.append(made);
    return made;
  }

  const digits = (x) => (x < 999.5 ? String(Number(x.toPrecision(3))) : String(Math.round(x)));
  const microseconds = (us) => (us < 999.5 ? `${digits(us)} µs` : `${digits(us / 1000)} ms`);
  const measured = (node) => node.us !== undefined;
  const time = (node) => (measured(node) ? node.us : node.predicted) || 0;
  const shorten = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
  const label = (node) => `${node.op} ${node.name}`;
  const slowest = Math.max(1e-9, ...sides.flatMap((side) => content.graphs[side].nodes.map(time)));
  byId("legend").textContent = `0 to ${microseconds(slowest)}`;

  class View {
    constructor(side) {
      this.side = side;
      this.data = content.graphs[side];
      this.pane = byId(side);
      this.svg = this.pane.querySelector(".drawing");
      this.strip = this.pane.querySelector(".strip");
      this.height = this.data.layers * ROW;
      this.width = this.data.width * UNIT;
      this.state = { x: 0, y: 0, k: 1 };
      this.draw();
      this.drawStrip();
      this.listen();
    }

    at(node) { return { x: node.x * UNIT, y: (node.y + 0.5) * ROW }; }

    path([a, b, ...bends]) {
      const from = this.at(this.data.nodes[a]), to = this.at(this.data.nodes[b]);
      const points = bends.map((x, i) => ({ x: x * UNIT, y: from.y + (i + 1) * ROW }));
      let d = `M${from.x} ${from.y + HEIGHT / 2}`, last = { x: from.x, y: from.y + HEIGHT / 2 };
      const curve = (x, y) => {
        const middle = (last.y + y) / 2;
        d += `C${last.x} ${middle} ${x} ${middle} ${x} ${y}`;
        last = { x, y };
      };
      for (const { x, y } of points) {
        curve(x, y - HEIGHT / 2);
        d += `V${y + HEIGHT / 2}`;
        last.y = y + HEIGHT / 2;
      }
      curve(to.x, to.y - HEIGHT / 2);
      return d;
    }

    draw() {
      this.group = svg("g", {}, this.svg);
      svg("path", { class: "edges", d: this.data.edges.map((e) => this.path(e)).join("") }, this.group);
      this.near = svg("path", { class: "edges near" }, this.group);
      this.elements = this.data.nodes.map((node, i) => this.drawNode(node, i));
      this.group.append(...this.elements);
    }

    drawNode(node, i) {
      const { x, y } = this.at(node), heat = Math.sqrt(time(node) / slowest);
      const names = ["node"];
      if (node.macs === undefined) names.push("port");
      else if (this.side === "before" && !node.into.length) names.push("gone");
      if (heat > 0.45) names.push("warm");
      const group = svg("g", { class: names.join(" "), "data-i": i, transform: `translate(${x - WIDTH / 2} ${y - HEIGHT / 2})` });
      svg("rect", { class: "box", width: WIDTH, height: HEIGHT, rx: 7, style: `--t:${heat.toFixed(3)}` }, group);
      const own = [...new Set((node.notes || []).map((note) => note[0]))].slice(0, 4);
      own.forEach((pass, k) => svg("rect", {
        class: "stripe", x: 4, y: 5 + (k * (HEIGHT - 10)) / own.length, width: 4,
        height: (HEIGHT - 10) / own.length - 1, rx: 2, style: `fill:var(--pass-${pass % 8})`,
      }, group));
      const left = own.length ? 14 : 9, us = time(node);
      svg("text", { x: left, y: 17 }, group).textContent = shorten(node.op, us ? 12 : 18);
      if (us) svg("text", { class: "time", x: WIDTH - 8, y: 17 }, group).textContent = microseconds(us);
      svg("text", { class: "second", x: left, y: 33 }, group).textContent = shorten(node.detail || node.name, 24);
      svg("title", {}, group).textContent = label(node);
      return group;
    }

    drawStrip() {
      this.strip.setAttribute("viewBox", `0 0 24 ${this.data.layers}`);
      const heat = new Array(this.data.layers).fill(0);
      for (const node of this.data.nodes) heat[node.y] += time(node);
      heat.forEach((us, y) => us && svg("rect", {
        class: "heat", x: 5, width: 14, y, height: 1.02, style: `--t:${Math.min(1, Math.sqrt(us / slowest)).toFixed(3)}`,
      }, this.strip));
      this.window = svg("rect", { class: "window", x: 1, width: 22 }, this.strip);
    }

    get size() { return { width: this.svg.clientWidth - 24, height: this.svg.clientHeight }; }

    apply() {
      const { width, height } = this.size, s = this.state, keep = 60;
      s.x = Math.min(width - keep, Math.max(keep - this.width * s.k, s.x));
      s.y = Math.min(height - keep, Math.max(keep - this.height * s.k, s.y));
      this.group.setAttribute("transform", `translate(${s.x} ${s.y}) scale(${s.k})`);
      this.svg.classList.toggle("far", s.k < FAR);
      const top = -s.y / s.k / ROW, rows = height / s.k / ROW;
      this.window.setAttribute("y", top);
      this.window.setAttribute("height", Math.max(0.5, rows));
    }

    zoom(factor, px, py) {
      const { width, height } = this.size, s = this.state;
      const x = px === undefined ? width / 2 : px, y = py === undefined ? height / 2 : py;
      const least = Math.min(0.2, 0.5 * width / this.width, 0.9 * height / this.height);
      const k = Math.min(CLOSEST, Math.max(least, s.k * factor)), ratio = k / s.k;
      this.state = { k, x: x - (x - s.x) * ratio, y: y - (y - s.y) * ratio };
      this.apply();
    }

    start() {
      const { width } = this.size;
      const wide = Math.min(1, width / (this.width + 20));
      const k = Math.max(0.8, wide), first = this.at(this.data.nodes[0] || { x: 0.5, y: 0 });
      const x = wide >= 0.8 ? (width - this.width * k) / 2 : width / 2 - first.x * k;
      this.state = { k, x, y: 44 };
      this.apply();
    }

    fit() {
      const { width, height } = this.size;
      const k = Math.min(1, width / (this.width + 20), height / (this.height + 20));
      this.state = { k, x: (width - this.width * k) / 2, y: (height - this.height * k) / 2 };
      this.apply();
    }

    centre(i) {
      const { width, height } = this.size, { x, y } = this.at(this.data.nodes[i]);
      const k = Math.max(this.state.k, 0.8);
      this.state = { k, x: width / 2 - x * k, y: height / 2 - y * k };
      this.apply();
    }

    move(dx, dy) { this.state.x += dx; this.state.y += dy; this.apply(); }

    listen() {
      const pointers = new Map();
      let moved = 0;
      const place = (e) => {
        const box = this.svg.getBoundingClientRect();
        return { x: e.clientX - box.left, y: e.clientY - box.top };
      };
      this.svg.addEventListener("pointerdown", (e) => {
        if (!pointers.size) moved = 0;
        pointers.set(e.pointerId, place(e));
      });
      this.svg.addEventListener("pointermove", (e) => {
        const before = pointers.get(e.pointerId);
        if (!before) return;
        const now = place(e);
        if (pointers.size === 2) {
          const other = [...pointers].find(([id]) => id !== e.pointerId)[1];
          const spread = (p) => Math.hypot(p.x - other.x, p.y - other.y) || 1;
          this.zoom(spread(now) / spread(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
          moved = 99;
        } else {
          moved += Math.hypot(now.x - before.x, now.y - before.y);
          if (moved > 4) {
            this.svg.setPointerCapture(e.pointerId);
            this.move(now.x - before.x, now.y - before.y);
          }
        }
        pointers.set(e.pointerId, now);
      });
      for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) {
        this.svg.addEventListener(kind, (e) => pointers.delete(e.pointerId));
      }
      this.svg.addEventListener("click", (e) => {
        const node = e.target.closest(".node");
        if (moved <= 4) choose(this.side, node ? Number(node.dataset.i) : null, false);
      });
      this.svg.addEventListener("wheel", (e) => {
        const { x, y } = place(e);
        if (e.ctrlKey || e.metaKey) {
          e.preventDefault();
          this.zoom(Math.exp(-e.deltaY / 240), x, y);
        } else {
          const was = this.state.y;
          this.move(-e.deltaX, -e.deltaY);
          if (Math.abs(this.state.y - was) > 0.5) e.preventDefault(); // else the page moves on
        }
      }, { passive: false });
      this.svg.addEventListener("keydown", (e) => {
        const step = 60;
        const moves = { ArrowUp: [0, step], ArrowDown: [0, -step], ArrowLeft: [step, 0], ArrowRight: [-step, 0] };
        if (moves[e.key]) this.move(...moves[e.key]);
        else if (e.key === "+" || e.key === "=") this.zoom(1.3);
        else if (e.key === "-") this.zoom(1 / 1.3);
        else if (e.key === "0") this.fit();
        else return;
        e.preventDefault();
      });
      const jump = (e) => {
        if (e.type === "pointermove" && !e.buttons) return;
        const box = this.strip.getBoundingClientRect();
        const share = (e.clientY - box.top) / box.height;
        this.state.y = this.size.height / 2 - share * this.height * this.state.k;
        this.apply();
      };
      this.strip.addEventListener("pointerdown", jump);
      this.strip.addEventListener("pointermove", jump);
      for (const button of this.pane.querySelectorAll("[data-do]")) {
        const actions = { in: () => this.zoom(1.4), out: () => this.zoom(1 / 1.4), fit: () => this.fit() };
        button.addEventListener("click", actions[button.dataset.do]);
      }
      new ResizeObserver(() => this.refresh()).observe(this.svg);
    }

    refresh() {
      if (!this.svg.clientWidth) return; // hidden behind the other tab
      if (!this.started) { this.started = true; this.start(); } else this.apply();
      if (this.waiting !== undefined) { this.centre(this.waiting); this.waiting = undefined; }
    }

    show(i) {
      if (this.svg.clientWidth) this.centre(i); else this.waiting = i;
    }

    mark(name, chosen) {
      const set = new Set(chosen);
      this.elements.forEach((element, i) => element.classList.toggle(name, set.has(i)));
    }

    edgesOf(i) {
      const own = i === null ? [] : this.data.edges.filter(([a, b]) => a === i || b === i);
      this.near.setAttribute("d", own.map((e) => this.path(e)).join(""));
    }
  }

  const views = Object.fromEntries(sides.map((side) => [side, new View(side)]));
  const otherSide = (side) => (side === "before" ? "after" : "before");
  const counterparts = (side, node) => (side === "before" ? node.into : node.from) || [];

  function tab(side) {
    for (const button of document.querySelectorAll(".tabs button")) {
      button.setAttribute("aria-selected", String(button.dataset.side === side));
    }
    for (const each of sides) views[each].pane.classList.toggle("shown", each === side);
    for (const each of sides) views[each].refresh();
  }
  for (const button of document.querySelectorAll(".tabs button")) {
    button.addEventListener("click", () => tab(button.dataset.side));
  }
  tab("after");

  function choose(side, i, centre = true) {
    const other = otherSide(side), view = views[side];
    const node = i === null ? null : view.data.nodes[i];
    const linked = node ? counterparts(side, node) : [];
    view.mark("selected", node ? [i] : []);
    view.mark("linked", []);
    view.edgesOf(i);
    views[other].mark("selected", []);
    views[other].mark("linked", linked);
    views[other].edgesOf(null);
    if (node && centre) { tab(side); view.show(i); }
    if (linked.length) views[other].show(linked[Math.floor(linked.length / 2)]);
    describe(side, node, linked);
  }

  function describe(side, node, linked) {
    const card = byId("chosen");
    card.replaceChildren();
    card.hidden = !node;
    if (!node) return;
    html("h3", label(node), card);
    const facts = html("dl", "", card, "facts");
    const fact = (key, text) => {
      if (text) { html("dt", key, facts); html("dd", text, facts); }
    };
    fact("graph", side);
    fact("sizes", node.detail);
    fact("result", node.type);
    if (measured(node)) fact("measured", node.us ? microseconds(node.us) : "nothing of its own: it is part of a neighbour");
    if (node.predicted) fact("predicted", `${microseconds(node.predicted)}, bound by ${node.bound}`);
    fact("kernel", node.kernel);
    if (node.macs) fact("multiply-adds", node.macs.toLocaleString("en"));
    for (const [pass, text] of node.notes || []) fact(passes[pass], text);
    if (node.macs === undefined) return;
    html("p", side === "after" ? "stands for" : linked.length ? "became" : "is gone in the optimized graph", card).style.marginBottom = "2px";
    const other = otherSide(side);
    for (const i of linked.slice(0, 40)) {
      const button = html("button", label(views[other].data.nodes[i]), card, "chip");
      button.type = "button";
      button.style.setProperty("--hue", "var(--mark)");
      button.addEventListener("click", () => choose(other, i));
    }
    if (linked.length > 40) html("span", `and ${linked.length - 40} more`, card);
  }

  let pass = null;
  function choosePass(index) {
    pass = pass === index ? null : index;
    for (const chip of document.querySelectorAll("[data-pass]")) {
      chip.setAttribute("aria-pressed", String(Number(chip.dataset.pass) === pass));
    }
    for (const side of sides) {
      const view = views[side], lit = [];
      view.data.nodes.forEach((node, i) => {
        if ((node.notes || []).some((note) => note[0] === pass)) lit.push(i);
      });
      view.svg.classList.toggle("passing", pass !== null);
      view.mark("lit", lit);
      if (lit.length) view.show(lit[0]);
    }
  }
  for (const chip of document.querySelectorAll("[data-pass]")) {
    chip.addEventListener("click", () => {
      choosePass(Number(chip.dataset.pass));
      if (chip.closest("table") && pass !== null) byId("graph").scrollIntoView();
    });
  }

  let matches = [], current = -1;
  function search() {
    const wanted = byId("search").value.trim().toLowerCase();
    matches = [];
    current = -1;
    for (const side of ["after", "before"]) {
      const found = [];
      if (wanted) {
        views[side].data.nodes.forEach((node, i) => {
          const text = `${node.op} ${node.name} ${node.detail || ""} ${node.type} ${(node.origin || []).join(" ")}`;
          if (text.toLowerCase().includes(wanted)) found.push(i);
        });
      }
      views[side].mark("match", found);
      matches.push(...found.map((i) => [side, i]));
    }
    step(1);
    if (!wanted) byId("found").textContent = "";
  }
  function step(by) {
    if (!matches.length) {
      byId("found").textContent = "nothing found";
      return;
    }
    current = (current + by + matches.length) % matches.length;
    byId("found").textContent = `${current + 1} of ${matches.length}`;
    choose(...matches[current]);
  }
  byId("search").addEventListener("input", search);
  byId("search").addEventListener("keydown", (e) => {
    if (e.key === "Enter") step(e.shiftKey ? -1 : 1);
  });
  byId("next").addEventListener("click", () => step(1));
  byId("previous").addEventListener("click", () => step(-1));

  for (const element of document.querySelectorAll(".waterfall [data-node], .point[data-node]")) {
    const go = () => {
      choose("after", Number(element.dataset.node));
      byId("graph").scrollIntoView();
    };
    element.addEventListener("click", go);
    element.addEventListener("keydown", (e) => { if (e.key === "Enter") go(); });
  }
})();
