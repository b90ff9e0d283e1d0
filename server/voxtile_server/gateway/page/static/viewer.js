// Shows a scan and its mask on a canvas with NiiVue. Knows nothing of the gateway's jobs.

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
    mask.setColormapLabel(colormap);
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
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser has no WebGL 2, which the viewer needs");
    const view = new library.Niivue({
      crosshairColor: [1, 1, 1, 0.6],
      crosshairWidth: 0.5,
      crosshairWidthUnit: "percent",
      dragAndDropEnabled: false, // files go the page's way
      fontColor: [1, 1, 1, 1],
      fontMinPx: 20,
      isRadiologicalConvention: this.#wanted.radiological,
      loadingText: "",
      logLevel: "silent",
      multiplanarPadPixels: 12,
      multiplanarLayout: library.MULTIPLANAR_TYPE.GRID,
      multiplanarShowRender: library.SHOW_RENDER.NEVER, // it is slow without a GPU, and there is a view of its own
      show3Dcrosshair: true,
      showAllOrientationMarkers: true,
      showLegend: false,
      sliceType: library.SLICE_TYPE[this.#wanted.planes],
    });
    takeKeys(this.#canvas.parentElement, view);
    view.onLocationChange = (place) => this.#tell(place);
    await view.attachToCanvas(this.#canvas);
    this.#view = view;
    return view;
  }

  #tell(place) {
    const [scan, mask] = place.values;
    const millimetres = Array.from(place.mm).slice(0, 3).map((one) => one.toFixed(1)).join(", ");
    const label = mask ? `, ${this.#names.get(Math.round(mask.value)) || "no structure"}` : "";
    this.#told(`${millimetres} mm: ${Number(scan?.value ?? 0).toPrecision(4)}${label}`);
  }
}

const MOVES = {
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowDown: [0, -1, 0], ArrowUp: [0, 1, 0], PageDown: [0, 0, -1], PageUp: [0, 0, 1],
};

// The arrows move the crosshair. NiiVue's own keys do not come through: they change the view behind the page's back.
function takeKeys(element, view) {
  const take = (event) => {
    event.stopPropagation();
    if (!MOVES[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (event.type === "keydown") view.moveCrosshairInVox(...MOVES[event.key]);
  };
  for (const kind of ["keydown", "keyup"]) element.addEventListener(kind, take, { capture: true });
}

// Millimetres of the mask's voxel that is nearest to the middle of all; the middle of the grid of an empty one.
function inside(mask) {
  const extent = mask.hdr.dims.slice(1, 4);
  const [nx, ny] = extent;
  const voxelOf = (at) => [at % nx, Math.floor(at / nx) % ny, Math.floor(at / (nx * ny))];
  const sums = [0, 0, 0];
  let count = 0;
  forEachSet(mask.img, (at) => {
    voxelOf(at).forEach((place, axis) => (sums[axis] += place));
    count += 1;
  });
  const middle = count ? sums.map((sum) => sum / count) : extent.map((size) => Math.floor(size / 2));
  let best = { distance: count ? Infinity : 0, voxel: middle };
  forEachSet(mask.img, (at) => {
    const voxel = voxelOf(at);
    const distance = voxel.reduce((sum, place, axis) => sum + (place - middle[axis]) ** 2, 0);
    if (distance < best.distance) best = { distance, voxel };
  });
  return mask.hdr.affine.slice(0, 3).map((row) => best.voxel.reduce((sum, place, axis) => sum + row[axis] * place, row[3]));
}

function forEachSet(values, act) {
  for (let at = 0; at < values.length; at++) if (values[at]) act(at);
}

// NiiVue goes by the ending of a name, and a name may have any; the bytes tell.
async function image(file, options = {}) {
  const start = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  const name = start[0] === 0x1f && start[1] === 0x8b ? "image.nii.gz" : "image.nii";
  return library.NVImage.loadFromFile({ file: new File([file], name), name, ...options });
}
