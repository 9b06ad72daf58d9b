"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("rmtjax-theme"); } catch { /* a page from a file may have no storage */ }
  const dark = () => (chosen ? chosen === "dark" : system.matches);
  const show = () => {
    if (chosen) root.dataset.theme = chosen;
    button.setAttribute("aria-pressed", String(dark()));
  };
  button.addEventListener("click", () => {
    chosen = dark() ? "light" : "dark";
    try { localStorage.setItem("rmtjax-theme", chosen); } catch { /* it lasts as long as the page */ }
    show();
  });
  system.addEventListener("change", show);
  button.hidden = false;
  show();

  // A chart's own attributes are those of a light page, so a copy of it is a file by itself.
  for (const one of document.querySelectorAll("button.svg")) {
    one.hidden = false;
    one.addEventListener("click", () => {
      const chart = one.dataset.svg ? document.getElementById(one.dataset.svg) : one.parentElement.querySelector("svg");
      const copy = chart.cloneNode(true);
      const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [k, v] of Object.entries({ width: "100%", height: "100%", fill: "#ffffff" })) paper.setAttribute(k, v);
      copy.querySelector("desc").after(paper);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
      link.download = one.dataset.name;
      document.body.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }

  // Only what can be scrolled is a stop for the keyboard.
  const fit = () => {
    for (const one of document.querySelectorAll(".scroll, .equation")) {
      if (one.scrollWidth > one.clientWidth + 1) one.tabIndex = 0;
      else one.removeAttribute("tabindex");
    }
  };
  addEventListener("resize", fit);
  document.addEventListener("toggle", fit, true);
  fit();

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const one of closed) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
})();
