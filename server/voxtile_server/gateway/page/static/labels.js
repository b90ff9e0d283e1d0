// The structures of a mask: their colours, and their rows in the table. Knows nothing of the document.

// Told apart by most people with a colour deficiency, and from the greys of a scan.
const FIRST = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [213, 94, 0], [204, 121, 167], [0, 114, 178]];
const GOLDEN_ANGLE = 137.508;

export function colourOf(index) {
  return FIRST[index] ?? hue(((index - FIRST.length) * GOLDEN_ANGLE + 20) % 360, index % 2 ? 0.45 : 0.65);
}

function hue(degrees, lightness) {
  const chroma = (1 - Math.abs(2 * lightness - 1)) * 0.8;
  const part = (offset) => {
    const k = (offset + degrees / 30) % 12;
    return Math.round(255 * (lightness - (chroma / 2) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
}

// The structures that a mask can have, by value: [{value, name, colour}]. The background, 0, is none. Names of one
// value are joined as the report joins them.
export function structures(card) {
  const names = new Map();
  for (const label of card?.labels ?? []) names.set(label.value, [...(names.get(label.value) ?? []), label.name]);
  names.delete(0);
  return [...names].sort(([a], [b]) => a - b).map(([value, some], index) => ({ value, name: some.join(" + "), colour: colourOf(index) }));
}

// Each structure with what the report says of it: [{value, name, colour, ml, voxels}].
export function rows(card, report) {
  return structures(card).map((one) => ({ ...one, ...(report.labels[one.name] ?? { ml: 0, voxels: 0 }) }));
}

// The same as NiiVue wants colours: one a value, from 0.
export function colormap(card) {
  const all = [{ value: 0, name: "", colour: [0, 0, 0] }, ...structures(card)];
  return {
    R: all.map((one) => one.colour[0]),
    G: all.map((one) => one.colour[1]),
    B: all.map((one) => one.colour[2]),
    A: all.map((one) => (one.value === 0 ? 0 : 255)),
    I: all.map((one) => one.value),
    labels: all.map((one) => one.name),
  };
}
