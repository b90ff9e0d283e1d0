// Shows what came out: the table of structures, the report's remarks, and the downloads. Knows nothing of the gateway.

import { rows } from "./labels.js";

const addresses = new Set();

// name: of the scan's file; the mask's name is made from it, and neither leaves the page.
export function showResult(at, card, report, mask, name) {
  for (const address of addresses) URL.revokeObjectURL(address);
  addresses.clear();
  const stem = name.replace(/(\.nii)?(\.gz)?$/i, "") || "scan";
  offer(at("download"), mask, `${stem}_mask.nii.gz`);
  offer(at("download-report"), new Blob([JSON.stringify(report, null, 2)], { type: "application/json" }), `${stem}_report.json`);
  at("labels").replaceChildren(...rows(card, report).map(row));
  const remarks = [...report.changes.map((one) => `Changed by the request: ${one}`), ...report.warnings.map((one) => `Warning: ${one}`)];
  at("remarks").replaceChildren(...remarks.map((text) => made("li", text)));
  at("result").hidden = false;
}

function offer(link, blob, name) {
  link.href = URL.createObjectURL(blob);
  link.download = name;
  addresses.add(link.href);
}

function row({ value, name, colour, ml, voxels }) {
  const swatch = made("span", "", "swatch");
  swatch.style.backgroundColor = `rgb(${colour.join(" ")})`;
  const head = made("th", "");
  head.scope = "row";
  head.append(swatch, name);
  const line = made("tr", "");
  line.append(head, ...[value, volume(ml), voxels].map((one) => made("td", one.toLocaleString("en"), "number")));
  return line;
}

// Three significant digits, but never fewer than the millilitres.
function volume(ml) {
  return ml < 100 ? Number(ml.toPrecision(3)) : Math.round(ml);
}

function made(kind, text, style = "") {
  return Object.assign(document.createElement(kind), { textContent: text, className: style });
}
