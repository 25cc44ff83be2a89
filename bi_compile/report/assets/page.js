"use strict";
const trees = JSON.parse(document.getElementById("trees").textContent);
const byId = (id) => document.getElementById(id);

class View {
  // One graph: its drawing with zoom and pan, its table, and the node chosen in both.
  constructor(section) {
    this.section = section;
    this.number = section.id.slice(1);
    this.svg = section.querySelector("svg");
    this.layer = this.svg.querySelector("g");
    this.overview = section.querySelector("canvas");
    this.table = section.querySelector(".rows");
    this.details = section.querySelector(".details");
    this.width = +this.svg.dataset.width;
    this.height = +this.svg.dataset.height;
    this.rows = [...section.querySelectorAll("tbody tr")];
    this.reads = new Map();
    this.readBy = new Map();
    this.edges = [...section.querySelectorAll(".edges path")];
    for (const edge of this.edges) {
      const [from, to] = edge.dataset.e.split(" ").map(Number);
      this.add(this.reads, to, from, edge);
      this.add(this.readBy, from, to, edge);
    }
    this.svg.removeAttribute("viewBox");
    this.listen();
    this.shown = false;
  }
  add(map, key, other, edge) {
    if (!map.has(key)) map.set(key, []);
    map.get(key).push([other, edge]);
  }
  show(visible) {
    this.section.hidden = !visible;
    if (visible && !this.shown) {
      this.shown = true;
      this.start();
    }
  }
  size() {
    return this.svg.getBoundingClientRect();
  }
  start() {
    // The whole width if that stays readable, from the top; else the first node at a readable size.
    const { width } = this.size();
    this.scale = Math.min(1, Math.max(0.55, (width - 24) / this.width));
    const first = this.section.querySelector(".n");
    const middle = first && this.width * this.scale > width - 24 ? this.place(first).x + 90 : this.width / 2;
    this.move((width - 18) / 2 - middle * this.scale, 8);
  }
  place(node) {
    const [x, y] = node.getAttribute("transform").match(/-?[\d.]+/g).map(Number);
    return { x, y };
  }
  move(x, y, scale = this.scale) {
    this.x = x;
    this.y = y;
    this.scale = scale;
    this.layer.setAttribute("transform", `translate(${x} ${y}) scale(${scale})`);
    this.layer.classList.toggle("far", scale < 0.3);
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.drawOverview());
  }
  zoom(factor, x, y) {
    const box = this.size();
    x ??= box.width / 2;
    y ??= box.height / 2;
    const least = Math.min(1, box.width / this.width, box.height / this.height) * 0.9;
    const scale = Math.min(4, Math.max(least, this.scale * factor));
    const by = scale / this.scale;
    this.move(x - (x - this.x) * by, y - (y - this.y) * by, scale);
  }
  fit() {
    const box = this.size();
    const scale = Math.min(1, (box.width - 30) / this.width, box.height / this.height);
    this.move((box.width - 18 - this.width * scale) / 2, 0, scale);
  }
  center(node) {
    const box = this.size();
    const { x, y } = this.place(node);
    const scale = Math.max(this.scale, 0.55);
    const room = box.width - 18 - this.width * scale;
    this.move(room > 0 ? room / 2 : box.width / 2 - (x + 88) * scale, box.height / 2 - (y + 18) * scale, scale);
  }
  drawOverview() {
    const canvas = this.overview;
    canvas.hidden = this.height < this.size().height;
    const { width, height } = canvas.getBoundingClientRect();
    if (!height) return;
    canvas.width = width;
    canvas.height = height;
    const pen = canvas.getContext("2d");
    if (!this.marks) {
      const colors = new Map();
      this.marks = [...this.section.querySelectorAll(".n")].map((node) => {
        const kind = node.classList[1];
        if (!colors.has(kind)) colors.set(kind, getComputedStyle(node).getPropertyValue("--c"));
        const ordinary = node.matches(".k-free, .k-canonical, .k-input");
        return { y: this.place(node).y, color: colors.get(kind), tall: ordinary ? 1 : 4, node };
      });
      this.marks.sort((a, b) => a.tall - b.tall);
    }
    const unit = height / this.height;
    for (const { y, color, tall, node } of this.marks) {
      pen.globalAlpha = node.classList.contains("dim") ? 0.1 : tall > 1 ? 1 : 0.4;
      pen.fillStyle = color;
      pen.fillRect(4, y * unit, width - 8, Math.max(tall, 30 * unit));
    }
    pen.globalAlpha = 1;
    pen.strokeStyle = getComputedStyle(canvas).color;
    pen.lineWidth = 2;
    const seen = Math.max(4, (this.size().height / this.scale) * unit);
    pen.strokeRect(1, (-this.y / this.scale) * unit, width - 2, seen);
  }
  listen() {
    const svg = this.svg;
    svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = this.size();
      this.zoom(Math.exp(-event.deltaY * 0.0015), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    let from = null;
    svg.addEventListener("pointerdown", (event) => {
      from = { x: event.clientX - this.x, y: event.clientY - this.y, startX: event.clientX, startY: event.clientY };
    });
    svg.addEventListener("pointermove", (event) => {
      if (!from || !event.buttons) return;
      if (Math.hypot(event.clientX - from.startX, event.clientY - from.startY) > 4 && !from.moved) {
        from.moved = true;
        svg.classList.add("drag");
        svg.setPointerCapture(event.pointerId);
      }
      if (from.moved) this.move(event.clientX - from.x, event.clientY - from.y);
    });
    svg.addEventListener("pointerup", (event) => {
      const node = event.target.closest(".n");
      if (from && !from.moved && node) this.choose(+node.id.split("-")[1], false);
      from = null;
      svg.classList.remove("drag");
    });
    const jump = (event) => {
      const box = this.overview.getBoundingClientRect();
      const y = ((event.clientY - box.top) / box.height) * this.height;
      this.move(this.x, this.size().height / 2 - y * this.scale);
    };
    this.overview.addEventListener("pointerdown", jump);
    this.overview.addEventListener("pointermove", (event) => event.buttons && jump(event));
    this.section.querySelector("tbody").addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (row) this.choose(this.rows.indexOf(row), true, false);
    });
    this.table.tabIndex = 0;
    for (const part of [svg, this.table]) part.addEventListener("keydown", (event) => this.key(event));
  }
  key(event) {
    const actions = {
      ArrowDown: () => this.step(1), ArrowUp: () => this.step(-1),
      ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1),
      "+": () => this.zoom(1.25), "=": () => this.zoom(1.25), "-": () => this.zoom(0.8), 0: () => this.fit(),
    };
    if (actions[event.key] && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      actions[event.key]();
    }
  }
  step(by) {
    let next = (this.chosen ?? (by > 0 ? -1 : this.rows.length)) + by;
    while (this.rows[next]?.hidden) next += by;
    if (this.rows[next]) this.choose(next, true);
  }
  choose(index, center, scroll = true) {
    const row = this.rows[index];
    if (!row) return;
    for (const old of this.section.querySelectorAll(".chosen")) old.classList.remove("chosen");
    for (const [, edge] of this.near ?? []) edge.classList.remove("near");
    this.chosen = index;
    row.hidden = false;
    row.classList.add("chosen");
    const node = byId(`n${this.number}-${index}`);
    node?.classList.add("chosen");
    if (node && center) this.center(node);
    if (scroll) this.reveal(row);
    const reads = this.reads.get(index) ?? [];
    const readBy = this.readBy.get(index) ?? [];
    this.near = [...reads, ...readBy];
    for (const [, edge] of this.near) edge.classList.add("near");
    this.tell(row, reads, readBy);
    history.replaceState(null, "", `#node-${this.number}-${index}`);
  }
  reveal(row) {
    // Only the table scrolls, never the page.
    const { scrollTop, clientHeight } = this.table;
    const above = row.offsetTop - this.table.querySelector("thead").offsetHeight;
    if (above < scrollTop || row.offsetTop + row.offsetHeight > scrollTop + clientHeight) {
      this.table.scrollTop = above - clientHeight / 3;
    }
  }
  tell(row, reads, readBy) {
    const [name, verdict, value, line] = row.cells;
    const op = name.querySelector("i").textContent;
    const box = this.details;
    box.replaceChildren();
    const put = (tag, text) => box.appendChild(Object.assign(document.createElement(tag), { textContent: text }));
    put("h2", name.querySelector("b").textContent);
    put("p", `${op} · ${[...verdict.childNodes].map((part) => part.textContent).join(": ")}`);
    if (value.textContent) put("p", [...value.childNodes].map((part) => part.textContent).join(" · "));
    const tree = trees[op.split(" ")[0]];
    if (tree) put("p", tree);
    if (line.firstChild) put("p", line.querySelector(".place").textContent);
    if (line.firstChild) box.appendChild(line.querySelector("code").cloneNode(true));
    for (const [title, others] of [["reads ", reads], ["read by ", readBy]]) {
      if (!others.length) continue;
      const list = put("p", title);
      for (const [other] of others) {
        const button = document.createElement("button");
        button.textContent = this.rows[other].querySelector("b").textContent;
        button.onclick = () => this.choose(other, true);
        list.appendChild(button);
      }
    }
  }
  filter(text, kind) {
    if (!text && !kind && !this.filtered) return 0;
    this.filtered = Boolean(text || kind);
    this.texts ??= this.rows.map((row) => row.textContent.toLowerCase());
    let count = 0;
    this.rows.forEach((row, index) => {
      const hit = (!text || this.texts[index].includes(text)) && (!kind || row.classList.contains(kind));
      count += hit;
      row.hidden = !hit;
      byId(`n${this.number}-${index}`)?.classList.toggle("dim", !hit);
    });
    this.drawOverview();
    return count;
  }
}

