// Makes a table sortable by its heads, with mouse and keyboard. Knows no table in particular.

// Heads with data-sort="number" or "text" get a button; cells have what counts in data-value, or their text.
export function sortable(table) {
  for (const head of table.tHead.rows[0].cells) {
    if (!head.dataset.sort) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, head));
  }
}

// The highest number comes first, and the first name; once more, and it is the other way round. Empty cells come last.
function sortBy(table, head) {
  const numeric = head.dataset.sort === "number";
  const first = numeric ? "descending" : "ascending";
  const way = head.ariaSort === first ? (numeric ? "ascending" : "descending") : first;
  for (const other of head.parentElement.cells) other.ariaSort = null;
  head.ariaSort = way;
  const sign = way === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => ({ row, key: keyOf(row.cells[head.cellIndex], numeric) }));
  keyed.sort(({ key: a }, { key: b }) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
  });
  body.append(...keyed.map(({ row }) => row));
}

function keyOf(cell, numeric) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  if (!numeric) return text;
  return text === "" || Number.isNaN(Number(text)) ? null : Number(text);
}
