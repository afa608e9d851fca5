// The page of `mimicdet serve`. The server detects once for an image; all that the sliders do
// happens here, on the detections it has sent.

const byId = (id) => document.getElementById(id);
const state = {
  models: [],
  limits: {}, // {image, model}: the largest upload in bytes
  image: null, // the chosen file
  result: null, // {width, height, seconds, detections: [{box, score, class}]}
  hidden: new Set(), // numbers of the classes that are not shown
  selected: null, // a detection of result.detections
  request: 0, // number of the newest request: answers of older ones are dropped
};

// The server

async function call(path, body) {
  const options = body ? { method: "POST", body, headers: { "X-MimicDet": "1" } } : {};
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function say(text) {
  byId("status").textContent = text;
}

function showError(error) {
  byId("error").textContent = error ? error.message : "";
  byId("error").hidden = !error;
}

// Told here, because a server that refuses an upload has to cut it off.
function isTooLarge(file, limit) {
  if (file.size <= limit) return false;
  showError(new Error(`${file.name || "The image"} is larger than ${limit / 2 ** 20} MB.`));
  return true;
}

// Models

const currentModel = () => state.models.find((model) => model.id === byId("model").value);

function fillModels(chosen) {
  const options = state.models.map((model) => {
    const precision = model.precision ? ` (${model.precision})` : "";
    return new Option(model.name + precision, model.id, false, model.id === chosen);
  });
  byId("model").replaceChildren(...options);
  byId("model").disabled = options.length === 0;
}

function modelChanged() {
  const model = currentModel();
  state.hidden.clear();
  if (!model) return;
  const score = byId("score");
  score.min = Math.floor(model.score_threshold * 100) / 100;
  const overlap = byId("overlap");
  overlap.max = model.nms_threshold;
  overlap.value = model.nms_threshold;
  byId("sampling-choice").hidden = !model.has_sampling;
  showValues();
  detect();
}

async function addModel(file) {
  if (!file) return;
  showError(null);
  if (isTooLarge(file, state.limits.model)) return;
  say(`Loading ${file.name}…`);
  try {
    const model = await call(`/api/models?name=${encodeURIComponent(file.name)}`, file);
    // The server keeps the newest uploads only.
    state.models = (await call("/api/models")).models;
    fillModels(model.id);
    say("Model loaded.");
    modelChanged();
  } catch (error) {
    showError(error);
    say("");
  }
}

// Images

function chooseImage(file) {
  if (!file) return;
  showError(null);
  if (isTooLarge(file, state.limits.image)) return;
  const picture = byId("picture");
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  picture.alt = file.name ? `The chosen image, ${file.name}` : "The chosen image";
  state.image = file;
  byId("frame").hidden = false;
  byId("drop").classList.add("small");
  byId("drop").querySelector("strong").textContent = "Choose another image";
  detect();
}

async function detect() {
  state.result = null;
  state.selected = null;
  render();
  if (!state.image || !currentModel()) {
    say(state.models.length ? "Choose an image." : "Add an ONNX file to begin.");
    return;
  }
  const request = ++state.request;
  byId("frame").classList.add("busy");
  say("Detecting…");
  try {
    const result = await call(`/api/detect?model=${currentModel().id}`, state.image);
    if (request !== state.request) return;
    state.result = result;
    showError(null);
    say(`Done in ${result.seconds.toFixed(2)} s.`);
  } catch (error) {
    if (request !== state.request) return;
    showError(error);
    say("");
    if (!byId("picture").naturalWidth) byId("frame").hidden = true;
  }
  byId("frame").classList.remove("busy");
  render();
}

// What is shown of the detections

function overlapOf(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

function shownDetections() {
  if (!state.result) return [];
  const score = Number(byId("score").value);
  const overlap = Number(byId("overlap").value);
  const strict = overlap < currentModel().nms_threshold;
  const shown = [];
  for (const one of state.result.detections) {
    if (one.score < score || state.hidden.has(one.class)) continue;
    const covered = (other) =>
      other.class === one.class && overlapOf(other.box, one.box) > overlap;
    if (strict && shown.some(covered)) continue;
    shown.push(one);
    if (shown.length === Number(byId("limit").value)) break;
  }
  return shown;
}

function colorOf(number) {
  const hue = (216 + number * 222.492) % 360;
  // Hues from orange to cyan are too light for white text.
  return { color: `hsl(${hue} 75% 42%)`, text: hue > 25 && hue < 200 ? "#000" : "#fff" };
}

const nameOf = (number) => currentModel().class_names[number] ?? `class ${number}`;
const percent = (score) => `${Math.round(score * 100)}%`;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function swatch(number) {
  const element = make("span", "swatch");
  element.style.setProperty("--color", colorOf(number).color);
  return element;
}

function makeBox(one) {
  const { width, height } = state.result;
  const [x0, y0, x1, y1] = one.box;
  const box = make("div", "box");
  box.classList.toggle("at-top", y0 < height * 0.05);
  box.classList.toggle("at-right", x0 > width * 0.75);
  box.classList.toggle("selected", one === state.selected);
  box.style.left = `${(100 * x0) / width}%`;
  box.style.top = `${(100 * y0) / height}%`;
  box.style.width = `${(100 * (x1 - x0)) / width}%`;
  box.style.height = `${(100 * (y1 - y0)) / height}%`;
  box.style.setProperty("--color", colorOf(one.class).color);
  box.style.setProperty("--on-color", colorOf(one.class).text);
  if (byId("labels").checked) {
    box.append(make("span", "", `${nameOf(one.class)} ${percent(one.score)}`));
  }
  box.addEventListener("click", () => select(one));
  return box;
}

function makeRow(one) {
  const button = make("button");
  button.type = "button";
  button.setAttribute("aria-pressed", String(one === state.selected));
  button.append(swatch(one.class), nameOf(one.class), make("span", "count", percent(one.score)));
  button.addEventListener("click", () => select(one));
  const row = make("li");
  row.append(button);
  return row;
}

function renderClasses() {
  const model = currentModel();
  const counts = new Map();
  for (const one of state.result?.detections ?? []) {
    if (one.score >= Number(byId("score").value)) {
      counts.set(one.class, (counts.get(one.class) ?? 0) + 1);
    }
  }
  const rows = (model?.class_names ?? []).map((name, number) => {
    const label = make("label", "check");
    const box = make("input");
    box.type = "checkbox";
    box.checked = !state.hidden.has(number);
    box.dataset.class = number;
    label.append(box, swatch(number), name, make("span", "count", counts.get(number) ?? 0));
    return label;
  });
  byId("classes").replaceChildren(...rows);
}

// Rebuilding a list takes the focus away from what had it: give it back by position.
function keepFocus(list, rebuild) {
  const focusable = () => [...list.querySelectorAll("button, input")];
  const index = focusable().indexOf(document.activeElement);
  rebuild();
  if (index >= 0) focusable()[Math.min(index, focusable().length - 1)]?.focus();
}

function render() {
  const shown = shownDetections();
  if (!shown.includes(state.selected)) state.selected = null;
  const boxes = byId("boxes");
  boxes.classList.toggle("selecting", state.selected !== null);
  boxes.replaceChildren(...shown.map(makeBox).reverse());
  keepFocus(byId("objects"), () => byId("objects").replaceChildren(...shown.map(makeRow)));
  keepFocus(byId("classes"), renderClasses);
  byId("download").disabled = !state.result;
  byId("summary").hidden = !state.result;
  if (state.result) {
    const { width, height, detections } = state.result;
    byId("summary").textContent =
      `${shown.length} of ${detections.length} detections shown, ${width} × ${height} pixels`;
  }
  byId("sampling").replaceChildren();
  showSampling();
}

function select(one) {
  state.selected = one === state.selected ? null : one;
  render();
}

async function showSampling() {
  const one = state.selected;
  if (!one || !currentModel()?.has_sampling || !byId("sampling-on").checked) return;
  try {
    const query = `model=${currentModel().id}&box=${one.box.join(",")}`;
    const answer = await call(`/api/sampling?${query}`, state.image);
    if (one === state.selected) drawSampling(answer);
  } catch (error) {
    showError(error);
  }
}

function drawSampling({ points, anchor }) {
  const { width, height } = state.result;
  const svg = byId("sampling");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const add = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const radius = (5 * width) / Math.max(svg.clientWidth, 1);
  const parts = points.map(([cx, cy]) => add("circle", { cx, cy, r: radius }));
  if (anchor) {
    const [x, y, right, bottom] = anchor;
    parts.unshift(add("rect", { x, y, width: right - x, height: bottom - y }));
  }
  svg.replaceChildren(...parts);
}

function download() {
  const model = currentModel();
  const { width, height } = state.result;
  const name = state.image.name || "image";
  const content = {
    images: [{ id: 1, file_name: name, width, height }],
    categories: model.class_names.map((text, number) => ({ id: number + 1, name: text })),
    annotations: shownDetections().map(({ box: [x0, y0, x1, y1], score, class: number }) => ({
      image_id: 1,
      category_id: number + 1,
      bbox: [x0, y0, x1 - x0, y1 - y0].map((value) => Math.round(value * 100) / 100),
      score,
    })),
  };
  const link = make("a");
  const url = URL.createObjectURL(
    new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }),
  );
  link.href = url;
  link.download = `${name.replace(/\.[^.]*$/, "")}.json`;
  link.click();
  URL.revokeObjectURL(url);
}

