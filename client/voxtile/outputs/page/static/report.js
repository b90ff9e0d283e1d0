// The page about one mask: draws what it carries, and obeys its controls.

import { guarded, hasWebgl, inside, placeInWords, settings, takeKeys } from "./drawing.js";
import { sortable } from "./sorting.js";

const at = (name) => document.getElementById(name);
const told = JSON.parse(at("told").textContent);
const hidden = new Set();

sortable(at("structures"));
draw().catch((error) => refuse(error.message));

// Throws where this browser cannot draw.
async function draw() {
  if (!hasWebgl()) throw new Error("The picture needs WebGL 2, which this browser has not. The tables below are whole.");
  const { niivue: library } = globalThis;
  const view = new library.Niivue(
    settings(library, { isRadiologicalConvention: told.radiological, sliceType: library.SLICE_TYPE.MULTIPLANAR }),
  );
  view.onLocationChange = (place) => say(placeInWords(place, nameOf));
  await view.attachToCanvas(at("canvas"));
  const scan = await carried(library, "scan", {});
  const mask = await carried(library, "mask", { opacity: Number(at("opacity").value) });
  [scan.cal_min, scan.cal_max] = told.windows[0];
  mask.setColormapLabel(guarded(colours()));
  view.volumes = [scan]; // both at once: each change of what is shown takes seconds without a GPU
  view.addVolume(mask);
  view.scene.crosshairPos = view.mm2frac(inside(mask));
  view.drawScene();
  view.createOnLocationChange();
  takeKeys(at("canvas").parentElement, view);
  obey(library, view, scan, mask);
  document.documentElement.dataset.drawn = "yes";
}

// An image that the page carries; what it was decoded from is given free.
async function carried(library, name, options) {
  const element = at(name);
  const base64 = element.textContent;
  element.remove();
  return library.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, ...options });
}

function nameOf(number) {
  return told.structures[number - 1]?.name;
}

// The colours of the structures that are shown, as NiiVue wants them: one a number, from 0.
function colours() {
  const all = [{ number: 0, name: "", rgb: [0, 0, 0] }, ...told.structures];
  return {
    R: all.map((one) => one.rgb[0]),
    G: all.map((one) => one.rgb[1]),
    B: all.map((one) => one.rgb[2]),
    A: all.map((one) => (one.number === 0 || hidden.has(one.number) ? 0 : 255)),
    I: all.map((one) => one.number),
    labels: all.map((one) => one.name),
  };
}

function obey(library, view, scan, mask) {
  const on = (name, event, act) => at(name).addEventListener(event, act);
  at("radiological").checked = told.radiological;
  on("radiological", "change", (event) => view.setRadiologicalConvention(event.target.checked));
  on("planes", "change", (event) => {
    const all = event.target.value === "ALL";
    view.opts.multiplanarShowRender = library.SHOW_RENDER[all ? "ALWAYS" : "NEVER"];
    view.setSliceType(library.SLICE_TYPE[all ? "MULTIPLANAR" : event.target.value]);
  });
  on("opacity", "input", (event) => view.setOpacity(1, Number(event.target.value)));
  obeyWindow(on, (low, high) => {
    [scan.cal_min, scan.cal_max] = [low, high];
    view.updateGLVolume();
  });
  obeyStructures(on, {
    changed: () => {
      mask.setColormapLabel(guarded(colours()));
      view.updateGLVolume();
    },
    goTo: (number) => {
      const place = inside(mask, number);
      if (!place) return say(`${nameOf(number)} lies between the voxels that the picture shows.`);
      view.scene.crosshairPos = view.mm2frac(place);
      view.drawScene();
      view.createOnLocationChange();
      at("view").scrollIntoView({ block: "nearest" });
    },
  });
}

function obeyWindow(on, act) {
  const show = ([low, high]) => ([at("low").value, at("high").value] = [rounded(low), rounded(high)]);
  show(told.windows[0]);
  on("window", "change", (event) => {
    if (event.target.value === "") return;
    const chosen = told.windows[Number(event.target.value)];
    show(chosen);
    act(...chosen);
  });
  for (const name of ["low", "high"]) {
    on(name, "change", () => {
      const [low, high] = [at("low"), at("high")].map((one) => one.valueAsNumber);
      const usable = low < high; // false where one is no number
      at("high").setCustomValidity(usable ? "" : "White lies above black.");
      if (!usable) return at("high").reportValidity();
      at("window").value = "";
      return act(low, high);
    });
  }
}

function obeyStructures(on, { changed, goTo }) {
  const boxes = [...at("labels").querySelectorAll("input")];
  const note = () => {
    for (const box of boxes) hidden[box.checked ? "delete" : "add"](Number(box.dataset.number));
    changed();
  };
  const all = (shown) => () => {
    for (const box of boxes) box.checked = shown;
    note();
  };
  on("labels", "change", note);
  on("all", "click", all(true));
  on("none", "click", all(false));
  on("labels", "click", (event) => {
    if (event.target.matches("button")) goTo(Number(event.target.dataset.number));
  });
}

function rounded(value) {
  return Number(value.toPrecision(6));
}

function say(text) {
  at("where").textContent = text;
}

function refuse(text) {
  say("");
  at("view-error").textContent = text;
  at("view-error").hidden = false;
}
