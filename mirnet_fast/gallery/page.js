"use strict";
// One photo on a stage, two pictures of it beside each other at a divider. `state` says all that is shown;
// `draw` brings the page to it.

const $ = (id) => document.getElementById(id);
const { entries } = JSON.parse($("data").textContent);
const stage = $("stage"), divider = $("divider"), left = $("left"), right = $("right");

const PICTURES = {
  before: "Before", after: "After", clean: "Clean",
  change: "Changed", error_before: "Error before", error_after: "Error after",
};
// [left, right], and what it is called
const MODES = [
  ["before", "after", "Before | After"],
  ["after", "clean", "After | Clean"],
  ["before", "clean", "Before | Clean"],
  ["error_before", "error_after", "Error"],
  ["change", "change", "Difference"],
];
const LARGEST = 64; // device pixels a pixel

const state = { entry: 0, view: 0, mode: 0, split: 0.5, fit: true, scale: 1, x: 0, y: 0 };

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const ratio = () => window.devicePixelRatio || 1;
const entry = () => entries[state.entry];
const view = () => entry().views[state.view];
const modes = () => MODES.filter(([a, b]) => a in view().pictures && b in view().pictures);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text) {
  $("live").textContent = text;
}

// The pictures stand in the page as text; an address is made of one only while it is shown.
const address = (number) => `data:image/webp;base64,${$(`picture-${number}`).textContent}`;

function put(image, name) {
  const number = String(view().pictures[name]);
  image.alt = `${PICTURES[name]}: ${entry().name}`;
  if (image.dataset.number !== number) {
    image.dataset.number = number;
    image.src = address(number);
  }
}

// Where the photo lies

function fitting() {
  const { width, height } = view();
  const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
  // Small ones are enlarged by whole factors, so that their pixels are of one size, if that is nearly as large.
  const whole = Math.floor(scale * ratio());
  return whole >= 2 && whole > 0.85 * scale * ratio() ? whole / ratio() : scale;
}

function place() {
  const { width, height } = view();
  if (state.fit) state.scale = fitting();
  const box = stage.getBoundingClientRect();
  const axis = (offset, room, size, begin) => {
    const at = size <= room ? (room - size) / 2 : clamp(offset, room - size, 0);
    return Math.round((begin + at) * ratio()) / ratio() - begin; // where a pixel of the screen begins
  };
  state.x = axis(state.x, stage.clientWidth, width * state.scale, box.left);
  state.y = axis(state.y, stage.clientHeight, height * state.scale, box.top);
}

// The part of the stage, from left to right, that the photo covers: there the divider runs.
function covered() {
  const from = Math.max(0, state.x);
  const to = Math.min(stage.clientWidth, state.x + view().width * state.scale);
  return [from, Math.max(to, from + 1)];
}

const larger = () => state.scale > fitting() * 1.001;

function zoomTo(scale, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const least = Math.min(fitting(), 1 / ratio());
  const wanted = clamp(scale, least, LARGEST / ratio());
  state.x = x - ((x - state.x) * wanted) / state.scale;
  state.y = y - ((y - state.y) * wanted) / state.scale;
  state.fit = false;
  state.scale = wanted;
  draw();
}

function step(direction) {
  // To the next power of two, in device pixels a pixel.
  const exponent = Math.log2(state.scale * ratio());
  const next = direction > 0 ? Math.floor(exponent + 1.001) : Math.ceil(exponent - 1.001);
  zoomTo(2 ** next / ratio());
  say(`Zoom ${$("zoom").textContent}`);
}

function fit() {
  state.fit = true;
  draw();
}

function slide(split) {
  state.split = clamp(split, 0, 1);
  draw();
}

const slideTo = (x) => {
  const [from, to] = covered();
  slide((x - from) / (to - from));
};

// What is drawn

