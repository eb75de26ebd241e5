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
    try {
      localStorage.setItem("report-theme", document.documentElement.dataset.theme);
    } catch {
      // Storage may be forbidden for files: then the choice lasts as long as the page.
    }
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
