// Before the first paint: the theme the person chose (light, dark), or the system's (auto).
(() => {
  const media = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let chosen = "auto";
    try { chosen = localStorage.getItem("baton-theme") || "auto"; } catch { /* storage is closed: auto */ }
    const dark = chosen === "dark" || (chosen === "auto" && media.matches);
    document.documentElement.dataset.bsTheme = dark ? "dark" : "light";
    document.documentElement.dataset.themeChoice = chosen;
  };
  apply();
  media.addEventListener("change", apply);
  window.batonTheme = (chosen) => { try { localStorage.setItem("baton-theme", chosen); } catch { /* for this page only */ } apply(); };
})();