function draw() {
  const { width, height, pictures } = view();
  const [leftName, rightName] = modes()[state.mode];
  place();
  put(left, leftName);
  put(right, rightName);
  const wide = width * state.scale, high = height * state.scale;
  const coarse = state.scale * ratio() >= 1.999;
  for (const element of [left, right, $("ground")]) {
    element.style.left = `${state.x}px`;
    element.style.top = `${state.y}px`;
    element.style.width = `${wide}px`;
    element.style.height = `${high}px`;
    element.classList.toggle("coarse", coarse);
  }
  const single = leftName === rightName;
  const [from, to] = covered();
  const at = single ? to : from + state.split * (to - from);
  left.style.clipPath = `inset(0 ${Math.max(0, wide - (at - state.x))}px 0 0)`;
  right.style.clipPath = `inset(0 0 0 ${Math.max(0, at - state.x)}px)`;
  divider.hidden = single;
  const top = Math.max(0, state.y);
  divider.style.left = `${at}px`;
  divider.style.top = `${top}px`;
  divider.style.height = `${Math.min(stage.clientHeight, state.y + high) - top}px`;
  const percent = Math.round(100 * state.split);
  divider.setAttribute("aria-valuenow", percent);
  divider.setAttribute("aria-valuetext", `${percent} % ${PICTURES[leftName]}, ${100 - percent} % ${PICTURES[rightName]}`);
  $("tag-left").textContent = PICTURES[leftName];
  $("tag-right").textContent = PICTURES[rightName];
  $("tag-left").classList.toggle("over", !single && at < 70);
  $("tag-right").classList.toggle("over", single || at > stage.clientWidth - 70);
  const heat = leftName in entry().scales;
  $("legend").hidden = !heat;
  if (heat) $("legend-end").textContent = `${entry().scales[leftName]} of 255`;
  stage.classList.toggle("large", larger());
  const percentage = 100 * state.scale * ratio();
  $("zoom").textContent = `${percentage < 10 ? percentage.toFixed(1) : Math.round(percentage)} %`;
  $("fit").setAttribute("aria-pressed", state.fit);
  $("pixels").setAttribute("aria-pressed", Math.abs(percentage - 100) < 0.01);
  for (const button of $("places").children) {
    const { left: x, top: y, width: w, height: h } = entry().views[button.dataset.view];
    const factor = (state.scale * width) / entry().width;
    button.style.left = `${state.x + x * factor}px`;
    button.style.top = `${state.y + y * factor}px`;
    button.style.width = `${w * factor}px`;
    button.style.height = `${h * factor}px`;
  }
}

const pressed = (text, on, action) => {
  const button = make("button", { type: "button", onclick: action }, text);
  button.setAttribute("aria-pressed", on);
  return button;
};

function drawBars() {
  state.mode = Math.min(state.mode, modes().length - 1);
  $("modes").replaceChildren(
    ...modes().map(([, , text], index) => pressed(text, index === state.mode, () => choose({ mode: index }))),
  );
  const { views } = entry();
  const name = (index) => (index ? `Part ${index}` : "Whole");
  $("views").replaceChildren(
    ...(views.length > 1
      ? views.map((_, index) => pressed(name(index), index === state.view, () => choose({ view: index, fit: true })))
      : []),
  );
  const parts = state.view === 0 ? views.slice(1) : [];
  $("places").replaceChildren(
    ...parts.map((_, index) => {
      const button = make("button", { type: "button", onclick: () => choose({ view: index + 1, fit: true }) }, String(index + 1));
      button.dataset.view = index + 1;
      button.setAttribute("aria-label", `Part ${index + 1}, pixel for pixel`);
      return button;
    }),
  );
}

function choose(change) {
  Object.assign(state, change);
  drawBars();
  draw();
  say(modes()[state.mode][2]);
}

const number = (value, digits) => (value === null ? "∞" : value.toFixed(digits));

