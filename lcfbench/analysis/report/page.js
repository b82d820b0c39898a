"use strict";
// Sorting, filtering and the theme. The page reads the same without it.

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if ("fixed" in head.dataset) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const numbers = head.classList.contains("n");
      const now = head.getAttribute("aria-sort");
      const down = now === "none" ? numbers : now === "ascending"; // numbers: largest first
      for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.v;
      const order = (a, b) => {
        const x = key(a), y = key(b);
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // unknown goes last, either way
        const both = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y;
        return down ? -both : both;
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}

for (const form of document.querySelectorAll("form.filter")) {
  const rows = [...document.getElementById(form.dataset.for).tBodies[0].rows];
  for (const name of ["task", "method"]) {
    for (const value of [...new Set(rows.map((row) => row.dataset[name]))].sort()) form.elements[name].add(new Option(value, value));
  }
  const apply = () => {
    const text = form.elements.text.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = ["task", "method"].every((name) => !form.elements[name].value || form.elements[name].value === row.dataset[name]);
      row.hidden = !(fits && row.textContent.toLowerCase().includes(text));
      shown += !row.hidden;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}

const theme = document.getElementById("theme");
const themes = [["", "as the system"], ["light", "light"], ["dark", "dark"]];
let chosen = 0;
theme.hidden = false;
theme.addEventListener("click", () => {
  chosen = (chosen + 1) % themes.length;
  document.documentElement.dataset.theme = themes[chosen][0];
  theme.textContent = `Theme: ${themes[chosen][1]}`;
});
