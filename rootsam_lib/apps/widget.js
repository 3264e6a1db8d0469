// The canvas of widget.py. Places are in pixels of the image; `view` says where the image lies on the canvas.
const STYLE = `
.rootsam { font: 13px/1.4 system-ui, sans-serif; color: var(--jp-ui-font-color1, inherit); }
.rootsam .bar { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; margin: 4px 0; }
.rootsam button { font: inherit; padding: 3px 9px; border: 1px solid #9a9a9a; border-radius: 4px; cursor: pointer;
  background: var(--jp-layout-color1, transparent); color: inherit; }
.rootsam button:disabled { opacity: 0.4; cursor: default; }
.rootsam button.on { background: #0056a4; border-color: #0056a4; color: #fff; }
.rootsam button.on.soil { background: #c62020; border-color: #c62020; }
.rootsam button.on.root { background: #1f8f1f; border-color: #1f8f1f; }
.rootsam .gap { width: 8px; }
.rootsam input[type="range"] { width: 80px; }
@media (max-width: 500px) { .rootsam button { padding: 3px 6px; } .rootsam .gap { width: 0; } .rootsam input[type="range"] { width: 60px; } }
.rootsam .frame { height: 520px; background: #2b2b2b; overflow: hidden; border-radius: 4px; }
.rootsam canvas { display: block; width: 100%; height: 100%; cursor: crosshair; touch-action: none; outline: none; }
.rootsam canvas:focus { box-shadow: inset 0 0 0 2px #4c9be8; }
.rootsam .said.wrong { color: var(--jp-error-color1, #e53935); }
.rootsam label { display: inline-flex; align-items: center; gap: 4px; }
.rootsam .help { display: none; columns: 2 280px; margin: 4px 0; padding: 6px 10px; border: 1px solid #9a9a9a; border-radius: 4px; }
.rootsam .help.open { display: block; }
.rootsam .key { display: inline-block; width: 12px; height: 12px; border-radius: 2px; vertical-align: -1px; margin: 0 3px 0 8px; }
/* The picture below the widget is for where no kernel runs: here it would only show everything twice. */
.jp-OutputArea-child:has(.rootsam) + .jp-OutputArea-child:has(img) { display: none; }
.rootsam kbd { border: 1px solid #9a9a9a; border-radius: 3px; padding: 0 4px; font-size: 12px; }`;

const HELP = [
  ["left click", "root: a circle"], ["right click, Alt + click", "soil: a cross"], ["drag a point", "move it"],
  ["T, then two clicks", "trace the root between them"], ["X, then a click", "remove the segment under it"],
  ["B, then two clicks", "a box that counts as no window: tape, labels, bubbles"],
  ["R", "back to root clicks"], ["Esc", "forget the first of two clicks"],
  ["Delete, Backspace", "remove the point under the mouse, or the last one touched"],
  ["Z, Ctrl + Z", "undo"], ["Y, Ctrl + Shift + Z", "redo"], ["wheel, + and −", "zoom"], ["0", "whole image"],
  ["drag, arrow keys", "pan"], ["M, E, I", "mask, errors (where the truth is known), image only"],
  ["[ and ]", "overlay opacity"], ["L, K", "show the image brighter, darker"], ["N, P", "next, previous image"], ["D", "done"], ["S", "save"],
  ["touch", "tap: the chosen tool; drag a point, or tap it and remove it; one finger pans, two zoom"], ["H", "this help"],
];
// px of the screen, for a mouse and for a finger: how close to a point it must be; less of a way is a click and no drag
const NEAR = { mouse: 9, touch: 18 };
const STILL = { mouse: 4, touch: 10 };