function drawFacts() {
  const { name, width, height, scores, seconds, changed, notes, views } = entry();
  $("name").textContent = name;
  $("size").textContent = `${width} × ${height} pixels, ${((width * height) / 1e6).toFixed(1)} MP`;
  $("scores").hidden = !scores.after;
  const row = (label, index, digits, unit) => {
    const [a, b] = [scores.before[index], scores.after[index]];
    const gain = a === null || b === null ? "" : `${b >= a ? "+" : "−"}${Math.abs(b - a).toFixed(digits)}`;
    const cells = [number(a, digits), number(b, digits), gain].map((text) => make("td", {}, text));
    return make("tr", {}, make("th", { scope: "row" }, `${label}${unit}`), ...cells);
  };
  $("scores").tBodies[0].replaceChildren(
    ...(scores.after ? [row("PSNR", 0, 2, " dB"), ...(scores.after[1] === null ? [] : [row("SSIM", 1, 3, "")])] : []),
  );
  const facts = [["Changed by", `${changed.toFixed(1)} of 255`]];
  if (seconds !== null) facts.push(["Time", `${seconds < 10 ? seconds.toFixed(2) : seconds.toFixed(0)} s`]);
  const [first] = views;
  if (first.kind === "small") facts.push(["Shown as", `${first.width} × ${first.height}`]);
  $("facts").replaceChildren(...facts.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]));
  $("notes").replaceChildren(...notes.map((note) => make("li", {}, note)));
}

function show(index) {
  Object.assign(state, { entry: clamp(index, 0, entries.length - 1), view: 0, fit: true });
  drawBars();
  drawFacts();
  draw();
  $("counter").textContent = `${state.entry + 1} / ${entries.length}`;
  $("previous").disabled = state.entry === 0;
  $("next").disabled = state.entry === entries.length - 1;
  [...$("strip").children].forEach((button, i) => button.setAttribute("aria-current", i === state.entry));
  const { offsetLeft, offsetWidth } = $("strip").children[state.entry]; // and not scrollIntoView, which moves the page
  $("strip").scrollLeft = offsetLeft - ($("strip").clientWidth - offsetWidth) / 2;
  say(`Photo ${state.entry + 1} of ${entries.length}: ${entry().name}`);
}

// Fingers and mouse

const pointers = new Map();
let held = null; // "slide", "pan", or "pinch"
let pinch = null;
let tap = { time: 0, x: 0, y: 0 };

const inStage = (event) => {
  const box = stage.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

function grasp() {
  const [a, b] = [...pointers.values()];
  return { distance: Math.hypot(a[0] - b[0], a[1] - b[1]) || 1, x: (a[0] + b[0]) / 2, y: (a[1] + b[1]) / 2 };
}

stage.addEventListener("pointerdown", (event) => {
  if (event.button > 0 || event.target.closest("#places")) return;
  const [x, y] = inStage(event);
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [x, y]);
  divider.focus({ preventScroll: true });
  event.preventDefault();
  if (pointers.size === 2) {
    held = "pinch";
    pinch = { ...grasp(), scale: state.scale };
    return;
  }
  const doubled = event.timeStamp - tap.time < 350 && Math.hypot(x - tap.x, y - tap.y) < 25;
  tap = { time: doubled ? 0 : event.timeStamp, x, y };
  const onDivider = divider.contains(event.target);
  if (doubled && !onDivider) {
    held = null;
    if (larger()) fit();
    else zoomTo(2 ** Math.max(0, Math.floor(Math.log2(fitting() * ratio())) + 1) / ratio(), x, y);
    return;
  }
  held = onDivider || !larger() ? "slide" : "pan";
  stage.classList.toggle("held", held === "pan");
});

stage.addEventListener("pointermove", (event) => {
  if (!pointers.has(event.pointerId)) return;
  const [x, y] = inStage(event), [lastX, lastY] = pointers.get(event.pointerId);
  pointers.set(event.pointerId, [x, y]);
  if (held === "pinch" && pointers.size === 2) {
    const now = grasp();
    state.x += now.x - pinch.x;
    state.y += now.y - pinch.y;
    [pinch.x, pinch.y] = [now.x, now.y];
    zoomTo((pinch.scale * now.distance) / pinch.distance, now.x, now.y);
  } else if (held === "pan") {
    state.x += x - lastX;
    state.y += y - lastY;
    draw();
  } else if (held === "slide") {
    slideTo(x);
  }
});

