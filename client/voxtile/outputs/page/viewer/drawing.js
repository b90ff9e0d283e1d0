// What every page that draws with NiiVue shares: its settings, its keys, and a place to look at. Knows no page.

// NiiVue's settings. library: NiiVue's own names; told: more settings of the page.
export function settings(library, told) {
  return {
    crosshairColor: [1, 1, 1, 0.6],
    crosshairWidth: 0.5,
    crosshairWidthUnit: "percent",
    dragAndDropEnabled: false, // files go the page's way
    fontColor: [1, 1, 1, 1],
    fontMinPx: 20,
    loadingText: "",
    logLevel: "silent",
    multiplanarPadPixels: 12,
    multiplanarLayout: library.MULTIPLANAR_TYPE.GRID,
    multiplanarShowRender: library.SHOW_RENDER.NEVER, // it is slow without a GPU, and there is a view of its own
    show3Dcrosshair: true,
    showAllOrientationMarkers: true,
    showLegend: false,
    ...told,
  };
}

export function hasWebgl() {
  return Boolean(document.createElement("canvas").getContext("webgl2"));
}

// A table of colours, one a value from 0, as NiiVue draws it rightly. NiiVue takes the lowest 2/256 of a table for what lies
// just above: with more than 64 colours the background would be tinted, and with more than 192 the first structures would
// have wrong colours. Values below 0, which no mask has, keep that part free.
export function guarded(colormap) {
  const below = -Math.ceil((Math.max(...colormap.I) + 1) / 64);
  const empty = { R: 0, G: 0, B: 0, A: 0, I: below, labels: "" };
  return Object.fromEntries(Object.entries(empty).map(([key, value]) => [key, [value, ...colormap[key]]]));
}

const MOVES = {
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowDown: [0, -1, 0], ArrowUp: [0, 1, 0], PageDown: [0, 0, -1], PageUp: [0, 0, 1],
};

// The arrows move the crosshair. NiiVue's own keys do not come through: they change the view behind the page's back.
export function takeKeys(element, view) {
  const take = (event) => {
    event.stopPropagation();
    if (!MOVES[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (event.type === "keydown") view.moveCrosshairInVox(...MOVES[event.key]);
  };
  for (const kind of ["keydown", "keyup"]) element.addEventListener(kind, take, { capture: true });
}

// Millimetres of the mask's voxel that is nearest to the middle of all that have `value`, or of all that have any where it
// is 0; the middle of the grid where none has any, and null where none has `value`.
export function inside(mask, value = 0) {
  const extent = mask.hdr.dims.slice(1, 4);
  const [nx, ny] = extent;
  const placeOf = [(at) => at % nx, (at) => Math.floor(at / nx) % ny, (at) => Math.floor(at / (nx * ny))];
  const [iOf, jOf, kOf] = placeOf;
  let count = 0, i = 0, j = 0, k = 0; // and no array for each voxel: there are millions
  forEachOf(mask.img, value, (at) => {
    count += 1;
    i += iOf(at);
    j += jOf(at);
    k += kOf(at);
  });
  if (value && !count) return null;
  const middle = count ? [i / count, j / count, k / count] : extent.map((size) => Math.floor(size / 2));
  let least = Infinity, best = -1;
  forEachOf(mask.img, value, (at) => {
    const distance = (iOf(at) - middle[0]) ** 2 + (jOf(at) - middle[1]) ** 2 + (kOf(at) - middle[2]) ** 2;
    if (distance < least) {
      least = distance;
      best = at;
    }
  });
  const voxel = best < 0 ? middle : placeOf.map((of) => of(best));
  return mask.hdr.affine.slice(0, 3).map((row) => voxel.reduce((sum, place, axis) => sum + row[axis] * place, row[3]));
}

function forEachOf(values, value, act) {
  for (let at = 0; at < values.length; at++) if (value ? values[at] === value : values[at]) act(at);
}

// Where the crosshair is, in words. place: as NiiVue tells it, of scan and mask; nameOf: the name of a value of the mask.
export function placeInWords(place, nameOf) {
  const [scan, mask] = place.values;
  const millimetres = Array.from(place.mm).slice(0, 3).map((one) => one.toFixed(1)).join(", ");
  const label = mask ? `, ${nameOf(Math.round(mask.value)) || "no structure"}` : "";
  return `${millimetres} mm: ${Number(scan?.value ?? 0).toPrecision(4)}${label}`;
}
