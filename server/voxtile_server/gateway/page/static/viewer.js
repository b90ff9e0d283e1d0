// Shows a scan and its mask on a canvas with NiiVue. Knows nothing of the gateway's jobs.

import { guarded, hasWebgl, inside, placeInWords, settings, takeKeys } from "./drawing.js";

let library = null;

async function loaded() {
  try {
    await import("./niivue.js"); // it makes itself known as a global name
  } catch {
    const answer = await fetch(new URL("./niivue.js", import.meta.url)).catch(() => null);
    const told = answer && !answer.ok ? (await answer.json().catch(() => ({}))).error : "";
    throw new Error(told || "the viewer NiiVue could not be loaded");
  }
  return globalThis.niivue;
}

export class Viewer {
  #canvas;
  #told;
  #view = null;
  #wanted = { opacity: 0.6, planes: "MULTIPLANAR", radiological: false };
  #names = new Map();

  // told: called with a text that says where the crosshair is.
  constructor(canvas, told) {
    this.#canvas = canvas;
    this.#told = told;
  }

  // Shows a scan with its mask, in place of all that was shown. colormap: as labels.js makes it.
  async show(scanFile, maskFile, colormap) {
    this.clear();
    const view = await this.#opened();
    this.#told("The picture is being drawn.");
    const scan = await image(scanFile);
    const mask = await image(maskFile, { opacity: this.#wanted.opacity });
    mask.setColormapLabel(guarded(colormap));
    this.#names = new Map(colormap.I.map((value, index) => [value, colormap.labels[index]]));
    view.scene.crosshairPos = [0.5, 0.5, 0.5];
    view.volumes = [scan]; // both at once: each change of what is shown takes seconds without a GPU
    view.addVolume(mask);
    view.scene.crosshairPos = view.mm2frac(inside(mask));
    view.drawScene();
    view.createOnLocationChange();
  }

  clear() {
    this.#names = new Map();
    this.#told("");
    if (!this.#view) return;
    Object.assign(this.#view, { volumes: [], overlays: [], back: null });
    this.#view.drawScene();
  }

  opacity(share) {
    this.#wanted.opacity = share;
    if (this.#view?.volumes.length) this.#view.setOpacity(1, share);
  }

  // name: one of NiiVue's SLICE_TYPE.
  planes(name) {
    this.#wanted.planes = name;
    this.#view?.setSliceType(library.SLICE_TYPE[name]);
  }

  radiological(on) {
    this.#wanted.radiological = on;
    if (this.#view?.volumes.length) this.#view.setRadiologicalConvention(on);
    else if (this.#view) this.#view.opts.isRadiologicalConvention = on;
  }

  async #opened() {
    library ??= await loaded();
    if (this.#view) return this.#view;
    if (!hasWebgl()) throw new Error("this browser has no WebGL 2, which the viewer needs");
    const view = new library.Niivue(
      settings(library, {
        isRadiologicalConvention: this.#wanted.radiological,
        sliceType: library.SLICE_TYPE[this.#wanted.planes],
      }),
    );
    takeKeys(this.#canvas.parentElement, view);
    view.onLocationChange = (place) => this.#told(placeInWords(place, (value) => this.#names.get(value)));
    await view.attachToCanvas(this.#canvas);
    this.#view = view;
    return view;
  }
}

// NiiVue goes by the ending of a name, and a name may have any; the bytes tell.
async function image(file, options = {}) {
  const start = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  const name = start[0] === 0x1f && start[1] === 0x8b ? "image.nii.gz" : "image.nii";
  return library.NVImage.loadFromFile({ file: new File([file], name), name, ...options });
}
