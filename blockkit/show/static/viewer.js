// The canvas of blockkit's slice viewer. The kernel renders panels, one byte a voxel; this file paints them and sends
// back what the pointer, the wheel and the keys do. One event is on its way at a time; those that come meanwhile are
// joined, so that a fast drag never runs ahead of the pictures.

const KEYS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "PageUp", "PageDown", "Home", "End"];
const LETTERS = ["+", "=", "-", "b", "m", "p", "r"];
const CROSSHAIR = "rgba(255, 196, 0, 0.75)";
const IDLE_MS = 250, GIVE_UP_MS = 10000, NOTCH = 60;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// What all views of one viewer share: the last panels, the last words, and the events that wait.
function makeStore(model) {
  const store = { panels: new Map(), view: null, texts: null, error: "", busy: false, views: new Set() };
  const queue = [];
  let count = 0, busy = 0, giveUp = 0, idle = 0;

  function pump() {
    if (!busy && queue.length) {
      busy = ++count;
      model.send({ ...queue.shift(), reply: busy });
      giveUp = setTimeout(() => { busy = 0; pump(); }, GIVE_UP_MS);
    }
    store.busy = Boolean(busy);
    for (const view of store.views) view.mark();
  }

  store.send = (event) => {
    const last = queue[queue.length - 1];
    if (event.type === "probe" && queue.some((one) => one.type !== "probe")) return;
    if (!last || !join(last, event)) queue.push(event);
    pump();
  };

  model.on("msg:custom", (content, buffers) => {
    if (content.type === "error") store.error = content.text;
    if (content.type === "frame") {
      store.error = "";
      content.panels.forEach((panel, i) => store.panels.set(`${panel.volume} ${panel.axis}`, picture(panel, buffers[i])));
      store.view = content.view;
      clearTimeout(idle);
      idle = setTimeout(() => store.send({ type: "texts" }), IDLE_MS);
    }
    if (content.type === "texts") store.texts = content;
    if (content.type === "values") store.view = { ...store.view, values: content.values, at: content.at };
    if (content.type === "file") download(content.name, buffers[0]);
    for (const view of store.views) view.update(content);
    if (content.reply === busy) { clearTimeout(giveUp); busy = 0; pump(); }
  });

  const bytes = model.get("palettes");
  const tables = Object.fromEntries(model.get("setup").kinds.map((kind, k) => {
    const table = new Uint32Array(256);
    for (let i = 0; i < 256; i++) {
      const [r, g, b] = [0, 1, 2].map((c) => bytes.getUint8(768 * k + 3 * i + c));
      table[i] = (255 << 24) | (b << 16) | (g << 8) | r;
    }
    return [kind, table];
  }));

  function picture(panel, buffer) {
    const canvas = element("canvas", { width: panel.columns, height: panel.rows });
    const image = new ImageData(panel.columns, panel.rows), pixels = new Uint32Array(image.data.buffer);
    const table = tables[panel.colors];
    for (let i = 0; i < pixels.length; i++) pixels[i] = table[buffer.getUint8(i)];
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  store.send({ type: "ready" });
  return store;
}

// Join an event to the one that waits before it; false where both have to be sent.
function join(last, event) {
  if (last.type !== event.type || last.axis !== event.axis || last.column !== event.column) return false;
  if (event.type === "scroll" || event.type === "zoom") last.steps += event.steps;
  else if (event.type === "drag") { last.dx += event.dx; last.dy += event.dy; }
  else if (event.type === "key" && KEYS.includes(event.key) && last.key === event.key && last.shift === event.shift) {
    last.times += event.times;
  } else if (["move", "probe", "texts"].includes(event.type) || (event.type === "set" && last.name === event.name)) {
    Object.assign(last, event);
  } else return false;
  return true;
}

function download(name, buffer) {
  const url = URL.createObjectURL(new Blob([buffer], { type: "image/png" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// One panel: a canvas that paints its part of the picture, and the pointer, wheel and keys over it.
function makePanel(store, setup, axis, column) {
  const canvas = element("canvas", { tabIndex: 0, className: "blockkit-panel", role: "img" });
  const [height, width] = setup.sizes[axis];
  canvas.style.width = `${(100 * width) / setup.widest}%`;
  canvas.style.aspectRatio = `${width} / ${height}`;
  const send = (event) => store.send({ ...event, axis, column });
  let drag = null, wheel = 0;

  function voxel(event) {
    const [top, bottom, left, right] = store.view.boxes[axis];
    const rect = canvas.getBoundingClientRect();
    const inside = (value, n) => Math.min(Math.max(Math.floor(value * n), 0), n - 1);
    return {
      row: top + inside((event.clientY - rect.top) / rect.height, bottom - top),
      col: left + inside((event.clientX - rect.left) / rect.width, right - left),
    };
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !store.view) return;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    drag = { x: event.clientX, y: event.clientY, window: event.shiftKey };
    if (!drag.window) send({ type: "move", ...voxel(event) });
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!store.view) return;
    if (!drag) send({ type: "probe", ...voxel(event) });
    else if (drag.window) {
      const rect = canvas.getBoundingClientRect();
      send({ type: "drag", dx: (event.clientX - drag.x) / rect.width, dy: (event.clientY - drag.y) / rect.height });
      drag = { ...drag, x: event.clientX, y: event.clientY };
    } else send({ type: "move", ...voxel(event) });
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { drag = null; });
  for (const name of ["mousedown", "dblclick"]) canvas.addEventListener(name, (event) => event.stopPropagation());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    event.stopPropagation();
    const delta = event.deltaMode ? event.deltaY * NOTCH : event.deltaY;
    wheel = Math.abs(delta) >= NOTCH ? Math.sign(delta) * NOTCH : wheel + delta;
    const steps = Math.trunc(wheel / NOTCH);
    wheel -= steps * NOTCH;
    if (steps) send(event.ctrlKey ? { type: "zoom", steps: -steps } : { type: "scroll", steps });
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(KEYS.includes(event.key) || LETTERS.includes(event.key))) return;
    send({ type: "key", key: event.key, shift: event.shiftKey && KEYS.includes(event.key), times: 1 });
    event.preventDefault();
    event.stopPropagation();
  });

  function paint() {
    const view = store.view, picture = view && store.panels.get(`${view.shown[column]} ${axis}`);
    if (!picture || !canvas.clientWidth) return;
    const scale = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    const [top, bottom, left, right] = view.boxes[axis];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = w < right - left; // voxels stay squares, unless there is no room for each
    context.drawImage(picture, left, top, right - left, bottom - top, 0, 0, w, h);
    const [rows, columns] = [0, 1, 2].filter((a) => a !== axis);
    const y = ((view.position[rows] - top + 0.5) / (bottom - top)) * h;
    const x = ((view.position[columns] - left + 0.5) / (right - left)) * w;
    const gap = 10 * scale;
    Object.assign(context, { strokeStyle: CROSSHAIR, lineWidth: scale });
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, w, y], [x, 0, x, y - gap], [x, y + gap, x, h]]) {
      if (x1 > x0 || y1 > y0) { context.moveTo(x0, y0); context.lineTo(x1, y1); }
    }
    context.stroke();
    letters(context, setup.marks[axis], w, h, scale);
  }

  function letters(context, [above, below, before, after], w, h, scale) {
    const edge = 3 * scale, font = `${11 * scale}px sans-serif`;
    Object.assign(context, { font, fillStyle: "#fff", strokeStyle: "#000", lineWidth: 3 * scale, lineJoin: "round" });
    const places = [[above, w / 2, edge, "center", "top"], [below, w / 2, h - edge, "center", "bottom"],
      [before, edge, h / 2, "left", "middle"], [after, w - edge, h / 2, "right", "middle"]];
    for (const [text, x, y, align, baseline] of places) {
      Object.assign(context, { textAlign: align, textBaseline: baseline });
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    }
  }

  return { canvas, paint, axis, column };
}

