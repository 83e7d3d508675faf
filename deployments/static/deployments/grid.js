// Deploy › Properties as a grid: arrow keys move, Enter edits in place, pasted cells go to a preview. Without it: the link of each key.
(() => {
  "use strict";

  const table = () => document.querySelector("table.property-grid");
  const rows = () => [...table().tBodies[0].rows];
  const cells = (row) => [...row.cells].slice(1);
  const column = (cell) => table().tHead.rows[0].cells[cell.cellIndex].dataset;
  const editable = (cell) => "editable" in column(cell);
  const cellOf = (element) => element?.closest?.("table.property-grid tbody td");

  const stand = (cell) => {
    table().querySelectorAll("td[tabindex='0']").forEach((other) => { other.tabIndex = -1; });
    cell.tabIndex = 0;
    cell.focus({ preventScroll: true });
    cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  const prepare = () => {
    if (!table()) return;
    const first = table().querySelector("tbody td");
    if (first && !table().querySelector("td[tabindex='0']")) first.tabIndex = 0;
    choose();
  };

  // ------------------------------------------------------------------------------------------------------------- moving
  const neighbour = (cell, down, right) => {
    const all = rows();
    const row = all[Math.min(all.length - 1, Math.max(0, all.indexOf(cell.parentElement) + down))];
    const list = cells(row);
    return list[Math.min(list.length - 1, Math.max(0, cell.cellIndex - 1 + right))];
  };
  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-15, 0], PageDown: [15, 0], Home: [0, -1e6], End: [0, 1e6] };

  document.addEventListener("keydown", (event) => {
    const cell = cellOf(event.target);
    if (!cell) return;
    if (event.target !== cell) {  // in its form
      if (event.key === "Escape") { event.preventDefault(); leave(cell); }
      if (event.key === "Enter" && event.target.tagName === "INPUT") {
        event.preventDefault();
        // What stands there unchanged is not made a value of its own by looking at it.
        event.target.value === event.target.defaultValue ? leave(cell) : act(cell, "set");
      }
      return;
    }
    if (opening?.cell === cell) { typed(event); return; }
    if (MOVES[event.key]) { event.preventDefault(); stand(neighbour(cell, ...MOVES[event.key])); return; }
    if (event.key === "Enter" || event.key === "F2") { event.preventDefault(); open(cell); return; }
    if (event.key === " ") { event.preventDefault(); cell.parentElement.querySelector("input[name=keys]")?.click(); return; }
    if (event.key.length === 1 && !event.ctrlKey && !event.metaKey && !event.altKey && editable(cell)) { event.preventDefault(); open(cell, event.key); }
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-cell-act]");
    const cell = cellOf(event.target);
    if (!cell) return;
    if (button) { button.dataset.cellAct === "leave" ? leave(cell) : act(cell, button.dataset.cellAct); return; }
    if (cell.querySelector(".cell-form")) return;
    document.activeElement === cell && cell.dataset.stood ? open(cell) : stand(cell);
    rows().forEach((row) => cells(row).forEach((other) => delete other.dataset.stood));
    cell.dataset.stood = "1";
  });
  document.addEventListener("dblclick", (event) => {
    const cell = cellOf(event.target);
    if (cell && !cell.querySelector(".cell-form")) open(cell);
  });

  // ------------------------------------------------------------------------------------------------------------ editing
  const before = new WeakMap();
  const address = (cell) => `/projects/${table().dataset.project}/${column(cell).environment}/properties/cell/`;

  // The form of a cell comes from the portal: what is typed meanwhile is kept, and replaces the value as in a spreadsheet.
  let opening = null;  // { cell, text, saves, left }
  const typed = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") opening.left = true;
    else if (event.key === "Enter") opening.saves = opening.text !== undefined;
    else if (event.key === "Backspace") opening.text = (opening.text ?? "").slice(0, -1);
    else if (event.key.length === 1) opening.text = (opening.text ?? "") + event.key;
    else return;
    event.preventDefault();
  };

  const open = async (cell, text) => {
    if (!editable(cell) || opening?.cell === cell) return;
    const mine = opening = { cell, text };
    rows().forEach((row) => cells(row).forEach((other) => { if (other !== cell && other.querySelector(".cell-form")) leave(other); }));
    before.set(cell, cell.innerHTML);
    const { machine, connector } = column(cell);
    const values = { key: cell.parentElement.dataset.key, machine, connector, by: table().dataset.by };
    cell.focus({ preventScroll: true });
    try {
      await htmx.ajax("GET", address(cell), { source: cell, target: cell, swap: "innerHTML", values });
    } finally {
      if (opening === mine) opening = null;
    }
    const field = cell.querySelector("[name=value]");
    if (!field) return;
    const gone = opening !== null || !cell.contains(document.activeElement);  // the person went elsewhere meanwhile
    if (mine.left || gone) { restore(cell); if (!gone) stand(cell); return; }
    cell.classList.add("is-open");
    field.focus();
    if (mine.text === undefined) { field.select?.(); return; }
    field.value = mine.text;
    if (mine.saves) act(cell, "set");
  };
  const restore = (cell) => {
    if (before.has(cell)) cell.innerHTML = before.get(cell);
    cell.classList.remove("is-open");
  };
  const leave = (cell) => {
    if (cell.querySelector(".cell-form[data-stale]")) { location.reload(); return; }  // somebody else changed it: show what it is now
    restore(cell);
    stand(cell);
  };
  const act = async (cell, what) => {
    const form = cell.querySelector(".cell-form");
    if (!form || form.dataset.asked) return;
    form.dataset.asked = what;  // once
    const values = Object.fromEntries([...form.querySelectorAll("[name]")].map((field) => [field.name, field.value]));
    values.act = what;
    const key = cell.parentElement.dataset.key, index = cell.cellIndex;
    try {
      await htmx.ajax("POST", address(cell), { source: cell, target: cell, swap: "innerHTML", values });
    } finally {
      delete form.dataset.asked;
    }
    const row = rows().find((other) => other.dataset.key === key);
    const now = row?.cells[index];
    if (!now) return;
    if (now.querySelector(".cell-form")) now.querySelector("[name=value]").focus();
    else { stand(now); prepare(); }
  };

  // ------------------------------------------------------------------------------------------------------ several at once
  const choose = () => {
    const button = table()?.querySelector(".grid-bulk button");
    if (!button) return;
    const count = table().querySelectorAll("input[name=keys]:checked").length;
    button.disabled = !count;
    button.lastChild.textContent = count ? `Set ${count} chosen…` : "Set chosen…";
  };
  document.addEventListener("change", (event) => { if (event.target.matches?.("table.property-grid input[name=keys]")) choose(); });

  // A spreadsheet puts a cell with a tab or several lines in quotation marks, its own doubled.
  const table_of = (text) => {
    const found = [[]], one = /"((?:[^"]|"")*)"(?=[\t\n]|$)|[^\t\n]*/y;
    for (let at = 0; ; at += 1) {
      one.lastIndex = at;
      const [whole, quoted] = one.exec(text);
      found.at(-1).push(quoted === undefined ? whole : quoted.replace(/""/g, '"'));
      at += whole.length;
      if (at >= text.length) return found;
      if (text[at] === "\n") found.push([]);
    }
  };

  document.addEventListener("paste", (event) => {
    const cell = cellOf(event.target);
    if (!cell || event.target !== cell || !editable(cell)) return;
    event.preventDefault();
    const text = event.clipboardData.getData("text/plain").replace(/\r\n?/g, "\n").replace(/\n$/, "");
    if (!/[\t\n]/.test(text)) { open(cell, text); return; }
    const scope = ({ machine, connector }) => (machine ? (connector ? `${machine}.${connector}` : machine) : "global");
    const quote = (value) => (/["\t\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
    const all = rows(), top = all.indexOf(cell.parentElement), lines = ["key\tenvironment\tscope\tvalue"];
    table_of(text).forEach((line, down) => line.forEach((value, right) => {
      const target = all[top + down]?.cells[cell.cellIndex + right];
      if (target && value !== "") lines.push([target.parentElement.dataset.key, column(target).environment, scope(column(target)), quote(value)].join("\t"));
    }));
    const form = Object.assign(document.createElement("form"), { method: "post", action: table().dataset.paste, hidden: true });
    const token = JSON.parse(document.body.getAttribute("hx-headers"))["x-csrftoken"];
    for (const [name, value] of Object.entries({ csrfmiddlewaretoken: token, text: lines.join("\n"), act: "preview" })) {
      form.append(Object.assign(document.createElement("textarea"), { name, value }));
    }
    document.body.append(form);
    form.submit();
  });

  document.addEventListener("htmx:afterSettle", prepare);
  prepare();
})();