function render({ model, el }) {
  el.innerHTML = `<style>${STYLE}</style><div class="rootsam" data-jp-suppress-context-menu="true">
    <div class="bar">
      <button data-do="previous" title="previous image (P)">◀</button><button data-do="next" title="next image (N)">▶</button>
      <b class="name"></b><span class="place"></span><span class="gap"></span>
      <button data-do="done" title="this mask is good (D)">done</button><button data-do="save" title="save (S)">save</button>
    </div>
    <div class="bar">
      <button class="root" data-kind="1" title="what a click means">● root</button><button class="soil" data-kind="0">✕ soil</button>
      <button data-kind="trace" title="two clicks: the root between them (T)">trace</button>
      <button data-kind="remove" title="the segment under the click (X)">cut</button>
      <button data-kind="exclude" title="two corners: leave a box out (B)">box</button>
      <span class="gap"></span><button data-do="undo" title="Z">undo</button><button data-do="redo" title="Y">redo</button>
      <button data-remove="1" title="the point last touched (Delete)">remove</button>
      <span class="gap"></span>
      <button data-view="mask" title="M">mask</button><button data-view="error" title="E">errors</button><button data-view="image" title="I">image</button>
      <label>opacity <input type="range" class="opacity" min="0.1" max="1" step="0.05" value="0.55"></label>
      <label title="how bright the image is shown (L, K)">light <input type="range" class="light" min="1" max="8" step="0.25" value="1"></label>
      <button data-zoom="1.4" title="+">+</button><button data-zoom="0.7143" title="−">−</button><button data-zoom="fit" title="0">fit</button>
      <button data-help="1" title="H">?</button>
    </div>
    <div class="help">${HELP.map(([key, what]) => `<div><kbd>${key}</kbd> ${what}</div>`).join("")}</div>
    <div class="frame"><canvas tabindex="0" aria-label="image to correct: click on roots, right-click on soil"></canvas></div>
    <div class="bar foot"><span class="state"></span><span class="legend"></span><span class="said" role="status"></span></div></div>`;
  const find = (selector) => el.querySelector(selector);
  const canvas = find("canvas"), frame = find(".frame"), pen = canvas.getContext("2d");
  const view = { scale: 1, x: 0, y: 0 };
  let picture = null, layer = null, kind = 1, opacity = 0.55, light = 1, touched = -1, first = null, mouse = null, drag = null, asked = 0, drawn = 0;
  const fingers = new Map();

  const status = () => model.get("status"), colours = model.get("colours");
  const points = () => model.get("points");
  const send = (message) => { asked = performance.now(); canvas.dataset.waiting = "1"; model.send(message); };

  // --- Between the screen and the image
  const toImage = (x, y) => [Math.floor((x - view.x) / view.scale), Math.floor((y - view.y) / view.scale)];
  const toScreen = (x, y) => [(x + 0.5) * view.scale + view.x, (y + 0.5) * view.scale + view.y];
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const inside = ([x, y]) => x >= 0 && y >= 0 && x < status().width && y < status().height;
  const by = (event) => (event.pointerType === "touch" ? "touch" : "mouse");
  function nearest([x, y], near = NEAR.mouse) {
    let best = -1, closest = near;
    if (typeof kind === "string") return best; // a tool works on the mask, points or not
    points().forEach(([px, py, , tool], i) => {
      if (tool !== "click") return;
      const [sx, sy] = toScreen(px, py), far = Math.hypot(sx - x, sy - y);
      if (far <= closest) { best = i; closest = far; }
    });
    return best;
  }
  function fit() {
    const { width, height } = status();
    view.scale = Math.min(frame.clientWidth / width, frame.clientHeight / height);
    view.x = (frame.clientWidth - width * view.scale) / 2;
    view.y = (frame.clientHeight - height * view.scale) / 2;
  }
  function zoom(factor, [x, y]) {
    const { width, height } = status();
    const whole = Math.min(frame.clientWidth / width, frame.clientHeight / height);
    const scale = Math.min(Math.max(view.scale * factor, whole * 0.5), 40);
    view.x = x - (x - view.x) * (scale / view.scale);
    view.y = y - (y - view.y) * (scale / view.scale);
    view.scale = scale;
    draw();
  }
  const middle = () => [frame.clientWidth / 2, frame.clientHeight / 2];

  // --- Drawing
  function draw() {
    const ratio = window.devicePixelRatio || 1, wide = frame.clientWidth, high = frame.clientHeight;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
      canvas.width = Math.round(wide * ratio); canvas.height = Math.round(high * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, wide, high);
    if (!picture) return;
    const { width, height, view: shows } = status();
    pen.imageSmoothingEnabled = view.scale < 1;
    pen.imageSmoothingQuality = "high";
    pen.filter = shows === "error" ? "grayscale(1) brightness(0.55)" : "none";
    pen.drawImage(picture, view.x, view.y, width * view.scale, height * view.scale);
    pen.filter = "none";
    if (light > 1) { // value / (1 - grey): `light` times as bright
      pen.globalCompositeOperation = "color-dodge";
      pen.fillStyle = `rgb(${Array(3).fill(Math.round(255 * (1 - 1 / light)))})`;
      pen.fillRect(view.x, view.y, width * view.scale, height * view.scale);
      pen.globalCompositeOperation = "source-over";
    }
    if (layer && shows !== "image") {
      pen.globalAlpha = shows === "error" ? Math.max(opacity, 0.8) : opacity;
      pen.drawImage(layer, view.x, view.y, width * view.scale, height * view.scale);
      pen.globalAlpha = 1;
    }
    points().forEach(([x, y, label, tool, x2, y2], i) => {
      if (tool === "exclude") box(toScreen(x, y), toScreen(x2, y2));
      if (tool !== "click") return;
      const held = drag && drag.point === i && drag.moved;
      const [sx, sy] = held ? drag.now : toScreen(x, y);
      pen.beginPath();
      const r = i === touched ? 8 : 6, rim = i === touched ? 3 : 1.5;
      pen.strokeStyle = "white";
      if (label) {
        pen.arc(sx, sy, r, 0, 2 * Math.PI);
        pen.fillStyle = colours.root; pen.fill(); pen.lineWidth = rim; pen.stroke();
      } else { // a cross: green and red alone are the same to one man in twelve
        pen.moveTo(sx - r, sy - r); pen.lineTo(sx + r, sy + r); pen.moveTo(sx - r, sy + r); pen.lineTo(sx + r, sy - r);
        pen.lineCap = "round"; pen.lineWidth = 4 + 2 * rim; pen.stroke();
        pen.lineWidth = 4; pen.strokeStyle = colours.soil; pen.stroke();
      }
    });
    if (first) { // the second click is awaited
      const from = toScreen(...first), to = mouse || from;
      if (kind === "exclude") box(from, to);
      else { pen.beginPath(); pen.moveTo(...from); pen.lineTo(...to); dashed(); }
      pen.beginPath(); pen.arc(...from, 5, 0, 2 * Math.PI); pen.lineWidth = 2; pen.strokeStyle = "white"; pen.stroke();
    }
    Object.assign(canvas.dataset, { scale: view.scale, x: view.x, y: view.y }); // where the image lies, for whoever asks
  }
  function shine(times) {
    light = Math.min(8, Math.max(1, times));
    find(".light").value = light;
    draw();
  }
  function dashed() {
    pen.setLineDash([6, 4]); pen.lineWidth = 2; pen.strokeStyle = "white"; pen.stroke(); pen.setLineDash([]);
  }
  function box([ax, ay], [bx, by]) {
    pen.beginPath(); pen.rect(Math.min(ax, bx), Math.min(ay, by), Math.abs(bx - ax), Math.abs(by - ay));
    pen.fillStyle = "#0008"; pen.fill(); dashed();
  }
  function label() {
    const s = status(), of = points().length;
    find(".name").textContent = s.name;
    find(".place").textContent = `image ${s.position + 1} of ${s.images}, ${s.done_images} done`;
    find(".state").textContent = `${of} click${of === 1 ? "" : "s"} · predicted IoU ${s.predicted_iou.toFixed(2)}` +
      (canvas.dataset.latency ? ` · ${canvas.dataset.latency} ms` : "");
    find(".said").textContent = s.message;
    find(".said").classList.toggle("wrong", s.refused);
    find(".legend").innerHTML = { mask: ["mask"], error: ["found", "missed", "false root"], image: [] }[s.view]
      .map((what) => `<span class="key" style="background:${colours[what]}"></span>${what}`).join("");
    find('[data-do="done"]').classList.toggle("on", s.done);
    find('[data-do="done"]').textContent = s.done ? "done ✓" : "done";
    find('[data-do="previous"]').disabled = s.position === 0;
    find('[data-do="next"]').disabled = s.position === s.images - 1;
    find('[data-view="error"]').disabled = !s.has_truth;
    el.querySelectorAll("[data-view]").forEach((b) => b.classList.toggle("on", b.dataset.view === s.view));
    el.querySelectorAll("[data-kind]").forEach((b) => b.classList.toggle("on", b.dataset.kind === String(kind)));
  }
  async function bitmap(name, type) {
    return createImageBitmap(new Blob([model.get(name)], { type }));
  }
  let current = 0, openedName = "";
  async function update() {
    const mine = ++current, { answer, name } = status();
    const fresh = name !== openedName; // another image: its bytes came with the same answer
    const [newLayer, newPicture] = await Promise.all([bitmap("layer", "image/png"), fresh ? bitmap("image", "image/jpeg") : picture]);
    if (mine !== current) return; // a later answer is on its way to the canvas
    layer = newLayer; picture = newPicture;
    if (fresh) {
      if (!openedName) shine(status().light); // later on it is as the person left it
      openedName = name; touched = -1; first = null; fit();
    }
    if (touched >= points().length) touched = -1;
    draw();
    if (asked) { canvas.dataset.latency = String(Math.round(performance.now() - asked)); asked = 0; }
    delete canvas.dataset.waiting;
    drawn = answer;
    canvas.dataset.answer = String(drawn);
    label();
  }

  // --- Mouse and fingers
  function down(event) {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
    if (fingers.size > 1) { drag = null; draw(); return; } // two fingers: no click comes of it
    drag = { start: at(event), now: at(event), point: nearest(at(event), NEAR[by(event)]), moved: false, button: event.button,
      soil: event.button === 2 || event.altKey, view: { ...view } };
    if (drag.point >= 0) { touched = drag.point; draw(); }
  }
  function move(event) {
    mouse = at(event);
    if (!fingers.has(event.pointerId)) { canvas.style.cursor = nearest(mouse) >= 0 ? "grab" : "crosshair"; if (first) draw(); return; }
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()], before = Math.hypot(a[0] - b[0], a[1] - b[1]);
      const from = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
      fingers.set(event.pointerId, mouse);
      const [c, d] = [...fingers.values()], to = [(c[0] + d[0]) / 2, (c[1] + d[1]) / 2];
      view.x += to[0] - from[0]; view.y += to[1] - from[1];
      zoom(Math.hypot(c[0] - d[0], c[1] - d[1]) / Math.max(before, 1), to);
      return;
    }
    fingers.set(event.pointerId, mouse);
    if (!drag) return;
    drag.now = mouse;
    if (Math.hypot(mouse[0] - drag.start[0], mouse[1] - drag.start[1]) > STILL[by(event)]) drag.moved = true;
    if (drag.moved && drag.point < 0) {
      view.x = drag.view.x + mouse[0] - drag.start[0];
      view.y = drag.view.y + mouse[1] - drag.start[1];
    }
    if (drag.moved) draw();
  }
  function up(event) {
    fingers.delete(event.pointerId);
    const done = drag;
    drag = null;
    if (!done || event.type === "pointercancel") { draw(); return; }
    const [x, y] = toImage(...(done.moved ? at(event) : done.start));
    if (done.point >= 0) {
      if (done.moved && inside([x, y])) send({ do: "move", number: done.point, x, y });
      else draw();
    } else if (!done.moved && done.button !== 1 && inside([x, y])) {
      if (typeof kind === "string" && !done.soil) { tool(x, y); return; }
      touched = points().length;
      send({ do: "add", x, y, label: done.soil || !kind ? 0 : 1 });
    }
  }
  function tool(x, y) {
    if (kind === "remove") send({ do: "use", tool: kind, x, y });
    else if (!first) { first = [x, y]; draw(); }
    else { const [ax, ay] = first; first = null; send({ do: "use", tool: kind, x: ax, y: ay, x2: x, y2: y }); }
  }
  function choose(what) { kind = what; first = null; label(); draw(); }
  const undo = () => { if (first) { first = null; draw(); } else send({ do: "undo" }); };
  const wheel = (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), at(event)); };
  const menu = (event) => { event.preventDefault(); event.stopPropagation(); }; // neither the browser's nor the notebook's

  // --- Keys and buttons
  const show = (name) => { if (name !== "error" || status().has_truth) send({ do: "view", view: name }); };
  const help = () => find(".help").classList.toggle("open");
  const pan = (x, y) => { view.x += x; view.y += y; draw(); };
  const seeThrough = (by) => { opacity = Math.min(1, Math.max(0.1, opacity + by)); find(".opacity").value = opacity; draw(); };
  function remove() {
    const under = mouse ? nearest(mouse) : -1, number = under >= 0 ? under : touched;
    if (number >= 0 && number < points().length) { touched = -1; send({ do: "remove", number }); }
  }
  const KEYS = {
    z: (e) => (e.shiftKey ? send({ do: "redo" }) : undo()), escape: () => { first = null; draw(); },
    r: () => choose(1), t: () => choose("trace"), x: () => choose("remove"), b: () => choose("exclude"), y: () => send({ do: "redo" }),
    delete: remove, backspace: remove, m: () => show("mask"), e: () => show("error"), i: () => show("image"),
    n: () => send({ do: "next" }), p: () => send({ do: "previous" }), d: () => send({ do: "done" }), s: () => send({ do: "save" }),
    "+": () => zoom(1.4, mouse || middle()), "=": () => zoom(1.4, mouse || middle()), "-": () => zoom(1 / 1.4, mouse || middle()),
    0: () => { fit(); draw(); }, "[": () => seeThrough(-0.1), "]": () => seeThrough(0.1), l: () => shine(light * 1.25), k: () => shine(light / 1.25), h: help, "?": help,
    arrowleft: () => pan(40, 0), arrowright: () => pan(-40, 0), arrowup: () => pan(0, 40), arrowdown: () => pan(0, -40),
  };
  function key(event) {
    if (document.activeElement !== canvas) return;
    const name = event.key.toLowerCase(), action = KEYS[name];
    if (!action || ((event.ctrlKey || event.metaKey) && name !== "z" && name !== "y")) return; // Ctrl + S saves the notebook
    event.preventDefault();
    event.stopImmediatePropagation(); // the notebook has its own meaning for these keys: D, D deletes a cell
    action(event);
  }
  function press(event) {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.do === "undo") undo();
    else if (button.dataset.do) send({ do: button.dataset.do });
    if (button.dataset.view) show(button.dataset.view);
    if (button.dataset.kind) choose({ 1: 1, 0: 0 }[button.dataset.kind] ?? button.dataset.kind);
    if (button.dataset.zoom === "fit") { fit(); draw(); } else if (button.dataset.zoom) zoom(Number(button.dataset.zoom), middle());
    if (button.dataset.remove) remove();
    if (button.dataset.help) help();
    canvas.focus({ preventScroll: true });
  }

  canvas.addEventListener("pointerdown", down);
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("wheel", wheel, { passive: false });
  el.addEventListener("contextmenu", menu);
  window.addEventListener("keydown", key, true); // before the notebook's own listener
  el.addEventListener("click", press);
  find(".opacity").addEventListener("input", (event) => { opacity = Number(event.target.value); draw(); });
  find(".light").addEventListener("input", (event) => shine(Number(event.target.value)));
  model.on("change:status", update);
  let size = [0, 0];
  const watch = new ResizeObserver(() => {
    if (!frame.clientWidth || (size[0] === frame.clientWidth && size[1] === frame.clientHeight)) return;
    size = [frame.clientWidth, frame.clientHeight];
    if (picture) { fit(); draw(); }
  });
  watch.observe(frame);
  update();

  return () => { watch.disconnect(); model.off("change:status", update); window.removeEventListener("keydown", key, true); };
}

export default { render };