function makeControls(store, setup) {
  const set = (name, value) => store.send({ type: "set", name, value });
  const choice = (label, name, options, parse = String) => {
    const select = element("select", { onchange: () => set(name, parse(select.value)), "data-set": name });
    select.append(...options.map(([value, text]) => element("option", { value, textContent: text })));
    return { node: element("label", {}, label, select), show: (view) => { select.value = String(view[name]); } };
  };
  const number = (title, min, max, read, write, name) => {
    const input = element("input", { type: "number", min, max, title, "aria-label": title, "data-set": name });
    input.onchange = () => input.value !== "" && write(Number(input.value));
    return { node: input, show: (view) => { if (document.activeElement !== input) input.value = read(view); } };
  };
  const button = (text, title, click, name) => element("button", { textContent: text, title, onclick: click, "data-do": name });
  const percent = (value) => Math.round(100 * value);
  const current = (view) => (setup.errors[view.column] ? "error_window" : "window");
  const own = (change) => { const name = current(store.view); set(name, change(store.view[name])); };
  const depth = Math.max(...setup.shape);
  const controls = [
    choice("show ", "part", setup.parts.map((part) => [part, part])),
    number("slab: largest magnitude over so many voxels; 1 is a slice, 0 the whole volume", 0, depth, (v) => v.slab, (n) => set("slab", n), "slab"),
    number("black, % of the window", 0, 200, (v) => percent(v[current(v)][0]), (n) => own((w) => [n / 100, w[1]]), "low"),
    number("white, % of the window", 0, 200, (v) => percent(v[current(v)][1]), (n) => own((w) => [w[0], n / 100]), "high"),
    choice("profile ", "profile", [[-1, "none"], [0, "z"], [1, "y"], [2, "x"]], Number),
    choice("blink with ", "partner", setup.names.map((name) => [name, name])),
  ];
  const [part, slab, low, high, profile, partner] = controls.map((control) => control.node);
  const bar = element("div", { className: "blockkit-controls" },
    part, element("label", {}, "slab ", slab), element("span", {}, "window % ", low, " ", high), profile, partner,
    button("blink", "Show the other volume in the column of the active plane (b)", () => store.send({ type: "key", key: "b", times: 1 }), "blink"),
    button("−", "Zoom out (-)", () => store.send({ type: "zoom", steps: -1 }), "out"),
    button("+", "Zoom in (+)", () => store.send({ type: "zoom", steps: 1 }), "in"),
    button("reset", "Everything as it was at the start (r)", () => store.send({ type: "reset" }), "reset"),
    button("save PNG", "Save what is shown as a picture", () => store.send({ type: "save" }), "save"),
    element("details", {}, element("summary", { textContent: "keys" }), element("span", { textContent: setup.help })));
  for (const name of ["keydown", "mousedown"]) bar.addEventListener(name, (event) => event.stopPropagation());
  return { bar, show: (view) => controls.forEach((control) => control.show(view)) };
}

