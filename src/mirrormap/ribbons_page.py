"""What the page of ribbons looks like and does: its style sheet and its script."""

from __future__ import annotations

from typing import Final

__all__ = ["SCRIPT", "STYLE"]

STYLE: Final = """
svg, body { --text: #1f2937; --soft: #6b7280; --line: #d1d5db; --paper: #ffffff; --panel: #f3f4f6 }
@media (prefers-color-scheme: dark) {
  svg, body { --text: #e5e7eb; --soft: #9ca3af; --line: #374151; --paper: #111827; --panel: #1f2937 }
}
body { margin: 1.5rem auto; max-width: 1000px; padding: 0 1rem 8rem; font: 15px system-ui, sans-serif;
  color: var(--text); background: var(--paper) }
h1 { font-size: 1.35rem; font-weight: 600; overflow-wrap: anywhere }
dl { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 }
dl div { background: var(--panel); border-radius: 6px; padding: .5rem .9rem }
dt { color: var(--soft); font-size: .8rem }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums }
.note { color: var(--soft) }
svg { max-width: 100%; height: auto; background: var(--paper) }
svg text { fill: var(--text) } svg .head { font-weight: 600 }
svg .soft { fill: var(--soft); font-size: 11.5px }
.ribbon { fill-opacity: .26 } .box { fill-opacity: .8 }
.view, .pages { cursor: default; transition: opacity .1s }
.view:hover .ribbon { fill-opacity: .6 }
.on .view:not(.hit), .on .pages:not(.hit) { opacity: .16 } .on .hit .ribbon { fill-opacity: .5 }
#details { position: fixed; left: 0; right: 0; bottom: 0; margin: 0; padding: .7rem 1.5rem; min-height: 3.2em;
  background: var(--panel); color: var(--text); border-top: 1px solid var(--line); white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13px ui-monospace, monospace }
table { border-collapse: collapse; width: 100%; margin-top: 1.5rem }
th { text-align: left; font-weight: 600; color: var(--soft) }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line) }
td:first-child { overflow-wrap: anywhere }
td:not(:first-child), th:not(:first-child) { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums }
tr.hit td { background: var(--panel) }
""".strip()

SCRIPT: Final = """
const svg = document.querySelector("svg"), details = document.getElementById("details");
const idle = details.textContent;
function show(event) {
  const part = event.target.closest("[data-g]");
  document.querySelectorAll(".hit").forEach(other => other.classList.remove("hit"));
  svg.classList.toggle("on", part !== null);
  if (part === null) { details.textContent = idle; return; }
  document.querySelectorAll(`[data-g="${part.dataset.g}"]`).forEach(other => other.classList.add("hit"));
  const told = part.querySelector("title") ?? svg.querySelector(`.pages[data-g="${part.dataset.g}"] title`);
  details.textContent = told === null ? idle : told.textContent;
}
document.addEventListener("mouseover", show);
""".strip()
