// The theme, and the start. `window.reportReady` is a promise: kept once the curves are drawn and the cards stand.
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : systemIsDark.matches;
}

function showTheme() {
  document.getElementById("theme-name").textContent = isDark() ? "Dark" : "Light";
  document.dispatchEvent(new Event("themechange"));
}

function setUpTheme() {
  document.getElementById("theme-toggle").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    // Kept in the address: it outlives a reload, can be sent along, and needs no storage, which files may not have.
    history.replaceState(null, "", `#${document.documentElement.dataset.theme}`);
    showTheme();
  });
  systemIsDark.addEventListener("change", showTheme);
  showTheme();
}

const page = JSON.parse(document.getElementById("report-data").textContent);
setUpTheme();
setUpGallery();
window.reportReady = new Promise((resolve, reject) => {
  // Plotly is large and deferred: text and videos are there before it.
  document.addEventListener("DOMContentLoaded", () => setUpHorizon().then(resolve, reject));
});