function makeSlider(store, setup, axis) {
  const title = element("span");
  const input = element("input", { type: "range", min: 0, max: setup.shape[axis] - 1, disabled: setup.shape[axis] === 1, "aria-label": setup.planes[axis], "data-axis": axis });
  input.oninput = () => store.send({
    type: "set", name: "position", axis, value: store.view.position.map((at, a) => (a === axis ? Number(input.value) : at)),
  });
  for (const name of ["keydown", "mousedown"]) input.addEventListener(name, (event) => event.stopPropagation());
  const show = (view) => {
    title.textContent = view.planes[axis];
    if (document.activeElement !== input) input.value = view.position[axis];
  };
  return { node: element("label", { className: "blockkit-plane" }, title, input), show };
}

export default () => {
  let store;
  return {
    initialize({ model }) { store = makeStore(model); },
    render({ model, el }) {
      const setup = model.get("setup");
      const controls = makeControls(store, setup), sliders = [0, 1, 2].map((axis) => makeSlider(store, setup, axis));
      const columns = setup.names.map((_, column) => column);
      const panels = [0, 1, 2].flatMap((axis) => columns.map((column) => makePanel(store, setup, axis, column)));
      const cells = (className) => columns.map(() => element("div", { className }));
      const [titles, values, tables] = ["blockkit-title", "blockkit-value", "blockkit-table"].map(cells);
      const [at, alert, profile] = ["blockkit-at", "blockkit-alert", "blockkit-profile"].map((className) => element("div", { className }));
      alert.setAttribute("role", "alert");
      const grid = element("div", { className: "blockkit-grid" }, ...titles);
      grid.style.setProperty("--columns", columns.length);
      for (const axis of [0, 1, 2]) {
        const row = panels.filter((panel) => panel.axis === axis).map((panel) => element("div", { className: "blockkit-cell" }, panel.canvas));
        grid.append(sliders[axis].node, ...row);
      }
      grid.append(at, ...values, ...tables);
      const root = element("div", { className: "blockkit-viewer", role: "group", "data-lm-suppress-shortcuts": "true", "data-frames": 0, "aria-label": "slice viewer" },
        controls.bar, alert, grid, profile);
      el.append(root);

      const view = {
        mark() { root.setAttribute("aria-busy", store.busy); },
        update(content) {
          alert.textContent = store.error;
          if (!store.view) return;
          const state = store.view;
          if (content.type !== "texts") columns.forEach((column) => { values[column].textContent = state.values[column]; });
          at.textContent = state.at;
          if (content.type === "frame") {
            controls.show(state);
            sliders.forEach((slider) => slider.show(state));
            columns.forEach((column) => { titles[column].textContent = state.titles[column]; });
            profile.innerHTML = state.svg;
            for (const panel of panels) {
              const { canvas, axis, column, paint } = panel;
              paint();
              if (content.panels.some((one) => one.axis === axis && one.volume === state.shown[column])) canvas.dataset.version = Number(canvas.dataset.version || 0) + 1;
              canvas.classList.toggle("blockkit-active", axis === state.axis && column === state.column);
              canvas.setAttribute("aria-label", `${state.titles[column]}, ${state.planes[axis]}`);
            }
            root.dataset.frames = Number(root.dataset.frames) + 1;
          }
          if (store.texts) {
            columns.forEach((column) => { tables[column].innerHTML = store.texts.tables[column]; });
            root.setAttribute("aria-label", store.texts.label);
          }
        },
      };
      store.views.add(view);
      view.mark();
      const observer = new ResizeObserver(() => panels.forEach((panel) => panel.paint()));
      panels.forEach((panel) => observer.observe(panel.canvas));
      if (store.view) view.update({ type: "frame", panels: [] });
      return () => { store.views.delete(view); observer.disconnect(); };
    },
  };
};