for (const kind of ["pointerup", "pointercancel"]) {
  stage.addEventListener(kind, (event) => {
    if (!pointers.delete(event.pointerId)) return;
    if (held === "slide" && kind === "pointerup") slideTo(inStage(event)[0]);
    held = null; // a finger that is left of two does nothing more
    stage.classList.remove("held");
  });
}

stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 16 : 1;
  zoomTo(state.scale * Math.exp(clamp(-event.deltaY * lines, -240, 240) / 400), ...inStage(event));
}, { passive: false });

// Keys

function pan(x, y) {
  state.x += x * stage.clientWidth / 8;
  state.y += y * stage.clientHeight / 8;
  draw();
}

function toggle() {
  slide(state.split < 0.5 ? 1 : 0);
  say(`Showing ${PICTURES[modes()[state.mode][state.split ? 0 : 1]]}`);
}

const KEYS = {
  ArrowLeft: (event) => slide(state.split - (event.shiftKey ? 0.1 : 0.02)),
  ArrowRight: (event) => slide(state.split + (event.shiftKey ? 0.1 : 0.02)),
  ArrowDown: (event) => slide(state.split - (event.shiftKey ? 0.1 : 0.02)),
  ArrowUp: (event) => slide(state.split + (event.shiftKey ? 0.1 : 0.02)),
  Home: () => slide(0),
  End: () => slide(1),
  " ": toggle,
  "+": () => step(1),
  "=": () => step(1),
  "-": () => step(-1),
  0: fit,
  1: () => zoomTo(1 / ratio()),
  w: () => pan(0, 1),
  s: () => pan(0, -1),
  a: () => pan(1, 0),
  d: () => pan(-1, 0),
  m: () => choose({ mode: (state.mode + 1) % modes().length }),
  v: () => choose({ view: (state.view + 1) % entry().views.length, fit: true }),
  n: () => show(state.entry + 1),
  p: () => show(state.entry - 1),
  f: () => (document.fullscreenElement ? document.exitFullscreen() : stage.requestFullscreen?.())?.catch?.(() => {}),
  "?": () => $("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const onButton = event.target.closest("button");
  if (onButton && (event.key === " " || event.key === "Enter")) return; // which presses it
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action(event);
});

// After a click, and not after a key, keys are for the photo again.
document.addEventListener("click", (event) => {
  if (event.detail && event.target.closest("button") && !$("keys").open) divider.focus({ preventScroll: true });
});

const CLICKS = {
  previous: KEYS.p, next: KEYS.n, help: KEYS["?"], in: KEYS["+"], out: KEYS["-"], fit, pixels: KEYS[1],
};
for (const [id, action] of Object.entries(CLICKS)) $(id).addEventListener("click", action);

$("strip").hidden = entries.length < 2;
for (const id of ["previous", "counter", "next"]) $(id).hidden = entries.length < 2;
$("strip").append(
  ...entries.map((one, index) => {
    const picture = make("img", { alt: "", loading: "lazy", decoding: "async", draggable: false });
    picture.src = `data:image/webp;base64,${one.thumbnail}`;
    const button = make("button", { type: "button", title: one.name, onclick: () => show(index) }, picture);
    button.setAttribute("aria-label", one.name);
    return button;
  }),
);

function summary() {
  const scored = entries.filter(({ scores }) => scores.after && scores.after[0] !== null && scores.before[0] !== null);
  const mean = (which) => scored.reduce((sum, { scores }) => sum + scores[which][0], 0) / scored.length;
  const count = `${entries.length} ${entries.length === 1 ? "photo" : "photos"}`;
  if (scored.length < 2) return count;
  return `${count}, mean PSNR ${mean("before").toFixed(2)} → ${mean("after").toFixed(2)} dB`;
}

$("summary").textContent = summary();
new ResizeObserver(draw).observe(stage);
show(0);