const views = [...document.querySelectorAll("section.graph")].map((section) => new View(section));
let current = views[0];
const search = byId("search");
const kinds = [...document.querySelectorAll("[data-kind]")];

function open(number) {
  current = views[number];
  for (const view of views) view.show(view === current);
  if (byId("choice")) byId("choice").value = number;
  filter();
}
function filter() {
  const text = search.value.trim().toLowerCase();
  const kind = kinds.find((button) => button.ariaPressed === "true")?.dataset.kind;
  const count = current?.filter(text, kind);
  byId("found").textContent = text || kind ? `${count} found` : "";
}
function go(target) {
  const [number, index] = target.split("-").map(Number);
  if (!views[number]) return;
  open(number);
  current.choose(index, true);
}

search.addEventListener("input", filter);
search.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !current) return;
  const hits = current.rows.flatMap((row, index) => (row.hidden ? [] : [index]));
  current.choose(hits.find((index) => index > (current.chosen ?? -1)) ?? hits[0], true);
});
for (const button of kinds) {
  button.addEventListener("click", () => {
    const pressed = button.ariaPressed !== "true";
    for (const other of kinds) other.ariaPressed = "false";
    button.ariaPressed = String(pressed);
    filter();
  });
}
byId("choice")?.addEventListener("change", (event) => open(+event.target.value));
byId("in").addEventListener("click", () => current?.zoom(1.25));
byId("out").addEventListener("click", () => current?.zoom(0.8));
byId("fit").addEventListener("click", () => current?.fit());
for (const link of document.querySelectorAll("[data-go]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    go(link.dataset.go);
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const view of views) {
    view.marks = undefined;
    if (view.shown) view.drawOverview();
  }
});
addEventListener("resize", () => current?.drawOverview());
if (views.length) {
  open(0);
  const linked = location.hash.match(/^#(?:node-|r)(\d+-\d+)$/);
  if (linked) go(linked[1]);
}
