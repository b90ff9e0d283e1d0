// The page about a batch: its table can be sorted.

import { sortable } from "./sorting.js";

sortable(document.getElementById("cases"));
