// Before the first paint, so that a chosen theme does not flash.
if (["#dark", "#light"].includes(location.hash)) document.documentElement.dataset.theme = location.hash.slice(1);