// Controls

function showValues() {
  for (const id of ["score", "overlap", "limit"]) {
    const value = Number(byId(id).value);
    byId(`${id}-value`).textContent = id === "limit" ? value : value.toFixed(2);
  }
}

function setUp() {
  for (const id of ["score", "overlap", "limit"]) {
    byId(id).addEventListener("input", () => {
      showValues();
      render();
    });
  }
  for (const id of ["labels", "sampling-on"]) byId(id).addEventListener("change", render);
  byId("model").addEventListener("change", modelChanged);
  byId("classes").addEventListener("change", (event) => {
    const number = Number(event.target.dataset.class);
    if (event.target.checked) state.hidden.delete(number);
    else state.hidden.add(number);
    render();
  });
  byId("all-classes").addEventListener("click", () => {
    state.hidden.clear();
    render();
  });
  byId("no-classes").addEventListener("click", () => {
    state.hidden = new Set(currentModel()?.class_names.keys() ?? []);
    render();
  });
  byId("download").addEventListener("click", download);
  // The same file can be chosen twice in a row only if the input forgets it.
  const onFile = (id, take) =>
    byId(id).addEventListener("change", (event) => {
      take(event.target.files[0]);
      event.target.value = "";
    });
  onFile("image-file", chooseImage);
  onFile("model-file", addModel);
  setUpDropping();
}

function setUpDropping() {
  const take = (file) => (file?.name.endsWith(".onnx") ? addModel(file) : chooseImage(file));
  const mark = (on) => byId("drop").classList.toggle("over", on);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", () => mark(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(false);
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event.clipboardData.files[0]);
  });
}

async function start() {
  setUp();
  showValues();
  try {
    const answer = await call("/api/models");
    const models = answer.models;
    state.models = models;
    state.limits = { image: answer.max_image_bytes, model: answer.max_model_bytes };
    byId("upload").hidden = !answer.uploads;
    fillModels(models[0]?.id);
    modelChanged();
    if (!models.length) say("Add an ONNX file to begin.");
  } catch (error) {
    showError(error);
    say("");
  }
}

start();
