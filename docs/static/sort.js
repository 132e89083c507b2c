// A click on a table's head sorts its rows by that column: numbers by value, the larger first; a second click turns it round.
addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.docutils")) {
    const heads = [...table.querySelectorAll("thead th")];
    if (table.tBodies.length !== 1 || table.tBodies[0].rows.length < 12) continue;
    for (const [column, head] of heads.entries()) {
      head.tabIndex = 0;
      head.setAttribute("role", "button");
      head.title = "sort by this column";
      const sort = () => {
        const rows = [...table.tBodies[0].rows];
        const text = row => row.cells[column].innerText.trim();
        const number = row => parseFloat(text(row));
        const numeric = rows.some(row => !isNaN(number(row))) && rows.every(row => text(row) === "-" || !isNaN(number(row)));
        const way = head.dataset.sorted === "first" ? -1 : 1;
        for (const other of heads) { delete other.dataset.sorted; other.removeAttribute("aria-sort"); }
        if (way === 1) head.dataset.sorted = "first";
        head.setAttribute("aria-sort", (way === 1) === numeric ? "descending" : "ascending");
        const value = row => isNaN(number(row)) ? -Infinity : number(row);
        rows.sort((a, b) => way * (numeric ? value(b) - value(a) : text(a).localeCompare(text(b))));
        table.tBodies[0].append(...rows);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
    }
  }
});
