// What the pages do in the browser. Everything works without it, but: live ages, local times, dialogs in place, right-click menus.
(() => {
  "use strict";

  // ------------------------------------------------------------------------------------------------------------- times
  // One way everywhere, as the server writes it: 2026-11-23 02:12, of 24 hours, in the browser's zone, which the foot of the page names.
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "this computer's time zone";
  const two = (number) => String(number).padStart(2, "0");
  const day = (moment) => `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
  const clock = (moment) => `${two(moment.getHours())}:${two(moment.getMinutes())}`;
  const exactly = (moment) => `${clock(moment)}:${two(moment.getSeconds())}`;
  const inLocalTime = (moment, exact) => {
    if (!exact) return `${day(moment)} ${clock(moment)}`;
    // Where seconds matter (changes of leadership, logs): today's are only a time.
    return moment.toDateString() === new Date().toDateString() ? exactly(moment) : `${day(moment)} ${exactly(moment)}`;
  };

  const inWords = (seconds) => {
    if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
    if (seconds < 2 * 86400) return `${Math.floor(seconds / 3600)} h`;
    return `${Math.floor(seconds / 86400)} days`;
  };

  // The browser's clock may be wrong: ages count from the server's clock, read from the newest response's Date header (or the page's load).
  let offset = 0;
  const now = () => Date.now() + offset;

  const localTimes = (root) => {
    root.querySelectorAll("time[data-local]").forEach((time) => {
      const moment = new Date(time.dateTime);
      time.textContent = inLocalTime(moment, time.dataset.local === "seconds");
      time.title = `${day(moment)} ${exactly(moment)} ${zone} · ${time.title}`;
      time.removeAttribute("data-local");
    });
    root.querySelectorAll("time[data-clock]").forEach((time) => { // a line of a log
      const moment = new Date(time.dateTime);
      time.textContent = exactly(moment);
      time.title = `${day(moment)} ${exactly(moment)} ${zone} · ${time.title}`;
      time.removeAttribute("data-clock");
    });
    root.querySelectorAll("[data-zone]").forEach((place) => { place.textContent = zone; });
    root.querySelectorAll("[data-unless-utc]").forEach((place) => { place.hidden = zone === "UTC"; });
  };

  const tick = () => {
    document.querySelectorAll("time[data-age]").forEach((time) => {
      if (!time.dateTime) return;
      const age = (now() - new Date(time.dateTime)) / 1000;
      time.textContent = `${inWords(age)} ago`; // of what has happened: a clock that is a little ahead makes no future of it
      if (time.dataset.staleAfter) time.classList.toggle("is-stale", age > Number(time.dataset.staleAfter));
    });
  };

  // ------------------------------------------------------------------------------------------------------- live updates
  const stale = () => document.getElementById("stale");
  let answeredAt = Date.now();

  // Nobody waits for ever: a portal that hangs, or a line that drops what is sent, is told like one that refuses.
  const UPDATE_MS = 6000, ACT_MS = 30000;
  const updates = (config) => config?.verb === "get" && !config.triggeringEvent?.isTrusted; // the page asks by itself
  document.addEventListener("htmx:configRequest", (event) => { event.detail.timeout = updates(event.detail) ? UPDATE_MS : ACT_MS; });

  const failed = (event) => {
    const badge = stale();
    if (!updates(event.detail.requestConfig)) { // of a person's own click nobody here knows whether it was done before the line broke
      say(event.detail.requestConfig?.verb === "get" ? "The portal did not answer. Try again."
        : "The portal did not answer. What was asked for may have been done: look before you repeat it.");
      return;
    }
    if (badge && badge.hidden) {
      badge.hidden = false;
      document.getElementById("stale-since").dateTime = new Date(answeredAt + offset).toISOString();
      document.body.classList.add("is-stale-page");
    }
  };

  document.addEventListener("htmx:afterRequest", (event) => {
    if (!event.detail.successful) return;
    const date = event.detail.xhr.getResponseHeader("Date");
    if (date && Math.abs(new Date(date) - now()) > 2000) offset = new Date(date) - Date.now();
    answeredAt = Date.now();
    const badge = stale();
    if (badge && !badge.hidden) {
      badge.hidden = true;
      document.body.classList.remove("is-stale-page");
    }
  });
  document.addEventListener("htmx:sendError", failed);
  document.addEventListener("htmx:timeout", failed);
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status === 403 || event.detail.xhr.status === 404) {
      say(event.detail.xhr.status === 403 ? "Your role does not include this." : "It is not there any more; load the page again.");
    } else failed(event);
  });
  // A session that ended while the page polled: the sign-in page must not be swapped into a part of it.
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.xhr.responseURL && new URL(event.detail.xhr.responseURL).pathname === "/login/" && location.pathname !== "/login/") {
      event.detail.shouldSwap = false;
      location.reload();
    }
  });

  const say = (text) => {
    const box = document.getElementById("messages");
    if (!box) return;
    document.querySelectorAll(".alert[data-said]").forEach((former) => former.remove());
    const alert = document.createElement("div");
    alert.className = "alert alert-danger alert-dismissible";
    alert.setAttribute("role", "alert");
    alert.dataset.said = "";
    alert.textContent = text;
    const close = document.createElement("button");
    close.type = "button";
    close.className = "btn-close";
    close.dataset.dismiss = "";
    close.setAttribute("aria-label", "Dismiss");
    alert.append(close);
    const front = document.querySelector("dialog[open] .dialog-body"); // what stands behind a dialog is not seen
    if (front) front.prepend(alert);
    else box.replaceChildren(alert);
  };

  // ------------------------------------------------------------------------------------------------- the keyboard's place
  // Parts that ask for themselves are put in anew every few seconds, and a deed loads its page again: neither takes the focus away.
  // A place is an id, or, of what has none, what it is and which of its like it was below the nearest id. Where it is not there any more
  // (Disable has become Enable), it is what stands there now in the same row.
  const FOCUSABLE = "a[href], button, summary, select, textarea, input:not([type=hidden])";
  const ROW = ".btn-list, tr, li, section";
  const kind = (element) => [element.localName, element.getAttribute("href"), element.name, element.textContent.trim()].join(" ");
  const alike = (root, wanted) => [...root.querySelectorAll(FOCUSABLE)].filter((element) => kind(element) === wanted).reverse();
  const placeOf = (element) => {
    const root = element.parentElement?.closest("[id]") ?? document.body;
    const row = [...(element.closest(ROW)?.querySelectorAll(FOCUSABLE) ?? [])];
    return {
      id: element.id, root: root.id, kind: kind(element), nth: alike(root, kind(element)).indexOf(element), // counted from the end: what is new comes first
      first: row[0]?.id, at: row.indexOf(element),
    };
  };
  const at = (place) => {
    if (place.id && document.getElementById(place.id)) return document.getElementById(place.id);
    if (!place.id) return alike(document.getElementById(place.root) ?? document.body, place.kind)[place.nth];
    return place.first ? document.getElementById(place.first)?.closest(ROW)?.querySelectorAll(FOCUSABLE)[place.at] : null;
  };
  let byKeyboard = false; // what the person used last
  document.addEventListener("keydown", () => { byKeyboard = true; }, true);
  document.addEventListener("pointerdown", () => { byKeyboard = false; }, true);
  const isNowhere = () => [null, document.body].includes(document.activeElement) || Boolean(document.activeElement.closest("dialog:not([open])"));

  let swapped = null; // where the focus was in the part that is put in anew
  document.addEventListener("htmx:beforeSwap", (event) => {
    const focused = document.activeElement;
    const byItself = event.detail.requestConfig?.triggeringEvent === undefined; // what a person asked for says itself where the focus goes
    swapped = byItself && focused !== event.detail.target && event.detail.target.contains?.(focused) ? placeOf(focused) : null;
  });
  document.addEventListener("htmx:afterSwap", () => { if (swapped && isNowhere()) at(swapped)?.focus({ preventScroll: true }); });

  // Space presses a button, also one that is a link.
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || !event.target.matches?.("a[role=button]")) return;
    event.preventDefault();
    event.target.click();
  });

  // ------------------------------------------------------------------------------------------------------------ dialogs
  const dialog = () => document.getElementById("dialog");
  const DONE = "baton-done-from"; // where the deed began whose page is loading

  let opener = null;
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.detail.target.id !== "dialog" || dialog().open) return;
    opener = placeOf(event.detail.elt.closest("details.menu")?.querySelector("summary") ?? event.detail.elt);
  });
  document.addEventListener("submit", () => {
    if (dialog()?.open && opener && byKeyboard) sessionStorage.setItem(DONE, JSON.stringify({ path: location.pathname, place: opener }));
  });
  const goOn = () => {
    const done = JSON.parse(sessionStorage.getItem(DONE) ?? "null");
    sessionStorage.removeItem(DONE);
    if (done?.path === location.pathname) at(done.place)?.focus();
  };
  dialog()?.addEventListener("close", () => {
    sessionStorage.removeItem(DONE);
    if (opener && isNowhere()) at(opener)?.focus();
  });

  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target.id !== "dialog") return;
    if (!dialog().open) dialog().showModal();
    const field = dialog().querySelector("[autofocus], .is-invalid, input:not([type=hidden]), select, textarea");
    (field ?? dialog().querySelector(".dialog-footer a, .dialog-footer button"))?.focus(); // without a field: Cancel, and the deed is the next
    prepare(dialog());
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-close-dialog]") && dialog().open) {
      event.preventDefault();
      dialog().close();
    }
    const dismiss = event.target.closest("[data-dismiss]");
    if (dismiss) dismiss.closest(".alert").remove();
  });

  // What was typed is not lost by leaving the page unasked.
  const typed = new Set();
  document.addEventListener("input", (event) => { if (event.target.form?.dataset.guarded !== undefined) typed.add(event.target.form); });
  document.addEventListener("submit", (event) => typed.delete(event.target));
  document.addEventListener("click", (event) => { if (event.target.closest("[data-guarded] .dialog-footer a")) typed.clear(); });
  addEventListener("beforeunload", (event) => { if ([...typed].some((form) => form.isConnected)) event.preventDefault(); });

  // ------------------------------------------------------------------------- menus: kebab button and right-click open the same
  // <details class="menu" id="menu-x"> … </details>, and data-context-menu="#menu-x" on the element that is right-clicked.
  const menus = () => document.querySelectorAll("details.menu[open]");
  const closeMenus = (except) => menus().forEach((menu) => { if (menu !== except) menu.open = false; });

  const placeAt = (menu, x, y) => {
    const list = menu.querySelector(".menu-list");
    list.classList.add("at-pointer");
    const { width, height } = list.getBoundingClientRect();
    list.style.left = `${Math.max(4, Math.min(x, innerWidth - width - 4))}px`;
    list.style.top = `${Math.max(4, Math.min(y, innerHeight - height - 4))}px`;
  };

  document.addEventListener("toggle", (event) => {
    const menu = event.target;
    if (!menu.matches?.("details.menu")) return;
    const list = menu.querySelector(".menu-list");
    if (menu.open) {
      closeMenus(menu);
      if (!list.classList.contains("at-pointer")) {
        list.classList.toggle("opens-left", list.getBoundingClientRect().right > innerWidth - 4);
        list.classList.toggle("opens-up", list.getBoundingClientRect().bottom > innerHeight - 4 && menu.getBoundingClientRect().top > 240);
      }
    } else {
      list.classList.remove("at-pointer", "opens-left", "opens-up");
      list.removeAttribute("style");
    }
  }, true);

  document.addEventListener("contextmenu", (event) => {
    const owner = event.target.closest("[data-context-menu]");
    if (!owner || event.target.closest("input, textarea, select") || event.shiftKey) return;  // Shift keeps the browser's own menu
    const menu = document.querySelector(owner.dataset.contextMenu);
    if (!menu) return;
    event.preventDefault();
    closeMenus(menu);
    menu.open = true;
    // From the keyboard (the menu key) there is no pointer: the menu opens at its button.
    if (event.clientX || event.clientY) placeAt(menu, event.clientX, event.clientY);
    menu.querySelector(".menu-item:not([disabled])")?.focus();
  });

  document.addEventListener("click", (event) => {
    const inside = event.target.closest("details.menu[open]");
    closeMenus(inside && !event.target.closest("a.menu-item, button.menu-item") ? inside : null);
  });

  document.addEventListener("keydown", (event) => {
    const menu = event.target.closest?.("details.menu[open]");
    if (!menu) return;
    const items = [...menu.querySelectorAll(".menu-item:not([disabled])")];
    const at = items.indexOf(document.activeElement);
    const go = { ArrowDown: at + 1, ArrowUp: at < 0 ? items.length - 1 : at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (go !== undefined && items.length) {
      event.preventDefault();
      items[(go + items.length) % items.length].focus();
    } else if (event.key === "Escape") {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });

  // ------------------------------------------------------------------------------------------------- confirm by typing
  // <input data-confirm-name="production"> in a form keeps its submit buttons disabled until exactly that was typed.
  const confirmable = (input) => {
    const ready = input.value.trim() === input.dataset.confirmName;
    input.form?.querySelectorAll("button[type=submit], input[type=submit]").forEach((button) => { button.disabled = !ready; });
  };
  document.addEventListener("input", (event) => { if (event.target.matches("[data-confirm-name]")) confirmable(event.target); });

  // ------------------------------------------------------------------------------------------------------ small switches
  document.addEventListener("click", (event) => {
    const theme = event.target.closest("[data-theme]");
    if (theme) { window.batonTheme(theme.dataset.theme); markTheme(); }
    const toggle = event.target.closest("[data-toggle-sidebar]");
    if (toggle) {
      const open = document.body.classList.toggle("sidebar-open");
      document.querySelector("button[data-toggle-sidebar]")?.setAttribute("aria-expanded", String(open));
      if (open) document.querySelector("#sidebar a")?.focus();
    }
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      const text = document.querySelector(copy.dataset.copy).innerText.trim();
      navigator.clipboard?.writeText(text).then(() => {
        const before = copy.innerHTML;
        copy.textContent = "Copied";
        setTimeout(() => { copy.innerHTML = before; }, 1500);
      });
    }
  });
  document.addEventListener("keydown", (event) => {
    // "/" goes to the search, as elsewhere on the web; not while typing.
    const typing = event.target.closest?.("input, textarea, select, dialog[open], [contenteditable], [role=grid] td");
    const search = document.querySelector("[data-search]");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && search?.offsetParent) {
      event.preventDefault();
      search.focus();
    }
    if (event.key === "Escape" && document.body.classList.contains("sidebar-open")) {
      document.body.classList.remove("sidebar-open");
      document.querySelector("button[data-toggle-sidebar]")?.focus();
    }
  });
  // data-shows="#id" (or several): a checkbox or an option that shows or hides other fields; [data-shown-when="value"] inside them.
  const shows = (control) => {
    document.querySelectorAll(control.dataset.shows).forEach((part) => {
      const wanted = part.dataset.shownWhen;
      const on = control.type === "checkbox" ? control.checked : wanted === undefined ? Boolean(control.value) : wanted.split(" ").includes(control.value);
      part.hidden = !on;
      part.querySelectorAll("input, select, textarea").forEach((field) => { field.disabled = !on; });
    });
  };
  document.addEventListener("change", (event) => { if (event.target.matches("[data-shows]")) shows(event.target); });

  const markTheme = () => {
    document.querySelectorAll("[data-theme]").forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.theme === document.documentElement.dataset.themeChoice));
    });
  };

  const prepare = (root) => {
    localTimes(root);
    root.querySelectorAll("[data-confirm-name]").forEach(confirmable);
    root.querySelectorAll("[data-shows]").forEach(shows);
  };

  // An open menu must survive the polling of the part it stands in.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const open = event.detail.target.querySelector?.("details.menu[open], :focus[data-keep-focus]");
    if (open && event.detail.requestConfig?.triggeringEvent === undefined && event.detail.target.id !== "dialog") event.detail.shouldSwap = false;
  });
  document.addEventListener("htmx:afterSettle", (event) => {
    prepare(event.detail.elt);
    localTimes(document); // lines that were put beside that element
    tick();
  });

  prepare(document);
  goOn();
  markTheme();
  tick();
  setInterval(tick, 1000);
})();

// Drag and drop on Design › Architecture: a convenience over the menus and the form, which do the same.
(() => {
  "use strict";
  let dragged = null;
  const target = (event) => event.target.closest?.("[data-drop-machine]");
  document.addEventListener("dragstart", (event) => {
    dragged = event.target.closest?.("[data-drag-connector]");
    if (!dragged) return;
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", dragged.textContent.trim());
    dragged.classList.add("is-dragged");
  });
  document.addEventListener("dragend", () => {
    dragged?.classList.remove("is-dragged");
    document.querySelectorAll(".is-drop-target").forEach((box) => box.classList.remove("is-drop-target"));
    dragged = null;
  });
  document.addEventListener("dragover", (event) => {
    const box = dragged && target(event);
    if (!box) return;
    event.preventDefault();
    document.querySelectorAll(".is-drop-target").forEach((other) => other !== box && other.classList.remove("is-drop-target"));
    box.classList.add("is-drop-target");
  });
  document.addEventListener("drop", (event) => {
    const box = dragged && target(event);
    if (!box) return;
    event.preventDefault();
    const values = { connector: dragged.dataset.dragConnector, machine: box.dataset.dropMachine };
    if (dragged.dataset.dragOrigin) values.origin = dragged.dataset.dragOrigin;
    htmx.ajax("POST", document.getElementById("board").dataset.dropUrl, { target: "#board", source: "#board", values });
  });
})();
