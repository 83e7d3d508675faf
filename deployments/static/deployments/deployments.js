// Deploy › Plan: drag and keyboard. Deployment: the log follows. Activation: the person's own time zone. All of it works without, by forms.
(() => {
  "use strict";

  // --------------------------------------------------------------------------------------------------------------- plan
  let dragged = null;
  const steps = () => [...document.querySelectorAll(".plan-step[data-move]")];
  const move = (step, position, place = {}) => htmx.ajax("POST", step.dataset.move, { target: "#plan", swap: "outerHTML", values: { position, ...place } });
  const clear = () => steps().forEach((step) => step.classList.remove("is-dragged", "drop-before", "drop-after"));

  const place = (event) => {
    const step = event.target.closest?.(".plan-step[data-move]");
    if (!dragged || !step || step === dragged) return null;
    const box = step.getBoundingClientRect();
    return { step, after: event.clientY > box.top + box.height / 2 };
  };
  document.addEventListener("dragstart", (event) => {
    dragged = event.target.closest?.(".plan-step[data-move]") ?? null;
    if (!dragged) return;
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", dragged.dataset.step);
    dragged.classList.add("is-dragged");
  });
  document.addEventListener("dragover", (event) => {
    const at = place(event);
    if (!at) return;
    event.preventDefault();
    steps().forEach((step) => step.classList.remove("drop-before", "drop-after"));
    at.step.classList.add(at.after ? "drop-after" : "drop-before");
  });
  document.addEventListener("drop", (event) => {
    const at = place(event);
    if (!at) return;
    event.preventDefault();
    const from = Number(dragged.dataset.position);
    let to = Number(at.step.dataset.position) + (at.after ? 1 : 0);
    if (to > from) to -= 1;
    const { stage, lane } = at.step.dataset;
    if (to !== from || stage !== dragged.dataset.stage || lane !== dragged.dataset.lane) move(dragged, to, { stage, lane });
  });
  document.addEventListener("dragend", () => { clear(); dragged = null; });
  document.addEventListener("keydown", (event) => {
    const step = event.altKey && event.target.closest?.(".plan-step[data-move]");
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step || !by) return;
    event.preventDefault();
    const to = Number(step.dataset.position) + by;
    if (to < 1 || to > steps().length) return;
    const focused = document.activeElement.id || `${by < 0 ? "up" : "down"}-${step.dataset.step}`;
    move(step, to).then(() => {
      const again = document.getElementById(focused);
      (again && !again.disabled ? again : document.querySelector(`#step-${step.dataset.step} .step-acts a`))?.focus();
    });
  });

  // Only the pickers that the chosen kind of step needs.
  const pick = (root) => {
    const kind = root.querySelector?.("#id_kind");
    if (!kind || !document.querySelector(".step-picker")) return;
    document.querySelectorAll(".step-picker").forEach((picker) => { picker.hidden = !picker.dataset.shownWhen.split(" ").includes(kind.value); });
  };
  document.addEventListener("change", (event) => { if (event.target.id === "id_kind") pick(document); });

  // --------------------------------------------------------------------------------------------------------- activation
  // Who fills in a time means "at a time".
  document.addEventListener("input", (event) => {
    const part = event.target.closest?.("[data-picks]");
    if (part && event.target.type === "datetime-local") document.querySelector(part.dataset.picks).checked = true;
  });

  // ------------------------------------------------------------------------------------------------------------- compare
  document.addEventListener("click", (event) => {
    const swap = event.target.closest?.("[data-swap]");
    if (!swap) return;
    event.preventDefault();
    const [from, to] = swap.closest("form").querySelectorAll("select");
    [from.value, to.value] = [to.value, from.value];
    to.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // ---------------------------------------------------------------------------------------------------------------- log
  const follow = () => {
    const log = document.getElementById("log");
    if (log && document.getElementById("follow")?.checked) log.scrollTop = log.scrollHeight;
  };
  document.addEventListener("change", (event) => {
    if (event.target.id === "follow") follow();
    if (event.target.matches("[data-submits]")) event.target.form.requestSubmit();
  });
  // Who scrolls up wants to read; who scrolls down to the end wants to follow again.
  document.addEventListener("scroll", (event) => {
    if (event.target.id !== "log") return;
    const log = event.target;
    document.getElementById("follow").checked = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  }, true);

  const prepare = (root) => pick(root);
  document.addEventListener("htmx:afterSettle", () => { prepare(document); follow(); });
  prepare(document);
  follow();
})();
